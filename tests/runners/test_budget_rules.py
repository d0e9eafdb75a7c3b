"""Budgets of metrics of which less is better."""

import json

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from ptq_runs import NARROW, ptq_config
from toy_runner import log_of, train

from mmquant_jacinto import QuantizeConfig, QuantizeError


@METRICS.register_module()
class Entropy(BaseMetric):
    """Less is better."""

    def process(self, data_batch, data_samples):
        for scores, label in zip(data_samples, data_batch['labels']):
            self.results.append(-scores.double().log_softmax(-1)[int(label)].item())

    def compute_metrics(self, results):
        return dict(loss=sum(results) / len(results))


def test_an_error_is_kept_low_by_its_rule(float_checkpoint, tmp_path):
    # Cross entropy: its float value is above 0 and has no upper end.
    budget = dict(metric='toy/loss', points=2, rule='less', scorings=12)
    quantize = dict(NARROW, max_drop=budget)
    evaluator = dict(type='Entropy', prefix='toy')
    train(ptq_config(tmp_path, float_checkpoint, quantize, val_evaluator=evaluator))
    found = json.loads((tmp_path / 'max_drop.json').read_text())
    assert found['met'] and 0 < len(found['layers'])
    assert (
        found['trials'][0]['drop'] > 2 and found['trials'][0]['score'] > found['float']
    )
    assert found['final'] <= found['float'] + 0.02 * 1.0001
    assert found['settings']['rule'] == 'less'


def test_sums_that_layers_read_narrower_are_raised_too(float_checkpoint, tmp_path):
    # By itself: sums, outputs, the first and the last layers have 8 bits.
    bits = dict(weight=2, activation=2)
    quantize = dict(mode='ptq', bits=bits, report=False, max_drop=0)
    train(ptq_config(tmp_path, float_checkpoint, quantize))
    found = json.loads((tmp_path / 'max_drop.json').read_text())
    assert found['finished'] and found['layers']
    ranked = (item['name'] for items in found['rankings'].values() for item in items)
    assert any(name.endswith(':2bits') for name in ranked)


def test_an_error_without_its_rule_is_refused(float_checkpoint, tmp_path):
    evaluator = dict(type='Entropy', prefix='toy')
    quantize = dict(NARROW, max_drop=1)
    with pytest.raises(QuantizeError, match="'toy/loss' is an error.*rule='less'"):
        train(ptq_config(tmp_path, float_checkpoint, quantize, val_evaluator=evaluator))
    assert 'Calibration of ranges' not in log_of(tmp_path)
    with pytest.raises(QuantizeError, match="rule='less'"):
        QuantizeConfig.parse(dict(mode='ptq', max_drop=dict(metric='EPE', points=1)))
    with pytest.raises(QuantizeError, match="rule='smaller' is unknown"):
        wrong = dict(metric='EPE', points=1, rule='smaller')
        QuantizeConfig.parse(dict(mode='ptq', max_drop=wrong))
