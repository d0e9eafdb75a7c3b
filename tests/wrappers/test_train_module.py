import copy
import warnings

import pytest
import torch
from torch import nn
from toy_models import Forward, ToyDetector, ToyNet, randomize_norms

from mmquant_jacinto import (
    MMDetQuantTestModule,
    QuantCalibrateModule,
    Quantization,
    QuantizeConfig,
    QuantizeError,
    QuantTestModule,
    QuantTrainModule,
    unquantize_model,
)
from mmquant_jacinto.wrappers import mmdet_modules as mmdet_wrappers


def fresh_net():
    return randomize_norms(ToyNet())


def train(model, images, steps=3):
    """Some steps of training; the weights move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return model


@pytest.fixture
def trained(images):
    return train(QuantTrainModule(fresh_net(), dummy_input=images), images)


def test_training_and_evaluation_from_plain_pytorch(images):
    torch.manual_seed(1)
    model = QuantTrainModule(fresh_net(), dummy_input=images)
    before = model.module.fc.weight.detach().clone()
    train(model, images)
    assert not torch.equal(model.module.fc.weight, before)
    assert model.quantization.activations.missing() == []
    out = model.eval()(images)
    assert out.shape == (2, 5) and out.isfinite().all()
    # On the grid of the output.
    steps = out / model.quantization.activations.host_grid('fc/linear').scale
    assert torch.equal(steps, steps.round())


def test_first_batch_is_float_and_the_second_quantized(images):
    net = fresh_net().eval()
    expected = net(images)
    model = QuantTrainModule(
        net, images, bits=4, constrain_weights=False, learned_scale=False
    ).train()
    net.eval()  # the same statistics as in `expected`
    # The weights are quantized from the start, the activations are not yet.
    first, second = model(images), model(images)
    assert not torch.equal(first, expected)
    assert not torch.equal(first, second)
    assert model.quantization.activations.grid('fc/linear') is not None


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('wrapper', [QuantTrainModule, QuantTestModule])
@pytest.mark.parametrize('prepared', [True, False])
def test_wrapping_keeps_the_mode(images, wrapper, training, prepared):
    model = wrapper(fresh_net().train(training), images if prepared else None)
    assert {module.training for module in model.modules()} == {training}


def test_unknown_keyword_is_refused(images):
    with pytest.raises(QuantizeError, match="quantize.bit .*did you mean 'bits'"):
        QuantTrainModule(fresh_net(), dummy_input=images, bit=8)


def test_config_can_be_given_whole(images):
    config = QuantizeConfig(bits=16)
    plan = QuantTrainModule(fresh_net(), images, config=config).plan
    assert {spec.format.bits for spec in plan.weights.values()} == {16}


def epochs(model, images, total):
    """What is frozen in each epoch: (statistics of BN, ranges)."""
    frozen = []
    for _ in range(total):
        model.train()
        mean = model.module.stem_norm.running_mean.clone()
        high = model.quantization.activations.high.clone()
        model(images * 2)
        frozen.append(
            (
                torch.equal(model.module.stem_norm.running_mean, mean),
                torch.equal(model.quantization.activations.high, high),
            )
        )
        model.eval()
        model(images)
    return frozen


def frozen_from(bn, ranges, total):
    return [(epoch >= bn, epoch >= ranges) for epoch in range(total)]


@pytest.mark.parametrize('total', [6, 7, 12])
def test_schedule_freezes_around_the_middle(images, total):
    model = QuantTrainModule(fresh_net(), images, total_epochs=total)
    assert epochs(model, images, total) == frozen_from(
        total // 2 - 1, total // 2 + 1, total
    )


def test_part_that_is_called_by_itself_is_a_pass_of_its_own(images):
    # As `model.extract_feat(x)` of a distiller does.
    model = QuantTrainModule(ToyDetector(), dummy_input=images)
    backbone = model.train().module.backbone
    quantizer = 'backbone.conv/conv2d'
    assert model.quantization.activations.grid(quantizer) is None
    backbone(images)
    grid = model.quantization.activations.grid(quantizer)
    out = backbone(images)[0]
    assert torch.equal(out / grid.scale, (out / grid.scale).round())
    with torch.no_grad():
        backbone.conv.weight.mul_(0.5)
        backbone.conv.bias.mul_(0.5)
    torch.testing.assert_close(
        backbone(images)[0], out / 2, rtol=0, atol=2 * grid.scale
    )


def test_schedule_counts_from_zero_for_a_model_in_eval_mode(images):
    # As a float model that was just evaluated is.
    model = QuantTrainModule(fresh_net().eval(), total_epochs=6)
    model.prepare(images)
    assert epochs(model, images, 6) == frozen_from(2, 4, 6)


@pytest.mark.parametrize('bn, ranges', [(1, 2), (0, 1), (3, False), (False, 2)])
def test_schedule_of_the_user(images, bn, ranges):
    model = QuantTrainModule(
        fresh_net(), images, total_epochs=4, freeze=dict(bn=bn, ranges=ranges)
    )
    never = 99
    assert epochs(model, images, 4) == frozen_from(
        never if bn is False else bn, never if ranges is False else ranges, 4
    )


def test_nothing_freezes_without_a_length(images):
    model = QuantTrainModule(fresh_net(), images)
    assert epochs(model, images, 5) == [(False, False)] * 5


def test_repeated_eval_is_one_epoch(images):
    model = QuantTrainModule(fresh_net(), images, total_epochs=8)
    for _ in range(3):
        model.train()
        model.train()
        model.eval()
        model.eval()
    assert model.epoch == 2


def test_state_dict_has_the_float_names(trained):
    float_names = set(ToyNet().state_dict())
    names = set(trained.module.state_dict())
    assert float_names < names
    assert all(name.startswith('quantization.') for name in names - float_names)
    assert all(
        type(value) is torch.Tensor for value in trained.module.state_dict().values()
    )


def test_float_checkpoint_loads_strictly(trained):
    state = fresh_net().state_dict()
    high = trained.quantization.activations.high.clone()
    trained.module.load_state_dict(state, strict=True)
    assert torch.equal(trained.module.conv.weight, state['conv.weight'])
    assert torch.equal(trained.quantization.activations.high, high)


def test_quantized_checkpoint_loads_into_the_float_model(trained):
    net = ToyNet()
    result = net.load_state_dict(trained.module.state_dict(), strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys
    assert all(key.startswith('quantization.') for key in result.unexpected_keys)
    assert torch.equal(net.conv.weight, trained.module.conv.weight)


@pytest.mark.parametrize(
    'quantize',
    [
        {},
        dict(
            target='onnxruntime', bits=dict(weight=4, output=16), overrides={'fc': 16}
        ),
    ],
)
def test_test_module_takes_its_plan_from_the_checkpoint(images, tmp_path, quantize):
    model = QuantTrainModule(fresh_net(), images, **quantize)
    train(model, images).eval()
    torch.save(model.module.state_dict(), tmp_path / 'qat.pth')
    tested = QuantTestModule(ToyNet())
    assert tested.plan is None
    tested.module.load_state_dict(torch.load(tmp_path / 'qat.pth'), strict=True)
    assert tested.plan == model.plan
    assert torch.equal(tested.eval()(images), model(images))


def test_calibrated_checkpoint_is_tested_bit_for_bit(images):
    calib = QuantCalibrateModule(fresh_net(), images).train()
    for _ in range(3):
        calib(images)
    tested = QuantTestModule(ToyNet())
    tested.module.load_state_dict(calib.module.state_dict())
    assert torch.equal(tested.eval()(images), calib.eval()(images))


def test_checkpoint_of_another_model_is_refused(trained):
    other = QuantTestModule(Forward(None, fc=nn.Linear(12, 5)))
    with pytest.raises(QuantizeError, match='another model'):
        other.module.load_state_dict(trained.module.state_dict(), strict=False)


@pytest.mark.parametrize('action', ['ignore', 'refuse', 'adopt'])
def test_checkpoint_with_another_plan(images, trained, action):
    model = QuantTrainModule(fresh_net(), images, bits=4)
    plan = model.plan
    model.quantization.on_other_plan = action
    if action == 'refuse':
        with pytest.raises(QuantizeError, match='bits=8.*bits=4'):
            model.module.load_state_dict(trained.module.state_dict())
        return
    model.module.load_state_dict(trained.module.state_dict())
    assert model.plan == (plan if action == 'ignore' else trained.plan)
    assert model.quantization.has_ranges == (action == 'adopt')
    assert torch.equal(model.module.conv.weight, trained.module.conv.weight)


def test_deepcopy_computes_the_same_and_is_independent(trained, images):
    twin = copy.deepcopy(trained)
    assert torch.equal(twin.eval()(images), trained.eval()(images))
    assert twin.quantization.root is twin.module
    before = trained(images)
    state = {name: value.clone() for name, value in trained.module.state_dict().items()}
    train(twin, images * 3)
    after = trained.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(trained(images), before)
    assert not torch.equal(twin.eval()(images), before)


def test_float_model_comes_back_bit_for_bit(images):
    net = fresh_net().eval()
    expected, names = net(images), list(net.state_dict())
    calib = QuantCalibrateModule(net, images).train()
    calib(images)
    assert unquantize_model(net) is net
    assert torch.equal(net(images), expected)
    assert list(net.state_dict()) == names
    assert Quantization.of(net) is None
    for module in net.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_failing_forward_leaves_the_model_usable(trained, images):
    before = torch.overrides._get_current_function_mode()
    expected = trained.eval()(images)
    with pytest.raises(RuntimeError):
        trained(images[:, :2])
    assert torch.equal(trained(images), expected)
    # No mode of the failed pass is left over: this is plain torch again.
    assert torch.overrides._get_current_function_mode() is before


def test_deprecated_plural_warns_and_is_the_class():
    with pytest.warns(DeprecationWarning, match='use MMDetQuantTestModule'):
        assert mmdet_wrappers.MMDetQuantTestModules is MMDetQuantTestModule
    with warnings.catch_warnings(), pytest.raises(AttributeError):
        warnings.simplefilter('error')
        mmdet_wrappers.MMDetQuantTestModuless  # noqa: B018


def test_calibration_returns_the_quantized_result(images):
    calib = QuantCalibrateModule(fresh_net(), dummy_input=images).train()
    out = calib(images)
    assert not out.requires_grad
    steps = out / calib.quantization.activations.host_grid('fc/linear').scale
    assert torch.equal(steps, steps.round())
    assert not any(module.training for module in calib.module.modules())


def test_calibration_has_no_training_step(images):
    calib = QuantCalibrateModule(fresh_net(), dummy_input=images)
    with pytest.raises(QuantizeError, match='CalibrationLoop'):
        calib.train_step({})


@pytest.mark.parametrize(
    'wrapper', [QuantTrainModule, QuantCalibrateModule, QuantTestModule]
)
@pytest.mark.parametrize('prepared', [True, False])
def test_evaluation_without_ranges_is_refused(images, wrapper, prepared):
    model = wrapper(fresh_net(), images if prepared else None).eval()
    with pytest.raises(QuantizeError, match='no quantization ranges.*mode=ptq'):
        model(images)


def test_model_of_mmengine_is_wrapped_whole(images):
    batch = dict(inputs=images)
    model = QuantTrainModule(ToyDetector(), dummy_input=batch).train()
    assert model.plan.regions == ('backbone', 'head')
    for _ in range(2):
        model(images)
    # Decoding is outside all regions, and runs in float.
    assert all(0 < out.min() and out.max() < 1 for out in model.eval()(images))


def test_other_than_image_tensors_may_be_given(images):
    net = Forward(lambda net, x, scale: net.conv(x) * scale, conv=nn.Conv2d(3, 4, 1))
    for dummy_input in ((images, 2.0), dict(x=images, scale=2.0)):
        model = QuantTestModule(copy.deepcopy(net), dummy_input=dummy_input)
        assert list(model.plan.weights) == ['conv']


def test_input_that_is_none_is_refused():
    with pytest.raises(QuantizeError, match='dummy_input is a str'):
        QuantTrainModule(fresh_net(), dummy_input='image.png')


def test_model_is_quantized_only_once(images):
    net = fresh_net()
    QuantTrainModule(net, images)
    with pytest.raises(QuantizeError, match='already'):
        Quantization(net)


def gradients(net, forward, images):
    net.zero_grad()
    forward(images).square().sum().backward()
    return {
        name: parameter.grad
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize('live', [True, False])
@pytest.mark.parametrize('fixed', [(), ('stem', 'norm')])
def test_same_parameters_get_gradients_as_in_float(images, live, fixed):
    net = fresh_net()
    for name in fixed:
        net.get_submodule(name).requires_grad_(False)
    expected = gradients(net.train(live), net, images)
    model = QuantTrainModule(net, images)
    for _ in range(2):  # before and after there are ranges
        model.train()
        for norm in (net.stem_norm, net.norm):
            norm.train(live)
        found = gradients(net, model, images)
        assert found.keys() == expected.keys()
        assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
@pytest.mark.parametrize('live', [True, False])
def test_gradients_are_those_of_float_where_quantization_is_fine(images, live, target):
    # 16 bits; with frozen statistics the normalization is folded, and its
    # parameters get their gradients through weight and bias.
    net = fresh_net()
    model = QuantTrainModule(
        copy.deepcopy(net), images, target=target, bits=16, observer='minmax'
    ).train()
    for module in (net, model.module):
        for norm in (module.stem_norm, module.norm):
            norm.train(live)
    with torch.no_grad():
        model(images)  # the ranges
        net(images)
    model.quantization.activations.observing = False
    # Room above the largest values, which would count as clipped.
    model.quantization.activations.high.mul_(1.01)
    model.quantization.activations.low.mul_(1.01)
    model.quantization.activations.refresh()
    found = gradients(model.module, model, images)
    expected = gradients(net, net, images)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if live and name == 'conv.bias':
            continue  # cancelled by the normalization: zero but for noise
        torch.testing.assert_close(
            found[name],
            gradient,
            rtol=1e-2,
            atol=1e-2 * gradient.abs().max().item(),
            msg=name,
        )


def test_learned_scales_start_from_the_first_batch(images):
    model = QuantTrainModule(fresh_net(), images, bits=4, target='onnxruntime').train()
    model.module.norm.eval()
    first = model(images)
    assert model.quantization.activations.missing() == []
    # It is quantized already, and modules are in the mode that they were in.
    steps = first / model.quantization.activations.host_grid('fc/linear').scale
    torch.testing.assert_close(steps, steps.round())
    assert not model.module.norm.training and model.module.stem_norm.training
