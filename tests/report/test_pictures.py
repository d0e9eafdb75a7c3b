"""What differs between float and quantized predictions, counted and drawn."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image

from mmquant_jacinto.report.content import Report
from mmquant_jacinto.report.detections import read_prediction
from mmquant_jacinto.report.pictures import HIT, LARGEST_SIDE, Comparison, pixels

BOXES = torch.tensor([[100.0, 100, 300, 300], [500, 100, 700, 300]])


def sample(path, scores, labels=(0, 0), truth=(0, 0)):
    """A data sample of a detector that found some of the boxes."""
    count = len(scores)
    found = BaseDataElement(metainfo=dict(img_path=str(path)))
    found.gt_instances = InstanceData(bboxes=BOXES, labels=torch.tensor(truth))
    found.pred_instances = InstanceData(
        bboxes=BOXES[:count],
        scores=torch.tensor(scores),
        labels=torch.tensor(labels[:count]),
    )
    return found


def report():
    return Report('t', 'test', dict(target='jacinto'), {}, {}, {})


@pytest.fixture
def path(tmp_path):
    Image.new('RGB', (840, 420), 'white').save(tmp_path / 'a.png')
    return tmp_path / 'a.png'


def compare(pairs):
    comparison = Comparison()
    for samples in pairs:
        found = map(read_prediction, samples)
        comparison.add(dict(zip(('float', 'quantized', 'file'), found)))
    found = report()
    return found, comparison.fill(found)


def test_what_is_lost_is_counted_and_shown(path):
    same = sample(path, [0.9, 0.8])
    found, pictures = compare([(same, same), (same, sample(path, [0.9]))])
    assert found.pictures == dict(
        threshold=pytest.approx(0.8),
        images=2,
        networks=['float', 'quantized'],
        kept=3,
        lost=1,
        gained=0,
    )
    scores = {item.network: item.value for item in found.scores}
    assert scores['float'] == 100 and 50 < scores['quantized'] < 100
    # The image where nothing differs is not shown.
    (picture,) = pictures
    content = base64.b64decode(picture.partition(',')[2])
    image = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    assert image.shape == (LARGEST_SIDE // 2, 2 * LARGEST_SIDE + 8, 3)
    # The second box is green in float and thin and black quantized.
    green = np.array([int(HIT[i : i + 2], 16) for i in (1, 3, 5)])
    near = (abs(image - green).sum(2) < 90).any(0)
    assert near[250:351].any() and not near[LARGEST_SIDE + 258 :].any()


def test_a_file_stands_beside_both_networks(path):
    same, less = sample(path, [0.9, 0.8]), sample(path, [0.9])
    found, pictures = compare([(same, same, less)])
    assert [item.network for item in found.scores] == ['float', 'quantized', 'file']
    assert found.scores[2].value < found.scores[1].value == 100
    # Only the file differs, and the third of three panels is without the second box.
    image = pixels(pictures[0]).astype(int)
    assert image.shape[1] == 3 * LARGEST_SIDE + 16
    green = np.array([int(HIT[i : i + 2], 16) for i in (1, 3, 5)])
    near = (abs(image - green).sum(2) < 90).any(0)
    second, third = LARGEST_SIDE + 8, 2 * LARGEST_SIDE + 16
    assert near[second + 250 : second + 351].any() and not near[third + 258 :].any()


def test_a_network_alone_is_shown_where_it_misses_a_truth(path):
    comparison = Comparison()
    for scores in ([0.9, 0.8], [0.9]):
        comparison.add({'file': read_prediction(sample(path, scores))})
    found = report()
    assert len(comparison.fill(found)) == 1
    assert 'lost' not in found.pictures
    assert [item.network for item in found.scores] == ['file']


def test_an_image_that_is_gone_costs_its_picture_alone(tmp_path):
    gone = tmp_path / 'gone.png'
    found, pictures = compare([(sample(gone, [0.9, 0.8]), sample(gone, [0.9]))])
    assert pictures == [] and found.pictures['lost'] == 1


def test_without_truth_nothing_is_scored(path):
    bare = BaseDataElement()
    bare.pred_instances = InstanceData(
        bboxes=BOXES, scores=torch.ones(2), labels=torch.zeros(2)
    )
    found, pictures = compare([(bare, bare)])
    assert found.scores == [] and pictures == [] and found.pictures == {}


def test_classifiers_are_scored_by_accuracy():
    def classified(label):
        return SimpleNamespace(
            pred_label=torch.tensor([label]), gt_label=torch.tensor([1])
        )

    found, _ = compare([(classified(1), classified(1)), (classified(1), classified(0))])
    assert [(s.network, s.metric, s.value) for s in found.scores] == [
        ('float', 'accuracy', 100.0),
        ('quantized', 'accuracy', 50.0),
    ]


def test_other_outputs_are_left_alone():
    found, pictures = compare([(torch.ones(3), torch.ones(3))])
    assert found.scores == [] and pictures == []
