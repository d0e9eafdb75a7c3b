"""Hits, thresholds and scores, by hand."""

import numpy as np
import pytest

from mmquant_jacinto.report.detections import (
    Detections,
    Truth,
    best_threshold,
    draw,
    match,
    mean_precision,
    overlap,
    scores_of,
)

SQUARES = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], dtype=np.float32)
TRUTH = Truth(SQUARES, np.array([0, 1]), '')


def found(boxes, scores, labels, truth=TRUTH):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.array(labels, dtype=int)
    return Detections(boxes, np.array(scores), labels, match(boxes, labels, truth))


def test_overlap_is_intersection_over_union():
    half = np.array([[0, 0, 10, 5]], dtype=np.float32)
    assert overlap(half, SQUARES).tolist() == [[0.5, 0.0]]


def test_a_truth_is_hit_once_by_its_own_class():
    item = found([SQUARES[0], SQUARES[0], SQUARES[1]], [0.9, 0.8, 0.7], [0, 0, 0])
    assert item.hits.tolist() == [0, -1, -1]


def test_the_best_threshold_is_that_of_f1():
    # F1 after each detection: 2/3, 1/2, 4/5, 2/3.
    item = found(
        [SQUARES[0], [50, 50, 60, 60], SQUARES[1], [70, 70, 80, 80]],
        *([0.9, 0.6, 0.5, 0.1], [0, 0, 1, 0]),
    )
    assert best_threshold([item], [TRUTH]) == 0.5


def test_without_a_hit_the_threshold_is_a_half():
    assert best_threshold([found([], [], [])], [TRUTH]) == 0.5


def test_mean_precision_is_the_mean_over_classes_of_the_area_under_the_envelope():
    # Class 0: a miss above the hit, precision 1/2; class 1: found, precision 1.
    item = found([[50, 50, 60, 60], SQUARES[0], SQUARES[1]], [0.9, 0.6, 0.5], [0, 0, 1])
    draws = np.array([[1, 1], [2, 0], [0, 2]])
    other = Truth(SQUARES[:1], np.array([0]), '')
    both = [item, found([SQUARES[0]], [0.95], [0], other)]
    values = mean_precision(both, [TRUTH, other], draws)
    # Both images: class 0 has hits at ranks 1 and 3: (1 + 2/3) / 2.
    assert values == pytest.approx([((1 + 2 / 3) / 2 + 1) / 2, 0.75, 1.0])


def test_nothing_found_scores_nothing():
    empty = found([], [], [])
    assert mean_precision([empty], [TRUTH], np.ones((1, 1))).tolist() == [0.0]


def test_intervals_hold_the_score():
    draws = draw(50)
    right = (np.arange(50) % 5 > 0).astype(float)
    (item,) = scores_of('accuracy', {'float': draws @ right / 50}, 50)
    assert item.value == pytest.approx(80)
    assert 65 < item.low < 75 < 85 < item.high < 95 and item.images == 50
    assert item.lost is None


def test_what_is_lost_has_an_interval_of_its_own():
    draws = draw(50)
    right = (np.arange(50) % 5 > 0).astype(float)
    worse = right * (np.arange(50) % 10 != 1)
    networks = {'float': draws @ right / 50, 'quantized': draws @ worse / 50}
    _, item = scores_of('accuracy', networks, 50)
    assert item.value == pytest.approx(70)
    # Each score alone may differ by more than ten points; that it is worse is certain.
    assert item.high > 80 and 0 < item.lost[0] < 10 < item.lost[1] < 20
