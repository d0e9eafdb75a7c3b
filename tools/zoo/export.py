"""Exports one model of the zoo, and compares the file with it."""

import re
import time
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import nn

from mmquant_jacinto import QuantizeConfig, QuantizeError
from mmquant_jacinto.export.exporter import export_onnx
from mmquant_jacinto.export.session import integer_layers
from mmquant_jacinto.export.verify import verify
from mmquant_jacinto.plan.planner import make_plan
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.prepare import is_region, probe_passes

from .configs import strip_pretrained
from .models import ZOO, Source, build_and_predict, calibrate, lighten

FORMAT = dict(bits=8, target='onnxruntime', observer='minmax')
# Of the images to compare on: others than those that gave the ranges.
FIRST_SEED = 100


def examine_export(name: str, source: Source = ZOO) -> dict[str, Any]:
    """Exports a model for ONNX Runtime and compares file and test module.

    Args:
        name (str): Path of its config.
        source (Source): Of model and batches. Defaults to MMDetection's zoo.

    Returns:
        Dict[str, Any]: ``'config'`` and ``'export'``: the share of equal elements,
        ``'first'`` tensor that differs, what was left out; or the ``'reason'`` why
        there is no file.
    """
    start = time.perf_counter()
    try:
        model, batch, _ = quantized(name, source)
        found = _compare(model, batch, source)
    except Exception as error:  # noqa: BLE001 - it is in the report
        found = dict(reason=without_folders(error))
    found['seconds'] = round(time.perf_counter() - start, 1)
    return dict(config=name, export=found)


def quantized(name: str, source: Source = ZOO) -> tuple[nn.Module, dict, ConfigDict]:
    """A model with ranges, a batch that it has not seen, and its config."""
    cfg = source.load(name)
    strip_pretrained(cfg)
    lighten(cfg)
    model, batch = build_and_predict(cfg, 'cpu', {}, source)
    graph = record(model, probe_passes(model, batch, None), is_region)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = make_plan(graph, QuantizeConfig.parse(FORMAT), shapes)
    calibrate(model, plan, batch)
    return model, source.renew(batch, FIRST_SEED), cfg


def _compare(model: nn.Module, batch: dict, source: Source) -> dict[str, Any]:
    torch.manual_seed(0)
    # Made of other images than it is compared on: no number of them may be in it.
    exported = export_onnx(model, source.renew(batch, 2 * FIRST_SEED))
    report = verify(exported, model, [batch])
    integers, layers = integer_layers(exported.model)
    return {
        'equal': report.share,
        'largest': max((o.largest for o in report.outputs if o.on_grid), default=0.0),
        'outputs': len(report.outputs),
        'elements': sum(o.elements for o in report.outputs),
        'first': report.first,
        'integer_layers': integers,
        'layers': layers,
        'skipped': exported.skipped,
    }


def without_folders(error: Exception) -> str:
    """An error in one line, without the folder that libraries are installed in."""
    text = re.sub(r'\S*/site-packages/', '', ' '.join(str(error).split()))
    kind = '' if isinstance(error, QuantizeError) else f'{type(error).__name__}: '
    return f'{kind}{text}'[:400]
