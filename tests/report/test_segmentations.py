"""Masks of float and quantized segmentors: scores, what differs, pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmquant_jacinto.report.content import Report
from mmquant_jacinto.report.detections import read_prediction
from mmquant_jacinto.report.page.render import render
from mmquant_jacinto.report.pictures import GAP, Comparison, pixels
from mmquant_jacinto.report.segmentations import (
    GAINED,
    IGNORED,
    LOST,
    color_of,
    count,
    mean_iou,
)

HEIGHT, WIDTH = 40, 60


def sample(path, found, truth):
    data = BaseDataElement(metainfo=dict(img_path=str(path)))
    data.pred_sem_seg = PixelData(data=torch.from_numpy(found)[None])
    data.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
    return data


@pytest.fixture
def path(tmp_path):
    Image.new('RGB', (WIDTH, HEIGHT), 'black').save(tmp_path / 'a.png')
    return tmp_path / 'a.png'


@pytest.fixture
def masks():
    """A truth of two classes and an ignored row; float, and what the file changes."""
    truth = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    truth[:, 30:] = 1
    truth[0] = IGNORED
    float_mask = truth.copy()
    float_mask[0] = 0
    float_mask[1:20, :10] = 1  # wrong in float
    quantized = float_mask.copy()
    quantized[1:20, :10] = 0  # mended
    quantized[20:, 50:] = 0  # lost
    return truth, float_mask, quantized


def compare(networks):
    comparison = Comparison()
    comparison.add({name: read_prediction(item) for name, item in networks.items()})
    report = Report('t', 'test', dict(target='jacinto'), {}, {}, {})
    return report, comparison.fill(report)


def test_counts_are_those_of_the_definition():
    found, truth = np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, IGNORED]])
    counts = count(found, truth)
    assert counts[:, :3].tolist() == [[1, 1, 0], [1, 2, 0], [1, 1, 1]]
    # 1, a half and nothing, of three classes; drawn twice it is the same.
    draws = np.array([[1, 1], [2, 0]])
    assert mean_iou([counts, counts], draws) == pytest.approx([0.5, 0.5])


def test_scores_and_shares_are_told(path, masks):
    truth, float_mask, quantized = masks
    report, _ = compare(
        dict(
            float=sample(path, float_mask, truth),
            quantized=sample(path, quantized, truth),
        )
    )
    known = (HEIGHT - 1) * WIDTH
    lost, gained = 20 * 10, 19 * 10
    assert report.pictures == dict(
        images=1,
        networks=['float', 'quantized'],
        kept=pytest.approx((known - lost - gained) / known),
        lost=pytest.approx(lost / known),
        gained=pytest.approx(gained / known),
    )
    half = (HEIGHT - 1) * 30
    first = ((half - gained) / half + half / (half + gained)) / 2
    score = {item.network: item for item in report.scores}
    assert score['float'].metric == 'mIoU'
    assert score['float'].value == pytest.approx(100 * first)
    assert score['quantized'].lost is not None


def test_truth_and_masks_stand_side_by_side_and_differences_are_marked(path, masks):
    truth, float_mask, quantized = masks
    samples = dict(
        float=sample(path, float_mask, truth),
        quantized=sample(path, quantized, truth),
        file=sample(path, float_mask, truth),
    )
    report, (picture,) = compare(samples)
    image = pixels(picture).astype(int)
    assert image.shape == (HEIGHT, 4 * WIDTH + 3 * GAP, 3)
    panel = [image[:, k * (WIDTH + GAP) :][:, :WIDTH] for k in range(4)]

    def near(place, color):
        return np.abs(place - np.array(color)).max() < 40

    half = [channel // 2 for channel in color_of(1)]
    assert near(panel[0][30, 55], half) and near(panel[1][30, 55], half)
    assert near(panel[2][30, 55], LOST) and near(panel[2][10, 4], GAINED)
    # What the file has as float has is not marked; what is ignored stays as it is.
    assert near(panel[3][30, 55], half)
    page = render(report, [picture])
    assert 'From left to right: the truth, float, quantized, file' in page
    assert 'are right in both float and quantized network' in page


def test_where_nothing_differs_nothing_is_drawn(path, masks):
    same = sample(path, masks[1], masks[0])
    assert compare(dict(float=same, quantized=same))[1] == []
    # A network by itself is held against the truth.
    assert len(compare(dict(quantized=same))[1]) == 1


def test_large_masks_are_kept_small_and_counted_whole(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (900, 1300))
    found = read_prediction(sample(tmp_path / 'gone.png', mask, mask))
    assert max(found.truth.shape) <= 420 and found.counts[0].sum() == mask.size


def test_without_a_truth_of_its_size_nothing_is_compared(masks):
    data = SimpleNamespace(pred_sem_seg=PixelData(data=torch.zeros(1, 4, 4)))
    assert read_prediction(data) is None
    data.gt_sem_seg = PixelData(data=torch.zeros(1, 8, 8))
    data.get = lambda key, default: default
    assert read_prediction(data) is None
