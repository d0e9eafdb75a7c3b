"""TIDL meta architecture: the detection head described for TIDL's importer.

A text protobuf (``tidl_meta_arch.proto`` of TI's edgeai-tidl-tools) beside the ONNX
file names the head's tensors, its anchors or strides, and NMS and score settings, so
that the device decodes by code of its own.

Sources, of TexasInstruments: ``edgeai-tensorlab`` ``mmdeploy/utils/save_model.py``
(0996df0: SSD, YOLOv3, RetinaNet, YOLOX); ``save_model_proto`` of their fork of MMYOLO
(YOLOv8); what TIDL makes of it: ``tidl_metaArch_import`` of the import tool,
``TIDL_boxParamsDecoding`` of the runtime (``codeType`` 4: sigmoid and exp of YOLOv3;
``codeType`` 9: four distributions of 16 distances, centres at half a stride).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import QuantizeError


class Constant(str):
    """A constant of the schema, which is written without quotes."""


def to_text(message: dict[str, Any], indent: str = '') -> str:
    """Protobuf's text format of nested dicts; a list repeats its key."""
    lines = []
    for key, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                lines += [f'{indent}{key} {{', to_text(item, indent + '  ').rstrip()]
                lines.append(f'{indent}}}')
            else:
                lines.append(f'{indent}{key}: {_scalar(item)}')
    return '\n'.join(lines) + '\n'


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Constant) or not isinstance(value, str):
        return str(value)
    escaped = value.replace('\\', '\\\\').replace('"', '\\"')
    return f'"{escaped}"'


def describe_head(
    head: nn.Module, names: Iterable[str], shape: tuple[int, int]
) -> dict[str, Any]:
    """The meta architecture of a head.

    Args:
        head (nn.Module): The head.
        names (Iterable[str]): Outputs of the file, as the exporter names them.
        shape (Tuple[int, int]): Height and width of the image.

    Returns:
        dict: For :func:`to_text`.

    Raises:
        QuantizeError: If TIDL has no decoder for the head.
    """
    bases = _bases(head)
    levels = list(names)
    for base, describe in _HEADS.items():
        if base in bases:
            return describe(head, levels, shape)
    raise QuantizeError(
        f'TIDL has no decoder for {type(head).__name__}; it has for '
        + ', '.join(_HEADS)
    )


def has_decoder(head: Any) -> bool:
    """Whether TIDL can decode a head: one that it knows, with anchors by scales."""
    scales = getattr(getattr(head, 'prior_generator', None), 'scales', None)
    # An SSD of TensorFlow's names the anchors of its first level one by one.
    if isinstance(scales, list) and any(len(level) == 0 for level in scales):
        return False
    bases = _bases(head)
    if 'YOLOv8Head' in bases and head.head_module.reg_max != DISTANCES:
        return False
    return any(name in _HEADS for name in bases)


def head_levels(trace: Any, head: nn.Module, raw: Any) -> dict[str, tuple[str, Tensor]]:
    """What TIDL reads of a head beside what it returns, one tensor for each level.

    Args:
        trace (export.trace.Trace): Running.
        head (nn.Module): The head.
        raw (Any): What it returned in this trace.

    Returns:
        dict: Name of an output to the tensor's name in the graph, and the tensor;
        empty for a head of which TIDL reads what it returns, or nothing.
    """
    bases = _bases(head)
    if 'YOLOXHead' in bases:
        return _yolox_levels(trace, raw)
    if 'YOLOv8Head' in bases and has_decoder(head):
        return _distributions(trace, head, raw)
    return {}


def _bases(head: nn.Module) -> list[str]:
    return [base.__name__ for base in type(head).__mro__]


def _yolox_levels(trace: Any, raw: Any) -> dict[str, tuple[str, Tensor]]:
    """Boxes, objectness and classes along the channels, the latter two as scores."""
    outputs = {}
    for level, (scores, boxes, objects) in enumerate(zip(*raw)):
        joined = torch.cat([boxes, objects.sigmoid(), scores.sigmoid()], 1)
        name = trace.writer.unique(f'{YOLOX_LEVEL}.{level}')
        outputs[name] = (trace.name_of(joined), joined)
    return outputs


def _distributions(trace: Any, head: Any, raw: Any) -> dict[str, tuple[str, Tensor]]:
    """Of YOLOv8's distances, which the head returns as their means."""
    (region,) = [name for name, part in trace.root.named_modules() if part is head]
    outputs = {}
    for level, scores in enumerate(raw[0]):
        last = len(head.head_module.reg_preds[level]) - 1
        layer = f'{region}.head_module.reg_preds.{level}.{last}/'
        nodes = [node for node in trace.writer.nodes if node.name.startswith(layer)]
        count, _, height, width = scores.shape
        tensor = scores.new_empty(count, 4 * DISTANCES, height, width)
        name = trace.writer.unique(f'{DISTRIBUTION}.{level}')
        outputs[name] = (nodes[-1].output[0], tensor)
    return outputs


def _starting_with(names: list[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


# From here on a head is Any: of MMDetection's classes nothing is imported.
def _detections(head: Any, code_type: str, background: int) -> dict[str, Any]:
    cfg = head.test_cfg
    return {
        'num_classes': head.num_classes + (background >= 0),
        'share_location': True,
        'background_label_id': background,
        'nms_param': {
            'nms_threshold': float(cfg['nms']['iou_threshold']),
            'top_k': int(cfg.get('nms_pre', 200)),
        },
        'code_type': Constant(code_type),
        'keep_top_k': int(cfg.get('max_per_img', 200)),
        'confidence_threshold': float(cfg.get('score_thr', 0.05)),
    }


def _frame(shape: tuple[int, int]) -> dict[str, Any]:
    return {'in_width': shape[1], 'in_height': shape[0], 'framework': 'MMDetection'}


def _describe_ssd(head: Any, names: list[str], shape: tuple[int, int]) -> dict:
    generator = head.prior_generator
    priors = []
    for level, (step, _) in enumerate(generator.strides):
        smallest = float(generator.base_sizes[level])
        # The scales of a level are 1 and the root of largest / smallest.
        largest = smallest * float(generator.scales[level][-1]) ** 2
        ratios = [float(ratio) for ratio in generator.ratios[level]]
        priors.append(
            {
                'min_size': smallest,
                'max_size': round(largest, 4),
                'aspect_ratio': sorted({r for r in ratios if r > 1}),
                'flip': True,
                'clip': False,
                'variance': [float(std) for std in head.bbox_coder.stds],
                'step': float(step),
            }
        )
    ssd = {
        'box_input': _starting_with(names, 'bbox_preds'),
        'class_input': _starting_with(names, 'cls_scores'),
        'output': ['boxes', 'labels'],
        'prior_box_param': priors,
        **_frame(shape),
        'detection_output_param': _detections(head, 'CENTER_SIZE', head.num_classes),
    }
    return {'name': 'ssd', 'caffe_ssd': ssd}


def _describe_retinanet(head: Any, names: list[str], shape: tuple[int, int]) -> dict:
    generator = head.prior_generator
    is_sigmoid = head.use_sigmoid_cls
    retinanet = {
        'box_input': _starting_with(names, 'bbox_preds'),
        'class_input': _starting_with(names, 'cls_scores'),
        'output': ['boxes', 'labels'],
        'x_scale': 1.0,
        'y_scale': 1.0,
        'width_scale': 1.0,
        'height_scale': 1.0,
        **_frame(shape),
        'score_converter': Constant('SIGMOID' if is_sigmoid else 'SOFTMAX'),
        'anchor_param': {
            'aspect_ratio': [float(ratio) for ratio in generator.ratios],
            'octave_base_scale': float(generator.octave_base_scale),
            'scales_per_octave': int(generator.scales_per_octave),
        },
        'detection_output_param': _detections(
            head, 'CENTER_SIZE', -1 if is_sigmoid else head.num_classes
        ),
    }
    return {'name': 'retinanet', 'tidl_retinanet': retinanet}


def _describe_yolox(head: Any, names: list[str], shape: tuple[int, int]) -> dict:
    levels = _starting_with(names, YOLOX_LEVEL)
    yolox = {
        'name': 'yolox',
        'output': ['boxes', 'labels'],
        'yolo_param': [
            {
                'input': name,
                'anchor_width': float(stride),
                'anchor_height': float(stride),
            }
            for name, stride in zip(levels, head.strides)
        ],
        **_frame(shape),
        'detection_output_param': _detections(head, 'CODE_TYPE_YOLO_X', -1),
    }
    return {'name': 'yolox', 'tidl_yolo': yolox}


def _describe_yolov3(head: Any, names: list[str], shape: tuple[int, int]) -> dict:
    yolo = {
        'name': 'yolo_v3',
        'output': ['boxes', 'labels'],
        'yolo_param': [
            {
                'input': name,
                'anchor_width': [float(width) for width, _ in sizes],
                'anchor_height': [float(height) for _, height in sizes],
            }
            for name, sizes in zip(
                _starting_with(names, 'pred_maps'), head.prior_generator.base_sizes
            )
        ],
        **_frame(shape),
        'detection_output_param': _detections(head, 'CENTER_SIZE_EXP', -1),
    }
    return {'name': 'yolo_v3', 'tidl_yolo': yolo}


def _describe_yolov8(head: Any, names: list[str], shape: tuple[int, int]) -> dict:
    yolo = {
        'name': 'yolov8',
        'box_input': _starting_with(names, DISTRIBUTION),
        'class_input': _starting_with(names, 'cls_scores'),
        'output': ['boxes', 'labels'],
        'in_width': shape[1],
        'in_height': shape[0],
        'framework': 'MMYOLO',
        'score_converter': Constant('SIGMOID'),
        'detection_output_param': _detections(head, 'CODE_TYPE_DIST2BBOX', -1),
    }
    return {'name': 'yolov8', 'caffe_ssd': yolo}


# TIDL reads one tensor for each level of YOLOX: boxes, objectness and classes, the
# latter two behind a sigmoid; and of YOLOv8 the distributions of distances, of which
# it takes this many.
YOLOX_LEVEL, DISTRIBUTION, DISTANCES = 'yolo_level', 'bbox_distributions', 16
_HEADS = {
    'SSDHead': _describe_ssd,
    'RetinaHead': _describe_retinanet,
    'YOLOXHead': _describe_yolox,
    'YOLOV3Head': _describe_yolov3,
    'YOLOv8Head': _describe_yolov8,
}
