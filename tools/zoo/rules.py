"""Exports one model of the zoo for several targets, and counts the broken rules."""

import copy
import time
from collections import Counter
from typing import Any

import torch
from torch import nn

from mmquant_jacinto import QuantizeConfig
from mmquant_jacinto.export.exporter import Exported, export_onnx
from mmquant_jacinto.export.rules.check import Finding
from mmquant_jacinto.plan.planner import make_plan
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.targets.rules import table
from mmquant_jacinto.wrappers.prepare import is_region, probe_passes

from .configs import strip_pretrained
from .export import FIRST_SEED, FORMAT, without_folders
from .models import ZOO, Source, build_and_predict, calibrate, lighten
from .violations import TARGETS


def examine_rules(name: str, source: Source = ZOO) -> dict[str, Any]:
    """Exports a model for each of :data:`TARGETS`, broken rules and all.

    Args:
        name (str): Path of its config.
        source (Source): Of model and batches. Defaults to MMDetection's zoo.

    Returns:
        Dict[str, Any]: ``'config'`` and ``'rules'``: by target, what its file breaks,
        or the ``'reason'`` why there is none.
    """
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        cfg = source.load(name)
        strip_pretrained(cfg)
        lighten(cfg)
        model, batch = build_and_predict(cfg, 'cpu', {}, source)
        graph = record(model, probe_passes(model, batch, None), is_region)
        for target in TARGETS:
            found[target] = _examine(model, graph, batch, target, source)
    except Exception as error:  # noqa: BLE001 - it is in the report
        found['reason'] = without_folders(error)
    found['seconds'] = round(time.perf_counter() - start, 1)
    return dict(config=name, rules=found)


def _examine(
    model: nn.Module, graph: Any, batch: dict, target: str, source: Source
) -> dict[str, Any]:
    try:
        again = copy.deepcopy(model)
        shapes = {name: tuple(p.shape) for name, p in again.named_parameters()}
        config = QuantizeConfig.parse({**FORMAT, 'target': target})
        calibrate(again, make_plan(graph, config, shapes), batch)
        torch.manual_seed(0)
        # Made of other images than gave the ranges, as a user's file is.
        images = source.renew(batch, FIRST_SEED)
        return counted(export_onnx(again, images, target, allow_violations=True))
    except Exception as error:  # noqa: BLE001 - it is in the report
        return dict(reason=without_folders(error))


def counted(exported: Exported) -> dict[str, Any]:
    """How many rules a file breaks.

    Returns:
        Dict[str, Any]: Number of ``'nodes'``, findings by severity, and ``'kinds'``:
        by severity, how often each rule is broken, in words.
    """
    kinds = {
        severity: dict(
            Counter(
                _kind(item) for item in exported.findings if item.severity == severity
            ).most_common()
        )
        for severity in table.SEVERITIES
    }
    return {
        'nodes': len(exported.model.graph.node),
        **{severity: sum(counts.values()) for severity, counts in kinds.items()},
        'kinds': {severity: counts for severity, counts in kinds.items() if counts},
        'skipped': exported.skipped,
    }


def _kind(item: Finding) -> str:
    """A finding without its node, whose shapes and grids differ from others'."""
    return f'{item.operator or "file"}, {item.rule}: {item.right}'
