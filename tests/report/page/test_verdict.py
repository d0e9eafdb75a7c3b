"""The first screen, read by somebody who knows nothing of quantization."""

import ast

import pytest
from reports import layer, made_up

from mmquant_jacinto.config.max_drop import MaxDrop
from mmquant_jacinto.config.quantize_config import QuantizeConfig
from mmquant_jacinto.report.content import Score, Trial
from mmquant_jacinto.report.page.verdict import loss_of, verdict


def scores(end=41.0, lost=None):
    return [
        Score('float', 'mAP50', 50.0, 44.0, 58.0, 20),
        Score('quantized', 'mAP50', end, 33.0, 50.0, 20, lost),
    ]


@pytest.mark.parametrize(
    'given, words',
    [
        (scores(), '(mAP50): 9.0 points are lost.'),
        (
            scores(lost=[2.0, 15.0]),
            '9.0 points are lost (2.0 to 15.0 with 95 % confidence, on 20 images).',
        ),
        (
            scores(48.0, [-1.0, 5.0]),
            '2.0 points are lost, which may be chance on 20 images (-1.0 to 5.0 with '
            '95 % confidence).',
        ),
        (scores(52.0, [-6.0, 1.0]), '(mAP50): nothing is lost by it.'),
        (
            [Score('float', 'mIoU', 0.5), Score('quantized', 'mIoU', 0.45)],
            '(mIoU): 5.0 points are lost.',
        ),
        (
            [Score('quantized', 'coco/bbox_mAP', 0.326)],
            'What is lost is not known: this run did not score the float network',
        ),
        ([], 'Nothing was scored.'),
    ],
)
def test_the_headline_says_what_is_lost(given, words):
    assert words in verdict(made_up(scores=given))['headline']


def test_a_kept_budget_says_the_score_it_kept():
    kept = dict(metric='coco/bbox_mAP', float=0.371, final=0.365, drop=0.6)
    found = loss_of(made_up(budget=kept))
    assert (found.metric, found.points, found.is_certain) == (
        'coco/bbox_mAP',
        0.6,
        True,
    )


def test_why_names_kind_layer_and_cause():
    why = verdict(made_up())['why']
    assert '67% of the noise in the outputs comes from rounding activations' in why
    assert '(what layers give)' in why and 'from backbone.layer0. Rounding' in why


@pytest.mark.parametrize('line', ['per_channel=True', "overrides={'a': 16}"])
def test_each_line_is_one_that_the_config_takes_and_says_its_price(line):
    found = verdict(made_up(trials=[Trial(line, 'why', 12.0, 18.0)]))
    for text in (found['next'], found['search']):
        call = ast.parse(f'dict({text})', mode='eval').body
        given = {item.arg: ast.literal_eval(item.value) for item in call.keywords}
        QuantizeConfig(mode='ptq', target='jacinto', **given)
    assert ('longer for numbers of 16 bits' in found['proof']) == ('16' in line)
    assert ('costs no speed. ' in found['proof']) == ('16' not in line)


def test_a_trial_that_brings_nothing_leaves_the_search():
    found = verdict(made_up(trials=[Trial('per_channel=True', 'why', 12.0, 12.1)]))
    assert found['next'] == 'max_drop=1.0' and found['search'] is None
    assert 'Nothing that was tried' in found['why']


@pytest.mark.parametrize(
    'changes', [dict(kind='training'), dict(scores=[]), dict(budget=dict(points=1))]
)
def test_no_search_is_told_where_none_can_be_made(changes):
    assert verdict(made_up(**changes))['search'] is None


def test_outputs_near_to_float_that_lost_by_chance_need_nothing():
    near = dict(outputs={'a': 30.0}, scores=scores(49.0, [-1.0, 3.0]))
    found = verdict(made_up(**near))
    assert found['next'] is None and found['done'] == (
        'There is nothing that has to be done.'
    )
    far = dict(near, scores=scores(41.0, [3.0, 15.0]))
    assert verdict(made_up(**far))['next'] == 'per_channel=True'


def test_what_was_not_tried_is_told_as_the_likeliest():
    found = verdict(made_up(trials=[]))
    assert 'The likeliest place is backbone.layer0' in found['why']
    assert f'up to {MaxDrop(1.0).scorings} times' in found['proof']


@pytest.mark.parametrize('can_search', [True, False])
def test_no_layer_is_blamed_that_was_not_weighed(can_search):
    layers = [layer(index, share=None) for index in range(4)]
    changes = {} if can_search else dict(scores=[])
    report = made_up(trials=[], **changes)
    report.layers, report.images = layers, 1
    found = verdict(report)
    assert 'measured on one image' in found['why']
    assert 'cannot say which layers are to blame' in found['why']
    assert layers[0].module not in found['why']
    # Nothing but the search does without knowing what to raise.
    assert found['next'] == ('max_drop=1.0' if can_search else None)


def test_a_budget_that_is_kept_needs_nothing_more():
    kept = dict(metric='coco/bbox_mAP', float=0.371, final=0.361, drop=1.0)
    kept.update(met=True, settings=dict(points=1.0))
    found = verdict(made_up(budget=kept))
    assert found['next'] is None and 'within the 1 of max_drop' in found['done']
    assert verdict(made_up(budget=dict(kept, met=False)))['next'] is not None
