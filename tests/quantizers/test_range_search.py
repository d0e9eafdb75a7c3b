"""Ranges of the observers 'mse' and 'entropy', against the formulas in NumPy."""

import numpy as np
import pytest
import torch
from reference import ROUND, to_grid
from toy_models import calibrated

from mmquant_jacinto import PRESETS, QuantCalibrateModule, QuantTrainModule
from mmquant_jacinto.plan.plan import ActivationSpec
from mmquant_jacinto.quantizers.activation_grids import GridFormats
from mmquant_jacinto.quantizers.activations import ActivationQuantizers
from mmquant_jacinto.quantizers.observers import SAMPLES_PER_ROW, make_observer
from mmquant_jacinto.quantizers.range_search import FRACTIONS, divergence, search_ranges
from mmquant_jacinto.quantizers.statistics.extremes import Observation
from mmquant_jacinto.quantizers.statistics.histograms import BINS, Histograms

SAMPLES = {
    'gauss': lambda: torch.randn(30, 1000),
    'laplace': lambda: torch.distributions.Laplace(0.0, 1.0).sample((30, 1000)),
    'relu': lambda: torch.randn(30, 1000).relu(),
    'skewed': lambda: torch.randn(30, 1000).exp() - 0.5,
    'outlier': lambda: torch.cat([torch.randn(29, 1000), 40 * torch.randn(1, 1000)]),
}


def histogram(*batches, positive=False):
    found = Histograms([positive])
    for batch in batches:
        found.add([Observation(0, batch.flatten(), None)], batch.device)
    return found


def quantizers(observer, target, bits, positive=False):
    fmt = PRESETS[target].activation.with_bits(bits)
    spec = ActivationSpec('x', 'activation', fmt, positive)
    return ActivationQuantizers([spec], observer, 0.01)


def grid_after(observer, x, target='onnxruntime', bits=8):
    found = quantizers(observer, target, bits, positive=bool((x >= 0).all()))
    for batch in x.chunk(3):
        found.observe('x', batch)
        found.commit()
    found.settle()
    return found.host_grid('x')


def squared_error(x, grid):
    x = x.numpy().astype(np.float64)
    real = to_grid(x, *grid[:3], grid.rounding) * grid.scale
    return ((x - real) ** 2).mean()


# What a histogram counts.


def test_histogram_counts_between_multiples_of_a_power_of_two():
    x = torch.randn(5000)
    found = histogram(x)
    width = found.widths.item()
    assert np.log2(width) % 1 == 0
    edges = (np.arange(BINS + 1) - BINS // 2) * width
    assert edges[BINS * 3 // 4] <= x.abs().max() < edges[-1]
    expected = np.histogram(x.numpy(), edges)[0]
    assert np.array_equal(found.counts[0].numpy(), expected)
    np.testing.assert_allclose(found.centers[0], (edges[1:] + edges[:-1]) / 2)


def test_zeros_are_not_counted():
    assert histogram(torch.tensor([0.0, 0.0, 1.0])).counts.sum() == 1


@pytest.mark.parametrize('positive', [False, True])
@pytest.mark.parametrize('largest', [1.0, 7.9, 8.0, 3e-20, 2e30])
def test_histogram_does_not_depend_on_the_order(positive, largest):
    # Its range grows to the same, whatever comes first.
    batches = [torch.randn(999) * largest / 4**k for k in range(5)]
    batches[0][0] = largest
    one = histogram(torch.cat(batches), positive=positive)
    for order in (batches, batches[::-1]):
        grown = histogram(*order, positive=positive)
        assert torch.equal(grown.counts, one.counts)
        assert torch.equal(grown.widths, one.widths)
        assert torch.equal(grown.ends, one.ends)


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
def test_step_with_nan_or_infinity_is_left_out_and_reported(bad):
    found = quantizers('mse', 'onnxruntime', 8)
    good = torch.randn(1000)
    for x in (good, torch.tensor([100.0, bad])):
        found.observe('x', x)
        found.commit()
    found.settle()
    assert found.high <= good.max()
    assert found.count.tolist() == [1]
    assert found.take_rejected() == ['x']


# Which range is found.


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime', 'tensorrt'])
@pytest.mark.parametrize('sample', SAMPLES)
def test_mse_is_the_least_of_all_fractions(sample, target, bits):
    x = SAMPLES[sample]()
    found = squared_error(x, grid_after('mse', x, target, bits))
    formats = GridFormats.of([PRESETS[target].activation.with_bits(bits)])
    rounding = PRESETS[target].activation.rounding
    values = x.double().numpy()
    least = np.inf
    for fraction in FRACTIONS:
        ends = (end.view(1).clamp(*side) * fraction for end, side in _ends(x))
        scale, low, high = (column.item() for column in formats.grids(*ends))
        real = np.clip(ROUND[rounding](values / scale), low, high) * scale
        least = min(least, ((values - real) ** 2).mean())
    # The histogram knows a value up to its bin.
    assert found <= least * 1.02


def _ends(x):
    return (x.min(), (None, 0.0)), (x.max(), (0.0, None))


def test_affine_range_may_be_cut_at_one_end_alone():
    x = torch.cat([torch.rand(30, 1000) - 1, 0.1 * torch.randn(30, 1000).abs()])
    x[40, 0] = 4.0
    grid = grid_after('mse', x, bits=4)
    assert grid.low * grid.scale == pytest.approx(-1, abs=0.15)
    assert grid.high * grid.scale < 1


def entropy_of(counts, grid, width, origin):
    """The divergence, step by step as it is defined; zeros are not counted."""
    steps = np.rint((np.arange(len(counts)) + 0.5 - origin) * width / grid.scale)
    inside = (steps >= grid.low) & (steps <= grid.high)
    first, last = np.flatnonzero(inside)[[0, -1]]
    reference = np.where(inside, counts, 0).astype(np.float64)
    reference[first] += counts[:first].sum()
    reference[last] += counts[last + 1 :].sum()
    candidate = np.zeros_like(reference)
    for step in np.unique(steps[inside]):
        bins = inside & (steps == step)
        used = bins & (reference > 0)
        candidate[used] = counts[bins].sum() / max(used.sum(), 1)
    reference /= reference.sum()
    candidate = np.maximum(candidate / candidate.sum(), 1e-10)
    there = reference > 0
    logs = np.log(reference[there] / candidate[there])
    return (reference[there] * logs).sum()


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime', 'tensorrt'])
@pytest.mark.parametrize('sample', SAMPLES)
def test_entropy_is_the_least_of_all_thresholds(sample, target, bits):
    x = SAMPLES[sample]()
    positive = bool((x >= 0).all())
    counted = histogram(*x.chunk(3), positive=positive)
    counts, width = counted.counts[0].numpy(), counted.widths.item()
    origin = 0 if positive else BINS // 2
    found = quantizers('entropy', target, bits, positive)

    def cost(low, high):
        found.low.fill_(min(low, 0)), found.high.fill_(max(high, 0))
        found.count.fill_(1)
        found.refresh()
        grid = found.host_grid('x')
        if grid.scale < width:
            return np.inf
        return entropy_of(counts, grid, width, origin)

    formats = GridFormats.of([PRESETS[target].activation.with_bits(bits)])
    best = cost(*(end.item() for end in search_ranges(divergence, counted, formats)))
    low, high = x.min().item(), x.max().item()
    reach = max(-low, high)
    thresholds = (reach * fraction for fraction in FRACTIONS[::4])
    least = min(cost(max(low, -t), min(high, t)) for t in thresholds)
    assert best <= least * (1 + 1e-3) + 1e-6


def test_entropy_keeps_gauss_and_cuts_outliers():
    x = torch.randn(100, 4000)
    kept = grid_after('entropy', x)
    assert kept.high * kept.scale > 2.5
    x[0, :20] = 30.0
    cut = grid_after('entropy', x)
    assert cut.high * cut.scale < 10


@pytest.mark.parametrize('observer', ['mse', 'entropy'])
def test_wide_grid_keeps_the_whole_range(observer):
    # Sixteen bits are finer than the bins; there is nothing to gain, and room to spare.
    x = torch.randn(4, 1000)
    grid = grid_after(observer, x, bits=16)
    assert grid.low * grid.scale == pytest.approx(2 * x.min().item(), rel=1e-4)
    assert grid.high * grid.scale == pytest.approx(2 * x.max().item(), rel=1e-4)


@pytest.mark.parametrize('observer', ['mse', 'entropy'])
@pytest.mark.parametrize('target', PRESETS)
def test_tensor_of_zeros_gets_a_finite_grid(observer, target):
    assert 0 < grid_after(observer, torch.zeros(3, 10), target).scale < 1


@pytest.mark.parametrize('observer', ['mse', 'entropy'])
def test_quantizers_are_searched_each_for_itself(observer, toy_net, images):
    quantization = calibrated(toy_net, images, mode='ptq', observer=observer)
    activations = quantization.activations
    together = activations.low.clone(), activations.high.clone()
    counted = activations._histograms
    for row, spec in enumerate(activations.specs):
        alone = Histograms([spec.positive])
        for name in ('counts', 'ends', 'exponents', 'origins'):
            setattr(alone, name, getattr(counted, name)[row : row + 1])
        observed = make_observer(observer, 0.01)
        low, high = observed.search(alone, GridFormats.of([spec.format]))
        assert (low, high) == (together[0][row], together[1][row])


# When.


@pytest.mark.parametrize('observer', ['mse', 'entropy'])
def test_all_batches_count_alike(observer, toy_net, images):
    # No average over steps: the order makes no difference.
    other = images * 3
    ranges = []
    for batches in ((images, other), (other, images)):
        calib = QuantCalibrateModule(toy_net, images, observer=observer)
        for batch in batches:
            calib.observe(batch)
        state = toy_net.state_dict()
        ranges.append(state['quantization.activations.high'].clone())
        del toy_net.quantization
    assert torch.equal(*ranges)


def test_ranges_are_in_a_checkpoint_and_come_back(toy_net, images):
    calib = QuantCalibrateModule(toy_net, images, observer='mse').train()
    calib.observe(images)
    state = {name: value.clone() for name, value in toy_net.state_dict().items()}
    assert state['quantization.activations.high'].any()
    calib.observe(images * 5)
    toy_net.load_state_dict(state)
    calib.eval()
    high = calib.quantization.activations.high
    assert torch.equal(high, state['quantization.activations.high'])


def test_training_that_adopts_searched_ranges_keeps_them(toy_net, images):
    calib = QuantCalibrateModule(toy_net, images, observer='mse').train()
    calib(images)
    state = {name: value.clone() for name, value in toy_net.state_dict().items()}
    del toy_net.quantization
    train = QuantTrainModule(toy_net)
    toy_net.load_state_dict(state)
    train.train()(images * 5).sum().backward()
    high = train.quantization.activations.high
    assert torch.equal(high, state['quantization.activations.high'])


def test_large_tensors_are_sampled():
    found = quantizers('mse', 'onnxruntime', 8)
    found.observe('x', torch.randn(2, 50 * SAMPLES_PER_ROW))
    found.commit()
    # Each element that is looked at stands for many, but for the ends.
    assert (found._histograms.counts > 0).sum() < 4 * SAMPLES_PER_ROW
    count = int(found._histograms.counts.sum())
    assert count == pytest.approx(100 * SAMPLES_PER_ROW, rel=0.01)


@pytest.mark.parametrize('bits', [8, 16])
def test_ends_that_no_sample_has_are_in_the_range(bits):
    found = quantizers('mse', 'onnxruntime', bits)
    x = torch.rand(1, 50 * SAMPLES_PER_ROW)
    x[0, 1 + 50] = 1.2 if bits == 8 else 4.0  # between the chunks of a sample
    assert found.observer.sample(x).max() < 1
    found.observe('x', x)
    found.commit()
    found.settle()
    # One element is not worth coarser steps for all others, unless they are fine.
    assert (found.high.item() > 3.9) == (bits == 16)
