"""Layout: what the tensors of a file are to the model's modules, as JSON.

It goes into the file's metadata, so that the file can take the place of the
modules it was made of, and the rest of the model (decoding, NMS) runs as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ...errors import QuantizeError
from ..tracing.region_calls import RegionCall
from ..tracing.trace import Trace


def encode(output: Any, names: Iterator[str | None]) -> Any:
    """Turns what a region returns into JSON, names in place of tensors.

    Args:
        output (Any): Tuples, lists and dicts of tensors and plain values.
        names (Iterator[str | None]): For the leaves, in order.
    """
    if isinstance(output, tuple):
        return {'tuple': [encode(item, names) for item in output]}
    if isinstance(output, list):
        return {'list': [encode(item, names) for item in output]}
    if isinstance(output, Mapping):
        return {'dict': {key: encode(item, names) for key, item in output.items()}}
    name = next(names)
    if isinstance(output, Tensor):
        if name is None:
            kind = str(output.dtype).rpartition('.')[2]
            return {'absent': [kind, list(output.shape)]}
        return {'tensor': name}
    return {'value': output if isinstance(output, (int, float, str)) else None}


def decode(layout: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of :func:`encode`.

    A tensor that is not there is zeros of its shape: the model's own code between two
    modules of the file reads on, and what it computes goes to modules of the file
    alone (see :class:`~mmquant_jacinto.export.tracing.late_reads.LateReads`).
    """
    ((kind, content),) = layout.items()
    if kind == 'tuple':
        return tuple(decode(item, tensors) for item in content)
    if kind == 'list':
        return [decode(item, tensors) for item in content]
    if kind == 'dict':
        return {key: decode(item, tensors) for key, item in content.items()}
    if kind == 'absent':
        dtype, shape = content
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    return tensors.get(content) if kind == 'tensor' else content


def _output_names(module: nn.Module, region: str, output: Any) -> list[str]:
    """Names for the leaves of a head's output, from its own code if it has any.

    MMDetection's heads take what ``forward`` returns by name in
    ``loss_by_feat``: ``cls_scores``, ``bbox_preds``.
    """
    names: list[str] = []
    method = getattr(module, 'loss_by_feat', None)
    if method is not None:
        names = [
            name
            for name, parameter in inspect.signature(method).parameters.items()
            if parameter.default is parameter.empty
        ]
    parts = output if isinstance(output, (tuple, list)) else [output]
    if len(names) < len(parts) or (
        len(parts) > 1 and 'batch_gt_instances' in names[: len(parts)]
    ):
        names = [f'{region or "output"}.{i}' for i in range(len(parts))]
        if len(parts) == 1:
            names = [region or 'output']
    found = []
    for name, part in zip(names, parts):
        count = len(tree_flatten(part)[0])
        nested = isinstance(part, (tuple, list, dict))
        found += [f'{name}.{i}' for i in range(count)] if nested else [name]
    return found


def choose_outputs(trace: Trace) -> tuple[dict[str, tuple[str, Tensor]], list[dict]]:
    """What the file returns: what no module in it takes, by readable names.

    Where modules had to be left out (what follows region proposals), the features
    of the neck, which those take, are among it.

    Returns:
        Tuple[dict, List[dict]]: Name to (name in the graph, what it is in this
        pass), and the layout: for each region call ``region`` and ``output``.

    Raises:
        QuantizeError: If an output cannot be exported; it says why.
    """
    read = {name for call in trace.calls for name in call.inputs}
    # Also what a module reads by way of code between the modules.
    read |= _sources(trace, read)
    wanted = trace.needed | _sources(trace, trace.late.names)
    leaving = []
    for call in trace.calls:
        leaf = not read.intersection(filter(None, call.names))
        needed = not wanted.isdisjoint(filter(None, call.names))
        if leaf or needed or (trace.skipped and call.region == 'neck'):
            leaving.append(call)
    outputs: dict[str, tuple[str, Tensor]] = {}
    layout = []
    heads = {call.region for call in leaving}
    for call in trace.calls:
        names: list[str | None] = [None] * len(call.names)
        if call in leaving:
            names = _add_outputs(trace, call, len(heads) > 1, outputs)
        layout.append(
            {'region': call.region, 'output': encode(call.output, iter(names))}
        )
    if not outputs:
        raise QuantizeError(
            'nothing in this model follows from the image by calls that the exporter '
            'knows; run tools/print_plan.py to see what is quantized'
        )
    return outputs, layout


def _sources(trace: Trace, names: set[str]) -> set[str]:
    """What modules return that tensors of the graph follow from.

    The model's own code computes those tensors again from it.
    """
    returned = {name for call in trace.calls for name in call.names if name}
    producers = {name: node for node in trace.writer.nodes for name in node.output}
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in returned:
            found.add(name)
        elif name in producers and name not in seen:
            waiting += producers[name].input
        seen.add(name)
    return found


def _add_outputs(
    trace: Trace, call: RegionCall, qualified: bool, outputs: dict
) -> list[str | None]:
    module = trace.root.get_submodule(call.region)
    leaves = tree_flatten(call.output)[0]
    names: list[str | None] = []
    for leaf, source, reason, name in zip(
        leaves,
        call.names,
        call.reasons,
        _output_names(module, call.region, call.output),
    ):
        if reason is not None:
            raise QuantizeError(
                f'{call.region or type(module).__name__} cannot be exported: {reason}'
            )
        if not isinstance(leaf, Tensor):
            names.append(None)
            continue
        if qualified and not name.startswith(call.region):
            name = f'{call.region}.{name}'
        name = trace.writer.unique(name)
        # What follows from nothing but the model is a constant.
        outputs[name] = (
            source or trace.writer.constant(leaf, f'{name}:constant'),
            leaf,
        )
        names.append(name)
    return names
