"""The kernels in C against the chain of torch's operations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import ToyNet, randomize_norms

from mmquant_jacinto import QuantTrainModule, native
from mmquant_jacinto.execute.calibrate import robust_mean
from mmquant_jacinto.quantizers.kernels.fake_quantize import fake_quantize
from mmquant_jacinto.targets.grid import Grid

UP = Grid(2.0**-5, -128, 127, 256, 'half_up')
EVEN = Grid(0.0371, -37, 218, 256, 'half_even')
# More than one thread's worth, a remainder, less than a vector, and the elements that
# share the bytes of a mask, one more and one less.
SIZES = [3, 1000, 4095, 4096, 4097, 100_003]


@pytest.fixture(autouse=True)
def kernels():
    assert native.is_built(), 'set-up builds the kernels: see setup.py'


@pytest.fixture
def without_kernels(monkeypatch):
    """Runs a function as where there is no compiler."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(native, '_library', None)
            return function(*args)

    return run


def quantized_and_gradient(x, grid, clip=None, in_place=False):
    leaf = x.clone().requires_grad_()
    out = fake_quantize(leaf * 1, grid, clip, in_place)
    (gradient,) = torch.autograd.grad(out, leaf, torch.arange(x.numel()).view_as(x) + 1)
    return out.detach(), gradient


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('in_place', [False, True])
@pytest.mark.parametrize('clip', [None, (0.0, None), (-0.5, 0.5)])
@pytest.mark.parametrize('grid', [UP, EVEN])
def test_result_and_gradient_are_those_of_the_chain(
    grid, clip, in_place, size, without_kernels
):
    x = torch.randn(size) * 5
    x[:3] = torch.tensor([0.0, grid.high * grid.scale, 2.5 * grid.scale])
    ours = quantized_and_gradient(x, grid, clip, in_place)
    expected = without_kernels(quantized_and_gradient, x, grid, clip)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'expanded'])
@pytest.mark.parametrize('in_place', [False, True])
def test_gradient_of_another_layout_is_masked(in_place, layout):
    x = torch.randn(2, 3, 4, 5) * 5
    arriving = torch.randn(2, 3, 4, 5)
    if layout == 'channels_last':
        arriving = arriving.contiguous(memory_format=torch.channels_last)
    if layout == 'expanded':
        arriving = arriving[:1, :, :1].expand(2, 3, 4, 5)
    leaf = x.clone().requires_grad_()
    fake_quantize(leaf * 1, UP, (0.0, None), in_place).backward(arriving)
    inside = (x > 0) & (x < UP.high * UP.scale)
    assert torch.equal(leaf.grad, torch.where(inside, arriving, 0.0))


def test_a_graph_that_is_kept_gives_its_gradient_again():
    leaf = (torch.randn(100) * 5).requires_grad_()
    out = fake_quantize(leaf * 1, UP, None, True).sum()
    first = torch.autograd.grad(out, leaf, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, leaf)[0], first)
    with pytest.raises(RuntimeError, match='retain_graph=True'):
        torch.autograd.grad(out, leaf)


@pytest.mark.parametrize('in_place', [False, True])
def test_gradient_has_a_gradient(in_place):
    leaf = (torch.randn(100) * 5).requires_grad_()
    out = fake_quantize(leaf * leaf, UP, None, in_place).sum()
    (first,) = torch.autograd.grad(out, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    square = leaf.detach() ** 2
    inside = square < UP.high * UP.scale
    assert torch.equal(second, 2.0 * inside)


def test_whoever_has_saved_what_is_overwritten_is_told():
    leaf = torch.randn(100).requires_grad_()
    x = leaf * 1
    saved = x.square().sum()
    out = fake_quantize(x, UP, None, True).sum()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        (saved + out).backward()


def test_all_weights_at_once_are_those_of_one_after_the_other():
    weights = [torch.randn(4, 30), torch.randn(7, 2500), torch.randn(6, 3, 3, 3)]
    reach = native.Reach([(len(x), x[0].numel()) for x in weights])
    factor, step = torch.rand(2, 17) * 20
    limits = torch.full((17,), -8.0), torch.full((17,), 7.0)
    found = reach.quantize(weights, factor, step, limits)
    row = 0
    for x, on_grid in zip(weights, found):
        rows = slice(row, row + len(x))
        expected = native.quantize_rows(x, factor[rows], step[rows], (-8, 7))
        assert torch.equal(on_grid, expected)
        # A backward pass gives it back as it goes.
        assert on_grid.untyped_storage().nbytes() == 4 * x.numel()
        row = rows.stop


def test_nan_is_not_hidden():
    out = fake_quantize(torch.tensor([float('nan'), 0.1]), UP)
    assert out[0].isnan() and not out[1].isnan()


def test_tensor_is_changed_only_when_it_may_be():
    x = torch.randn(1000)
    before = x.clone()
    fake_quantize(x, UP)
    assert torch.equal(x, before)
    assert fake_quantize(x, UP, None, True).data_ptr() == x.data_ptr()
    assert not torch.equal(x, before)


def test_leaf_that_is_trained_is_never_changed():
    x = torch.randn(1000, requires_grad=True)
    before = x.detach().clone()
    fake_quantize(x, UP, None, True).sum().backward()
    assert torch.equal(x.detach(), before)


def test_autograd_notices_that_a_saved_tensor_was_changed():
    x = torch.randn(10, requires_grad=True)
    saved = x.exp()  # whose backward pass needs its result
    fake_quantize(saved, UP, None, True)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        saved.sum().backward()


def test_layout_of_the_tensor_does_not_matter(without_kernels):
    x = torch.randn(2, 5, 7, 3) * 3
    for laid_out in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(1, 3),
        x[:, 1:4],
    ):
        ours = quantized_and_gradient(laid_out, EVEN)
        expected = without_kernels(quantized_and_gradient, laid_out, EVEN)
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])


def test_gradient_can_be_differentiated_again():
    x = torch.tensor([0.3, 100.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        fake_quantize(x * x, UP).sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert second.tolist() == [2.0, 0.0]


def test_reach_is_smallest_and_largest_of_each_row():
    matrices = [torch.randn(4, 300), torch.randn(7, 2, 3, 3), torch.randn(1, 1)]
    low, high = native.Reach([(4, 300), (7, 18), (1, 1)])(matrices)
    rows = [matrix.flatten(1) for matrix in matrices]
    assert torch.equal(low, torch.cat([row.amin(1) for row in rows]))
    assert torch.equal(high, torch.cat([row.amax(1) for row in rows]))


def test_reach_of_a_broken_row_is_not_finite():
    matrix = torch.randn(3, 100)
    matrix[1, 50] = float('nan')
    low, high = native.Reach([(3, 100)])([matrix])
    assert high.isfinite().tolist() == low.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize('total_epochs, epoch', [(None, 0), (4, 3)])
@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
def test_training_step_is_that_of_the_chain(
    target, total_epochs, epoch, images, without_kernels
):
    net = randomize_norms(ToyNet())

    def gradients(net):
        model = QuantTrainModule(
            net, images, target=target, total_epochs=total_epochs
        ).train()
        model(images)  # measures
        if total_epochs is not None:
            model.set_epoch(epoch, total_epochs)
            model.train()
        model(images).pow(2).mean().backward()
        return [parameter.grad for parameter in net.parameters()]

    ours = gradients(copy.deepcopy(net))
    expected = without_kernels(gradients, copy.deepcopy(net))
    assert any(gradient is not None for gradient in ours)
    for mine, theirs in zip(ours, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_shared_output_of_a_layer_is_not_changed_under_its_other_reader(images):
    # Not fused: what the second reader gets is the quantized tensor, once.
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            out = self.conv(x)
            return F.relu(out) - out

    net = Shared()
    model = QuantTrainModule(net, images).train()
    model(images)
    out = model(images)
    with torch.no_grad():
        float_out = F.relu(net.conv(images)) - net.conv(images)
    out.sum().backward()
    assert net.conv.weight.grad is not None
    assert (out - float_out).abs().max() < 0.1 * float_out.abs().max()


@pytest.mark.parametrize('grid', [UP, EVEN])
@pytest.mark.parametrize('in_place', [False, True])
def test_no_mask_is_kept_where_no_gradient_is_wanted(grid, in_place, monkeypatch):
    masks = []
    kernel = native.fake_quantize
    monkeypatch.setattr(
        native,
        'fake_quantize',
        lambda x, out, inside, *args: (
            masks.append(inside),
            kernel(x, out, inside, *args),
        ),
    )
    x = torch.randn(1000) * 5
    expected, _ = quantized_and_gradient(x, grid)
    with torch.no_grad():
        found = fake_quantize(x.clone(), grid, in_place=in_place)
    assert torch.equal(found, expected)
    # A bit for each element, in whole lanes.
    assert masks[0].dtype == torch.uint8 and masks[0].numel() == 512
    assert masks[1:] == [None]


@pytest.mark.parametrize(
    'shape, axis',
    [((2, 70, 33, 31), 1), ((700, 130), 1), ((2, 9, 130), 2), ((5, 40), 0)],
)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_robust_means_are_those_of_the_chain(shape, axis, layout, without_kernels):
    if layout is torch.channels_last and len(shape) != 4:
        pytest.skip('a layout of maps')
    x = (torch.randn(shape) * 3 + 2).contiguous(memory_format=layout)
    x[(0,) * x.dim()] = 500.0
    dims = [d for d in range(x.dim()) if d != axis]
    ours = robust_mean(x, dims)
    theirs = without_kernels(robust_mean, x.double(), dims).float()
    assert ours.shape == theirs.shape == (shape[axis],)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'shape, axis',
    [((2, 70, 33, 31), 1), ((2, 70, 1, 1), 1), ((700, 130), 1), ((2, 9, 130), 2)],
)
@pytest.mark.parametrize('offset', [0.0, 1000.0])
def test_means_and_variances_beside_the_robust_ones(shape, axis, offset):
    x = torch.randn(shape) * 3 + offset
    dims = [d for d in range(x.dim()) if d != axis]
    robust, mean, variance = native.robust_mean(x, axis, squares=True)
    assert torch.equal(robust, native.robust_mean(x, axis))
    expected, center = torch.var_mean(x.double(), dims, correction=0)
    torch.testing.assert_close(mean.double(), center, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=1e-6)
