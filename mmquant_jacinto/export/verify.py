"""Verify: the file against the model it was made of, on real images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from ..execute import quantization as phases
from ..execute.quantization import Quantization
from ..targets.storage import SIGNED
from ..targets.target import CLIP
from .example import Example, RegionOutputs, named_tensors
from .exporter import Exported, export_onnx
from .session import Session

# Of the elements of all outputs, where both compute on integers.
MIN_EQUAL = 0.999
# Of the outputs, in dB, where the file rounds otherwise than the model.
MIN_SIGNAL_TO_NOISE = 20.0
# Of a step: less is no other integer. Of a tensor's largest magnitude: its last bits.
QUARTER, LAST_BITS = 0.25, 2.0**-16
# Of a tensor's largest magnitude: how far a function that ends a network in float, a
# sigmoid say, may be from PyTorch's in ONNX Runtime. Sums of integers are not.
FLOAT_BITS = 2.0**-21
# Elements of inner tensors that are compared at a time.
MAX_COMPARED = 2**26


@dataclass
class OutputReport:
    """How an output of the file differs from the model's.

    Args:
        name (str): Of the output.
        elements (int): How many were compared.
        equal (int): How many of them are equal: bit for bit, or in an engine that
            multiplies by the step otherwise (OpenVINO) as integers; on no grid, to the
            last bits of a float.
        same_bits (bool): Whether all are equal bit for bit.
        largest (float): Largest difference, in steps of the output's grid; of
            an output that is on none, relative to its largest magnitude.
        on_grid (bool): Whether it is on a grid.
        signal (float): Sum of the squares of the model's output.
        noise (float): Sum of the squares of the differences.
        quantization (float): The same of the differences to the float model, where
            it was asked.
    """

    name: str
    elements: int = 0
    equal: int = 0
    same_bits: bool = True
    largest: float = 0.0
    on_grid: bool = True
    signal: float = 0.0
    noise: float = 0.0
    quantization: float = 0.0

    @property
    def share(self) -> float:
        """float: Share of equal elements."""
        return self.equal / max(self.elements, 1)

    def add(
        self,
        expected: Tensor,
        found: Tensor,
        scale: float | None,
        same_bits: bool = True,
    ) -> None:
        """Takes one more image into account."""
        expected, found = expected.double().cpu(), found.double()
        difference = (found - expected).abs()
        unit = scale or float(expected.abs().amax()) or 1.0
        self.on_grid = scale is not None
        self.elements += expected.numel()
        least = 0.0 if scale else unit * FLOAT_BITS
        if not same_bits:
            least = unit * (QUARTER if scale else LAST_BITS)
        self.same_bits &= not difference.any()
        self.equal += int((difference <= least).sum())
        self.largest = max(self.largest, float(difference.amax()) / unit)
        self.signal += float(expected.square().sum())
        self.noise += float(difference.square().sum())


@dataclass
class Report:
    """What a verification found.

    Args:
        outputs (List[OutputReport]): One for each output.
        images (int): How many were compared.
        first (str, optional): The first tensor in which the two part.
        holds_example (bool): Whether they part because the file holds a number of the
            example that it was made of.
        rounds (bool): Whether the file rounds as the model does.
        is_wide (bool): Whether there are more than 8 bits in it. Then it may differ
            from the model no more than the model does from the float one.
        is_float (bool): Whether the file is a float model with ranges, and its rounded
            twin was compared. Where a function of its falls the other way at a tie,
            which only an importer decides, it may differ as much as a wide one.
    """

    outputs: list[OutputReport]
    images: int = 0
    first: str | None = None
    holds_example: bool = False
    rounds: bool = True
    is_wide: bool = False
    is_float: bool = False

    @property
    def share(self) -> float:
        """float: Share of equal elements in all outputs together."""
        return sum(o.equal for o in self.outputs) / max(
            sum(o.elements for o in self.outputs), 1
        )

    @property
    def same_bits(self) -> bool:
        """bool: Whether all outputs are equal bit for bit."""
        return all(item.same_bits for item in self.outputs)

    @property
    def where(self) -> str:
        """str: Where the two part, in words."""
        if self.first is not None:
            return f'the two part first in {self.first}'
        if self.holds_example:
            return 'the file holds a number of the image that it was made of'
        return 'the two part behind the last quantized tensor'

    @property
    def signal_to_noise(self) -> float:
        """float: In dB, of all outputs together."""
        signal = sum(o.signal for o in self.outputs)
        noise = sum(o.noise for o in self.outputs)
        return float(10 * np.log10(signal / noise)) if noise else float('inf')

    @property
    def least_signal_to_noise(self) -> float:
        """float: What it must be, where the file rounds otherwise than the model."""
        if not self.is_wide and not self.is_float:
            return MIN_SIGNAL_TO_NOISE
        signal = sum(o.signal for o in self.outputs)
        noise = sum(o.quantization for o in self.outputs)
        return float(10 * np.log10(signal / noise)) if noise else float('inf')

    def holds(self, min_equal: float = MIN_EQUAL) -> bool:
        """Whether the file may be used for the model."""
        if self.rounds and (self.share >= min_equal or not self.is_float):
            return self.share >= min_equal
        return self.signal_to_noise >= self.least_signal_to_noise


def verify(
    exported: Exported,
    model: nn.Module,
    examples: Iterable[Any],
    backend: str = 'onnxruntime',
) -> Report:
    """Runs the file and the model side by side.

    Args:
        exported (Exported): The file.
        model (nn.Module): What it was made of, as :func:`export_onnx` left it.
        examples (Iterable): Image tensors, or batches of a dataloader.
        backend (str): The engine that the file runs in.

    Returns:
        Report: Per output.
    """
    reports = {name: OutputReport(name) for name in exported.scales}
    report = Report(
        list(reports.values()),
        rounds=_rounds_alike(exported, model, backend),
        is_wide=_is_wide(model),
        is_float=exported.form == CLIP,
    )
    parting = _compare(exported, model, examples, report, backend)
    if parting is not None and report.rounds:
        report.first = first_difference(exported, model, parting)
        report.holds_example = report.first is None and _is_right_of(
            exported, model, parting
        )
    return report


def _is_right_of(exported: Exported, model: nn.Module, example: Any) -> bool:
    """Whether a file that is made of an example computes what the model does of it."""
    again = export_onnx(model, example, exported.target.name)
    given = Example.of(model, example)
    regions = RegionOutputs(model, again.layout)
    with regions.collecting() as outputs:
        given.run()
    expected = named_tensors(again.layout, outputs)
    found = Session(again.model)(given.inputs)
    return all(torch.equal(x.cpu(), found[name]) for name, x in expected.items())


def _compare(
    exported: Exported,
    model: nn.Module,
    examples: Iterable[Any],
    report: Report,
    backend: str,
) -> Any:
    """Fills a report in.

    Returns:
        Any: The first example whose outputs differ; None where there is none.
    """
    session = Session(exported.model, backend)
    reports = {item.name: item for item in report.outputs}
    regions = RegionOutputs(model, exported.layout)
    parting: Any = None
    for example in examples:
        given = Example.of(model, example)
        with regions.collecting() as outputs:
            given.run()
        expected = named_tensors(exported.layout, outputs)
        found = session(given.inputs)
        if report.is_wide or report.is_float:
            _add_quantization(reports, expected, regions, given)
        differs = False
        for name, item in reports.items():
            same_bits = backend == 'onnxruntime'
            item.add(expected[name], found[name], exported.scales[name], same_bits)
            differs |= not torch.equal(expected[name].cpu(), found[name])
        report.images += len(given.images)
        if differs and parting is None:
            parting = example
    return parting


def _rounds_alike(exported: Exported, model: nn.Module, backend: str) -> bool:
    if backend != 'onnxruntime':
        return False  # what it computes in float has an order of its own
    if exported.target.backend not in (None, backend):
        return False  # tests compute as the target's own engine does
    # On x86 ONNX Runtime has no integer kernels for signed activations nor beyond
    # 8 bits: it computes those in float, and adds in an order of its own.
    return exported.target.storage != SIGNED and not _is_wide(model)


def _is_wide(model: nn.Module) -> bool:
    return any(spec.format.bits > 8 for spec in Quantization.of(model).plan.specs)


def _add_quantization(
    reports: dict[str, OutputReport],
    expected: dict[str, Tensor],
    regions: RegionOutputs,
    given: Example,
) -> None:
    """Measures how far a model is from itself in float."""
    quantization = Quantization.of(regions.root)
    quantization.set_phase(phases.FLOAT)
    try:
        with regions.collecting() as outputs:
            given.run()
    finally:
        quantization.set_phase(phases.TEST)
    floats = named_tensors(regions.layout, outputs)
    for name, item in reports.items():
        difference = (floats[name] - expected[name]).double()
        item.quantization += float(difference.square().sum())


def first_difference(
    exported: Exported, model: nn.Module, example: Any, backend: str = 'onnxruntime'
) -> str | None:
    """Name of the first quantized tensor in which file and model part.

    They become outputs of the file, some at a time, from the image on. An engine that
    computes several operations as one would part them for that: for OpenVINO a file is
    cut at one tensor after the other, halving what leads to an output that differs.

    Args:
        exported (Exported): The file.
        model (nn.Module): What it was made of.
        example (Any): Image tensor, or batch of a dataloader.
        backend (str): The engine that the file runs in.

    Returns:
        str, optional: None where they are equal on this example.
    """
    again = export_onnx(
        *(model, example, exported.target.name),
        keep_values=True,
        allow_violations=True,
    )
    inputs = Example.of(model, example).inputs
    if backend != 'onnxruntime':
        return _first_of_cuts(again, inputs, backend)
    names = [name for node in again.model.graph.node for name in node.output]
    for part in _parts([name for name in names if name in again.values], again.values):
        found = Session(_with_outputs(again.model, part), backend)(inputs)
        for name in part:
            if not torch.equal(found[name], again.values[name].cpu()):
                return name
    return None


def _first_of_cuts(
    exported: Exported, inputs: Mapping[str, Tensor], backend: str
) -> str | None:
    """The same by files that end where they are compared."""

    def differs(name: str) -> bool:
        expected = exported.values[name].cpu()
        found = Session(_cut(exported.model, name), backend)(inputs)[name]
        # No grid has more than 2^9 steps in its largest magnitude there.
        return bool((found - expected).abs().amax() > expected.abs().amax() / 2**11)

    for output in exported.model.graph.output:
        nodes = _cut(exported.model, output.name).graph.node
        made = [name for node in nodes for name in node.output]
        names = [name for name in made if name in exported.values]
        if not names or not differs(names[-1]):
            continue
        low, high = 0, len(names) - 1  # the last one differs
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if differs(names[middle]) else (middle + 1, high)
        return names[low]
    return None


def _parts(names: list[str], values: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names in turn, as many at a time as memory holds the tensors of."""
    part: list[str] = []
    elements = 0
    for name in names:
        part.append(name)
        elements += values[name].numel()
        if elements > MAX_COMPARED:
            yield part
            part, elements = [], 0
    if part:
        yield part


def _cut(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of what leads to a tensor, which it returns."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    graph, needed = proto.graph, {name}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    kept = [node for node in model.graph.node if needed.intersection(node.output)]
    del graph.node[:], graph.output[:]
    graph.node.extend(kept)
    return _with_outputs(proto, [name])


def _with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy that returns more tensors."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    there = {item.name for item in proto.graph.output}
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in there
    )
    return proto
