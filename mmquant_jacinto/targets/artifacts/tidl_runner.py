"""TI's importer: a YAML for tidlrunner, and ranges for TIDL's own quantization.

Sources, of TexasInstruments: ``edgeai-tidlrunner`` ``data/configs/modelzoo`` (b1e7dde,
the YAML of a detector: session, runtime_options, preprocess), ``edgeai-tidl-tools``
``docs/quantization.md``, ``docs/od_meta_arch.md`` (the number of each decoder) and
``docs/quantization_proto.md`` (all b3a7c2c). No device or importer has read them here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import numpy_helper

from .meta_arch import Constant, to_text

# docs/od_meta_arch.md, by the name of a description.
META_ARCHITECTURES = {'ssd': 3, 'yolo_v3': 4, 'retinanet': 5, 'yolox': 6, 'yolov8': 8}
# What a layer's own result is clipped by, in a float model that carries its ranges.
_CLIPS = ('Clip', 'Relu')
_LAYERS = ('Conv', 'ConvTranspose', 'Gemm')


def runner_yaml(
    model: onnx.ModelProto,
    stem: str,
    meta_arch: str | None,
    import_options: Mapping[str, str],
    is_quantized: bool,
    has_ranges: bool,
) -> str:
    """One model's configuration for ``tidlrunner-cli compile --config_path``.

    Args:
        model (onnx.ModelProto): The file; its metadata say what its images are.
        stem (str): Name of the file, without its suffix.
        meta_arch (str, optional): The head's description.
        import_options (Mapping[str, str]): What the importer has to be told of a float
            model: tensors of 16 bits, layers that stay in float.
        is_quantized (bool): Whether it has integers, or is a float model with clips.
        has_ranges (bool): Whether :func:`quant_params` are beside it.
    """
    metadata = {item.key: item.value for item in model.metadata_props}
    options: dict[str, Any] = dict(import_options)
    if is_quantized:
        options['advanced_options:prequantized_model'] = 1
    if has_ranges:
        options['advanced_options:quant_params_proto_path'] = f'{stem}_ranges.prototxt'
    if meta_arch is not None:
        name = meta_arch.partition('"')[2].partition('"')[0]
        options['object_detection:meta_arch_type'] = META_ARCHITECTURES[name]
        options['object_detection:meta_layers_names_list'] = f'{stem}.prototxt'
    std = json.loads(metadata.get('std', '[1.0, 1.0, 1.0]'))
    height, width = _image_size(model)
    content = {
        'task_type': 'detection' if meta_arch is not None else None,
        'preprocess': {
            'resize': [height, width],
            'crop': [height, width],
            'data_layout': 'NCHW',
            # Images are read as RGB.
            'reverse_channels': metadata.get('channel_order') == 'BGR',
            'name': 'image_preprocess',
        },
        'session': {
            # The file takes normalized images; the session makes them.
            'input_optimization': False,
            'input_data_layout': 'NCHW',
            'input_mean': json.loads(metadata.get('mean', '[0.0, 0.0, 0.0]')),
            'input_scale': [round(1 / value, 9) for value in std],
            'model_path': f'{stem}.onnx',
            'num_inputs': len(model.graph.input),
            'runtime_options': options,
        },
    }
    return yaml.safe_dump(content, sort_keys=False)


def quant_params(model: onnx.ModelProto) -> str | None:
    """Ranges of all tensors, and biases, for TIDL's symmetric quantization.

    Only the ranges and the values of biases are used there; every layer must have them,
    so there is none where a layer's range is not in the file.

    Args:
        model (onnx.ModelProto): A float model with clips, run by TIDL as a whole.

    Returns:
        str, optional: A text protobuf of ``TIDLNetQuantParams``.
    """
    graph = model.graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    (image,) = [item.name for item in graph.input]
    ranges = _ranges(model, stored)
    layers = []
    if image not in ranges:
        return None
    layers.append(_layer(image, 'TIDL_DataLayer', ranges[image]))
    for node in graph.node:
        if node.op_type in _CLIPS or node.output[0] in stored:
            continue
        found = ranges.get(node.output[0])
        if found is None:
            return None
        kind = 'TIDL_ConvolutionLayer' if node.op_type == 'Conv' else None
        layer = _layer(node.output[0], kind, found)
        weights = [stored[name] for name in node.input[1:3] if name in stored]
        if node.op_type in _LAYERS and weights:
            layer['weights'] = _tensor(weights[0].min(), weights[0].max())
            if len(weights) > 1:
                bias = weights[1].ravel()
                layer['bias'] = {
                    **_tensor(bias.min(), bias.max(), bias.size),
                    'value': [float(value) for value in bias],
                }
        layers.append(layer)
    return to_text(
        {
            'num_layers': len(layers),
            'quant_type': Constant('SYMMETRIC'),
            'calib_type': Constant('PERTENSOR'),
            'layers': layers,
        }
    )


def _ranges(
    model: onnx.ModelProto, stored: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """What each tensor is clipped to; what moves elements keeps its input's."""
    found: dict[str, tuple[float, float]] = {}
    nodes = list(model.graph.node)
    for node in nodes:
        if node.op_type == 'Clip' and all(name in stored for name in node.input[1:]):
            ends = float(stored[node.input[1]]), float(stored[node.input[2]])
            found[node.input[0]] = found[node.output[0]] = ends
    for node in reversed(nodes):
        # In front of a clamp that is fused.
        if node.op_type in _CLIPS and node.output[0] in found:
            found.setdefault(node.input[0], found[node.output[0]])
    for node in nodes:
        known = [found[name] for name in node.input if name in found]
        if known and node.op_type in _MOVING:
            low, high = zip(*known)
            found.setdefault(node.output[0], (min(low), max(high)))
    return found


_MOVING = (
    *('MaxPool', 'Concat', 'Reshape', 'Transpose', 'Flatten', 'Slice', 'Split', 'Pad'),
    *('Squeeze', 'Unsqueeze', 'Resize', 'Identity', 'DepthToSpace', 'SpaceToDepth'),
)


def _layer(name: str, kind: str | None, ends: tuple[float, float]) -> dict[str, Any]:
    layer: dict[str, Any] = {'layer_name': name}
    if kind is not None:
        layer['layer_type'] = kind
    return {**layer, 'outputs': _tensor(*ends)}


def _tensor(low: float, high: float, size: int = 1) -> dict[str, Any]:
    return {'min': float(low), 'max': float(high), 'size': size}


def _image_size(model: onnx.ModelProto) -> tuple[int, int]:
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return dims[-2], dims[-1]
