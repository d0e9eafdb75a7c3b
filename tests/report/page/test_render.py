"""The page as text: self-contained, whole, and safe from what names contain."""

import json
import re
import sys
from html import unescape
from html.parser import HTMLParser

import pytest
from reports import made_up

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.report.content import Report, Score, Trial
from mmquant_jacinto.report.measuring.trials import overrides_line
from mmquant_jacinto.report.page.render import render

VOID = {'meta', 'img', 'input', 'br', 'link'}


class Page(HTMLParser):
    """Elements, their text, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.text[tag] = self.text.get(tag, '') + data


@pytest.fixture(scope='module')
def html():
    return render(made_up(), ['data:image/jpeg;base64,AAAA'])


def test_it_is_well_formed_and_needs_no_network(html):
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.elements:
        assert tag != 'link'
        assert tag != 'script' or 'src' not in attributes
        for name in ('src', 'href', 'xlink:href'):
            link = attributes.get(name, '#')
            assert link.startswith(('#', 'data:')), (tag, link)
    # Addresses within are namespaces and metadata of SVG, which nobody fetches.
    assert not re.search(r'@import|url\(["\']?http', html)


def test_each_layer_has_a_row_and_its_data(html):
    page = Page(html)
    rows = [a for tag, a in page.elements if tag == 'tr' and 'data-layer' in a]
    assert [row['data-layer'] for row in rows] == ['0', '1', '2', '3']
    data = json.loads(html.split('id="data">')[1].split('</script>')[0])
    assert [item['name'] for item in data['layers']] == [
        x.name for x in made_up().layers
    ]
    # The points of the plot lead to the rows.
    assert 'href="#layer-2"' in html


def test_what_names_and_causes_contain_is_no_markup(html):
    assert 'toy &lt;network&gt;' in html
    assert 'Rounding: &lt;/script&gt;.' in html


def test_the_verdict_says_what_is_lost_why_and_what_to_do(html):
    text = Page(html).text['section']
    assert 'Quantized, the network scores 41 where float scores 50 (mAP50)' in text
    assert '9.0 points are lost' in text
    assert 'far from those of float: 12.0 dB' in text
    assert 'per_channel=True' in text and 'from 12.0 to 18.0 dB' in text
    assert '33 to 50' in text and 'head: quantize.overrides' in text
    assert 'activation ranges frozen from epoch 5' in text
    assert '16 bits; right: 8 bits' in text and 'QLinearConv' in text


def test_a_network_that_lost_nothing_is_told_so():
    report = made_up(scores=[], trials=[], outputs={'a': 45.0})
    html = render(report)
    assert 'near to those of float: 45.0 dB' in html and 'id="next-line"' not in html


def test_a_report_without_anything_measured_is_a_page_too():
    html = render(
        Report('t', 'test', dict(target='tidl'), {}, {}, dict(float=1, quantized=1))
    )
    assert 'Nothing was measured' in html and Page(html).open == []


def test_1300_layers_are_less_than_5_megabytes():
    assert len(render(made_up(1300)).encode()) < 5e6


@pytest.mark.parametrize('package', ['jinja2', 'matplotlib'])
def test_without_its_libraries_it_says_which(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(QuantizeError, match=f'{package}.*pip install'):
        render(made_up())


def test_without_a_trial_it_tells_the_likeliest_remedy_and_that_it_was_not_tried():
    html = render(made_up(trials=[], scores=[]))
    assert '    bits=16,' in html and 'no time to try what helps' in html


def test_many_overrides_are_lines_of_a_config():
    widths = {f'backbone.layer{n}': 'dict(weight=16, activation=16)' for n in range(3)}
    line = overrides_line({**widths, 'head': '16'})
    html = render(made_up(trials=[Trial(line, 'why', 12.0, 18.0)]))
    shown = re.search(r'<pre id="next-line">(.*?)</pre>', html, re.DOTALL)[1]
    text = unescape(shown)
    assert max(map(len, text.splitlines())) < 80
    names = {}
    exec(text, names)
    assert names['quantize'] == eval(f'dict({line})')


@pytest.mark.parametrize('share', [None, 0.25])
def test_causes_say_where_nothing_is_known_of_the_outputs(share):
    report = made_up()
    for item in report.layers:
        item.share = share
    said = 'the first need not be to blame' in ' '.join(render(report).split())
    assert said == (share is None)


def test_without_a_trial_a_search_is_told_where_scores_can_be_kept():
    html = render(made_up(trials=[]))
    assert '    max_drop=1.0,' in html and 'no time to try what helps' in html


def kept(**changes):
    """What a calibration with a budget leaves."""
    return dict(
        dict(
            settings=dict(points=1.0, metric=None, scorings=20, num_images=16),
            metric='coco/bbox_mAP',
            float=0.371,
            final=0.365,
            drop=0.6,
            met=True,
            layers={'stem/<conv>': 16, 'head/conv2d': False, 'add': {'activation': 16}},
            remedies=dict(bias_correction='analytic'),
            trials=[
                dict(raised=0, in_float=0, remedies={}, score=0.326, drop=4.5),
                dict(raised=2, in_float=1, remedies={}, score=0.365, drop=0.6),
            ],
            seconds=90.0,
        ),
        **changes,
    )


def test_a_budget_is_told_with_what_was_raised_and_tried():
    page = Page(render(made_up(budget=kept())))
    assert page.open == []
    text = ' '.join(page.text['section'].split())
    assert 'coco/bbox_mAP 0.365, float 0.371: a drop of 0.60 points' in text
    assert 'within the 1 of max_drop' in text and '3 layers raised' in text
    assert "bias_correction='analytic'" in text
    assert 'stem/<conv>16 bits' in text and 'head/conv2dfloat' in text
    assert 'activation 16 bits' in text and '2 of at most 20, in 1.5 minutes' in text


def test_a_budget_that_was_not_kept_says_by_how_much():
    found = kept(met=False, drop=3.25, layers={}, remedies={})
    text = ' '.join(Page(render(made_up(budget=found))).text['section'].split())
    assert '2.25 more than the 1 of max_drop: nothing that was tried' in text
    # What found it is no advice any more.
    assert 'max_drop=1.0' not in text
    assert 'id="search-line"' in render(made_up())
    assert 'No layer had to be raised' in text


@pytest.mark.parametrize(
    'network, words',
    [
        ('file', 'The file has mAP50 41 (33 to 50 on 20 images)'),
        ('quantized', 'The quantized network has mAP50 41 (33 to 50 on 20 images)'),
    ],
)
def test_a_page_without_layers_tells_the_score(network, words):
    scores = [
        Score(network, 'mAP50', 41.0, 33.0, 50.0, 20),
        Score(network, 'coco/bbox_mAP', 0.2),
    ]
    bare = made_up(outputs={}, findings=[], trials=[], scores=scores)
    bare.layers = []
    bare.quantized, bare.size, bare.pictures = {}, {}, {}
    page = render(bare)
    assert words in page
    assert '<section id="layers" hidden>' in page and 'What is quantized' not in page
