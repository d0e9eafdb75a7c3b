"""Which images a calibration sees, and how often."""

import pytest
from ptq_runs import ptq_config
from toy_runner import (
    BATCH_SIZE,
    NUM_TRAIN,
    PTQ,
    ShowPlace,
    differences,
    log_of,
    make_config,
    state_of,
    train,
)

from mmquant_jacinto import QuantCalibrateModule

CHECKPOINT = 'epoch_1.pth'


@pytest.fixture
def seen():
    """The (pipeline, image) pairs that were loaded during a test."""
    ShowPlace.seen.clear()
    return ShowPlace.seen


def calibrate(work_dir, checkpoint, **calibration):
    train(ptq_config(work_dir, checkpoint, dict(PTQ, calibration=calibration)))
    return state_of(work_dir / CHECKPOINT)


def test_images_are_training_images_in_the_pipeline_of_validation(
    float_checkpoint, tmp_path, seen
):
    cfg = ptq_config(tmp_path, float_checkpoint)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    train(cfg)
    assert {tag for tag, _ in seen} == {'val'}
    places = sorted(place for _, place in seen[1:])
    # One pass for ranges and one for biases; the first was to prepare.
    assert places == sorted(2 * list(range(NUM_TRAIN)))


@pytest.mark.parametrize('epochs', [0, 1, 2])
def test_each_pass_sees_the_same_batches(epochs, float_checkpoint, tmp_path, seen):
    calibrate(tmp_path, float_checkpoint, num_images=32, epochs=epochs)
    places = [place for _, place in seen if place < NUM_TRAIN]
    places = places[-32 * (1 + epochs) :]
    first = places[:32]
    assert len(set(first)) == 32
    assert places == first * (1 + epochs)


def test_step_of_the_correction_halves_with_each_pass(
    float_checkpoint, tmp_path, monkeypatch
):
    rates = []
    step = QuantCalibrateModule.calibrate_step

    def noted_step(self, batch, reference, lr):
        if reference is not None:
            rates.append(lr)
        return step(self, batch, reference, lr)

    monkeypatch.setattr(QuantCalibrateModule, 'calibrate_step', noted_step)
    calibrate(tmp_path, float_checkpoint, iterations=2, epochs=3, lr=0.4)
    assert rates == [0.4, 0.4, 0.2, 0.2, 0.1, 0.1]


def test_analytic_correction_needs_no_further_pass(float_checkpoint, tmp_path, seen):
    state = calibrate(
        tmp_path, float_checkpoint, num_images=32, bias_correction='analytic'
    )
    places = [place for _, place in seen if place < NUM_TRAIN]
    assert len(set(places[-32:])) == 32
    assert state['quantization.bias_correction'].any()
    assert 'Calibration of biases' not in log_of(tmp_path)


def test_the_seed_decides_which_images_are_taken(float_checkpoint, tmp_path, seen):
    taken = []
    for number, seed in enumerate((3, 4, 3)):
        seen.clear()
        quantize = dict(PTQ, calibration=dict(num_images=32, epochs=0))
        cfg = ptq_config(tmp_path / str(number), float_checkpoint, quantize)
        cfg.randomness = dict(seed=seed)
        train(cfg)
        taken.append([place for _, place in seen if place < NUM_TRAIN][-32:])
    assert taken[0] == taken[2]
    assert set(taken[0]) != set(taken[1])


def test_iterations_and_num_images_count_the_same(float_checkpoint, tmp_path):
    by_images = calibrate(tmp_path / 'images', float_checkpoint, num_images=32)
    by_iterations = calibrate(tmp_path / 'iterations', float_checkpoint, iterations=2)
    assert not differences(by_images, by_iterations)
    every = calibrate(tmp_path / 'every', float_checkpoint, num_images=10**6)
    assert 'quantization.activations.high' in differences(by_images, every)
    # The last batch is not cut.
    more = calibrate(tmp_path / 'more', float_checkpoint, num_images=BATCH_SIZE + 1)
    assert not differences(by_images, more)


def test_calibration_dataloader_of_the_config_is_used(float_checkpoint, tmp_path, seen):
    loader = make_config(tmp_path).test_dataloader
    loader.dataset.pipeline = [dict(type='ShowPlace', tag='calibration')]
    calibrate(tmp_path, float_checkpoint, dataloader=loader, epochs=0)
    tags = [tag for tag, _ in seen]
    assert tags.count('calibration') >= len(loader.dataset) > 0


def test_without_bias_correction_biases_stay(float_checkpoint, tmp_path, ptq_dir):
    name = 'quantization.bias_correction'
    assert not calibrate(tmp_path, float_checkpoint, epochs=0)[name].any()
    assert state_of(ptq_dir / CHECKPOINT)[name].any()
