"""``quantize.max_drop``: its forms, and what is none."""

import json
import math

import pytest

from mmquant_jacinto import QuantizeConfig, QuantizeError
from mmquant_jacinto.config.max_drop import MaxDrop, Raised

FOUND = dict(
    finished=True,
    settings=dict(points=0.5),
    layers={'stem/conv2d': 16, 'head/linear': False, 'neck/add': {'activation': 16}},
    remedies=dict(bias_correction='analytic', per_channel=True),
)


def parse(value, **more):
    config = QuantizeConfig.parse(dict(mode='ptq', max_drop=value, **more))
    return config.with_found_budget()


@pytest.fixture
def write(tmp_path):
    def written(**changes):
        path = tmp_path / 'max_drop.json'
        path.write_text(json.dumps({**FOUND, **changes}))
        return str(path)

    return written


@pytest.mark.parametrize('value', [0.5, 1, 0, dict(points=0.5)])
def test_a_number_is_points(value):
    config = parse(value)
    points = value['points'] if isinstance(value, dict) else value
    assert config.max_drop == MaxDrop(points) and config.keeps_budget
    assert QuantizeConfig.parse(config) is config
    assert QuantizeConfig(mode='ptq', max_drop=points).max_drop == MaxDrop(points)


@pytest.mark.parametrize('value', [None, False])
def test_a_falsy_setting_is_none(value):
    assert parse(value).max_drop is None and not parse(value).keeps_budget


def test_a_file_raises_layers_and_takes_what_costs_no_speed(write):
    config = parse(write())
    assert isinstance(config.max_drop, Raised) and not config.keeps_budget
    assert config.raised_layers == FOUND['layers']
    assert config.calibration.bias_correction == 'analytic'
    assert config.per_channel is True
    assert parse(write(), per_channel=False).per_channel is False
    qat = QuantizeConfig.parse(dict(max_drop=write()))
    assert qat.with_found_budget().raised_layers


def test_a_file_is_not_read_before_it_is_needed(tmp_path):
    config = QuantizeConfig.parse(dict(max_drop=str(tmp_path / 'gone.json')))
    assert not config.keeps_budget
    with pytest.raises(QuantizeError, match='gone.json.*cannot be read'):
        config.with_found_budget()


@pytest.mark.parametrize(
    'value, words',
    [
        (-1, ['points=-1', 'from 0 on']),
        (math.nan, ['points=nan']),
        (math.inf, ['points=inf']),
        (True, ['max_drop=True', 'a number of hundredths']),
        ([1], ['max_drop=[1]']),
        ('', ["max_drop=''"]),
        ('0.5', ["max_drop='0.5' cannot be read", 'a number of points']),
        (dict(), ['quantize.max_drop has no points']),
        (dict(points='1'), ["points='1'"]),
        (dict(points=True), ['points=True']),
        (dict(points=1, metric=3), ['metric=3', "'coco/bbox_mAP'"]),
        (dict(points=1, metric=''), ["metric=''"]),
        (dict(points=1, scorings=0), ['max_drop.scorings=0']),
        (dict(points=1, num_images=1.5), ['max_drop.num_images=1.5']),
        (dict(point=1), ['point is not a known key', 'points']),
    ],
)
def test_a_wrong_setting_is_named(value, words):
    with pytest.raises(QuantizeError) as caught:
        parse(value)
    for word in words:
        assert word in str(caught.value)


def test_training_keeps_no_budget_and_says_what_to_do():
    with pytest.raises(QuantizeError, match="max_drop='WORK_DIR/max_drop.json'"):
        QuantizeConfig.parse(dict(max_drop=1.0))


def test_one_key_alone_chooses_widths():
    with pytest.raises(QuantizeError, match='both choose widths'):
        parse(1.0, mixed_precision=dict(average_bits=5))


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(layers={'stem/conv2d': 99}), ["layers['stem/conv2d']=99"]),
        (dict(layers={'stem/conv2d': {'weigth': 8}}), ['not a kind of tensor']),
        (dict(layers=[1]), ['TypeError']),
        (dict(settings=dict(points=-1)), ['points=-1']),
        (dict(settings=None), ['TypeError']),
        (dict(remedies=dict(bias_correction='magic')), ['magic']),
        (dict(remedies=dict(observer='mse')), ['observer']),
        (dict(finished=False), ['has not ended', '--resume']),
    ],
)
def test_a_file_that_raises_nothing_known_is_refused(changes, words, write):
    with pytest.raises(QuantizeError) as caught:
        parse(write(**changes))
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / 'max_drop.json'
    path.write_text('{')
    with pytest.raises(QuantizeError, match='cannot be read'):
        parse(str(path))
