import numpy as np
import pytest
import torch
from kernel_samples import CLIPS, GRIDS, on_accelerator, sample
from reference import to_grid

from mmquant_jacinto.quantizers.kernels.fake_quantize import fake_quantize
from mmquant_jacinto.targets.grid import round_tensor

HALVES = np.arange(-3.5, 4, 0.5, dtype=np.float32)


def run(x, grid, clip=None):
    """Result and gradient; the gradient that arrives differs by element."""
    x = torch.from_numpy(x).requires_grad_()
    out = fake_quantize(x, grid, clip)
    out.backward(torch.arange(1.0, len(x) + 1))
    return out.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize(
    'rounding, expected',
    [
        ('half_up', np.floor(HALVES + 0.5)),
        ('half_even', np.rint(HALVES)),
        ('half_away', np.trunc(HALVES + np.copysign(0.5, HALVES))),
    ],
)
def test_rounding_of_ties(rounding, expected):
    rounded = round_tensor(torch.from_numpy(HALVES.copy()), rounding)
    np.testing.assert_array_equal(rounded.numpy(), expected)


@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('name', GRIDS)
def test_forward_is_the_formula(name, clip):
    grid = GRIDS[name]
    x = sample(grid)
    if grid.rounding == 'half_even':
        # Whether x times 1/scale is a tie is not defined.
        x = x[np.abs(x / grid.scale % 1 - 0.5) > 1e-4]
    expected = to_grid(x, *grid[:3], grid.rounding, clip) * grid.scale
    out, _ = run(x, grid, clip)
    np.testing.assert_array_equal(out, expected.astype(np.float32))


@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('name', GRIDS)
def test_gradient_passes_straight_and_is_zero_where_clipped(name, clip):
    grid = GRIDS[name]
    x = sample(grid)
    low, high = grid.low * grid.scale, grid.high * grid.scale
    if clip[0] is not None:
        low = max(low, clip[0])
    if clip[1] is not None:
        high = min(high, clip[1])
    _, gradient = run(x, grid, clip)
    arriving = np.arange(1.0, len(x) + 1)
    np.testing.assert_array_equal(gradient, arriving * ((x > low) & (x < high)))


@pytest.mark.parametrize('clip', [None, (0.0, None), (0.0, 1.25)])
@pytest.mark.parametrize('name', GRIDS)
def test_accelerator_grid_gives_the_values_of_the_host_grid(name, clip):
    grid = GRIDS[name]
    x = sample(grid)
    np.testing.assert_array_equal(
        run(x, on_accelerator(grid), clip)[0], run(x, grid, clip)[0]
    )


@pytest.mark.parametrize('clip', [None, (0.0, None), (0.0, 1.25)])
@pytest.mark.parametrize('name', GRIDS)
def test_accelerator_grid_gives_the_gradient_of_the_host_grid(name, clip):
    grid = GRIDS[name]
    x = sample(grid)
    np.testing.assert_array_equal(
        run(x, on_accelerator(grid), clip)[1], run(x, grid, clip)[1]
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_quantized_in_float32(dtype):
    grid = GRIDS['sixteen bits']
    x = torch.linspace(-9, 9, 1001).to(dtype).requires_grad_()
    out = fake_quantize(x, grid)
    out.backward(torch.ones_like(x))
    assert out.dtype == x.grad.dtype == dtype
    assert torch.equal(out, fake_quantize(x.detach().float(), grid).to(dtype))
    inside = (x > grid.low * grid.scale) & (x < grid.high * grid.scale)
    assert torch.equal(x.grad, inside.to(dtype))


def test_input_stays_as_it_was():
    x = torch.randn(100)
    before = x.clone()
    fake_quantize(x, GRIDS['signed'])
    assert torch.equal(x, before)


def test_integer_limits_of_a_fused_clip():
    grid = GRIDS['signed']
    assert grid.integer_limits(None) == (-128, 127)
    assert grid.integer_limits((0.0, None)) == (0, 127)
    assert grid.integer_limits((0.0, 1.25)) == (0, 40)
    assert grid.integer_limits((None, 6.0)) == (-128, 127)
