"""Fake quantizers of MMRazor train in the engine; its own state tests them."""

import copy

import numpy as np
import pytest
import torch
import toy_runner
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from toy_models import ToyNet, randomize_norms
from toy_runner import differences, make_config, state_of, train

import mmquant_jacinto  # noqa: F401 - lets MMRazor be imported
from mmquant_jacinto import QuantizeError, QuantTestModule, QuantTrainModule

pytest.importorskip('mmrazor.models', reason='MMRazor is not installed')

LEARNABLE = dict(type='mmrazor.LearnableFakeQuantize')
WEIGHT = dict(fake_quant=LEARNABLE, observer=dict(type='mmrazor.LSQPerChannelObserver'))
ACTIVATION = dict(fake_quant=LEARNABLE, observer=dict(type='mmrazor.LSQObserver'))
BOTH = dict(target='onnxruntime', weight=WEIGHT, activation=ACTIVATION)


def trained(net, images, steps=2, frozen=True, **quantize):
    wrapper = QuantTrainModule(net, images, **{**BOTH, **quantize})
    wrapper.train()
    if frozen:
        for module in wrapper.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        wrapper(images).square().sum().backward()
        optimizer.step()
    return wrapper


def scales(wrapper, kind):
    part = getattr(wrapper.quantization.fake_quants, kind)
    return {name: part.quantizers[index] for name, index in part.index.items()}


@pytest.mark.parametrize(
    'target, bits',
    [
        *(('onnxruntime', bits) for bits in (4, 8, 16)),
        *(('tensorrt', bits) for bits in (4, 8)),
        *(('tidl', bits) for bits in (4, 8)),
    ],
)
def test_the_integers_are_those_of_the_learned_scales(toy_net, images, bits, target):
    wrapper = trained(toy_net, images, bits=bits, target=target)
    with torch.no_grad():
        simulated = wrapper(images)
    wrapper.eval()
    with torch.no_grad():
        tested = wrapper(images)
    activations = wrapper.quantization.activations
    widths = {spec.name: spec.format.bits for spec in activations.specs}
    for name, module in scales(wrapper, 'activation').items():
        grid = activations.host_grid(name)
        assert grid.scale == pytest.approx(module.scale.item(), rel=1e-6)
        lowest = module.quant_min - round(module.zero_point.item())
        # Below 8 bits the input, the edges and the outputs keep 8.
        width = widths[name]
        assert width in (bits, 8)
        assert (grid.low, grid.high) == (lowest, lowest + 2**width - 1)
    modules = scales(wrapper, 'weight').values()
    steps = torch.cat([module.scale.detach() for module in modules])
    assert torch.equal(wrapper.quantization.weight_scale, steps)
    # Biases are integers only in the test, which may move a rounding per layer.
    step = activations.host_grid('fc/linear').scale
    assert (tested - simulated).abs().max() <= 3.01 * step


def test_weights_are_on_the_grid_of_the_formula():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    images = torch.randn(2, 3, 8, 8)
    wrapper = trained(net, images, steps=1, bits=4)
    module = scales(wrapper, 'weight')['0']
    scale = module.scale.detach().numpy().astype(np.float64)
    weight = net[0].weight.detach().numpy().astype(np.float64)
    expected = np.clip(np.rint(weight / scale[:, None, None, None]), -7, 7)
    wrapper.eval()
    found = wrapper.quantization.executor.behaviour
    with torch.no_grad():
        wrapper(images)
        integers = found.integer_weight('0').numpy()
    np.testing.assert_array_equal(integers, expected)


def test_first_scales_and_gradients_are_those_of_lsq():
    """arXiv 1902.08153: 2 * mean |v| / sqrt(q_max), and equation 3."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
    images = torch.randn(2, 3, 8, 8)
    wrapper = QuantTrainModule(net, images, bits=4, target='onnxruntime', weight=WEIGHT)
    part = wrapper.quantization.fake_quants.weight
    rows = torch.randn(4, 30, requires_grad=True)
    upstream = torch.randn(4, 30)
    part.quantize('0', rows).backward(upstream)

    value, grad = rows.detach().double().numpy(), upstream.double().numpy()
    scale = 2 * np.abs(value).mean(1, keepdims=True) / np.sqrt(7)
    module = part.quantizers[0]
    np.testing.assert_allclose(module.scale.detach().numpy(), scale[:, 0], rtol=1e-5)
    steps = value / scale
    inside = np.abs(np.rint(steps)) <= 7
    factor = np.where(inside, np.rint(steps) - steps, 7 * np.sign(steps))
    expected = (grad * factor).sum(1) / np.sqrt(value.size * 7)
    found = module.scale.grad.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rows.grad.numpy(), grad * inside, rtol=1e-6)


def test_live_normalization_is_part_of_the_weight(toy_net, images):
    wrapper = trained(toy_net, images, frozen=False, steps=3, bits=8)
    weight = scales(wrapper, 'weight')['stem']
    assert weight.scale.shape == (8,)
    folded = wrapper.quantization.layers['stem'].folded()[0]
    reach = folded.detach().flatten(1).abs().amax(1) / weight.scale.detach()
    # The scale is of the size of the folded weight's, some percent of 127 steps.
    assert (reach > 5).all() and (reach < 500).all()


def test_the_checkpoint_is_tested_without_them(toy_net, images):
    wrapper = trained(toy_net, images, bits=4).eval()
    state = wrapper.module.state_dict()
    test = QuantTestModule(randomize_norms(ToyNet())).eval()
    test.module.load_state_dict(state)
    assert test.quantization.fake_quants is None
    with torch.no_grad():
        assert torch.equal(test(images), wrapper(images))


def test_one_kind_alone(toy_net, images):
    wrapper = trained(toy_net, images, weight=None)
    assert wrapper.quantization.fake_quants.weight is None
    assert not wrapper.quantization.weight_scale.any()
    with torch.no_grad():
        wrapper.eval()(images)


def test_torchs_own_follow_the_ranges(toy_net, images):
    theirs = dict(
        fake_quant=dict(type='mmrazor.FakeQuantize'),
        observer=dict(type='mmrazor.MovingAverageMinMaxObserver'),
    )
    wrapper = trained(toy_net, images, activation=theirs, weight=None)
    wrapper.eval()
    grid = wrapper.quantization.activations.host_grid('/input')
    reach = images.max() - images.min()
    assert grid.scale == pytest.approx(float(reach) / 255, rel=1e-4)


def test_what_no_average_can_follow_is_refused(tmp_path):
    theirs = dict(
        fake_quant=dict(type='mmrazor.FakeQuantize'),
        observer=dict(type='mmrazor.PerChannelMinMaxObserver'),
    )
    cfg = make_config(tmp_path, dict(mode='qat', target='onnxruntime', weight=theirs))
    cfg.train_cfg.max_epochs = 1
    train(cfg)
    cfg.custom_hooks = [dict(type='EMAHook')]
    with pytest.raises(QuantizeError, match=r'quantize\.weight\.observer.*EMAHook'):
        train(cfg)


def qat(work_dir, **changes):
    return make_config(work_dir, dict(BOTH, mode='qat', bits=4), **changes)


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    train(qat(tmp_path / 'whole'))
    cfg = qat(tmp_path / 'killed')
    cfg.custom_hooks = [dict(type='KillHook', after_epoch=3)]
    with pytest.raises(toy_runner.Killed):
        train(cfg)
    train(qat(tmp_path / 'killed', resume=True))
    whole, killed = (
        state_of(tmp_path / name / 'epoch_6.pth') for name in ('whole', 'killed')
    )
    names = [name for name in whole if name.endswith('.scale')]
    assert names and not differences(whole, killed)
    scores = toy_runner.val_scores(tmp_path / 'whole')[-1]
    cfg = qat(tmp_path / 'test', load_from=str(tmp_path / 'whole' / 'epoch_6.pth'))
    assert Runner.from_cfg(cfg).test() == scores


def test_their_learning_rate_is_their_own(tmp_path):
    cfg = qat(tmp_path)
    cfg.train_cfg.max_epochs = 1
    cfg.optim_wrapper.paramwise_cfg = dict(
        custom_keys={'quantization.fake_quants': dict(lr_mult=10.0)}
    )
    runner = train(cfg)
    parameters = dict(runner.model.module.named_parameters())
    groups = {
        id(p): group
        for group in runner.optim_wrapper.param_groups
        for p in group['params']
    }
    scale = parameters['quantization.fake_quants.weight.quantizers.0.scale']
    other = parameters['backbone.stem.weight']
    ratio = groups[id(scale)]['lr'] / groups[id(other)]['lr']
    assert ratio == pytest.approx(10.0)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(target='jacinto'), r'quantize\.weight\.fake_quant learns any scale'),
        (dict(learned_scale=True), r'both learn scales'),
        (dict(mode='ptq'), r"quantize\.mode='ptq' does not train"),
        (dict(weight=dict(fake_quant=LEARNABLE)), r'quantize\.weight has no observer'),
        (
            dict(weight=dict(WEIGHT, fake_quant=dict(LEARNABLE, quant_max=3))),
            r'quantize\.weight\.fake_quant\.quant_max=3 follows from',
        ),
        (
            dict(weight=dict(WEIGHT, fake_quant='LSQ')),
            r"quantize\.weight\.fake_quant='LSQ' is not a dict with a type",
        ),
        (
            dict(weight=dict(WEIGHT, fake_quant=dict(type='mmrazor.Learnable'))),
            r"fake_quant\.type='mmrazor\.Learnable' is in no registry",
        ),
        (
            dict(weight=dict(WEIGHT, fake_quant=dict(LEARNABLE, nonsense=3))),
            r'cannot be built: .*nonsense',
        ),
        (dict(activation=WEIGHT), r'is for one scale per channel'),
    ],
)
def test_bad_settings_are_refused(toy_net, images, changes, message):
    settings = copy.deepcopy({**BOTH, **changes})
    with pytest.raises(QuantizeError, match=message):
        QuantTrainModule(toy_net, images, **settings)
