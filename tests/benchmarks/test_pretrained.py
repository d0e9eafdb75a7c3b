"""The command for networks that others trained, as far as it needs none of them."""

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('pycocotools')
import pretrained  # noqa: E402
import pretrained_networks  # noqa: E402
import pretrained_report  # noqa: E402
import pretrained_scores as scores  # noqa: E402
import pretrained_views as views  # noqa: E402
from accuracy_intervals import lost_interval  # noqa: E402
from accuracy_runs import RunError  # noqa: E402
from PIL import Image  # noqa: E402
from pretrained_rows import ROWS, ROWS_BY_NAME  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

from mmquant_jacinto.config.quantize_config import QuantizeConfig  # noqa: E402

CATEGORIES = [3, 5, 9]
NUM_IMAGES = 6


@pytest.fixture(scope='module')
def photographs():
    """Ground truths, crowds among them, and detections near to most of them."""
    rng = np.random.default_rng(0)
    annotations, samples = [], []
    for image in range(NUM_IMAGES):
        low = rng.uniform(0, 60, (12, 2))
        boxes = np.hstack([low, low + rng.uniform(10, 50, (12, 2))])
        labels = rng.integers(0, len(CATEGORIES), len(boxes))
        for box, label in zip(boxes[:8], labels):
            x, y, w, h = *box[:2], *(box[2:] - box[:2])
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=CATEGORIES[label],
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=int(rng.random() < 0.1),
                )
            )
        found = dict(
            bboxes=torch.tensor(boxes + rng.normal(0, 2, boxes.shape))[2:],
            scores=torch.tensor(rng.random(len(boxes)))[2:],
            labels=torch.tensor(labels)[2:],
        )
        samples.append(dict(img_id=image, pred_instances=found))
    truths = dict(
        images=[dict(id=image) for image in range(NUM_IMAGES)],
        categories=[dict(id=number) for number in CATEGORIES],
        annotations=annotations,
    )
    return truths, samples


def coco_score(truths, samples):
    """What COCO's own summary says."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset = truths
        coco.createIndex()
        annotations = scores.annotations_of(samples, CATEGORIES)
        found.dataset = dict(truths, annotations=annotations)
        found.createIndex()
        evaluation = COCOeval(coco, found, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(mAP50=100 * evaluation.stats[1], mAP=100 * evaluation.stats[0])


def drawn(truths, samples, counts):
    """The data set that a draw of its images makes."""
    images, annotations, found = [], [], []
    for image in np.repeat(np.arange(NUM_IMAGES), counts):
        number = len(images)
        images.append(dict(id=number))
        for item in truths['annotations']:
            if item['image_id'] == image:
                again = dict(item, id=len(annotations) + 1, image_id=number)
                annotations.append(again)
        found.append(dict(samples[image], img_id=number))
    return dict(truths, images=images, annotations=annotations), found


def test_score_is_that_of_coco(photographs):
    truths, samples = photographs
    result = scores.score(scores.coco_matches(truths, samples, CATEGORIES))
    assert result == pytest.approx(coco_score(truths, samples))
    assert 10 < result['mAP'] < 90


@pytest.mark.parametrize('counts', [[2, 0, 1, 0, 3, 0], [0, 0, 0, 0, 0, 6]])
def test_draw_is_scored_as_the_images_that_it_makes(photographs, counts):
    truths, samples = photographs
    matches = scores.coco_matches(truths, samples, CATEGORIES)
    found = scores.points(matches, np.array([counts]))
    expected = coco_score(*drawn(truths, samples, counts))
    for metric, value in expected.items():
        assert 100 * found[metric][0] == pytest.approx(value)


def test_images_and_classes_without_detections_count(photographs):
    truths, samples = photographs
    fewer = copy.deepcopy(samples)
    for sample in fewer:
        found = sample['pred_instances']
        keep = (found['labels'] != 1) & (sample['img_id'] != 2)
        sample['pred_instances'] = {key: x[keep] for key, x in found.items()}
    result = scores.score(scores.coco_matches(truths, fewer, CATEGORIES))
    assert result == pytest.approx(coco_score(truths, fewer))


def test_interval_is_paired(photographs):
    truths, samples = photographs
    matches = scores.coco_matches(truths, samples, CATEGORIES)
    same = scores.lost_intervals(matches, matches)
    assert same == dict(mAP50=(0, 0), mAP=(0, 0))
    nothing = [
        dict(sample, pred_instances={k: x[:0] for k, x in sample_instances.items()})
        for sample in samples
        for sample_instances in [sample['pred_instances']]
    ]
    lost = scores.lost_intervals(
        matches, scores.coco_matches(truths, nothing, CATEGORIES)
    )
    draws = scores.draw(NUM_IMAGES)
    expected = lost_interval(scores.points(matches, draws)['mAP'], [np.zeros(1)])
    assert lost['mAP'] == pytest.approx(expected)


def test_views_of_a_photograph_are_drawn_together(photographs):
    truths, samples = photographs
    nothing = [
        dict(
            sample,
            pred_instances={k: x[:0] for k, x in sample['pred_instances'].items()},
        )
        if sample['img_id'] % 2
        else sample
        for sample in samples
    ]
    both = (
        scores.coco_matches(truths, found, CATEGORIES) for found in (samples, nothing)
    )
    before, after = both
    apart = scores.lost_intervals(before, after)['mAP']
    together = scores.lost_intervals(before, after, 2)['mAP']
    # One of each two images has lost all: drawn together, each draw loses as much.
    assert together[1] - together[0] < apart[1] - apart[0]


def test_views_show_objects_where_their_file_says(tmp_path):
    box = [6, 4, 10, 7]
    images = tmp_path / 'images'
    images.mkdir()
    for number in (3, 5):
        photograph = Image.new('RGB', (48, 32), (20, 20, 20))
        photograph.paste((250, 250, 250), (6, 4, 16, 11))
        photograph.save(images / f'{number}.png')
    truths = dict(
        images=[dict(id=n, file_name=f'{n}.png', width=48, height=32) for n in (3, 5)],
        annotations=[
            dict(id=1, image_id=5, category_id=1, bbox=box, area=70, iscrowd=0)
        ],
        categories=[dict(id=1)],
    )
    listed = tmp_path / 'truths.json'
    listed.write_text(json.dumps(truths))
    path = views.write_views(listed, images, tmp_path / 'views')
    content = json.loads(path.read_text())
    numbers = [image['id'] for image in content['images']]
    assert numbers == list(range(1, 2 * views.VIEWS_OF_EACH + 1))
    # Only the second photograph has an object, and each of its views has it.
    seen = [item['image_id'] for item in content['annotations']]
    assert seen == numbers[views.VIEWS_OF_EACH :]
    found = set()
    for image, item in zip(
        content['images'][views.VIEWS_OF_EACH :], content['annotations']
    ):
        file = tmp_path / 'views' / 'images' / image['file_name']
        pixels = np.asarray(Image.open(file).convert('L'))
        assert pixels.shape == (image['height'], image['width'])
        rows, columns = np.nonzero(pixels > 200)
        x, y, w, h = item['bbox']
        assert (columns.min(), columns.max() + 1) == (x, x + w)
        assert (rows.min(), rows.max() + 1) == (y, y + h)
        found.add((x, image['width'], int(pixels.min())))
    assert len(found) == views.VIEWS_OF_EACH


def test_float_agrees_with_its_own_confident_detections(photographs):
    _, samples = photographs
    truths = scores.own_truths(samples, CATEGORIES)
    assert (
        0
        < len(truths['annotations'])
        < sum(len(sample['pred_instances']['scores']) for sample in samples)
    )
    result = scores.score(scores.coco_matches(truths, samples, CATEGORIES))
    assert result == pytest.approx(dict(mAP50=100, mAP=100))


def test_noise_of_each_output():
    signal = {'scores.0': torch.full((2, 3), 10.0), 'boxes.0': torch.ones(4)}
    outputs = {'scores.0': signal['scores.0'] + 1, 'boxes.0': signal['boxes.0']}
    result = scores.output_noise(signal, outputs)
    assert result['outputs'] == {'scores.0': 20.0, 'boxes.0': np.inf}
    assert result['least'] == 20.0


def test_rows_are_valid_and_switches_differ_from_rows_that_are_there():
    assert len(ROWS_BY_NAME) == len(ROWS)
    for row in ROWS:
        assert set(row.bound) <= set(pretrained_networks.NETWORKS)
        if row.quantize is not None:
            assert QuantizeConfig.parse(dict(row.quantize, mode='ptq'))
        if row.switch is not None:
            assert row.quantize != ROWS_BY_NAME[row.switch].quantize


def test_folder_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained_networks, 'BESIDE', tmp_path / 'none')
    monkeypatch.delenv(pretrained_networks.VARIABLE, raising=False)
    with pytest.raises(SystemExit, match='MMQUANT_PRETRAINED must .* is not set'):
        pretrained_networks.find_folder('a.pth', 'b.pth')
    monkeypatch.setenv(pretrained_networks.VARIABLE, str(tmp_path))
    (tmp_path / 'a.pth').touch()
    with pytest.raises(SystemExit, match='has no b.pth'):
        pretrained_networks.find_folder('a.pth', 'b.pth')
    assert pretrained_networks.find_folder('a.pth') == tmp_path


def test_unknown_row_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        pretrained.parse_args(['--rows', 'int9*'])
    assert "no row is called 'int9*'" in capsys.readouterr().err


def detections(*rows):
    """Of one image: (x, score, label) each, boxes of 10 by 10."""
    x, scores, labels = (torch.tensor(column) for column in zip(*rows))
    zeros = torch.zeros_like(x)
    boxes = torch.stack([x, zeros, x + 10, zeros + 10], 1)
    return dict(pred_instances=dict(bboxes=boxes, scores=scores, labels=labels))


def test_score_error_is_of_confident_detections_on_either_side():
    before = [detections((0.0, 0.9, 1), (50.0, 0.5, 2), (80.0, 0.2, 2))]
    assert scores.score_error(before, before) == 0
    # One sinks, one is of another class, one comes up where the other was unsure.
    after = [detections((1.0, 0.7, 1), (50.0, 0.6, 3), (80.0, 0.4, 2))]
    expected = [0.2, 0.5, 0.2, 0.6, 0.2]
    assert scores.score_error(before, after) == pytest.approx(100 * sum(expected) / 5)
    assert scores.score_error(after, before) == pytest.approx(100 * sum(expected) / 5)


def test_score_error_of_two_objects_that_overlap():
    # Each is compared with itself, not with the surer one beside it.
    both = [detections((0.0, 0.9, 1), (3.0, 0.4, 1))]
    assert scores.score_error(both, both) == 0
    gone = [detections((0.0, 0.9, 1), (90.0, 0.1, 1))]
    expected = [0.0, 0.5, 0.0]
    assert scores.score_error(both, gone) == pytest.approx(100 * sum(expected) / 3)


def measured(lost, **more):
    return dict(
        scores=dict(mAP=37.0 - lost, mAP50=50.0 - lost),
        intervals=dict(mAP=(lost - 1, lost + 1), mAP50=(lost - 2, lost + 2)),
        noise=dict(least=20.0, median=25.0),
        **more,
    )


def agreed(value):
    return dict(mAP50=value, mAP=value, score_error=100 - value)


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Rows that were measured, by a stand-in for their processes."""
    commands = []
    monkeypatch.setenv(pretrained_networks.VARIABLE, str(tmp_path))

    def call(command, log, lock, *more):
        folder = pretrained.ROOT / command[2]
        commands.append((folder.name, *more))
        if folder.name == 'int8_tidl':
            raise RunError('ended with exit code 1')
        if folder.name == 'float':
            views = measured(9.0)
            result = measured(0.0, agreement=agreed(100.0), views=views)
        else:
            result = measured(2.0, seconds=3.0)
            if not more:
                result.update(agreement=agreed(90.0), views=measured(14.0))
        (folder / 'epoch_1.pth').touch()
        (folder / 'measured.json').write_text(json.dumps(result))

    monkeypatch.setattr(pretrained, 'call', call)
    return commands


def run(tmp_path, *arguments):
    line = ['--networks', 'yolox_nano', '--out', str(tmp_path / 'out'), *arguments]
    args = pretrained.parse_args(line)
    return args, pretrained.execute(pretrained.select_runs(args), args.retry)


def test_rows_are_kept_and_failures_too(tmp_path, called, monkeypatch):
    rows = ['--rows', 'int8_tidl', 'int8_jacinto']
    _, failures = run(tmp_path, *rows, '--quick')
    assert failures == ['yolox_nano int8_tidl: ended with exit code 1']
    # Float is what all are compared with, so it is never quick.
    assert called == [('float',), ('int8_jacinto', '--quick'), ('int8_tidl', '--quick')]
    folder = tmp_path / 'out' / 'yolox_nano' / 'int8_jacinto'
    assert not list(folder.glob('*.pth'))

    called.clear()
    assert run(tmp_path, *rows, '--quick')[1] == failures
    assert called == []
    run(tmp_path, *rows)  # agreement and views are missing
    assert called == [('int8_jacinto',)]
    called.clear()
    run(tmp_path, *rows, '--retry')
    assert called == [('int8_tidl',)]
    called.clear()
    monkeypatch.setattr(pretrained, 'package_sources', lambda: [Path(__file__)])
    run(tmp_path, *rows)  # of another package all but float is made again
    assert called == [('int8_jacinto',), ('int8_tidl',)]


def test_table_says_what_is_met(tmp_path, called, monkeypatch):
    args, _ = run(tmp_path, '--rows', 'int8_tidl', 'int8_jacinto', '*_entropy')
    monkeypatch.setattr(
        pretrained,
        'facts',
        lambda args: dict(
            train=13,
            test=20,
            views=8,
            looked=22,
            packages='a',
            confident=0.3,
            threads=2,
        ),
    )
    content = pretrained.collect(args)
    text = pretrained_report.table(json.loads(json.dumps(content)))
    assert (
        '| 8 bits `jacinto` | 2.0 [1.0, 3.0] | 2.0 [0.0, 4.0] | 5.0 [13.0, 15.0] | '
        '20.0, 25.0 | 90.0 · 90.0 | 10.0 | 3 | 4 | yes · **no** |'
    ) in text
    assert '| failed: ended with exit code 1 |  |  |  |  |  |  | 1 | no |' in text
    widths = {line.count('|') for line in text.splitlines() if line.startswith('|')}
    assert len(widths) == 1
    before, _, after = text.partition('One switch at a time')
    assert 'entropy' in after and 'entropy' not in before
    # What is kept as JSON is there where the runs are not.
    kept = tmp_path / 'kept.json'
    kept.write_text(json.dumps(content))
    args.json, args.out = kept, tmp_path / 'elsewhere'
    again = json.loads(json.dumps(pretrained.collect(args)))
    assert again == json.loads(kept.read_text())


def test_the_newer_of_what_is_kept_and_what_runs_have_left_counts(
    tmp_path, called, monkeypatch
):
    monkeypatch.setattr(pretrained, 'facts', lambda args: {})
    args, _ = run(tmp_path, '--rows', 'int8_tidl')
    left = pretrained.collect(args)['rows']
    name = next(iter(left))
    for age, newest in ((-60, 'left'), (60, 'kept')):
        kept = copy.deepcopy(left)
        for row in kept[name].values():
            row.update(seconds='kept', measured=row['measured'] + age)
        args.json = tmp_path / 'kept.json'
        args.json.write_text(json.dumps(dict(rows=kept)))
        found = pretrained.collect(args)['rows'][name].values()
        assert [row.get('seconds') == 'kept' for row in found] == [newest == 'kept'] * 2


def test_wide_layers_and_other_libraries_are_told():
    widths = dict(weight={'4': 950, '8': 50}, activation={'8': 1, '4': 199})
    told = ' (5 % of the weights at 8 bits, 1 of 200 activations at 8 bits)'
    assert pretrained_report.wide(widths) == told
    told = ' (70 % of the weights at 8 bits)'
    assert pretrained_report.wide(dict(weight={'4': 30, '8': 70})) == told
    assert pretrained_report.wide(dict(weight={'16': 100})) == ''
    assert pretrained_report.wide({}) == ''
    rows = {
        'nncf / torch, mixed / W8A8': dict(
            mAP50=50.0, mAP=34.0, scores_dB=20.0, boxes_dB=21.0, objectness_dB=22.0
        ),
        'torch FX / x86 / W8A8': dict(reason='cannot trace'),
        'mmquant_jacinto / default / W8A8': dict(reason='an older version'),
    }
    lines = list(pretrained_report.peer_lines(rows, dict(mAP50=51.0, mAP=37.0)))
    assert lines[2:] == [
        '| nncf | torch, mixed | W8A8 | 3.0 | 1.0 | 20.0, 21.0, 22.0 |',
        '| torch FX | x86 | W8A8 | failed: cannot trace | | |',
    ]
