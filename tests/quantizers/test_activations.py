import numpy as np
import pytest
import torch
from reference import power_of_two
from toy_models import calibrated, make_plan

from mmquant_jacinto import PRESETS, QuantizeError, quantize_model
from mmquant_jacinto.plan.plan import ActivationSpec
from mmquant_jacinto.quantizers.activation_grids import power_of_two_above
from mmquant_jacinto.quantizers.activations import ActivationQuantizers
from mmquant_jacinto.quantizers.statistics.extremes import _largest
from mmquant_jacinto.quantizers.statistics.ranges import STEPS_OBSERVED

OBSERVERS = ['percentile', 'moving_average', 'minmax']


def quantizers(
    target='jacinto', bits=8, observer='moving_average', percentile=0.01, positive=False
):
    """One activation quantizer, named 'x'."""
    fmt = PRESETS[target].activation.with_bits(bits)
    spec = ActivationSpec('x', 'activation', fmt, positive)
    return ActivationQuantizers([spec], observer, percentile)


def measured(*batches, clip=None, **kwargs):
    """Quantizers that have seen some steps of one tensor each."""
    found = quantizers(**kwargs)
    for batch in batches:
        found.observe('x', torch.as_tensor(batch), clip)
        found.commit()
    return found


def range_of(found):
    return found.low.item(), found.high.item()


@pytest.mark.parametrize('percentile', [0.01, 0.1, 1.0])
@pytest.mark.parametrize('elements', [10, 5000, 30000])
def test_percentile_is_that_of_the_sorted_tensor(percentile, elements):
    x = torch.randn(elements // 10, 10)
    found = measured(x, observer='percentile', percentile=percentile)
    ordered = np.sort(x.numpy().ravel())
    rank = max(1, round(percentile / 100 * elements))
    assert range_of(found) == (ordered[rank - 1], ordered[-rank])


@pytest.mark.parametrize('depth', [1, 2, 7, 500])
@pytest.mark.parametrize('negated', [False, True])
def test_largest_elements_are_those_of_the_sorted_samples(depth, negated):
    samples = [torch.randn(n).round(decimals=1) for n in (1, 3, 63, 64, 65, 4096)]
    samples.append(torch.arange(1000.0))  # all of them side by side
    for sample, found in zip(samples, _largest(samples, depth, negated)):
        ordered = (-sample if negated else sample).sort(descending=True).values
        there = min(depth, len(sample))
        assert torch.equal(found[:there], ordered[:there])
        assert (found[there:] == -torch.inf).all()


@pytest.mark.parametrize('observer', ['moving_average', 'minmax'])
def test_ends_are_the_very_ends(observer):
    x = torch.randn(3, 7)
    assert range_of(measured(x, observer=observer)) == (x.min(), x.max())


@pytest.mark.parametrize('shift', [-9.0, 0.0, 9.0])
def test_minmax_keeps_the_extremes_of_all_steps(shift):
    # Zero is no extreme of what is all on one side of it.
    batches = [torch.randn(50) * scale + shift for scale in (1, 3, 0.1, 2)]
    found = measured(*batches, observer='minmax')
    seen = torch.cat(batches)
    assert range_of(found) == (seen.min(), seen.max())
    assert found.count.tolist() == [4]
    # What is not seen, or is rejected, changes nothing.
    found.commit()
    found.observe('x', torch.tensor([torch.inf, 99.0]))
    found.commit()
    assert range_of(found) == (seen.min(), seen.max())
    assert found.take_rejected() == ['x']


@pytest.mark.parametrize('observer', ['minmax', 'mse', 'entropy'])
@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
def test_a_range_of_16_bits_has_room_for_other_images(observer, target):
    x = torch.linspace(-1, 3, 9)
    found = measured(x, x / 2, observer=observer, bits=16, target=target)
    found.settle()
    assert range_of(found) == (-2, 6)


def test_averages_and_narrow_grids_have_no_room():
    x = torch.linspace(-1, 3, 9)
    assert range_of(measured(x, observer='minmax', bits=12)) == (-1, 3)
    assert range_of(measured(x, observer='moving_average', bits=16)) == (-1, 3)


def test_minmax_of_a_training_sees_every_step():
    found = quantizers(observer='minmax')
    for step in range(STEPS_OBSERVED + 3):
        assert found.is_due
        found.observe('x', torch.tensor([0.0, step]))
        found.end_step()
    assert range_of(found) == (0, STEPS_OBSERVED + 2)
    found.observing = False
    assert not found.is_due


def test_large_rows_are_sampled_alike_on_every_image():
    # A stride, so that the sample of a batch is that of its images.
    image = torch.randn(1, 4, 200, 200)
    alone = measured(image, observer='percentile', percentile=0.1)
    twice = measured(image.repeat(2, 1, 1, 1), observer='percentile', percentile=0.1)
    assert range_of(alone) == pytest.approx(range_of(twice), rel=0.05)
    assert alone.observer.sample(image).numel() < image.numel()
    assert torch.equal(
        twice.observer.sample(image.repeat(2, 1, 1, 1)),
        alone.observer.sample(image).repeat(2),
    )


def test_known_positive_tensor_ignores_what_the_clip_removes():
    x = torch.randn(1000)
    found = measured(x, positive=True, clip=(0.0, None))
    assert range_of(found) == (0, x.max())


@pytest.mark.parametrize('clip', [(0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 2.0)])
@pytest.mark.parametrize('shift', [-20.0, 0.0, 20.0])
def test_range_is_that_of_the_clipped_tensor(clip, shift):
    # Also where all of the tensor is beyond one of the bounds.
    x = torch.randn(1000) * 3 + shift
    found = measured(x, clip=clip, positive=clip[0] == 0)
    clipped = x.clamp(*clip)
    low = 0 if clip[0] == 0 else clipped.min()
    assert range_of(found) == (low, clipped.max())


def test_average_is_exponential_with_factor_one_by_n():
    batches = [torch.randn(50) * (step + 1) for step in range(6)]
    low = high = 0.0
    for n, batch in enumerate(batches, start=1):
        low += (batch.min().item() - low) / n
        high += (batch.max().item() - high) / n
    assert range_of(measured(*batches)) == pytest.approx((low, high), rel=1e-6)


def test_average_factor_never_falls_below_a_thousandth():
    found = measured(torch.tensor([-1.0, 1.0]))
    found.count.fill_(5000)
    found.observe('x', torch.tensor([-11.0, 101.0]))
    found.commit()
    assert range_of(found) == pytest.approx((-1.01, 1.1), rel=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_power_of_two_above_is_exact(dtype):
    exact = torch.tensor([2.0**k for k in range(-24, 25)], dtype=dtype)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    assert torch.equal(power_of_two_above(exact), exact)
    assert torch.equal(power_of_two_above(exact.nextafter(infinity)), exact * 2)
    assert torch.equal(power_of_two_above(exact.nextafter(-infinity)), exact)


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('ends', [(-3.0, 5.0), (-9.0, 5.0), (-4.0, 4.0)])
def test_jacinto_signed_grid(bits, ends):
    grid = measured(ends, bits=bits).grid('x')
    half = 2 ** (bits - 1)
    assert grid.scale == power_of_two(max(-ends[0], ends[1])) / half
    assert (grid.low, grid.high) == (-half, half - 1)
    assert (grid.levels, grid.rounding) == (2**bits, 'half_up')


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('ends', [(0.0, 5.0), (0.5, 4.0)])
def test_jacinto_grid_is_unsigned_without_a_negative_part(bits, ends):
    grid = measured(ends, bits=bits).grid('x')
    assert grid.scale == power_of_two(ends[1]) / 2**bits
    assert (grid.low, grid.high) == (0, 2**bits - 1)


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('ends', [(-1.0, 3.0), (0.0, 3.0), (1.0, 3.0), (-3.0, -1.0)])
def test_affine_grid_covers_the_range_and_zero(bits, ends):
    grid = measured(ends, target='tidl', bits=bits).grid('x')
    low, high = min(ends[0], 0), max(ends[1], 0)
    scale = float(np.float32((high - low) / (2**bits - 1)))
    zero_point = np.rint(-low / scale)
    assert grid.scale == scale
    assert (grid.low, grid.high) == (-zero_point, 2**bits - 1 - zero_point)
    assert (grid.levels, grid.rounding) == (2**bits, 'half_even')


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('ends', [(-1.0, 3.0), (0.0, 3.0), (-3.0, 1.0)])
def test_symmetric_grid_has_the_larger_end_on_it(bits, ends):
    grid = measured(ends, target='tensorrt', bits=bits).grid('x')
    half = 2 ** (bits - 1)
    assert grid.scale == float(np.float32(3 / (half - 1)))
    assert (grid.low, grid.high) == (-half, half - 1)


@pytest.mark.parametrize('target', PRESETS)
def test_tensor_of_zeros_gets_a_finite_grid(target):
    grid = measured(torch.zeros(10), target=target).grid('x')
    assert 0 < grid.scale < 1


@pytest.mark.parametrize('observer', OBSERVERS)
@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('elements', [100, 40000])
def test_batch_with_nan_or_infinity_is_left_out_and_reported(observer, bad, elements):
    good = torch.randn(elements // 100, 100)
    found = measured(good, observer=observer)
    before = range_of(found)
    poisoned = torch.randn(elements // 100, 100) * 9
    poisoned[0, 7] = bad
    found.observe('x', poisoned)
    found.commit()
    assert range_of(found) == before
    assert found.count.tolist() == [1]
    assert found.take_rejected() == ['x']
    assert found.take_rejected() == []


def test_first_batch_that_is_rejected_gives_no_range():
    found = measured([1.0, torch.nan])
    assert not found.has_range('x')
    assert found.grid('x') is None
    assert found.missing() == ['x']


def test_observed_tensor_is_left_alone():
    x = torch.randn(4, 100, requires_grad=True)
    before = x.detach().clone()
    measured(x, observer='percentile', clip=(0.0, 6.0))
    assert torch.equal(x, before)
    assert x.requires_grad and x.grad is None and not vars(x)


@pytest.mark.parametrize('observer', OBSERVERS)
@pytest.mark.parametrize('elements', [64, 40000])
@pytest.mark.parametrize('positive', [False, True])
def test_halves_of_a_batch_give_the_range_of_the_whole(observer, elements, positive):
    # A quantizer that several tensors share sees them all in one forward.
    batch = torch.randn(4, elements)
    kwargs = dict(observer=observer, percentile=0.05, positive=positive)
    whole, halves = measured(batch, **kwargs), quantizers(**kwargs)
    for half in batch.chunk(2):
        halves.observe('x', half)
    halves.commit()
    assert range_of(halves) == range_of(whole)
    assert halves.count.tolist() == [1]


def two_widths(*batches, other='minmax', halves=1):
    """Quantizers of 8 and of 16 bits that have seen the same steps."""
    fmt = PRESETS['jacinto'].activation
    specs = [
        ActivationSpec(name, 'activation', fmt.with_bits(bits))
        for name, bits in (('narrow', 8), ('fine', 16))
    ]
    found = ActivationQuantizers(specs, 'percentile', 1.0, fine_observer=other)
    for batch in batches:
        for half in batch.chunk(halves):
            for spec in specs:
                found.observe(spec.name, half)
        found.commit()
    return found


@pytest.mark.parametrize('halves', [1, 2])
def test_each_width_may_have_an_observer_of_its_own(halves):
    batches = [torch.randn(4, 5000) for _ in range(3)]
    found = two_widths(*batches, halves=halves)
    for index, (observer, bits) in enumerate([('percentile', 8), ('minmax', 16)]):
        alone = measured(*batches, observer=observer, bits=bits, percentile=1.0)
        ends = found.low[index].item(), found.high[index].item()
        assert ends == range_of(alone)
    # Room, and what the others cut off.
    assert found.high[1] > 2 * found.high[0]


def test_extremes_of_fine_grids_take_part_in_every_step():
    found = two_widths(torch.randn(4, 500))
    found._steps = STEPS_OBSERVED + 1
    assert found.is_due
    averaged = two_widths(torch.randn(4, 500), other='moving_average')
    averaged._steps = STEPS_OBSERVED + 1
    assert not averaged.is_due


def test_observer_that_searches_has_no_other_beside_it():
    with pytest.raises(QuantizeError, match="calibration_fine_observer='mse'"):
        two_widths(other='mse')


@pytest.mark.parametrize('observer', OBSERVERS)
def test_empty_tensor_is_not_seen(observer):
    found = measured(torch.empty(0, 4, 7), observer=observer)
    assert not found.has_range('x')
    assert found.take_rejected() == []


@pytest.mark.parametrize('observer', OBSERVERS)
def test_scalar_is_seen(observer):
    assert range_of(measured(torch.tensor(3.0), observer=observer))[1] == 3


def test_half_precision_is_measured():
    x = torch.randn(500).half()
    assert range_of(measured(x, observer='percentile'))[1] == x.max()


def test_frozen_range_stays():
    found = measured([-1.0, 1.0])
    found.observing = False
    found.observe('x', torch.tensor([-9.0, 9.0]))
    found.commit()
    assert range_of(found) == (-1, 1)


def test_observation_acts_from_the_next_step_on():
    found = quantizers()
    found.observe('x', torch.tensor([-1.0, 1.0]))
    assert found.grid('x') is None
    found.commit()
    assert found.grid('x').scale == 1 / 128


def test_settled_ranges_observe_every_fourth_step():
    found = quantizers()

    def step():
        if found.is_due:
            found.observe('x', torch.tensor([0.0, 1.0]))
        found.end_step()
        return int(found.count[0])

    counts = [step() for _ in range(STEPS_OBSERVED + 9)]
    assert counts[:STEPS_OBSERVED] == list(range(1, STEPS_OBSERVED + 1))
    later = [count - STEPS_OBSERVED for count in counts[STEPS_OBSERVED:]]
    assert later == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_resumed_training_observes_the_steps_that_it_would_have():
    found, resumed = quantizers(), quantizers()
    for _ in range(STEPS_OBSERVED + 2):
        found.end_step()
    resumed.steps.copy_(found.steps)
    resumed.refresh()
    due = []
    for _ in range(4):
        assert resumed.is_due == found.is_due
        due.append(found.is_due)
        found.end_step()
        resumed.end_step()
    assert due == [False, False, True, False]


def test_steps_with_frozen_ranges_do_not_count():
    found = quantizers()
    found.observing = False
    found.end_step()
    assert found.steps == 0 and not found.is_due


def test_ranges_survive_a_state_dict(toy_net, images):
    quantization = calibrated(toy_net, images)
    state = toy_net.state_dict()
    other = quantize_model(type(toy_net)(), make_plan(type(toy_net)(), images))
    other.root.load_state_dict(state)
    mine, loaded = quantization.activations, other.activations
    for name in ('low', 'high', 'count'):
        assert torch.equal(getattr(mine, name), getattr(loaded, name))
    assert loaded.missing() == []
    for spec in mine.specs:
        assert mine.grid(spec.name) == loaded.grid(spec.name)


def test_scalars_name_both_ends():
    assert measured([-1.0, 2.0]).scalars() == {'range/x/low': -1.0, 'range/x/high': 2.0}
