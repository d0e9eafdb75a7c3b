"""Session: runs an exported file."""

from __future__ import annotations

import collections
import functools
import importlib.util
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ..errors import QuantizeError, nearest
from ..targets.rewrites.wide_grids import has_wide_grids
from ..targets.rewrites.zero_points import separate_zero_points
from ..targets.target import Target
from .graph.exact_twin import exact_twin
from .graph.rounded_twin import rounded_twin
from .graph.unsigned_twin import unsigned_twin
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

    Attributes:
        last_feeds (Dict[str, ndarray]): What it was last run on.
    """

    def __init__(
        self, model: onnx.ModelProto, backend: str = 'onnxruntime', threads: int = 0
    ) -> None:
        if backend not in BACKENDS:
            raise QuantizeError(
                f'--backend {backend!r} is unknown; ' + nearest(backend, BACKENDS)
            )
        if not model.graph.input or not model.graph.output:
            raise QuantizeError(
                'the file is no ONNX model: no graph with an input and an output is in '
                'it; give one that tools/export.py wrote'
            )
        self.last_feeds: dict[str, np.ndarray] = {}
        self.metadata = {item.key: item.value for item in model.metadata_props}
        self.inputs = {item.name: _Input.of(item) for item in model.graph.input}
        self.output_names = [item.name for item in model.graph.output]
        start = _start_onnxruntime if backend == 'onnxruntime' else _start_openvino
        try:
            self._run = start(model.SerializeToString(), threads)
        except QuantizeError:
            raise
        except Exception as error:  # noqa: B902 - each engine has errors of its own
            reason = str(error).splitlines()[0] if str(error) else ''
            raise QuantizeError(
                f'{backend} cannot run the file ({type(error).__name__}: {reason}); '
                'give one that tools/export.py wrote for it'
            ) from error

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Tuple[int, ...]: Of the first input; 0 where it is free."""
        return next(iter(self.inputs.values())).shape

    @property
    def layout(self) -> list[dict]:
        """List[dict]: See :mod:`~mmquant_jacinto.export.graph.layout`."""
        if 'layout' not in self.metadata:
            raise QuantizeError(
                'the file was not written by tools/export.py: it does not say which '
                'modules of the model it holds'
            )
        return json.loads(self.metadata['layout'])

    def check_fits(self, model: nn.Module) -> None:
        """Checks that the file was made of a model like this one.

        Raises:
            QuantizeError: If a parameter of a module that the file holds has another
                shape, or is missing. Older files do not say what they were made of.
        """
        own = dict(model.named_parameters())
        for name, shape in json.loads(self.metadata.get('parameters', '{}')).items():
            found = own.get(name)
            if found is None or list(found.shape) != shape:
                here = 'missing' if found is None else f'{list(found.shape)}'
                raise QuantizeError(
                    f'the file was made from another config: {name} is {shape} in it, '
                    f'and {here} here; use the config that it was made with'
                )

    @property
    def skipped(self) -> list[str]:
        """List[str]: Modules of the model that the file does not hold."""
        return json.loads(self.metadata.get('skipped', '[]'))

    def __call__(
        self, given: Tensor | Mapping[str, Tensor] | Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Runs the file.

        Args:
            given (Tensor | Mapping | Sequence): What the first modules get: images
                (N, C, H, W); of a file with several inputs each, by name or in order.

        Returns:
            Dict[str, Tensor]: Outputs by name, on a CPU.

        Raises:
            QuantizeError: If the inputs have not the names, sizes and dtypes that the
                file was made for.
        """
        tensors = self._named(given)
        arrays = {name: self.inputs[name].array(x) for name, x in tensors.items()}
        parts = list(self._parts(arrays))
        results = [self._run(part) for part in parts]
        self.last_feeds = parts[-1]
        # A file for single images runs them one after the other.
        return {
            name: torch.from_numpy(
                np.array(parts[0]) if len(parts) == 1 else np.concatenate(parts)
            )
            for name, *parts in zip(self.output_names, *results)
        }

    def of_region(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a model gives its first module, as its preprocessor gave it.

        Trackers take single frames, (N, C, H, W), out of videos (N, T, C, H, W).

        Args:
            given (Dict[str, Tensor]): By the names of the module's parameters.
        """
        if len(self.inputs) != 1 or len(given) != 1:
            return given
        (shape,) = (item.shape for item in self.inputs.values())
        ((name, x),) = given.items()
        lost = len(shape) - x.dim()
        is_alike = lost > 0 and shape[lost + 1 :] == tuple(x.shape[1:])
        if not is_alike or math.prod(shape[: lost + 1]) != len(x):
            return given
        return {name: x.reshape(shape)}

    def _named(
        self, given: Tensor | Mapping[str, Tensor] | Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Inputs by the file's names: by theirs, or else in order."""
        tensors = list(given.values()) if isinstance(given, Mapping) else given
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if isinstance(given, Mapping) and all(name in given for name in self.inputs):
            return {name: given[name] for name in self.inputs}
        # An only image may be called what the model calls it.
        if len(self.inputs) == 1 and tensors:
            images = [x for x in tensors if x.dim() == 4]
            return {next(iter(self.inputs)): (images or tensors)[0]}
        if len(tensors) != len(self.inputs) or isinstance(given, Mapping):
            names = list(given) if isinstance(given, Mapping) else len(tensors)
            raise QuantizeError(
                f'the file takes the inputs {list(self.inputs)}, and got {names}; give '
                'a dict of them'
            )
        return dict(zip(self.inputs, tensors))

    def _parts(self, arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Inputs in turn, as many images at a time as the file takes."""
        counts = {
            len(array) / self.inputs[name].shape[0]
            for name, array in arrays.items()
            if array.ndim and self.inputs[name].shape[0]
        } or {1}
        count = next(iter(counts))
        if len(counts) > 1 or count != int(count):
            raise QuantizeError(
                f'the file takes batches of {self.input_shape[0]} images, and got '
                f'{ {name: len(array) for name, array in arrays.items()} }; export it '
                'with a batch of that size, or with --dynamic'
            )
        if count == 1:
            yield arrays
            return
        split = {name: np.split(x, int(count)) for name, x in arrays.items()}
        for index in range(int(count)):
            yield {name: parts[index] for name, parts in split.items()}


@dataclass
class _Input:
    """An input of a file.

    Args:
        name (str): Of the input.
        shape (Tuple[int, ...]): 0 where it is free.
        dtype (np.dtype): Of its elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, item: onnx.ValueInfoProto) -> _Input:
        tensor = item.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        return cls(item.name, shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    def array(self, x: Tensor) -> np.ndarray:
        """A tensor as the file takes it."""
        shape = tuple(x.shape)
        if len(shape) != len(self.shape) or any(
            wanted not in (0, found) for wanted, found in zip(self.shape[1:], shape[1:])
        ):
            raise QuantizeError(
                f'the file takes {self.name} of shape {self.shape[1:]} behind the '
                f'batch, and got {shape[1:]}; export it with --shape, or resize in the '
                'pipeline'
            )
        x = x.detach().cpu()
        # Any number is a float; others would lose what is behind the point, or wrap.
        is_float = self.dtype.kind == 'f'
        array = np.ascontiguousarray((x.float() if is_float else x).numpy())
        if array.dtype != self.dtype and not is_float:
            raise QuantizeError(
                f'the file takes {self.name} as {self.dtype}, and got {array.dtype}; '
                'give it as the model takes it'
            )
        return array.astype(self.dtype, copy=False)


def _start_onnxruntime(model: bytes, threads: int) -> Any:
    ort = require('onnxruntime')
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if saturates():
        # Exact also where the fast kernels are not: x86 without VNNI.
        options.add_session_config_entry('session.x64quantprecision', '1')
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    twin = exact_twin(unsigned_twin(rounded_twin(onnx.load_from_string(model))))
    if saturates():
        separate_zero_points(twin)
    session = ort.InferenceSession(
        twin.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    return lambda arrays: session.run(None, arrays)


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


def _start_openvino(model: bytes, threads: int) -> Any:
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

    def run(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = compiled(arrays)
        return [results[output] for output in compiled.outputs]

    return run


def __getattr__(name: str) -> Any:
    # It was here, and is imported from here.
    if name == 'in_place_of_modules':
        from .in_place import in_place_of_modules

        return in_place_of_modules
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
