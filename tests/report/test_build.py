"""Batches of a dataloader in parts, and what is compared of them in little time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmquant_jacinto.report.build import compare, split_batch
from mmquant_jacinto.report.content import Report
from mmquant_jacinto.report.detections import Detections, Prediction, Seen, Truth
from mmquant_jacinto.report.measuring.measurement import Stopwatch

IMAGES = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(
    'batch, second',
    [
        (IMAGES, IMAGES[1:2]),
        (dict(inputs=IMAGES, labels=IMAGES[:, 0]), dict(inputs=IMAGES[1:2])),
        (dict(inputs=list(IMAGES), samples=['a', 'b', 'c']), dict(samples=['b'])),
        (dict(inputs=dict(img=IMAGES), samples=[1, 2, 3]), dict(samples=[2])),
    ],
)
def test_each_image_is_a_batch(batch, second):
    parts = split_batch(batch, 2)
    assert len(parts) == 2
    if isinstance(batch, torch.Tensor):
        assert torch.equal(parts[1], second)
        return
    for key, value in second.items():
        found = parts[1][key]
        assert torch.equal(found, value) if key == 'inputs' else found == value


def test_fields_without_names():
    first, second, third = split_batch([list(IMAGES), [4, 5, 6]], 8)
    assert torch.equal(third[0][0], IMAGES[2]) and third[1] == [6]
    assert split_batch((IMAGES, torch.ones(3)), 1)[0][0].shape == (1, 2)


@pytest.mark.parametrize(
    'limit, float_passes, networks',
    [
        (None, 3, ['float', 'quantized', 'file']),
        (0.3, 0, ['quantized', 'file']),
        (0.1, 0, []),
    ],
)
def test_what_a_run_predicted_is_compared_without_a_pass(limit, float_passes, networks):
    passes = []

    def predict(batch, in_float):
        passes.append(in_float)
        right = torch.ones(1)
        return SimpleNamespace(pred_label=right, gt_label=right)

    module = SimpleNamespace(test_step=None)
    subject = SimpleNamespace(model=SimpleNamespace(module=module), predict=predict)
    found = Report('t', 'test', {}, {}, {}, {})
    seen = [Seen(index, dict(file=0.0, quantized=1.0)) for index in range(3)]
    # A pass in float is expected to take longer than there is.
    compare(subject, found, seen, Stopwatch(limit), first=0.0 if limit is None else 9.0)
    assert passes == [True] * float_passes
    assert {item.network for item in found.scores} == set(networks)
    assert all(item.images == 3 for item in found.scores)
    assert bool(found.skipped) == (not float_passes)


@pytest.mark.parametrize('used', [0.0, 0.25])
def test_pictures_are_drawn_as_far_as_there_is_time(tmp_path, used):
    path = tmp_path / 'image.png'
    Image.new('RGB', (60, 40), 'gray').save(path)
    truth = Truth(np.array([[5, 5, 30, 30]], np.float32), np.zeros(1, int), str(path))
    nothing = np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, int)
    missed = Prediction(truth, Detections(*nothing, np.zeros(0, int)))
    subject = SimpleNamespace(
        model=SimpleNamespace(module=SimpleNamespace(test_step=None))
    )
    found, watch = Report('t', 'calibration', {}, {}, {}, {}), Stopwatch(0.3)
    watch._start -= used
    pictures = compare(subject, found, [Seen(0, dict(quantized=missed))], watch, 9.0)
    assert len(pictures) == (not used) and ('pictures' in found.skipped) == bool(used)
    assert [score.value for score in found.scores] == [0.0]
