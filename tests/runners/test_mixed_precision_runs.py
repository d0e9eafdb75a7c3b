"""Widths that a run chooses, and what later runs make of them."""

import json

import pytest
from mmengine.runner import Runner
from toy_runner import (
    differences,
    load,
    log_of,
    make_config,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.execute.stored_plan import find_plan

FILE = 'mixed_precision.json'
CHECKPOINT = 'epoch_1.pth'
BUDGET = dict(average_bits=5.5, num_images=20)
MIXED = dict(mode='ptq', target='onnxruntime', mixed_precision=BUDGET)


@pytest.fixture(scope='module')
def mixed_dir(tmp_path_factory):
    """The work dir of a calibration that chose widths."""
    work_dir = tmp_path_factory.mktemp('mixed')
    train(make_config(work_dir, MIXED, **{'model.hidden': 16}))
    return work_dir


def config(work_dir, quantize, **changes):
    return make_config(work_dir, quantize, **{'model.hidden': 16}, **changes)


def widths_of(checkpoint):
    plan = find_plan(state_of(checkpoint))
    return {name: spec.format.bits for name, spec in plan.weights.items()}


def test_a_config_chooses_widths_and_leaves_them(mixed_dir):
    data = json.loads((mixed_dir / FILE).read_text())
    widths = {name: layer['bits'] for name, layer in data['layers'].items()}
    assert set(widths.values()) == {4, 8}
    assert widths_of(mixed_dir / CHECKPOINT) == widths
    assert data['average_bits'] <= 5.5
    assert 'Sensitivity of weights: 20 images' in log_of(mixed_dir)
    assert log_of(mixed_dir).count('Mixed precision: ') == 1
    state = state_of(mixed_dir / CHECKPOINT)
    assert state['quantization.activations.count'].all()
    assert state['quantization.bias_correction'].any()


@pytest.mark.parametrize('quantize', [MIXED, dict(mode='qat')])
def test_the_checkpoint_tests_as_it_was_validated(quantize, mixed_dir, tmp_path):
    cfg = config(tmp_path, quantize, load_from=str(mixed_dir / CHECKPOINT))
    assert Runner.from_cfg(cfg).test() == val_scores(mixed_dir)[0]


def test_the_same_run_chooses_the_same(mixed_dir, tmp_path):
    train(config(tmp_path, MIXED))
    assert (tmp_path / FILE).read_text() == (mixed_dir / FILE).read_text()
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, mixed_dir))
    assert not differences(ours, theirs)


def test_a_finished_run_resumes(mixed_dir, tmp_path):
    resume = dict(load_from=str(mixed_dir / CHECKPOINT), resume=True)
    runner = train(config(tmp_path, MIXED, **resume))
    assert 'calibrated already' in log_of(tmp_path)
    assert val_scores(tmp_path) == val_scores(mixed_dir)
    state = runner.model.module.state_dict()
    assert not differences(state, state_of(mixed_dir / CHECKPOINT))
    other = dict(MIXED, mixed_precision=dict(BUDGET, average_bits=6.0))
    with pytest.raises(QuantizeError, match='another quantization plan'):
        train(config(tmp_path / 'other', other, **resume))


def test_found_widths_in_another_calibration_give_the_same(mixed_dir, tmp_path):
    # Ranges are measured alike, so that all is the same.
    found = dict(MIXED, mixed_precision=str(mixed_dir / FILE))
    train(config(tmp_path, found))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, mixed_dir))
    assert not differences(ours, theirs)
    assert not (tmp_path / FILE).exists()


def test_training_takes_found_widths_and_the_calibrated_ranges(mixed_dir, tmp_path):
    quantize = dict(target='onnxruntime', mixed_precision=str(mixed_dir / FILE))
    cfg = config(tmp_path, quantize, iters=4, load_from=str(mixed_dir / CHECKPOINT))
    train(cfg)
    assert 'belong to another' not in log_of(tmp_path)
    assert widths_of(tmp_path / 'iter_4.pth') == widths_of(mixed_dir / CHECKPOINT)
    assert load(tmp_path / 'iter_4.pth')['meta']['iter'] == 4


def test_overrides_win_over_found_widths(mixed_dir, tmp_path):
    quantize = dict(
        target='onnxruntime',
        mixed_precision=str(mixed_dir / FILE),
        overrides={'backbone.stem': 16},
    )
    train(config(tmp_path, quantize, iters=2))
    widths = widths_of(tmp_path / 'iter_2.pth')
    expected = dict(widths_of(mixed_dir / CHECKPOINT), **{'backbone.stem': 16})
    assert widths == expected


def test_widths_of_another_model_are_refused(mixed_dir, tmp_path):
    quantize = dict(mixed_precision=str(mixed_dir / FILE))
    with pytest.raises(QuantizeError, match='another model.* no width for head'):
        train(make_config(tmp_path, quantize))
