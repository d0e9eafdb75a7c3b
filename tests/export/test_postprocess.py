"""Decoding and NMS in the file."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from dense_heads import CLASSES, SIZE, TEST_CFG, SmallSSD, make_heads  # noqa: E402
from mmcv.ops import batched_nms  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.graph.graph_writer import GraphWriter  # noqa: E402
from mmquant_jacinto.export.postprocess import _select, decode  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402


@pytest.fixture(autouse=True)
def scope():
    # Runners of other tests may have left another one.
    init_default_scope('mmdet')


def outputs_of(head):
    """What a head returns, with numbers that make detections."""
    features = [torch.randn(1, 8, SIZE[0] // s, SIZE[1] // s) for s in (8, 16)]
    head.eval()
    with torch.no_grad():
        raw = head(features)
        return tuple([torch.randn_like(x) * 0.7 for x in part] for part in raw)


def suppress(boxes, scores):
    """The reference: MMCV's NMS on all that has a score."""
    places, labels = (scores[0] > 0).nonzero().unbind(1)
    found, kept = batched_nms(
        boxes[0][places], scores[0][places, labels], labels, dict(TEST_CFG.nms)
    )
    limit = TEST_CFG.max_per_img
    return InstanceData(
        bboxes=found[:limit, :4], scores=found[:limit, 4], labels=labels[kept][:limit]
    )


@pytest.mark.parametrize(
    'name', ['ssd', 'retinanet', 'fcos', 'atss', 'yolox', 'gfl', 'rtmdet']
)
def test_decoding_is_that_of_the_head(name):
    head = make_heads()[name]
    raw = outputs_of(head)
    if name in ('fcos', 'rtmdet'):
        # Distances, in pixels.
        raw = (raw[0], [x.abs() * 10 for x in raw[1]], *raw[2:])
    found = suppress(*decode(head, raw, SIZE))
    meta = dict(img_shape=SIZE, scale_factor=(1.0, 1.0), ori_shape=SIZE)
    with torch.no_grad():
        (expected,) = head.predict_by_feat(*raw, batch_img_metas=[meta], rescale=False)
    assert len(expected) > 5
    # YOLOX has no limit.
    expected = expected[: TEST_CFG.max_per_img]
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.bboxes, expected.bboxes)
    assert torch.equal(found.labels, expected.labels)


def test_suppression_is_that_of_mmcv():
    corners = torch.rand(1, 400, 2) * 80
    boxes = torch.cat([corners, corners + torch.rand(1, 400, 2) * 60], 2)
    scores = torch.rand(1, 400, CLASSES)
    writer = GraphWriter()
    names = [writer.add_input(n, x) for n, x in (('boxes', boxes), ('scores', scores))]
    found = _select(writer, *names, iou=0.5, keep=TEST_CFG.max_per_img)
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64)
    graph = helper.make_graph(
        writer.nodes,
        'nms',
        writer.inputs,
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(found, kinds)],
        list(writer.initializers.values()),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8
    )
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString())
    found = session.run(None, {'boxes': boxes.numpy(), 'scores': scores.numpy()})
    expected = suppress(boxes, scores)
    np.testing.assert_allclose(found[0], expected.bboxes)
    np.testing.assert_allclose(found[1], expected.scores)
    np.testing.assert_array_equal(found[2], expected.labels)


def test_detections_are_outputs_beside_the_head(ssd):
    exported = ssd.export(postprocess=True)
    names = [item.name for item in exported.model.graph.output]
    assert names[-3:] == ['boxes', 'scores', 'labels']
    assert names[0] == 'cls_scores.0'
    found = Session(exported.model)(torch.randn(1, 3, *ssd.size))
    assert found['boxes'].shape == (len(found['scores']), 4)
    assert found['labels'].dtype == torch.int64


def greedy(boxes, scores, iou, keep):
    """Suppression in NumPy: among equal scores the first comes first."""
    found = []
    for label, column in enumerate(scores.T):
        kept = []
        for i in np.argsort(-column, kind='stable'):
            if column[i] <= 0 or len(kept) == keep:
                break
            low = np.maximum(boxes[i, :2], boxes[kept][:, :2])
            high = np.minimum(boxes[i, 2:], boxes[kept][:, 2:])
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
            shared = np.prod(np.maximum(high - low, 0), 1)
            if not (shared / (areas[i] + areas[kept] - shared) > iou).any():
                kept.append(i)
        found += [(-column[i], label, i) for i in kept]
    return sorted(found)[:keep]


def test_detections_of_the_file_are_those_of_its_outputs(ssd):
    exported = ssd.export(postprocess=True)
    found = Session(exported.model)(torch.randn(1, 3, *ssd.size))
    raw = [
        [found[f'{name}.{i}'] for i in range(5)]
        for name in ('cls_scores', 'bbox_preds')
    ]
    head = ssd.model.bbox_head
    boxes, scores = (x[0].numpy() for x in decode(head, raw, ssd.size))
    expected = greedy(
        boxes, scores, head.test_cfg.nms.iou_threshold, head.test_cfg.max_per_img
    )
    assert len(expected) > 20
    places = [i for _, _, i in expected]
    np.testing.assert_allclose(found['scores'], [-s for s, _, _ in expected], 1e-5)
    # A last bit of the scores may decide the order of two.
    same = found['labels'].numpy() == [label for _, label, _ in expected]
    same &= np.abs(found['boxes'].numpy() - boxes[places]).max(1) < 1e-3
    assert same.mean() > 0.9


@pytest.fixture(scope='module')
def ssd():
    return SmallSSD()


def test_unknown_decoding_is_refused():
    from mmdet.models.dense_heads import YOLOV3Head

    head = YOLOV3Head(
        num_classes=CLASSES, in_channels=(8, 8, 8), out_channels=(8, 8, 8)
    )
    with pytest.raises(QuantizeError, match='YOLOV3Head'):
        decode(head, None, SIZE)
