"""Latencies that a calibration keeps, and what later runs make of what it raised."""

import json

import pytest
import torch
from mmengine.runner import Runner
from ptq_runs import CHECKPOINT, NARROW, ptq_config
from toy_runner import differences, log_of, make_config, state_of, train, val_scores

from mmquant_jacinto import QuantCalibrateModule, QuantizeError
from mmquant_jacinto.execute.stored_plan import find_plan

FILE = 'mixed_precision.json'
LATENCY = dict(latency=3.0, num_images=8)
KEPT = dict(NARROW, mixed_precision=LATENCY)


@pytest.fixture(scope='module')
def kept_dir(tmp_path_factory, float_checkpoint):
    """The work dir of a calibration that kept a latency."""
    work_dir = tmp_path_factory.mktemp('kept')
    train(ptq_config(work_dir, float_checkpoint, KEPT))
    return work_dir


def found_in(work_dir):
    return json.loads((work_dir / FILE).read_text())


def specs_of(work_dir, name=CHECKPOINT):
    plan = find_plan(state_of(work_dir / name))
    return [
        {spec.name: spec.format.bits for spec in specs}
        for specs in (plan.weights.values(), plan.activations)
    ]


def test_weights_and_activations_are_raised_within_the_latency(kept_dir):
    found = found_in(kept_dir)
    assert 1 < found['latency'] <= 3.0
    weights, activations = specs_of(kept_dir)
    assert set(weights.values()) > {2} or set(activations.values()) > {4}
    raised = [kind for value in found['layers'].values() for kind in value]
    assert {'weight', 'activation'} == set(raised)
    assert f'Latency: {found["latency"]:.3f} times' in log_of(kept_dir)


def test_it_is_better_than_what_costs_less(kept_dir, float_checkpoint, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint, NARROW))
    assert val_scores(kept_dir)[-1]['accuracy'] > val_scores(tmp_path)[-1]['accuracy']


def test_the_checkpoint_tests_as_it_was_validated(kept_dir, tmp_path):
    for quantize in (KEPT, dict(mode='qat')):
        cfg = make_config(tmp_path, quantize, load_from=str(kept_dir / CHECKPOINT))
        assert Runner.from_cfg(cfg).test() == val_scores(kept_dir)[-1]


def test_it_finds_the_same_again(kept_dir, float_checkpoint, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint, KEPT))
    first, second = (state_of(d / CHECKPOINT) for d in (kept_dir, tmp_path))
    assert differences(first, second) == []


def test_a_finished_calibration_is_not_done_again(kept_dir):
    train(make_config(kept_dir, KEPT, resume=True))
    assert 'is calibrated already' in log_of(kept_dir)


def test_another_calibration_takes_the_file(kept_dir, float_checkpoint, tmp_path):
    quantize = dict(NARROW, mixed_precision=str(kept_dir / FILE))
    train(ptq_config(tmp_path, float_checkpoint, quantize))
    first, second = (state_of(d / CHECKPOINT) for d in (kept_dir, tmp_path))
    assert differences(first, second) == []
    assert not (tmp_path / FILE).exists()


def test_training_takes_the_file_and_the_calibrated_ranges(kept_dir, tmp_path):
    # So few bits were fine-tuned, with scales that were learned.
    assert find_plan(state_of(kept_dir / CHECKPOINT)).is_learned
    quantize = dict(NARROW, mode='qat', mixed_precision=str(kept_dir / FILE))
    quantize['learned_scale'] = True
    start = str(kept_dir / CHECKPOINT)
    train(make_config(tmp_path, quantize, load_from=start))
    assert specs_of(tmp_path, 'epoch_6.pth') == specs_of(kept_dir)
    assert 'only its weights are loaded' not in log_of(tmp_path)


def test_activations_alone_are_raised(float_checkpoint, tmp_path):
    budget = dict(LATENCY, kinds=('activation',))
    train(ptq_config(tmp_path, float_checkpoint, dict(NARROW, mixed_precision=budget)))
    weights, activations = specs_of(tmp_path)
    assert set(weights.values()) == {2} and max(activations.values()) == 16


def test_overrides_are_not_raised(float_checkpoint, tmp_path):
    quantize = dict(KEPT, overrides={'backbone.stem': 3, 'head': 3})
    train(ptq_config(tmp_path, float_checkpoint, quantize))
    assert not [n for n in found_in(tmp_path)['layers'] if n.startswith('head')]
    weights, _ = specs_of(tmp_path)
    assert weights['backbone.stem'] == 3


def test_a_file_of_another_model_is_refused(kept_dir, tmp_path):
    found = found_in(kept_dir)
    found['layers'] = {'neck.conv/conv2d': dict(weight=16)}
    (tmp_path / FILE).write_text(json.dumps(found))
    quantize = dict(NARROW, mixed_precision=str(tmp_path / FILE))
    match = 'mixed_precision=.*another model.*no call neck.conv/conv2d'
    with pytest.raises(QuantizeError, match=match):
        train(make_config(tmp_path, quantize))


def test_a_file_with_a_broken_width_is_refused(kept_dir, tmp_path):
    found = found_in(kept_dir)
    found['layers'] = {'head/linear': 77}
    (tmp_path / FILE).write_text(json.dumps(found))
    quantize = dict(NARROW, mixed_precision=str(tmp_path / FILE))
    with pytest.raises(QuantizeError, match='cannot be read.*=77'):
        train(make_config(tmp_path, quantize))


def test_plain_pytorch_is_told_that_a_runner_keeps_latencies():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    image = torch.randn(1, 3, 8, 8)
    budget = dict(latency=1.5)
    module = QuantCalibrateModule(net, dummy_input=image, mixed_precision=budget)
    module.train()
    with pytest.raises(QuantizeError, match='mixed_precision.latency.*QuantRunner'):
        module(image)


def test_the_report_tells_of_the_latency(float_checkpoint, tmp_path):
    quantize = dict(KEPT, report=True)
    hooks = [dict(type='ReportHook', share=1000.0)]
    train(ptq_config(tmp_path, float_checkpoint, quantize, custom_hooks=hooks))
    (page,) = tmp_path.glob('*/report.html')
    report = json.loads(page.with_name('report.json').read_text())
    assert report['budget']['layers'] == found_in(tmp_path)['layers']
    text = page.read_text()
    assert 'id="budget"' in text and 'times the operations by width' in text
