"""Networks that are broken on purpose: the cause is named, and its remedy helps."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto.config.quantize_config import QuantizeConfig
from mmquant_jacinto.report import Measurement, describe
from mmquant_jacinto.report.causes import find_growth, next_line
from mmquant_jacinto.report.content import Trial

PER_TENSOR = dict(mode='ptq', target='onnxruntime', per_channel=False)


def report_of(net, x, **quantize):
    quantization = calibrated(net.eval(), x, **quantize)
    report = describe(quantization, 'toy', 'report')

    def run(behaviour, batch):
        quantization.executor.behaviour = behaviour
        return net(batch)

    Measurement(quantization, run).fill(report, [x])
    return report


def tower(activation=F.relu):
    return Forward(
        lambda net, x: net.last(activation(net.second(activation(net.first(x))))),
        first=nn.Conv2d(3, 16, 3),
        second=nn.Conv2d(16, 16, 3),
        last=nn.Conv2d(16, 8, 1),
    )


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 20)


def test_outlier_channels_are_told_and_per_channel_helps(x):
    net = tower()
    with torch.no_grad():
        net.second.weight[0] *= 60
        net.last.weight[:, 0] /= 60
    report = report_of(net, x, **PER_TENSOR)
    worst = report.findings[0]
    assert worst.module == 'second' and 'Outlier channels' in worst.cause
    assert worst.remedy == 'per_channel=True' and worst.tried > 3


def test_clipping_is_told(x):
    net = tower()
    report = report_of(net, x, **{**PER_TENSOR, 'observer': 'percentile'}, percentile=8)
    causes = {finding.cause.partition(':')[0] for finding in report.findings}
    assert 'Clipping' in causes
    finding = next(f for f in report.findings if f.cause.startswith('Clipping'))
    assert finding.remedy == "observer='minmax'"


@pytest.mark.parametrize(
    'bits, remedy', [(8, 'dict(activation=16)'), (4, "observer='mse'")]
)
def test_a_long_tail_gets_the_remedy_that_measures_better_at_its_width(bits, remedy):
    x = torch.randn(2, 3, 60, 60)
    x[0, :, 3, 3] = 4000.0
    widths = dict(weight=16, activation=bits, sum=bits, output=bits)
    quantize = dict(PER_TENSOR, observer='minmax', bits=widths, edge_bits=bits)
    report = report_of(tower(lambda x: x), x, **quantize)
    found = [f for f in report.findings if f.cause.startswith('A long tail')]
    assert found and all(remedy in finding.remedy for finding in found)


def test_half_a_grid_is_told(x):
    # SiLU is never below -0.28; a symmetric grid reaches as far down as up.
    net = tower(F.silu)
    with torch.no_grad():
        net.first.weight *= 20
    report = report_of(net, x, mode='ptq', target='jacinto', bits=6)
    found = [f for f in report.findings if 'Half a grid' in f.cause]
    assert found and 'dict(activation=16)' in found[0].remedy


def test_unlike_operands_of_a_concatenation_are_told(x):
    net = Forward(
        lambda net, x: net.last(torch.cat([net.small(x), net.large(x)], 1)),
        small=nn.Conv2d(3, 8, 3),
        large=nn.Conv2d(3, 8, 3),
        last=nn.Conv2d(16, 8, 1),
    )
    with torch.no_grad():
        net.large.weight *= 100
        net.large.bias.zero_()
        net.last.weight[:, 8:] /= 100
    report = report_of(net, x, **PER_TENSOR)
    found = {finding.module: finding.cause for finding in report.findings}
    assert 'A grid shared by unlike tensors' in found['small']


def test_dead_channels_are_told(x):
    net = tower()
    with torch.no_grad():
        net.second.weight[0] *= 2000
        net.last.weight[:, 0] = 0
    report = report_of(net, x, **PER_TENSOR)
    row = next(layer for layer in report.layers if layer.module == 'second')
    assert row.weight.zero_channels >= 12
    assert row.weight.spread > 500


@pytest.mark.parametrize('target', ['onnxruntime', 'jacinto'])
def test_each_remedy_is_a_line_that_the_config_takes(x, target):
    net = tower(F.silu)
    with torch.no_grad():
        net.second.weight[0] *= 60
    report = report_of(net, x, mode='ptq', target=target, bits=5)
    assert report.trials and report.findings
    lines = [item.line for item in report.trials]
    lines += [item.remedy for item in report.findings]
    for line in lines:
        given = eval(f'dict({line})')
        QuantizeConfig.parse(dict(mode='ptq', target=target, **given))


def test_an_override_that_was_tried_brings_what_it_says(x):
    # Calibrated anew with the line, the outputs are as near to float as was told.
    torch.manual_seed(3)
    net = tower()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    given = dict(mode='ptq', target='onnxruntime', overrides={'second': 4})
    report = report_of(net, x, **given)
    trial = next(t for t in report.trials if t.line.startswith("overrides={'second'"))
    again = tower()
    again.load_state_dict(state)
    line = dict(given, **eval(f'dict({trial.line})'))
    after = report_of(again, x, **line)
    (snr,) = after.outputs.values()
    assert trial.gain > 10
    assert snr == pytest.approx(trial.snr_after, abs=1.5)


def trial(line, gain):
    return Trial(line, '', 10.0, 10.0 + gain)


def test_what_costs_no_speed_is_preferred_where_it_brings_nearly_as_much():
    channels, wide = trial('per_channel=True', 4.0), trial('bits=16', 9.0)
    few = trial("overrides={'a': 16}", 7.0)
    assert next_line([wide, few, channels]) is channels
    channels.snr_after = 11.0
    assert next_line([wide, few, channels]) is few
    assert next_line([trial('per_channel=True', 0.5)]) is None


def test_trials_keep_the_other_kinds_width(x):
    few = dict(bits=dict(weight=4, activation=6), edge_bits=4)
    report = report_of(tower(), x, mode='ptq', target='onnxruntime', **few)
    lines = {trial.line for trial in report.trials}
    assert 'bits=dict(weight=4, activation=16)' in lines
    assert 'bits=dict(weight=16, activation=6)' in lines


@pytest.mark.parametrize(
    'growth, told',
    [
        ([1.0, 1.05, 1.2, 1.5], '2 of 4 ranges'),
        ([1.0] * 9 + [2.0], None),
        ([math.nan, math.inf, 1.2], '1 of 1 ranges'),
        ([math.nan], None),
        ([], None),
    ],
)
def test_ranges_that_still_grew_are_told(growth, told):
    found = find_growth(growth)
    assert bool(found) == (told is not None)
    if told is not None:
        assert told in found[0].cause and 'num_images' in found[0].remedy
