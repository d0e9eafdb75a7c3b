"""Postprocess: decoding and NMS of a dense head as standard ONNX nodes.

Decoding is written in PyTorch, with the head's own coder and priors, and traced
like the rest; NMS is ONNX's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import QuantizeError
from .graph.graph_writer import GraphWriter
from .tracing.trace import Trace

BOXES, SCORES, LABELS = 'boxes', 'scores', 'labels'


def add_detections(
    trace: Trace, head: Any, raw: Any, shape: tuple[int, int]
) -> dict[str, tuple[str, Tensor]]:
    """Writes what turns a head's output into detections.

    Args:
        trace (Trace): Running.
        head (nn.Module): A dense head of MMDetection.
        raw (Any): What it returned in this trace, for one image.
        shape (Tuple[int, int]): Height and width of the image.

    Returns:
        Dict[str, Tuple[str, Tensor]]: ``boxes`` (M, 4): left, top, right, bottom in
        pixels of the input, ``scores`` (M,) and ``labels`` (M,), best first: name to
        (name in the graph, an example).

    Raises:
        QuantizeError: If the head decodes in a way that is not known here.
    """
    boxes, scores = decode(head, raw, shape)
    names = [trace.name_of(x) for x in (boxes, scores)]
    for x in (boxes, scores):
        reason = trace.tag(x)[1]
        if reason is not None:
            raise QuantizeError(f'--postprocess cannot be exported: {reason}')
    cfg = head.test_cfg
    found = _select(
        trace.writer,
        names[0],
        names[1],
        iou=float(cfg['nms']['iou_threshold']),
        keep=int(cfg.get('max_per_img', 100)),
    )
    examples = (torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    outputs = {}
    for name, source, example in zip((BOXES, SCORES, LABELS), found, examples):
        outputs[trace.writer.unique(name)] = (source, example)
    return outputs


def decode(head: Any, raw: Any, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes and scores of all places.

    Args:
        head (nn.Module): A dense head of MMDetection.
        raw (Any): Its output: per level class scores, boxes and maybe factors.
        shape (Tuple[int, int]): Height and width of the image.

    Returns:
        Tuple[Tensor, Tensor]: (1, K, 4) and (1, K, C); a score that the head's
        ``test_cfg`` leaves out is zero.

    Raises:
        QuantizeError: If the head decodes in a way that is not known here.
    """
    bases = {base.__name__ for base in type(head).__mro__}
    if 'YOLOXHead' in bases:
        return _drop(head, *_decode_yolox(head, *raw))
    if not _decodes_as_usual(head, bases):
        raise QuantizeError(
            f'--postprocess does not know how {type(head).__name__} decodes; export '
            'without it and decode outside the file'
        )
    scores, predictions, *factors = raw
    sizes = [x.shape[-2:] for x in scores]
    priors = head.prior_generator.grid_priors(
        sizes, dtype=scores[0].dtype, device=scores[0].device
    )
    channels = head.cls_out_channels
    kept = torch.cat([_class_scores(head, _places(x, channels)) for x in scores], 1)
    if factors and factors[0] is not None:
        kept = kept * torch.cat([_places(x, 1) for x in factors[0]], 1).sigmoid()
    size = head.bbox_coder.encode_size
    if 'GFLHead' in bases:
        size = 4 * (head.reg_max + 1)
    levels = []
    for level, prediction in enumerate(predictions):
        places = _places(prediction, size)
        if 'GFLHead' in bases:
            stride = head.prior_generator.strides[level][0]
            places = _expected_distance(head, places) * stride
            level_priors = head.anchor_center(priors[level])
        else:
            level_priors = priors[level]
        # The coders take one image. They clip in place, in a view, which is seen by no
        # graph: so it is done here.
        boxes = head.bbox_coder.decode(level_priors, places[0])
        if getattr(head.bbox_coder, 'clip_border', True):
            boxes = _clip(boxes, shape)
        levels.append(boxes.unsqueeze(0))
    return _drop(head, torch.cat(levels, 1), kept)


def _clip(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Boxes (K, 4) within an image of a height and a width."""
    height, width = shape
    limits = torch.tensor([width, height] * 2, dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limits)


def _class_scores(head: Any, places: Tensor) -> Tensor:
    """Scores of a level's places; zero below the threshold and the best ``nms_pre``.

    As in MMDetection, both are decided by the class alone.
    """
    scores = places.sigmoid() if head.use_sigmoid_cls else places.softmax(-1)[..., :-1]
    kept = torch.where(scores > head.test_cfg.get('score_thr', 0.0), scores, 0.0)
    count = head.test_cfg.get('nms_pre', -1)
    if not 0 < count < kept[0].numel():
        return kept
    least = kept.reshape(kept.shape[0], -1).topk(count)[0][:, -1:].unsqueeze(2)
    return torch.where(kept >= least, kept, 0.0)


def _places(x: Tensor, size: int) -> Tensor:
    """A map (N, A * size, H, W) as one row for each place: (N, H * W * A, size)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, size)


def _expected_distance(head: Any, places: Tensor) -> Tensor:
    """Distances as the mean of the distribution that GFL predicts."""
    bins = head.reg_max + 1
    shares = places.reshape(places.shape[0], -1, 4, bins).softmax(-1)
    return (shares * head.integral.project).sum(-1)


def _decodes_as_usual(head: Any, bases: set[str]) -> bool:
    method = getattr(type(head), '_predict_by_feat_single', None)
    usual = getattr(method, '__module__', '').endswith('base_dense_head')
    parts = ('prior_generator', 'bbox_coder', 'test_cfg')
    return (usual or 'GFLHead' in bases) and all(
        getattr(head, part, None) is not None for part in parts
    )


def _decode_yolox(
    head: Any, scores: list, predictions: list, objectness: list
) -> tuple[Tensor, Tensor]:
    priors = head.prior_generator.grid_priors(
        [x.shape[2:] for x in scores],
        dtype=scores[0].dtype,
        device=scores[0].device,
        with_stride=True,
    )
    flat = torch.cat([_places(x, head.cls_out_channels) for x in scores], 1).sigmoid()
    objects = torch.cat([_places(x, 1) for x in objectness], 1).sigmoid()
    boxes = torch.cat([_places(x, 4) for x in predictions], 1)
    best = torch.where(flat == flat.amax(-1, keepdim=True), flat * objects, 0.0)
    kept = torch.where(best > head.test_cfg.get('score_thr', 0.0), best, 0.0)
    return head._bbox_decode(torch.cat(priors), boxes), kept


def _drop(head: Any, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of boxes that are too small become zero."""
    smallest = head.test_cfg.get('min_bbox_size', -1)
    if smallest < 0:
        return boxes, scores
    sides = boxes[..., 2:] - boxes[..., :2]
    fits = (sides > smallest).float().amin(-1, keepdim=True)
    return boxes, scores * fits


def _select(
    writer: GraphWriter, boxes: str, scores: str, *, iou: float, keep: int
) -> tuple[str, str, str]:
    """Non-maximum suppression in each class, then the best of all classes."""

    def ints(value: Any) -> str:
        return writer.constant(np.asarray(value, np.int64), 'shape')

    def node(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        return writer.node(op, inputs, f'nms/{op}', outputs, **attributes)

    by_class = node('Transpose', scores, perm=[0, 2, 1])
    limits = [writer.constant(np.float32(value), 'threshold') for value in (iou, 0.0)]
    chosen = node('NonMaxSuppression', boxes, by_class, ints([keep]), *limits)
    found = node('GatherND', by_class, chosen)
    count = node('Min', node('Shape', found), ints([keep]))
    best, order = node('TopK', found, count, outputs=2)
    chosen = node('Gather', chosen, order, axis=0)
    labels = node('Gather', chosen, ints(1), axis=1)
    places = node('Gather', chosen, ints(2), axis=1)
    image = node('Squeeze', boxes, ints([0]))
    return node('Gather', image, places, axis=0), best, labels
