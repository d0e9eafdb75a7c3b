"""Examines one model of the zoo: in float, then quantized.

What it finds is a dict of plain data, see :func:`examine`.
"""

import copy
import math
import tempfile
import time
import traceback
from collections.abc import Mapping
from typing import Any, Callable, Optional

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmquant_jacinto import QuantizeConfig
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.plan.planner import make_plan
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.mmdet_modules import wrapper_class
from mmquant_jacinto.wrappers.prepare import is_region, probe_passes

from .configs import strip_pretrained
from .models import ZOO, Source, build_and_predict, calibrate, lighten, run
from .outputs import NO_NOISE, UNSEEN, RegionTap, signal_to_noise
from .shortfall import examine_shortfall

# Formats to examine. The extremes of the one batch are its ranges: what a percentile
# cuts off is more than what 16 bits round. At 16 bits nothing else may cost what would
# hide a mistake of the plan: scales are no powers of two (up to 6 dB for each tensor),
# and a large bias takes no bits from the weights to fit 32.
FORMATS = {
    16: dict(bits=16, target='onnxruntime', observer='minmax', constrain_bias=False),
    8: dict(bits=8, target='onnxruntime', observer='minmax'),
}
BOUNDS = {16: 55.0, 8: 15.0}  # dB
OTHER_SEED = 300  # of images that give no ranges
PROBE = 1e-5  # of an image's power: the noise that shows what a float model makes of it


class Stage:
    """Runs the stages of an examination; the first failure ends it.

    Args:
        report (dict): Gets the time of each stage, and what went wrong.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        report['seconds'] = {}

    def __call__(self, name: str, function: Callable, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args)
        except Exception as error:
            self.report['failed'] = name
            self.report['error'] = _one_line(error)
            self.report['traceback'] = traceback.format_exc()[-6000:]
            raise
        finally:
            seconds = time.perf_counter() - start
            self.report['seconds'][name] = round(seconds, 2)


def examine(
    name: str, device: str = 'cpu', amp: bool = False, source: Source = ZOO
) -> dict[str, Any]:
    """Examines a model.

    Args:
        name (str): Path of its config.
        device (str): Where it runs. Defaults to ``'cpu'``.
        amp (bool): Whether the losses are computed in half precision where
            autocasting does. Defaults to False.
        source (Source): Of model and batches. Defaults to MMDetection's zoo.

    Returns:
        Dict[str, Any]: ``'status'`` (``'ok'``, ``'no float'`` or
        ``'failed'``), and what each stage found.
    """
    report: dict[str, Any] = dict(config=name, status='no float')
    stage = Stage(report)
    try:
        cfg = stage('config', source.load, name)
        if cfg is None:
            report['error'] = 'the config has no model'
            return report
        report['detector'] = cfg.type
        strip_pretrained(cfg)
        lighten(cfg)
        model, batch = stage(
            'float predict', build_and_predict, cfg, device, report, source
        )
        fresh = stage('copy', _blank_copy, model)
        batches = source.losses(cfg, max(report['size'], 128))
        floats = stage('float loss', _float_loss, model, batches, amp, report)
        report['status'] = 'failed'
        other = source.renew(batch, OTHER_SEED)
        _examine_quantized(stage, model, fresh, batch, other, floats, amp, report)
        report['status'] = 'ok'
    except Exception as error:  # noqa: BLE001 - it is in the report
        if 'failed' not in report:
            report['failed'], report['error'] = 'examination', _one_line(error)
            report['traceback'] = traceback.format_exc()[-6000:]
    return report


def _one_line(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}'[:400]


def _loss_and_gradients(
    model: nn.Module, batch: dict, amp: bool
) -> tuple[float, set[str]]:
    model.zero_grad(set_to_none=True)
    with torch.autocast(next(model.parameters()).device.type, enabled=amp):
        losses = run(model, batch, 'loss')
        loss, _ = model.parse_losses(losses)
    loss.backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), names


def _float_loss(
    model: nn.Module, batches: list[dict], amp: bool, report: dict
) -> Optional[tuple[dict, float, set[str]]]:
    """The batch, its loss, and the parameters that get gradients."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        for batch in batches:
            try:
                return (batch, *_loss_and_gradients(model, batch, amp))
            except Exception as error:  # noqa: BLE001 - it is in the report
                report.setdefault('no loss', _one_line(error))
                report.setdefault('no loss traceback', traceback.format_exc()[-3000:])
                if isinstance(error, NotImplementedError):
                    return None
        return None
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        model.eval()


def _examine_quantized(
    stage: Stage,
    model: nn.Module,
    fresh: nn.Module,
    batch: dict,
    other: dict,
    floats: Optional[tuple[dict, float, set[str]]],
    amp: bool,
    report: dict,
) -> None:
    if floats is not None:
        report.pop('no loss', None)
        report.pop('no loss traceback', None)
    passes = probe_passes(model, batch, None if floats is None else floats[0])
    graph = stage('record', record, model, passes, is_region)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    reference = stage('float outputs', _outputs, model, batch, graph.regions, None)
    probed = RegionTap(model, graph.regions, reference, noise=PROBE)
    stage('float noise', _run_tapped, probed, batch)
    least = _compare(reference, probed)['least']
    if least is not None:
        report['noise_gain'] = round(-20 * math.log10(PROBE) - least, 1)
    report['seen'] = stage('other images', _seen, model, other, reference)
    report['sqnr'] = {}

    def plan_of(quantize: dict) -> Plan:
        return make_plan(graph, QuantizeConfig.parse(quantize), shapes)

    for bits, quantize in FORMATS.items():
        plan = stage(f'plan {bits}', plan_of, quantize)
        report.update(_describe(model, plan, floats))
        stage(f'calibrate {bits}', calibrate, model, plan, batch)
        tap = stage(f'predict {bits}', _outputs, model, batch, graph.regions, reference)
        report['sqnr'][bits] = _compare(reference, tap)
        low = _lowest(report['sqnr'][bits])
        if bits == 16 and low:
            report['below'] = stage(
                'shortfall', examine_shortfall, model, batch, tap, plan_of, low
            )
    stage('save and load', _save_and_load, fresh, model, batch, tap, report)
    if floats is not None:
        stage('qat step', _qat_step, model, floats, amp, report)


def _lowest(found: dict[str, Any]) -> str:
    """The head output that is furthest below the bound of 16 bits; none if empty."""
    heads = {name: dB for name, dB in found['heads'].items() if 0 <= dB < BOUNDS[16]}
    return min(heads, key=heads.__getitem__, default='')


def _seen(model: nn.Module, other: dict, reference: RegionTap) -> dict[str, float]:
    """How much of each head output other images change, in dB of its power.

    A model with random weights may say the same of any image; its signal to noise says
    nothing then.
    """
    tap = _run_tapped(RegionTap(model, reference.regions.values()), other)
    found = {}
    for name in reference.heads():
        if name in tap.outputs:
            value = signal_to_noise(reference.outputs[name], tap.outputs[name])
            if value is not None and math.isfinite(value):
                found[name] = round(-value, 1)
            elif value == math.inf:
                found[name] = UNSEEN
    return found


def _blank_copy(model: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    return fresh


def _describe(model: nn.Module, plan: Any, floats: Optional[tuple]) -> dict[str, Any]:
    """Counts, and all weights that are not quantized, by name."""
    trained = set() if floats is None else floats[2]
    return dict(
        regions=len(plan.regions),
        sites=len(plan.steps),
        quantizers=len(plan.activations),
        weights=len(plan.weights),
        in_float={
            name: dict(
                reason=reason, kind=_kind_of(model, name), trained=name in trained
            )
            for name, reason in plan.in_float.items()
        },
    )


def _kind_of(model: nn.Module, name: str) -> str:
    """Type of the module that has a parameter; of a call site: the function."""
    if '/' in name:
        return name.rpartition('/')[2].partition('#')[0]
    return type(model.get_submodule(name.rpartition('.')[0])).__name__


def _outputs(
    model: nn.Module, batch: dict, regions: list[str], reference: Optional[RegionTap]
) -> RegionTap:
    return _run_tapped(RegionTap(model, regions, reference), batch)


def _run_tapped(tap: RegionTap, batch: dict) -> RegionTap:
    with tap.attached(), torch.no_grad():
        tap.predictions = run(tap.model, batch, 'predict')
    return tap


def _compare(reference: RegionTap, tap: RegionTap) -> dict[str, Any]:
    values = {}
    missing = [name for name in reference.outputs if name not in tap.outputs]
    for name, signal in reference.outputs.items():
        # What ran on other detections, say, cannot be compared.
        call = name.rpartition(':')[0] or name
        if name in tap.outputs and call not in tap.strayed:
            value = signal_to_noise(signal, tap.outputs[name])
            if value is not None:
                values[name] = round(min(value, NO_NOISE), 1)
    heads = {name: values[name] for name in reference.heads() if name in values}
    return dict(
        least=min(heads.values(), default=None),
        heads=heads,
        inner={name: value for name, value in values.items() if name not in heads},
        strayed=sorted(tap.strayed),
        missing=missing,
    )


def _save_and_load(
    fresh: nn.Module,
    model: nn.Module,
    batch: dict,
    tap: RegionTap,
    report: dict,
) -> None:
    """Loads a checkpoint into another model, and predicts again as in ``tap``."""
    # Frees what it has computed from the weights.
    model.quantization.set_phase('float')
    wrapped = wrapper_class(fresh, 'test')(
        fresh, config=QuantizeConfig.parse(FORMATS[8])
    )
    with tempfile.TemporaryFile() as file:
        torch.save(model.state_dict(), file)
        file.seek(0)
        # As MMEngine loads: some models have parts that only training adds.
        fresh.load_state_dict(torch.load(file, weights_only=True), strict=False)
    wrapped.eval()
    again = _outputs(fresh, batch, list(tap.regions.values()), tap.reference)
    report['reload'] = again.outputs.keys() == tap.outputs.keys() and _identical(
        [tap.outputs, tap.predictions], [again.outputs, again.predictions]
    )


def _qat_step(model: nn.Module, floats: tuple, amp: bool, report: dict) -> None:
    batch, loss, gradients = floats
    model.quantization.set_phase('train')
    model.train()
    quantized_loss, quantized_gradients = _loss_and_gradients(model, batch, amp)
    report['qat'] = dict(
        float_loss=loss,
        loss=quantized_loss,
        finite=bool(torch.isfinite(torch.tensor(quantized_loss))),
        lost_gradients=sorted(gradients - quantized_gradients),
        new_gradients=sorted(quantized_gradients - gradients),
    )


def _identical(first: Any, second: Any) -> bool:
    """Whether two predictions are equal bit for bit."""
    if isinstance(first, BaseDataElement):
        return _identical(dict(first.all_items()), dict(second.all_items()))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(
            _identical(first[key], second[key]) for key in first
        )
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_identical, first, second))
    if isinstance(first, Tensor):
        return torch.equal(first, second) or bool(
            ((first == second) | (first.isnan() & second.isnan())).all()
        )
    if hasattr(first, 'tensor'):  # boxes
        return _identical(first.tensor, second.tensor)
    return True
