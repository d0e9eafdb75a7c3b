"""Obey: a written file, held against the rules of the target that it is for."""

from __future__ import annotations

import json
from dataclasses import asdict

import onnx
from onnx import shape_inference

from ...errors import QuantizeError
from ...targets.target import Target
from .check import Finding, check
from .report import violations

# What a file's metadata say of the rules that it breaks.
METADATA_KEY = 'violations'


def obey(
    model: onnx.ModelProto, target: Target, preset: str, allowed: bool
) -> tuple[onnx.ModelProto, list[Finding]]:
    """The file in the form that its target reads, and what it breaks all the same.

    Args:
        model (onnx.ModelProto): As it was written.
        target (Target): What it is for.
        preset (str): The checkpoint's ``quantize.target``.
        allowed (bool): Whether it may break rules; its metadata then say so.

    Returns:
        Tuple[onnx.ModelProto, List[Finding]]: The file, and all that was found.

    Raises:
        QuantizeError: If it breaks rules and may not.
    """
    if target.stores_shapes:
        model = shape_inference.infer_shapes(model, data_prop=True)
    findings = check(model, target.rules_for(preset))
    broken = violations(findings)
    if broken and not allowed:
        raise QuantizeError(_sentence(broken, target, preset))
    if broken:
        entry = model.metadata_props.add()
        entry.key = METADATA_KEY
        entry.value = json.dumps([asdict(item) for item in broken])
    return model, findings


def _sentence(broken: list[Finding], target: Target, preset: str) -> str:
    first = broken[0]
    others = f' and {len(broken) - 1} more' if len(broken) > 1 else ''
    advice = (
        f'quantize it with quantize.target={target.name!r}'
        if preset != target.name
        else 'quantize it again with this version, or leave that module in float by '
        'quantize.overrides'
    )
    return (
        f'{target.name} does not take {first.operator} {first.node}{others}: '
        f'{first.rule} {first.found}, and {first.source} asks for {first.right}; '
        f'{advice}, or export it with --allow-violations'
    )
