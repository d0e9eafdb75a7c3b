"""What a GPU computes, against what a CPU does, and that no step waits for it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kernel_samples import CLIPS, GRIDS, on_accelerator, sample
from torch import nn
from toy_models import Forward, ToyDetector, ToyNet, calibrated, randomize_norms

from mmquant_jacinto import QuantTrainModule
from mmquant_jacinto.execute.integer.exact_sums import exact_sums
from mmquant_jacinto.quantizers.kernels import native, triton_kernels
from mmquant_jacinto.quantizers.kernels.fake_quantize import fake_quantize
from mmquant_jacinto.quantizers.weights import (
    fold_layer,
    quantize_weight,
    straight_through,
)
from mmquant_jacinto.targets.grid import Grid

PLACES_TENSORS = True
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
HALF = [torch.float16, torch.bfloat16]
LAUNCHERS = [
    getattr(triton_kernels, name)
    for name in ('_put_on_grid', '_mask', '_fold_gradient')
    if triton_kernels.triton is not None
]


@pytest.fixture(params=['triton', 'triton, bound', 'torch'])
def kernels(request, monkeypatch):
    if request.param == 'triton, bound':
        # As by a Triton whose launchers are not known.
        for launcher in LAUNCHERS:
            monkeypatch.setattr(launcher, '_is_direct', False)
    if request.param == 'torch':
        monkeypatch.setattr(triton_kernels, 'triton', None)
    elif no_triton():
        pytest.skip('Triton is not installed')


@pytest.fixture
def fast_settings():
    """What trainings switch on: algorithms that do not add integers exactly."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark = cudnn.allow_tf32 = matmul.allow_tf32 = True
    yield
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def equal(x, y):
    """Bit for bit, but for the sign of zero; NaN equals NaN."""
    x, y = x.detach().cpu(), y.detach().cpu()
    return bool(((x == y) | (x.isnan() & y.isnan())).all())


def no_triton():
    return triton_kernels.triton is None


def placed(grid):
    return Grid(*(x.cuda() for x in on_accelerator(grid)[:3]), *grid[3:])


# Kernels


@pytest.mark.parametrize('layout', ['flat', 'channels_last', 'view'])
@pytest.mark.parametrize('in_place', [False, True])
@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('name', GRIDS)
def test_fake_quantization_is_that_of_a_cpu(name, clip, in_place, layout, kernels):
    grid = GRIDS[name]
    x = torch.from_numpy(sample(grid))[:2000].clone()
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    if layout != 'flat':
        x = x.view(2, 8, 25, 5)
    if layout == 'channels_last':
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == 'view':
        x = x.transpose(1, 3)
    grad = torch.randn(x.shape)
    results = []
    for device, placed_grid in (('cpu', grid), ('cuda', placed(grid))):
        leaf = x.detach().to(device).requires_grad_()
        out = fake_quantize(leaf * 1, placed_grid, clip, in_place)
        out.backward(grad.to(device))
        results.append((out, leaf.grad))
    assert equal(results[0][0], results[1][0])
    usable = x.isfinite()
    assert equal(results[0][1][usable], results[1][1].cpu()[usable])


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('name', GRIDS)
def test_half_precision_is_that_of_a_cpu(name, dtype, kernels):
    grid = GRIDS[name]
    x = torch.from_numpy(sample(grid)).to(dtype)
    results = []
    for device, placed_grid in (('cpu', grid), ('cuda', placed(grid))):
        leaf = x.detach().to(device).requires_grad_()
        out = fake_quantize(leaf, placed_grid, (0.0, None))
        out.backward(torch.ones_like(out))
        assert out.dtype == leaf.grad.dtype == dtype
        results.append((out, leaf.grad))
    assert equal(results[0][0], results[1][0])
    assert equal(results[0][1], results[1][1])


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('together', [False, True])
@pytest.mark.parametrize('frozen', [False, True])
def test_weights_and_their_gradients_are_those_of_a_cpu(
    frozen, together, layout, kernels
):
    results = []
    net = randomize_norms(
        nn.Sequential(nn.Conv2d(5, 70, 3, padding=1), nn.BatchNorm2d(70), nn.ReLU())
    )
    nn.init.normal_(net[0].weight)
    net.eval()
    calibrated(net, torch.randn(2, 5, 6, 6), 'train', target='onnxruntime')
    for device in ('cpu', 'cuda'):
        model = copy.deepcopy(net).to(device, memory_format=layout)
        quantization = model.quantization
        (layer,) = quantization.layers.values()
        model.train(not frozen)
        behaviour = quantization.executor.behaviour
        behaviour.begin()
        grids = behaviour.grids
        on_grid = grids.on_grid('0') if together else None
        assert not together or device == 'cpu' or on_grid is not None or no_triton()
        if frozen:
            weight, bias = fold_layer(layer, grids.folding('0'), on_grid)
        elif on_grid is not None:
            weight, bias = straight_through(layer.weight, on_grid), None
        else:
            step = layer.along_channels(grids.live_step('0'))
            weight = quantize_weight(layer.weight, step, layer.spec.format)
            bias = None
        torch.manual_seed(1)
        grad = torch.randn(weight.shape)
        model.zero_grad()
        weight.backward(grad.to(device))
        norm = model[1].weight.grad if frozen else None
        results.append((grids.all_steps, weight, bias, model[0].weight.grad, norm))
    for index, (host, device) in enumerate(zip(*results)):
        if host is None:
            continue
        if index == 4:  # sums of products, in another order
            torch.testing.assert_close(device.cpu(), host, rtol=1e-4, atol=1e-4)
        else:
            assert equal(host, device), index


def test_later_launches_do_not_ask_triton(monkeypatch):
    if no_triton():
        pytest.skip('Triton is not installed')
    grid, x = placed(GRIDS['unsigned']), torch.randn(4, 5, 16, device='cuda')

    def run(count):
        leaf = x[:count].clone().requires_grad_()
        out = fake_quantize(leaf * 1, grid, (0.0, None), True)
        out.square().sum().backward()
        return out, leaf.grad

    expected = run(4)
    assert all(launcher._is_direct for launcher in LAUNCHERS)
    for launcher in LAUNCHERS:
        monkeypatch.setattr(launcher, '_ask', None)
    assert all(map(equal, expected, run(4)))
    assert all(map(equal, [item[:3] for item in expected], run(3)))
    assert all(launcher._is_direct for launcher in LAUNCHERS)


def test_reach_of_weights_has_nan_in_it():
    if no_triton():
        pytest.skip('Triton is not installed')
    weights = [torch.randn(4, 30), torch.randn(7, 2500), torch.randn(6, 3, 3, 3)]
    weights[1][2, 2400] = torch.nan
    shapes = [(len(x), x[0].numel()) for x in weights]
    device = torch.device('cuda', 0)
    found = triton_kernels.Reach(shapes, device)([x.cuda() for x in weights])
    for ends, expected in zip(found, native.Reach(shapes)(weights)):
        assert equal(ends, expected)


# Integers


def wide_net(channels=256, groups=1):
    """Layers of the sizes for which cuDNN has algorithms of all kinds."""
    return Forward(
        lambda net, x: net.last(F.relu(net.first(x))),
        first=nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
        last=nn.Conv2d(channels, 64, 5, padding=2),
    )


NETS = {
    'toy': (lambda: randomize_norms(ToyNet()), (2, 3, 16, 16)),
    'detector': (ToyDetector, (2, 3, 32, 32)),
    'wide': (wide_net, (2, 256, 24, 24)),
    'depthwise': (lambda: wide_net(groups=256), (2, 256, 24, 24)),
    'averages': (
        lambda: Forward(
            lambda net, x: F.avg_pool2d(net.conv(x), 3).mean((2, 3)),
            conv=nn.Conv2d(3, 8, 3),
        ),
        (2, 3, 23, 23),
    ),
    'transposed': (lambda: nn.ConvTranspose2d(32, 32, 4, 2, 1), (2, 32, 16, 16)),
    'functions': (
        lambda: Forward(
            lambda net, x: (
                F.group_norm(net.conv(x), 4).flatten(2).transpose(1, 2).softmax(-1)
                @ F.silu(net.conv(x)).flatten(2)
            ),
            conv=nn.Conv2d(3, 8, 3),
        ),
        (2, 3, 15, 15),
    ),
}


WIDTHS = [8, 16, dict(weight=4, activation=16)]
FORMATS = [
    *[(target, bits) for target in ('jacinto', 'onnxruntime') for bits in WIDTHS],
    # Its activations have no more than 8 bits.
    *[('tidl', bits) for bits in (8, dict(weight=4, activation=8))],
]


@pytest.mark.parametrize(('target', 'bits'), FORMATS)
@pytest.mark.parametrize('name', NETS)
def test_integer_model_is_that_of_a_cpu(name, target, bits, fast_settings):
    make, shape = NETS[name]
    net, x = make().eval(), torch.randn(shape)
    calibrated(net, x, target=target, bits=bits)
    on_device = copy.deepcopy(net).cuda()
    with torch.no_grad():
        expected = net(x)
        found = on_device(x.cuda())
        with torch.autocast('cuda', dtype=torch.float16):
            in_half = on_device(x.cuda())
    expected, found, in_half = (
        list(out) if isinstance(out, (list, tuple)) else [out]
        for out in (expected, found, in_half)
    )
    assert len(expected) == len(found)
    is_narrow = bits == 8 or target == 'tidl'
    if name == 'detector' or (name == 'functions' and not is_narrow):
        # Functions are exact between grids of 8 bits; others compute in float.
        for host, device in zip(expected, found):
            torch.testing.assert_close(device.cpu(), host, rtol=1e-2, atol=1e-3)
    else:
        assert all(map(equal, expected, found))
        assert all(map(equal, expected, in_half))


def test_settings_come_back(fast_settings):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with pytest.raises(KeyError), exact_sums('cuda'):
        assert not cudnn.enabled and not matmul.allow_tf32
        raise KeyError
    assert cudnn.enabled and matmul.allow_tf32


# Training


@pytest.fixture
def no_waiting():
    yield lambda: torch.cuda.set_sync_debug_mode('error')
    torch.cuda.set_sync_debug_mode('default')


TRAININGS = {
    'percentile': dict(target='jacinto'),
    'extremes': dict(target='onnxruntime'),
    'saturated': dict(target='jacinto', constrain_bias='saturate'),
    'learned': dict(target='onnxruntime', learned_scale=True),
}


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('amp', [None, *HALF])
@pytest.mark.parametrize('epoch', [0, 10])
@pytest.mark.parametrize('name', TRAININGS)
def test_no_step_waits_for_the_device(name, epoch, amp, layout, no_waiting, kernels):
    net = randomize_norms(ToyNet()).cuda().to(memory_format=layout)
    x = torch.randn(2, 3, 16, 16, device='cuda').contiguous(memory_format=layout)
    model = QuantTrainModule(net, x, total_epochs=12, **TRAININGS[name])
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        with torch.autocast('cuda', dtype=amp, enabled=amp is not None):
            loss = model(x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step()
    model.set_epoch(epoch, 12)
    model.train()
    # The first step of a phase may ask what there is; the second has new grids.
    step()
    step()
    no_waiting()
    loss = step()
    torch.cuda.set_sync_debug_mode('default')
    assert loss.isfinite()
