"""Exporter: from a quantized model to an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common
from torch import Tensor, nn

from .. import __version__
from ..errors import QuantizeError
from ..execute import quantization as phases
from ..execute.quantization import Quantization
from ..plan.plan import OVERRIDES
from ..targets.grid import Grid
from ..targets.target import Target
from ..wrappers.quant_module import QuantModule
from .choose_target import choose_target
from .example import INPUT_NAME as INPUT_NAME
from .example import Example
from .graph.exact_twin import METADATA_KEY as EXACT_SUMS
from .graph.free_shape import free_shape
from .graph.layout import choose_outputs
from .graph.rounded_twin import METADATA_KEY as GRIDS
from .postprocess import add_detections
from .rules.check import Finding
from .rules.obey import obey
from .tracing.step_writer import Writing
from .tracing.trace import Trace


@dataclass
class Exported:
    """An ONNX model, and what is known of it.

    Args:
        model (onnx.ModelProto): Checked, with metadata.
        layout (List[dict]): See :mod:`~mmquant_jacinto.export.graph.layout`.
        scales (Dict[str, float | None]): Of the grids of the outputs.
        values (Dict[str, Tensor]): What the quantized tensors in the graph were, if
            they were to be kept.
        skipped (List[str]): Modules that could not be part of it.
        target (Target): What it is for.
        form (str): ``'qdq'`` or ``'clip'``.
        meta_arch (str, optional): The head, described for the target's decoder.
        findings (List[Finding]): What it breaks of the target's rules.
        options (Dict[str, str]): What its importer has to be told.
    """

    model: onnx.ModelProto
    layout: list[dict]
    scales: dict[str, float | None]
    values: dict[str, Tensor]
    skipped: list[str]
    target: Target
    form: str
    meta_arch: str | None = None
    findings: list[Finding] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def quantized_root(model: nn.Module) -> nn.Module:
    """The model that carries the quantization, out of any wrapper.

    Raises:
        QuantizeError: If it is not quantized, or has no ranges.
    """
    root = model.quantization.root if isinstance(model, QuantModule) else model
    quantization = Quantization.of(root)
    if quantization is None or quantization.plan is None:
        raise QuantizeError(
            f'{type(root).__name__} is a float model: train it with quantize.mode=qat '
            'or calibrate it with quantize.mode=ptq, and export the checkpoint '
            'that gives'
        )

    if not quantization.has_ranges:
        raise QuantizeError(
            'there are no quantization ranges in this model or its checkpoint; export '
            'one that was trained with quantize.mode=qat or calibrated with '
            'quantize.mode=ptq'
        )

    return root


def set_engine(root: nn.Module, target: Target) -> None:
    """Lets tests of a model compute as the target's engine does."""
    quantization = Quantization.of(root)
    preset = quantization.plan.config['target']
    quantization.engine = target.engine(preset)
    root.eval()
    quantization.set_phase(phases.TEST)


def export_onnx(
    model: nn.Module,
    example: Any,
    target: str = 'onnxruntime',
    metadata: Mapping[str, Any] | None = None,
    postprocess: bool = False,
    dynamic: bool = False,
    keep_values: bool = False,
    allow_violations: bool = False,
) -> Exported:
    """Exports a quantized model to integer ONNX.

    The model stays in evaluation mode and computes as the target's engine does.

    Args:
        model (nn.Module): A quantized model with ranges, or its wrapper.
        example (Any): An image tensor (N, C, H, W) as the model takes it, a batch
            as the dataloader yields it, or what else the model takes, see
            :meth:`~mmquant_jacinto.export.example.Example.of`. Sizes and dtypes are
            the file's.
        target (str): What :func:`~mmquant_jacinto.targets.target.file_targets` has.
        metadata (Mapping, optional): More to write into the file.
        postprocess (bool): Add decoding and NMS, for a dense head of MMDetection:
            outputs ``boxes``, ``scores`` and ``labels``. Defaults to False.
        dynamic (bool): Leave batch, height and width free. Defaults to False.
        keep_values (bool): Keep what each quantized tensor was, to compare with.
            Defaults to False.
        allow_violations (bool): Return a file that breaks rules of its target too;
            its metadata name them. Defaults to False.

    Returns:
        Exported: With the ONNX model, not yet written or verified.

    Raises:
        QuantizeError: If the model has no ranges, the target cannot compute with
            its numbers, it calls a function that the exporter lacks, or the file
            breaks a rule of the target.

    Examples:
        >>> exported = export_onnx(test_module, torch.rand(1, 3, 320, 320))
        >>> onnx.save(exported.model, 'model.onnx')
    """
    root = quantized_root(model)
    quantization = Quantization.of(root)
    chosen = choose_target(target, quantization.plan)
    set_engine(root, chosen)
    given = Example.of(root, example)
    trace = Trace(root, quantization, chosen, keep_values)
    with trace.running(Writing(quantization, trace)):
        for name, x in given.inputs.items():
            trace.add_input(x, name)
        given.run()
        outputs, layout = choose_outputs(trace)
        more, meta_arch = _additions(trace, outputs, given.images, postprocess)
    scales = {name: _scale(trace, source) for name, (source, _) in outputs.items()}
    described = {
        'layout': layout,
        'scales': scales,
        'parameters': _shapes(root, layout),
        **_describe(trace, given.images),
    }
    if trace.writer.exact_sums:
        described[EXACT_SUMS] = trace.writer.exact_sums
    proto = trace.writer.build(
        {**outputs, **more}, type(root).__name__, {**described, **(metadata or {})}
    )
    proto = simplify(proto)
    _name_grids(trace, proto)
    chosen.finish(proto)
    if dynamic:
        proto = free_shape(proto)
    preset = quantization.plan.config['target']
    proto, findings = obey(proto, chosen, preset, allow_violations)
    onnx.checker.check_model(proto, full_check=True)
    return Exported(
        proto,
        layout,
        scales,
        _values_in(trace, proto),
        trace.skipped,
        chosen,
        chosen.form(preset),
        meta_arch,
        findings,
        _import_options(trace, proto),
    )


def _import_options(trace: Trace, proto: onnx.ModelProto) -> dict[str, str]:
    """What the importer has to be told of a float model: widths, and what is float."""
    if not trace.clips:
        return {}
    plan = trace.state.plan
    made = {name for node in proto.graph.node for name in node.output}
    outputs, weights = [], []
    for name, (site, grid) in _clips(trace).items():
        step = plan.steps.get(site)
        weight = None if step is None else plan.weights.get(step.weight)
        if name in made and grid.levels > 256:
            outputs.append(name)
        elif name in made and weight is not None and weight.format.bits > 8:
            weights.append(name)
    in_float = [
        node.name
        for node in proto.graph.node
        if plan.in_float.get(node.name) == OVERRIDES
    ]
    return trace.target.import_options(outputs, weights, in_float)


def _clips(trace: Trace) -> dict[str, tuple[str, Grid]]:
    """Call site and grid of each range that is a clip, by the tensor's last name."""
    renamed = trace.writer.renamed
    return {renamed.get(name, name): known for name, known in trace.clipped.items()}


def _name_grids(trace: Trace, proto: onnx.ModelProto) -> None:
    """Writes into a float model's metadata which grids its clips stand for."""
    made = {name for node in proto.graph.node for name in node.output}
    grids = {
        name: (float(grid.scale), grid.rounding)
        for name, (_, grid) in _clips(trace).items()
        if name in made
    }
    if grids:
        proto.metadata_props.add(key=GRIDS, value=json.dumps(grids))


def _scale(trace: Trace, name: str) -> float | None:
    """Step of the grid of a tensor of the graph, if it is on one."""
    known = trace.writer.quantized.get(name) or trace.clipped.get(name)
    return None if known is None else float(known[1].scale)


def _shapes(root: nn.Module, layout: list[dict]) -> dict[str, list[int]]:
    """Shapes of the parameters of the modules that a file holds, by name."""
    quantization = {id(p) for p in Quantization.of(root).parameters()}
    regions = [item['region'] for item in layout]
    return {
        name: list(parameter.shape)
        for name, parameter in root.named_parameters()
        if id(parameter) not in quantization
        and any(not region or name.startswith(f'{region}.') for region in regions)
    }


def _describe(trace: Trace, images: Tensor) -> dict[str, Any]:
    """What the metadata say of the model."""
    plan = trace.state.plan
    # Those of films have more dimensions, and no name for their order.
    layout = dict(input_layout='NCHW') if images.dim() == len('NCHW') else {}
    return {
        'version': __version__,
        'target': trace.target.name,
        'preset': plan.config['target'],
        'bits': plan.config['bits'],
        **layout,
        'skipped': trace.skipped,
        **preprocessing(trace.root),
    }


def _values_in(trace: Trace, proto: onnx.ModelProto) -> dict[str, Tensor]:
    """What the quantized tensors that are left in a graph were."""
    kept = {name for node in proto.graph.node for name in node.output}
    renamed = {
        trace.writer.renamed.get(name, name): value
        for name, value in trace.values.items()
    }
    return {name: value for name, value in renamed.items() if name in kept}


def _additions(
    trace: Trace,
    outputs: dict[str, tuple[str, Tensor]],
    images: Tensor,
    postprocess: bool,
) -> tuple[dict[str, tuple[str, Tensor]], str | None]:
    """More outputs, and the head described for the target's decoder."""
    head = _dense_head(trace)
    more: dict[str, tuple[str, Tensor]] = {}
    if postprocess:
        more = _detections(trace, head, images)
    elif head is not None:
        more = trace.target.head_outputs(trace, *head)
    if head is None:
        return more, None
    height, width = images.shape[-2:]  # of a video's frames too
    names = [*outputs, *more]
    return more, trace.target.head_text(head[0], names, (height, width))


def _dense_head(trace: Trace) -> tuple[nn.Module, Any] | None:
    """The last dense head of MMDetection in a graph, and what it returned."""
    for call in reversed(trace.calls):
        module = trace.root.get_submodule(call.region)
        # Heads of MMAction2 and MMSegmentation have a loss of that name too.
        if hasattr(module, 'loss_by_feat') and hasattr(module, 'loss_and_predict'):
            return module, call.output
    return None


def _detections(
    trace: Trace, head: tuple[nn.Module, Any] | None, images: Tensor
) -> dict[str, tuple[str, Tensor]]:
    if head is None or trace.skipped:
        raise QuantizeError(
            '--postprocess is for detectors of one stage, whose head is in the file'
        )
    if len(images) != 1:
        raise QuantizeError('--postprocess is for files that take one image')
    height, width = images.shape[-2:]  # of a video's frames too
    return add_detections(trace, *head, (height, width))


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leaves out what the outputs do not need, and what is there twice.

    Integer weights stay integers, and names stay.
    """
    names = [item.name for item in model.graph.output]
    simplified = ir.from_proto(model)
    for simplify_once in (
        common.RemoveUnusedNodesPass(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
    ):
        simplified = simplify_once(simplified).model
    proto = ir.to_proto(simplified)
    for item, name in zip(proto.graph.output, names):
        if item.name != name:
            # What two modules return alike has become one output.
            proto.graph.node.append(
                helper.make_node('Identity', [item.name], [name], name)
            )
            item.name = name
    return proto


def preprocessing(root: nn.Module) -> dict[str, Any]:
    """What a model's preprocessor does to an image, for the metadata."""
    preprocessor = getattr(root, 'data_preprocessor', None)
    found: dict[str, Any] = {}
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if isinstance(value, Tensor):
            found[name] = value.flatten().tolist()
    if hasattr(preprocessor, '_channel_conversion'):
        swaps = bool(preprocessor._channel_conversion)
        found['channel_order'] = 'RGB' if swaps else 'BGR'
    if getattr(preprocessor, 'pad_size_divisor', None) is not None:
        found['pad_size_divisor'] = preprocessor.pad_size_divisor
    return found
