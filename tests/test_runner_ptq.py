"""Calibration, end to end through MMEngine's Runner."""

import functools
import io

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.utils import ProgressBar
from toy_runner import (
    BATCH_SIZE,
    EPOCHS,
    NUM_TRAIN,
    Killed,
    ShowPlace,
    differences,
    load,
    log_of,
    make_config,
    scalars,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import CalibrationLoop, QuantCalibrateModule, QuantizeError

PTQ = dict(mode='ptq', bits=8)
QAT = dict(mode='qat', bits=8)
CHECKPOINT = 'epoch_1.pth'


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    """A trained float model."""
    work_dir = tmp_path_factory.mktemp('float')
    train(make_config(work_dir))
    return work_dir / f'epoch_{EPOCHS}.pth'


def ptq_config(work_dir, checkpoint, quantize=PTQ, **changes):
    return make_config(work_dir, quantize, load_from=str(checkpoint), **changes)


@pytest.fixture(scope='module')
def ptq_dir(float_checkpoint, tmp_path_factory):
    """The work dir of a calibration on all training images."""
    work_dir = tmp_path_factory.mktemp('ptq')
    train(ptq_config(work_dir, float_checkpoint))
    return work_dir


@pytest.fixture
def seen():
    """The (pipeline, image) pairs that were loaded during a test."""
    ShowPlace.seen.clear()
    return ShowPlace.seen


def test_calibration_leaves_one_checkpoint_that_is_the_last(ptq_dir):
    assert [path.name for path in ptq_dir.glob('*.pth')] == [CHECKPOINT]
    assert find_latest_checkpoint(str(ptq_dir)) == str(ptq_dir / CHECKPOINT)
    assert not list(ptq_dir.glob('*.part'))


def test_weights_stay_those_of_the_float_checkpoint_bit_for_bit(
    float_checkpoint, ptq_dir
):
    ours, theirs = state_of(ptq_dir / CHECKPOINT), state_of(float_checkpoint)
    assert all(name.startswith('quantization.') for name in differences(ours, theirs))
    checkpoint = load(ptq_dir / CHECKPOINT)
    assert 'optimizer' not in checkpoint
    assert 'param_schedulers' not in checkpoint


def test_calibration_ends_with_a_validation_near_the_float_score(
    float_checkpoint, ptq_dir
):
    (score,) = val_scores(ptq_dir)
    float_score = val_scores(float_checkpoint.parent)[-1]
    assert score['accuracy'] >= float_score['accuracy'] - 0.05
    assert score['norm'] == pytest.approx(float_score['norm'], rel=0.05)
    assert score['norm'] != float_score['norm']


@pytest.mark.parametrize('mode', ['ptq', 'qat'])
def test_checkpoint_tests_with_exactly_the_validation_score(mode, ptq_dir, tmp_path):
    cfg = ptq_config(tmp_path, ptq_dir / CHECKPOINT, dict(mode=mode, bits=8))
    assert Runner.from_cfg(cfg).test() == val_scores(ptq_dir)[0]


def test_calibration_repeated_gives_the_state_bit_for_bit(
    float_checkpoint, ptq_dir, tmp_path
):
    train(ptq_config(tmp_path, float_checkpoint, 'calibration'))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_dumped_config_run_again_does_the_same(ptq_dir, tmp_path):
    (dumped,) = ptq_dir.glob('*.py')
    cfg = Config.fromfile(dumped)
    cfg.work_dir = str(tmp_path)
    # MMEngine shares the visualizer of runs of one name that start in one second.
    cfg.experiment_name = 'again'
    train(cfg)
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_wrapper_and_loop_are_those_of_the_registries(float_checkpoint, tmp_path):
    runner = train(ptq_config(tmp_path, float_checkpoint))
    assert type(runner.model) is QuantCalibrateModule
    assert type(runner.train_loop) is LOOPS.get('CalibrationLoop') is CalibrationLoop


# Which images


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


# With other parts of MMEngine


@pytest.mark.parametrize('update_buffers', [False, True])
def test_moving_average_does_not_disturb(
    update_buffers, float_checkpoint, ptq_dir, tmp_path
):
    hook = dict(type='EMAHook', momentum=0.5, update_buffers=update_buffers)
    train(ptq_config(tmp_path, float_checkpoint, custom_hooks=[hook]))
    checkpoint = load(tmp_path / CHECKPOINT)
    assert not differences(checkpoint['state_dict'], state_of(ptq_dir / CHECKPOINT))
    assert 'ema_state_dict' not in checkpoint
    assert val_scores(tmp_path) == val_scores(ptq_dir)
    cfg = ptq_config(tmp_path / 'test', tmp_path / CHECKPOINT, custom_hooks=[hook])
    assert Runner.from_cfg(cfg).test() == val_scores(ptq_dir)[0]


def test_config_by_iterations_calibrates_the_same(float_checkpoint, ptq_dir, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint, iters=4))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_resumed_finished_calibration_only_validates(
    float_checkpoint, ptq_dir, tmp_path
):
    train(ptq_config(tmp_path, float_checkpoint))
    written = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    cfg = ptq_config(tmp_path, float_checkpoint, resume=True)
    cfg.load_from = None
    train(cfg)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == written
    assert val_scores(tmp_path) == 2 * val_scores(ptq_dir)
    assert 'calibrated already' in log_of(tmp_path)


def test_calibration_killed_and_run_again_ends_the_same(
    float_checkpoint, ptq_dir, tmp_path, monkeypatch
):
    steps = []
    step = QuantCalibrateModule.calibrate_step

    def killed_step(*args):
        steps.append(args)
        if len(steps) == 6:
            raise Killed
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(QuantCalibrateModule, 'calibrate_step', killed_step)
        with pytest.raises(Killed):
            train(ptq_config(tmp_path, float_checkpoint))
    assert not (tmp_path / CHECKPOINT).exists()
    train(ptq_config(tmp_path, float_checkpoint))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_uninitialized_weights_are_warned_of(tmp_path):
    train(make_config(tmp_path, PTQ))
    assert 'set load_from to a float checkpoint' in log_of(tmp_path)


def test_progress_is_shown_with_the_time_left(float_checkpoint, tmp_path, monkeypatch):
    out = io.StringIO()
    # Its default, the stdout of when it was imported, is not pytest's of today.
    monkeypatch.setattr(
        'mmquant_jacinto.runners.calibration_loop.ProgressBar',
        functools.partial(ProgressBar, file=out),
    )
    train(ptq_config(tmp_path, float_checkpoint))
    assert out.getvalue().count('4/4') == 2
    assert 'ETA' in out.getvalue()


def test_log_has_the_passes_and_the_ranges(ptq_dir):
    assert 'Calibration of ranges: 4 batches of 16 images' in log_of(ptq_dir)
    assert 'Calibration of biases, pass 1' in log_of(ptq_dir)
    (line,) = (line for line in scalars(ptq_dir) if 'range/head/linear/high' in line)
    high = state_of(ptq_dir / CHECKPOINT)['quantization.activations.high']
    assert line['range/head/linear/high'] in high.tolist()


# Training from a calibrated checkpoint


def first_state(work_dir, checkpoint, **quantize):
    """The model at the start of a training, after the checkpoint is loaded."""
    cfg = ptq_config(
        work_dir,
        checkpoint,
        dict(QAT, **quantize),
        custom_hooks=[dict(type='KillHook', before_iter=1)],
    )
    runner = Runner.from_cfg(cfg)
    with pytest.raises(Killed):
        runner.train()
    return runner.model.module.state_dict()


def test_training_takes_weights_and_ranges_of_the_same_plan(ptq_dir, tmp_path):
    state = first_state(tmp_path, ptq_dir / CHECKPOINT)
    assert not differences(state, state_of(ptq_dir / CHECKPOINT))


def test_training_with_learned_scales_takes_the_calibrated_ranges(ptq_dir, tmp_path):
    stored = state_of(ptq_dir / CHECKPOINT)
    state = first_state(tmp_path, ptq_dir / CHECKPOINT, learned_scale=True)
    names = [name for name in stored if not name.endswith('.plan')]
    assert all(torch.equal(state[name].cpu(), stored[name].cpu()) for name in names)


@pytest.mark.parametrize(
    'quantize', [dict(bits=4), dict(target='onnxruntime'), dict(overrides={'head': 16})]
)
def test_training_takes_only_the_weights_of_another_plan(quantize, ptq_dir, tmp_path):
    state = first_state(tmp_path, ptq_dir / CHECKPOINT, **quantize)
    stored = state_of(ptq_dir / CHECKPOINT)
    changed = differences(state, stored)
    assert all(name.startswith('quantization.') for name in changed)
    assert not state['quantization.activations.count'].any()
    assert 'belong to another quantization plan' in log_of(tmp_path)


def test_training_from_a_calibrated_checkpoint_learns(ptq_dir, tmp_path):
    train(ptq_config(tmp_path, ptq_dir / CHECKPOINT, QAT, iters=4))
    score = val_scores(ptq_dir)[0]['accuracy']
    assert val_scores(tmp_path)[-1]['accuracy'] > score - 0.1


def test_resuming_a_calibration_with_other_bits_is_refused(ptq_dir, tmp_path):
    cfg = ptq_config(
        tmp_path, ptq_dir / CHECKPOINT, dict(mode='ptq', bits=4), resume=True
    )
    with pytest.raises(QuantizeError, match='another quantization plan'):
        train(cfg)


def test_a_run_of_the_other_mode_is_not_resumed(float_checkpoint, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint))
    train(ptq_config(tmp_path / 'qat', float_checkpoint, QAT, iters=2))
    for work_dir, quantize, mode in (
        (tmp_path, QAT, 'ptq'),
        (tmp_path / 'qat', dict(mode='ptq'), 'qat'),
    ):
        cfg = ptq_config(work_dir, float_checkpoint, quantize, resume=True)
        cfg.load_from = None
        with pytest.raises(QuantizeError, match=f"mode='{mode}', which one with"):
            train(cfg)


def test_what_is_calibrated_is_not_calibrated_again(ptq_dir, tmp_path):
    for bits in (8, 4):
        cfg = ptq_config(tmp_path, ptq_dir / CHECKPOINT, dict(mode='ptq', bits=bits))
        with pytest.raises(QuantizeError, match='epoch_1.pth is calibrated already'):
            train(cfg)


def test_calibration_of_a_trained_checkpoint_starts_anew(float_checkpoint, tmp_path):
    train(ptq_config(tmp_path / 'qat', float_checkpoint, QAT, iters=2))
    trained = tmp_path / 'qat' / 'iter_2.pth'
    stored = state_of(trained)
    weights = {k: v for k, v in stored.items() if not k.startswith('quantization.')}
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    states = []
    for start in (trained, tmp_path / 'weights.pth'):
        work_dir = tmp_path / start.stem
        train(ptq_config(work_dir, start))
        states.append(state_of(work_dir / CHECKPOINT))
    assert not differences(*states)


def test_live_statistics_take_the_place_of_corrections(ptq_dir, tmp_path):
    key = 'quantization.bias_correction'
    assert state_of(ptq_dir / CHECKPOINT)[key].all()
    corrections = []
    for name, freeze in (('live', dict(bn=False)), ('frozen', dict(bn=0))):
        cfg = ptq_config(
            tmp_path / name, ptq_dir / CHECKPOINT, dict(QAT, freeze=freeze), iters=2
        )
        corrections.append(train(cfg).model.module.state_dict()[key])
    live, frozen = corrections
    assert torch.equal(frozen.cpu(), state_of(ptq_dir / CHECKPOINT)[key].cpu())
    # Layers without a normalization keep theirs.
    assert 0 < (live == 0).sum() < len(live)
    assert torch.equal(live[live != 0], frozen[live != 0])


def test_sixteen_bits_are_nearer_to_float_than_four(float_checkpoint, tmp_path):
    exact = val_scores(float_checkpoint.parent)[-1]['norm']
    errors = []
    for bits in (16, 8, 4):
        work_dir = tmp_path / str(bits)
        train(ptq_config(work_dir, float_checkpoint, dict(mode='ptq', bits=bits)))
        errors.append(abs(val_scores(work_dir)[0]['norm'] - exact))
    assert errors == sorted(errors)
    assert errors[0] < 0.01 * exact
    assert torch.tensor(errors).isfinite().all()
