"""Budgets that a calibration keeps, and what later runs make of what it raised."""

import json

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from ptq_runs import CHECKPOINT, NARROW, ptq_config
from toy_runner import (
    Killed,
    differences,
    load,
    log_of,
    make_config,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import QuantCalibrateModule, QuantizeError
from mmquant_jacinto.execute.stored_plan import find_plan
from mmquant_jacinto.runners.budget import BudgetKeeper
from mmquant_jacinto.runners.quant_runner import QuantRunner

FILE = 'max_drop.json'
KEPT = dict(NARROW, max_drop=0)


@pytest.fixture(scope='module')
def kept_dir(tmp_path_factory, float_checkpoint):
    """The work dir of a calibration that kept a budget."""
    work_dir = tmp_path_factory.mktemp('kept')
    train(ptq_config(work_dir, float_checkpoint, KEPT))
    return work_dir


def found_in(work_dir):
    return json.loads((work_dir / FILE).read_text())


def widths_of(checkpoint):
    plan = find_plan(state_of(checkpoint))
    specs = (*plan.weights.values(), *plan.activations)
    return {spec.name: spec.format.bits for spec in specs}


def test_a_budget_is_kept_by_raising_some_layers(kept_dir):
    found = found_in(kept_dir)
    assert found['finished'] and found['met'] and found['drop'] <= 0
    assert found['metric'] == 'accuracy'
    assert 0 < len(found['layers'])
    assert False not in found['layers'].values()
    # The first trial has all layers narrow, and does not do.
    assert found['trials'][0]['raised'] == 0 and found['trials'][0]['drop'] > 0
    assert val_scores(kept_dir)[-1]['accuracy'] == found['final'] >= found['float']
    widths = set(widths_of(kept_dir / CHECKPOINT).values())
    assert widths > {4} and widths & {8, 16}
    assert f'found with {len(found["trials"])} scorings' in log_of(kept_dir)


def test_the_checkpoint_tests_as_it_was_validated(kept_dir, tmp_path):
    for quantize in (KEPT, dict(mode='qat')):
        cfg = make_config(tmp_path, quantize, load_from=str(kept_dir / CHECKPOINT))
        assert Runner.from_cfg(cfg).test() == val_scores(kept_dir)[-1]


def test_a_budget_that_8_bits_keep_raises_nothing(float_checkpoint, tmp_path):
    quantize = dict(
        mode='ptq', max_drop=dict(metric='accuracy', points=5), report=False
    )
    train(ptq_config(tmp_path / 'kept', float_checkpoint, quantize))
    found = found_in(tmp_path / 'kept')
    assert found['layers'] == {} and found['remedies'] == {}
    assert len(found['trials']) == 1
    del quantize['max_drop']
    train(ptq_config(tmp_path / 'plain', float_checkpoint, quantize))
    ours, theirs = (state_of(tmp_path / n / CHECKPOINT) for n in ('kept', 'plain'))
    assert differences(ours, theirs) == ['quantization.plan']


def test_a_search_finds_the_same_again(kept_dir, float_checkpoint, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint, KEPT))
    first, second = (state_of(d / CHECKPOINT) for d in (kept_dir, tmp_path))
    assert differences(first, second) == []


@pytest.mark.parametrize('scored', [0, 1, 4])
def test_a_killed_search_goes_on_where_it_was(
    scored, kept_dir, float_checkpoint, tmp_path, monkeypatch
):
    validate = BudgetKeeper._validate
    left = [scored + 1]  # float is scored too

    def killed(self, phase):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return validate(self, phase)

    monkeypatch.setattr(BudgetKeeper, '_validate', killed)
    with pytest.raises(Killed):
        train(ptq_config(tmp_path, float_checkpoint, KEPT))
    assert len(found_in(tmp_path)['trials']) == scored
    with pytest.raises(QuantizeError, match='has not ended; resume'):
        train(make_config(tmp_path / 'other', raised_by(tmp_path)))
    left[0] = len(found_in(kept_dir)['trials']) - scored
    cfg = make_config(tmp_path, KEPT, resume=True)
    train(cfg)
    assert left == [0]
    assert found_in(tmp_path)['layers'] == found_in(kept_dir)['layers']
    first, second = (state_of(d / CHECKPOINT) for d in (kept_dir, tmp_path))
    assert differences(first, second) == []


def test_a_finished_calibration_is_not_done_again(kept_dir, tmp_path):
    before = load(kept_dir / CHECKPOINT)
    train(make_config(kept_dir, KEPT, resume=True))
    after = load(kept_dir / CHECKPOINT)
    assert differences(before['state_dict'], after['state_dict']) == []
    assert 'is calibrated already' in log_of(kept_dir)


def raised_by(work_dir, **quantize):
    return dict(NARROW, max_drop=str(work_dir / FILE), **quantize)


def test_another_calibration_takes_the_file(kept_dir, float_checkpoint, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint, raised_by(kept_dir)))
    first, second = (state_of(d / CHECKPOINT) for d in (kept_dir, tmp_path))
    assert differences(first, second) == []
    assert not (tmp_path / FILE).exists()


def test_training_takes_the_file_and_the_calibrated_ranges(kept_dir, tmp_path):
    quantize = dict(raised_by(kept_dir), mode='qat')
    start = str(kept_dir / CHECKPOINT)
    train(make_config(tmp_path, quantize, load_from=start))
    assert widths_of(tmp_path / 'epoch_6.pth') == widths_of(kept_dir / CHECKPOINT)
    assert 'only its weights are loaded' not in log_of(tmp_path)


def test_a_test_needs_no_file(kept_dir, tmp_path):
    quantize = raised_by(tmp_path / 'gone')
    cfg = make_config(tmp_path, quantize, load_from=str(kept_dir / CHECKPOINT))
    assert Runner.from_cfg(cfg).test() == val_scores(kept_dir)[-1]


def test_overrides_win_over_what_a_file_raises(kept_dir, float_checkpoint, tmp_path):
    quantize = raised_by(kept_dir, overrides={'*': 5})
    train(ptq_config(tmp_path, float_checkpoint, quantize))
    plan = find_plan(state_of(tmp_path / CHECKPOINT))
    assert {spec.format.bits for spec in plan.weights.values()} == {5}


def test_overrides_are_not_raised(float_checkpoint, tmp_path):
    quantize = dict(KEPT, overrides={'backbone.stem': 3, 'head': 3})
    train(ptq_config(tmp_path, float_checkpoint, quantize))
    assert not [n for n in found_in(tmp_path)['layers'] if n.startswith('head')]
    assert widths_of(tmp_path / CHECKPOINT)['backbone.stem'] == 3


def test_a_file_of_another_model_is_refused(kept_dir, tmp_path):
    found = found_in(kept_dir)
    found['layers'] = {'neck.conv/conv2d': 16}
    (tmp_path / FILE).write_text(json.dumps(found))
    with pytest.raises(QuantizeError, match='another model.*no call neck.conv/conv2d'):
        train(make_config(tmp_path, raised_by(tmp_path)))


@METRICS.register_module()
class Sinking(BaseMetric):
    """Better in float than quantized can be: worse each time that it is asked."""

    asked = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        Sinking.asked += 1
        return dict(sunk=1 / Sinking.asked)


def test_a_budget_that_nothing_keeps_ends_with_the_best_and_says_so(
    float_checkpoint, tmp_path
):
    Sinking.asked = 0
    quantize = dict(KEPT, max_drop=dict(points=1, scorings=6))
    evaluator = dict(type='Sinking', prefix='toy')
    train(ptq_config(tmp_path, float_checkpoint, quantize, val_evaluator=evaluator))
    found = found_in(tmp_path)
    assert not found['met'] and len(found['trials']) == 6
    assert found['final'] == 0.5 and found['layers'] == {}
    assert '49.00 more than quantize.max_drop=1' in log_of(tmp_path)


def test_float_layers_are_the_last_resort(float_checkpoint, tmp_path, monkeypatch):
    validate = BudgetKeeper._validate

    def only_float_does(self, phase):
        metrics = validate(self, phase)
        if phase == 'test' and not self.model.plan.in_float:
            metrics['accuracy'] = 0.1
        return metrics

    monkeypatch.setattr(BudgetKeeper, '_validate', only_float_does)
    train(ptq_config(tmp_path, float_checkpoint, dict(KEPT, max_drop=20)))
    found = found_in(tmp_path)
    assert found['met'] and list(found['layers'].values()) == [False]
    plan = find_plan(state_of(tmp_path / CHECKPOINT))
    assert len(plan.weights) == 2 and len(plan.in_float) == 1


def test_where_only_float_would_do_one_layer_is_left_quantized(
    float_checkpoint, tmp_path, monkeypatch
):
    validate = BudgetKeeper._validate

    def nothing_does(self, phase):
        metrics = validate(self, phase)
        if phase == 'test':
            metrics['accuracy'] = 0.1 + 0.01 * len(self.model.plan.in_float)
        return metrics

    monkeypatch.setattr(BudgetKeeper, '_validate', nothing_does)
    quantize = dict(KEPT, max_drop=dict(points=1, scorings=100))
    train(ptq_config(tmp_path, float_checkpoint, quantize))
    found = found_in(tmp_path)
    assert not found['met'] and found['final'] == pytest.approx(0.12)
    plan = find_plan(state_of(tmp_path / CHECKPOINT))
    assert len(plan.weights) == 1 and len(plan.in_float) == 2


def test_a_run_that_was_killed_behind_its_search_scores_nothing_again(
    kept_dir, float_checkpoint, tmp_path, monkeypatch
):
    def killed(self, filename):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(QuantRunner, 'save_calibrated', killed)
        with pytest.raises(Killed):
            train(ptq_config(tmp_path, float_checkpoint, KEPT))
    assert found_in(tmp_path)['finished']
    monkeypatch.setattr(BudgetKeeper, '_validate', None)
    train(make_config(tmp_path, KEPT, resume=True))
    first, second = (state_of(d / CHECKPOINT) for d in (kept_dir, tmp_path))
    assert differences(first, second) == []


@pytest.mark.parametrize(
    'extra', [dict(finetune=dict(iterations=4)), dict(equalize=True)]
)
def test_each_trial_starts_from_the_float_weights(extra, float_checkpoint, tmp_path):
    changes = {'model.hidden': 16}
    work_dir = tmp_path / 'float'
    train(make_config(work_dir, None, **changes))
    start = work_dir / 'epoch_6.pth'
    quantize = dict(KEPT, max_drop=dict(points=0, scorings=5), **extra)
    train(ptq_config(tmp_path / 'kept', start, quantize, **changes))
    again = dict(NARROW, max_drop=str(tmp_path / 'kept' / FILE), **extra)
    train(ptq_config(tmp_path / 'again', start, again, **changes))
    first, second = (state_of(tmp_path / d / CHECKPOINT) for d in ('kept', 'again'))
    assert differences(first, second) == []


def test_what_is_tried_is_no_epoch_of_the_hooks(float_checkpoint, tmp_path):
    cfg = ptq_config(tmp_path, float_checkpoint, KEPT)
    cfg.default_hooks.checkpoint.save_best = 'accuracy'
    train(cfg)
    assert len(val_scores(tmp_path)) == 1


@pytest.mark.parametrize(
    'max_drop, changes, words',
    [
        (dict(metric='mAP', points=1), {}, ["metric='mAP'", 'accuracy']),
        (99, {}, ['points=99', 'that float has']),
        (1, dict(val_dataloader=None, val_evaluator=None, val_cfg=None), ['none']),
    ],
)
def test_what_cannot_be_kept_is_refused_before_it_is_calibrated(
    max_drop, changes, words, float_checkpoint, tmp_path
):
    cfg = ptq_config(tmp_path, float_checkpoint, dict(KEPT, max_drop=max_drop))
    cfg.update(changes)
    with pytest.raises(QuantizeError) as caught:
        train(cfg)
    for word in ('quantize.max_drop', *words):
        assert word in str(caught.value)
    assert 'Calibration of ranges' not in log_of(tmp_path)


def test_a_metric_of_no_evaluator_is_refused_before_anything_is_scored(
    float_checkpoint, tmp_path
):
    quantize = dict(KEPT, max_drop=dict(metric='coco/bbox_mAP', points=1))
    evaluator = dict(type='ScoreMetric', prefix='toy')
    with pytest.raises(QuantizeError, match='begin with toy/'):
        train(ptq_config(tmp_path, float_checkpoint, quantize, val_evaluator=evaluator))
    assert 'Budget' not in log_of(tmp_path)


def test_a_validation_set_that_is_missing_is_named_before_anything_runs(
    float_checkpoint, tmp_path
):
    cfg = ptq_config(tmp_path, float_checkpoint, KEPT)
    kept = dict(pipeline=cfg.val_dataloader.dataset.pipeline)
    file = str(tmp_path / 'val.json')
    cfg.val_dataloader.dataset = dict(type='Missing', file=file, **kept)
    with pytest.raises(QuantizeError) as caught:
        train(cfg)
    for word in ('val_dataloader', 'val.json', 'No such file', 'ann_file'):
        assert word in str(caught.value)
    assert 'Budget' not in log_of(tmp_path)


@DATASETS.register_module()
class Missing(torch.utils.data.Dataset):
    def __init__(self, file, pipeline):
        self.items = open(file).readlines()


def test_a_float_network_without_a_score_is_refused(tmp_path, float_checkpoint):
    broken = load(float_checkpoint)
    for value in broken['state_dict'].values():
        value.zero_()
    broken['state_dict']['head.bias'] = torch.eye(10)[9] * -1.0
    torch.save(broken, tmp_path / 'broken.pth')
    evaluator = dict(type='Unsure')
    with pytest.raises(QuantizeError, match='float network itself has sure=0'):
        train(
            ptq_config(
                tmp_path / 'run', tmp_path / 'broken.pth', KEPT, val_evaluator=evaluator
            )
        )


@METRICS.register_module()
class Unsure(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(sure=0.0)


def test_plain_pytorch_is_told_that_a_runner_keeps_budgets():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    image = torch.randn(1, 3, 8, 8)
    module = QuantCalibrateModule(net, dummy_input=image, max_drop=1.0)
    module.train()
    with pytest.raises(QuantizeError, match='QuantRunner'):
        module(image)


def test_the_report_tells_of_the_budget(float_checkpoint, tmp_path):
    quantize = dict(KEPT, report=True)
    hooks = [dict(type='ReportHook', share=1000.0)]
    train(ptq_config(tmp_path, float_checkpoint, quantize, custom_hooks=hooks))
    (page,) = tmp_path.glob('*/report.html')
    found, report = (
        found_in(tmp_path),
        json.loads(page.with_name('report.json').read_text()),
    )
    assert report['budget']['layers'] == found['layers']
    assert len(report['budget']['trials']) == len(found['trials'])
    assert 'rankings' not in report['budget']
    scores = {(s['network'], s['metric']): s['value'] for s in report['scores']}
    assert scores['float', 'accuracy'] == pytest.approx(found['float'], rel=1e-4)
    assert 'id="budget"' in page.read_text()
