"""Session: runs an exported file, also in the place of the modules it holds."""

from __future__ import annotations

import collections
import functools
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ..errors import QuantizeError, nearest
from ..targets.target import Target
from ..targets.wide_grids import has_wide_grids
from .graph.layout import decode
from .packages import require

ENGINES = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}
BACKENDS = tuple(ENGINES)
# What ONNX Runtime runs layers in integers by, and in float.
_INTEGER_KERNELS = ('QLinearConv', 'QGemm', 'QLinearMatMul')
_FLOAT_KERNELS = ('Conv', 'FusedConv', 'ConvTranspose', 'Gemm', 'FusedGemm', 'MatMul')


def proof_backend(target: Target) -> str | None:
    """The engine of a target, if it runs here: what its files are proven in."""
    backend = target.backend
    return backend if backend and importlib.util.find_spec(backend) else None


class Session:
    """An ONNX model ready to run.

    Args:
        model (onnx.ModelProto): The model.
        backend (str): One of :data:`BACKENDS`.
        threads (int): Of the engine; 0 lets it choose.

    Raises:
        QuantizeError: If the engine is not installed, or there is no such.
    """

    def __init__(
        self, model: onnx.ModelProto, backend: str = 'onnxruntime', threads: int = 0
    ) -> None:
        if backend not in BACKENDS:
            raise QuantizeError(
                f'--backend {backend!r} is unknown; ' + nearest(backend, BACKENDS)
            )
        self.metadata = {item.key: item.value for item in model.metadata_props}
        self.input_name = model.graph.input[0].name
        self.input_shape = tuple(
            dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim
        )
        self.output_names = [item.name for item in model.graph.output]
        start = _start_onnxruntime if backend == 'onnxruntime' else _start_openvino
        self._run = start(model.SerializeToString(), self.input_name, threads)

    @property
    def layout(self) -> list[dict]:
        """List[dict]: See :mod:`~mmquant_jacinto.export.graph.layout`."""
        if 'layout' not in self.metadata:
            raise QuantizeError(
                'the file was not written by tools/export.py: it does not say which '
                'modules of the model it holds'
            )
        return json.loads(self.metadata['layout'])

    @property
    def skipped(self) -> list[str]:
        """List[str]: Modules of the model that the file does not hold."""
        return json.loads(self.metadata.get('skipped', '[]'))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Runs the file.

        Args:
            images (Tensor): As the first module gets them: (N, C, H, W), float32.

        Returns:
            Dict[str, Tensor]: Outputs by name, on a CPU.

        Raises:
            QuantizeError: If the images have not the size the file was made for.
        """
        batch, *size = self.input_shape
        shape = tuple(images.shape[1:])
        if any(wanted not in (0, given) for wanted, given in zip(size, shape)):
            raise QuantizeError(
                f'the file takes images of shape {tuple(size)}, and got {shape}; '
                'export it with --shape, or resize in the pipeline'
            )
        array = np.ascontiguousarray(images.detach().cpu().float().numpy())
        if not batch or batch == len(array):
            results = self._run(array)
        else:
            # A file for single images runs them one after the other.
            parts = [
                self._run(array[i : i + batch]) for i in range(0, len(array), batch)
            ]
            results = [np.concatenate(items) for items in zip(*parts)]
        return {
            name: torch.from_numpy(np.array(result))
            for name, result in zip(self.output_names, results)
        }


def _start_onnxruntime(model: bytes, input_name: str, threads: int) -> Any:
    ort = require('onnxruntime')
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if saturates():
        # Exact also where the fast kernels are not: x86 without VNNI.
        options.add_session_config_entry('session.x64quantprecision', '1')
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    return lambda array: session.run(None, {input_name: array})


@functools.lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether this processor's U8S8 kernels saturate (x86 without VNNI).

    They add pairs of products in 16 bits there. Weights of 7 bits
    (``quantize.bits=dict(weight=7)``) avoid that, as does the session option
    ``session.x64quantprecision``.
    """
    ort = require('onnxruntime')
    size = 64
    constants = dict(
        scale=np.float32(1),
        out_scale=np.float32(size * 255 * 127 / 255),
        zero=np.uint8(0),
        weight_zero=np.int8(0),
        weight=np.full((size, size), 127, np.int8),
    )
    node = helper.make_node(
        'QLinearMatMul',
        ['x', 'scale', 'zero', 'weight', 'scale', 'weight_zero', 'out_scale', 'zero'],
        ['y'],
    )
    graph = helper.make_graph(
        [node],
        'saturation',
        [helper.make_tensor_value_info('x', TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info('y', TensorProto.UINT8, [size, size])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8
    )
    session = ort.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']
    )
    (out,) = session.run(None, {'x': np.full((size, size), 255, np.uint8)})
    return bool((out != 255).any())


def kernels(model: onnx.ModelProto) -> collections.Counter:
    """How many nodes of each operator ONNX Runtime's optimized graph has.

    Args:
        model (onnx.ModelProto): An exported model.
    """
    ort = require('onnxruntime')
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, 'optimized.onnx'))
        ort.InferenceSession(
            model.SerializeToString(), options, providers=['CPUExecutionProvider']
        )
        optimized = onnx.load(options.optimized_model_filepath)
    return collections.Counter(node.op_type for node in optimized.graph.node)


def integer_layers(model: onnx.ModelProto) -> tuple[int, int]:
    """How many layers ONNX Runtime runs in integers, and how many there are.

    Args:
        model (onnx.ModelProto): An exported model; its optimized graph is counted.
    """
    counts = kernels(model)
    integers = sum(counts[kind] for kind in _INTEGER_KERNELS)
    return integers, integers + sum(counts[kind] for kind in _FLOAT_KERNELS)


def _start_openvino(model: bytes, input_name: str, threads: int) -> Any:
    openvino = require('openvino')
    if has_wide_grids(onnx.load_from_string(model)):
        raise QuantizeError(
            'the file quantizes to 16 bits by QuantizeLinear, which OpenVINO computes '
            'otherwise; export it with --target openvino'
        )
    core = openvino.Core()
    # Where the processor has bfloat16, it would compute floats in that.
    settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    compiled = core.compile_model(core.read_model(model), 'CPU', settings)

    def run(array: np.ndarray) -> list[np.ndarray]:
        results = compiled([array])
        return [results[output] for output in compiled.outputs]

    return run


@contextmanager
def in_place_of_modules(model: nn.Module, session: Session) -> Iterator[None]:
    """Context in which a file computes what the modules it holds would.

    Everything else of the model (preprocessing, decoding, NMS) runs as it is.

    Args:
        model (nn.Module): The float model of the config; its weights do not matter.
        session (Session): The file.

    Raises:
        QuantizeError: If the model lacks a module that the file names.
    """
    layout = session.layout
    outputs: dict[str, Tensor] = {}
    calls: dict[str, list[Any]] = {}
    for item in layout:
        calls.setdefault(item['region'], []).append(item['output'])
    counts: dict[str, int] = {}

    def replacement(region: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if region == layout[0]['region'] and not counts.get(region, 0) % len(
                calls[region]
            ):
                counts.clear()
                images = next(x for x in (*args, *kwargs.values()) if _is_image(x))
                outputs.clear()
                outputs.update(
                    (name, x.to(images.device)) for name, x in session(images).items()
                )
            index = counts.get(region, 0)
            counts[region] = index + 1
            return decode(calls[region][index % len(calls[region])], outputs)

        return forward

    modules = []
    for region in calls:
        try:
            modules.append((model.get_submodule(region), replacement(region)))
        except AttributeError:
            raise QuantizeError(
                f'the file holds the module {region!r}, which {type(model).__name__} '
                'does not have: it was made from another config'
            ) from None
    for module, forward in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in modules:
            del module.forward


def _is_image(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4
