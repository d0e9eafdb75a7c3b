"""The results table out of the results of its runs, and the intervals in it."""

import json

import accuracy_report
import numpy as np
import pytest

RESULTS = [
    dict(arch='mobilenet', row='float', seed=0, scores=dict(mAP50=0.8, mAP=0.4)),
    *(
        dict(arch='mobilenet', row='int8_jacinto_ptq', seed=seed, scores=scores)
        for seed, scores in enumerate(
            [dict(mAP50=0.796, mAP=0.39), dict(mAP50=0.8, mAP=0.395)]
        )
    ),
    dict(arch='resnet', row='w4a4_lsq', seed=2, scores=dict(mAP50=0.7, mAP=0.3)),
]


def test_summary():
    start, ptq, alone = accuracy_report.summarize(RESULTS)
    assert start['mAP']['mean'] == 40 and start['mAP']['std'] is None
    assert start['mAP']['lost'] == 0 and start['mAP']['met'] is None
    assert ptq['seeds'] == 2
    assert ptq['mAP50']['mean'] == pytest.approx(79.8)
    assert ptq['mAP50']['std'] == pytest.approx(0.4 / 2**0.5)
    assert ptq['mAP50']['lost'] == pytest.approx(0.2) and ptq['mAP50']['met'] is True
    assert ptq['mAP']['lost'] == pytest.approx(0.75) and ptq['mAP']['met'] is False
    assert alone['mAP']['lost'] is None and alone['mAP']['met'] is None


def test_qat_is_compared_with_float_trained_as_long(tmp_path):
    names = ['float', 'float_longer', 'float_longer', 'int8_jacinto_qat']
    results = [
        dict(arch='regnet', row=name, seed=seed, scores=dict(mAP50=0.9, mAP=score))
        for seed, (name, score) in enumerate(zip(names, [0.4, 0.43, 0.45, 0.42]))
    ]
    *_, qat = accuracy_report.summarize(results)
    assert qat['mAP']['lost'] == pytest.approx(-2)
    assert qat['mAP']['lost_longer'] == pytest.approx(2)
    lines = accuracy_report.longer_lines([qat])
    assert lines[-1].endswith('trained as long: 8 bits jacinto, QAT 0.00 · 2.00.')


def test_report(tmp_path):
    settings = dict(
        data='bccd',
        train_images=205,
        test_images=87,
        input_size=256,
        float_epochs=30,
        qat_epochs=12,
    )
    accuracy_report.write_report(settings, RESULTS, tmp_path / 'docs')
    content = json.loads((tmp_path / 'docs' / 'results.json').read_text())
    assert content['runs'] == RESULTS and len(content['summary']) == 3
    text = (tmp_path / 'docs' / 'results_table.md').read_text()
    assert '| SSD-FPN MobileNetV2 | 80.0 · 40.0 | 79.8 · 39.2 |  |' in text
    assert (
        '| 8 bits jacinto, calibrated | 79.80 ± 0.28 | 39.25 ± 0.35 | 0.20 | 0.75 '
        '| 0.3 · 0.5 | yes · no |' in text
    )


def test_bounds_of_a_backbone_from_imagenet_are_its_own():
    arch = 'mobilenet_imagenet'
    results = [
        dict(arch=arch, row=name, seed=0, scores=dict(mAP50=score, mAP=score / 2))
        for name, score in dict(
            float=0.8, int8_jacinto_ptq=0.794, int8_onnxruntime_qat=0.79, w4a8_ptq=0.7
        ).items()
    ]
    summary = accuracy_report.summarize(results)
    found = {entry['row']: entry['mAP50'] for entry in summary}
    assert found['int8_jacinto_ptq']['met'] is True
    assert found['int8_onnxruntime_qat']['met'] is False
    assert found['w4a8_ptq']['bound'] is None
    rows = {row.name: row for row in accuracy_report.ROWS}
    lines = [accuracy_report.table_row(rows[it['row']], it) for it in summary]
    assert lines[1].endswith('| 0.7 · – | yes · – |')
    assert lines[-1].endswith('|  |  |')


CLASSES = 2


def detections(rng, num_images):
    """Random ground truths, some ignored, and detections near some of them."""
    truths, samples = {}, []
    for index in range(num_images):
        boxes = rng.uniform(0, 60, (rng.integers(0, 6), 2))
        boxes = np.hstack([boxes, boxes + rng.uniform(5, 30, boxes.shape)])
        labels = rng.integers(0, CLASSES, len(boxes))
        truths[f'{index}'] = [
            dict(bbox=box, bbox_label=label, ignore_flag=int(rng.random() < 0.2))
            for box, label in zip(boxes, labels)
        ]
        found = np.repeat(boxes, 2, axis=0) + rng.normal(0, 2, (2 * len(boxes), 4))
        found = np.vstack([found, [[0, 0, 20, 20]]])
        predicted = dict(
            bboxes=found,
            labels=np.append(np.repeat(labels, 2), 0),
            scores=rng.random(len(found)),
        )
        samples.append(dict(img_id=f'{index}', pred_instances=predicted))
    return truths, samples


def evaluate(truths, samples, threshold):
    """What MMDetection's own evaluation gives."""
    from mmdet.evaluation import eval_map

    annotations, found = [], []
    for sample in samples:
        instances = truths[sample['img_id']]
        parts = {}
        for suffix, flag in (('', 0), ('_ignore', 1)):
            mine = [item for item in instances if item['ignore_flag'] == flag]
            boxes = [item['bbox'] for item in mine]
            parts[f'bboxes{suffix}'] = np.array(boxes).reshape(-1, 4)
            parts[f'labels{suffix}'] = np.array([x['bbox_label'] for x in mine])
        annotations.append(parts)
        predicted = sample['pred_instances']
        scored = np.hstack([predicted['bboxes'], predicted['scores'][:, None]])
        found.append([scored[predicted['labels'] == k] for k in range(CLASSES)])
    score, _ = eval_map(
        found,
        annotations,
        iou_thr=threshold,
        eval_mode='area',
        use_legacy_coordinate=True,
        logger='silent',
    )
    return score


def test_scores_of_resamples_are_those_of_mmdet_on_repeated_images():
    pytest.importorskip('mmdet')
    from accuracy_intervals import IOU_THRESHOLDS, average_precisions, match

    rng = np.random.default_rng(0)
    truths, samples = detections(rng, 12)
    weights = np.stack([np.ones(12, dtype=int), rng.multinomial(12, [1 / 12] * 12)])
    scores = average_precisions(match(samples, truths, CLASSES), weights)
    assert 0.1 < scores.mean() < 0.9
    for row, drawn in zip(scores, weights):
        copies = [s for s, count in zip(samples, drawn) for _ in range(count)]
        for score, threshold in list(zip(row, IOU_THRESHOLDS))[::4]:
            expected = evaluate(truths, copies, float(threshold))
            assert score == pytest.approx(expected, abs=1e-5)


def test_interval_is_of_the_paired_difference():
    pytest.importorskip('mmengine')
    from accuracy_intervals import lost_interval

    rng = np.random.default_rng(0)
    start = rng.normal(0.5, 0.1, 1000)
    difference = rng.normal(0.01, 0.001, (2, 1000))
    low, high = lost_interval(start, list(start - difference))
    # the mean of two seeds varies by 0.1 / sqrt(2) points
    assert low == pytest.approx(1 - 1.96 * 0.0707, abs=0.02)
    assert high == pytest.approx(1 + 1.96 * 0.0707, abs=0.02)


def test_best_rows_by_bits():
    pytest.importorskip('matplotlib')
    from accuracy_plots import best_by_bits

    names = ['w4a8_ptq', 'int8_jacinto_ptq', 'float', 'int8_jacinto_plain', 'twin']
    results = [
        dict(arch='regnet', row=name, seed=0, scores=dict(mAP50=0.9, mAP=score))
        for name, score in zip(names, [0.2, 0.3, 0.4, 0.35, 0.1])
    ]
    best = best_by_bits(accuracy_report.summarize(results), 'regnet', 'ptq', 'mAP')
    assert list(best) == ['float', '8', 'W4A8']
    assert [values['mean'] for values in best.values()] == [40, 35, 20]
