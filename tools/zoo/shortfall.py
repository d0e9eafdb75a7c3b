"""What the noise of an output that is below its bound at 16 bits is made of."""

from typing import Any, Callable

import torch
from torch import Tensor, nn

from mmquant_jacinto.plan.plan import Plan

from .models import calibrate, run
from .outputs import NO_NOISE, RegionTap, signal_to_noise

# A calibrated range of 16 bits has room for other images; this observer's ends at what
# the one batch had.
NO_ROOM = dict(bits=16, target='onnxruntime', observer='moving_average')
FEW = 1e-3  # of an output's elements


def examine_shortfall(
    model: nn.Module,
    batch: dict,
    tap: RegionTap,
    plan_of: Callable[[dict[str, Any]], Plan],
    name: str,
) -> dict[str, Any]:
    """Measures what makes the noise of an output; the model is calibrated anew.

    Args:
        model (nn.Module): Quantized.
        batch (dict): That gave its ranges.
        tap (RegionTap): Of its run in integers, with the float run's as reference.
        plan_of (Callable[[dict], Plan]): Gives the plan of a ``quantize`` section.
        name (str): Of the output.

    Returns:
        Dict[str, Any]: ``'output'``; signal to noise in dB: ``'in_float'`` where its
        region alone computes in float, from what the quantized ones before it gave,
        ``'no_room'`` with ranges that end at what was seen, ``'without'`` the
        thousandth of its elements that has the most noise; ``'share'`` of the noise
        that these have.
    """
    assert tap.reference is not None
    signal, noisy = tap.reference.outputs[name], tap.outputs[name]
    call = name.rpartition(':')[0] or name
    model.quantization.set_phase('float')
    alone = _tapped(model, batch, tap, replaced=tap, but=call)
    calibrate(model, plan_of(NO_ROOM), batch)
    exact = _tapped(model, batch, tap)
    share, without = _most_noise(signal, noisy)
    return dict(
        output=name,
        in_float=_decibels(signal, alone.outputs[name]),
        no_room=_decibels(signal, exact.outputs[name]),
        share=share,
        without=without,
    )


def _tapped(model: nn.Module, batch: dict, tap: RegionTap, **options: Any) -> RegionTap:
    found = RegionTap(model, tap.regions.values(), tap.reference, **options)
    with found.attached(), torch.no_grad():
        run(model, batch, 'predict')
    return found


def _decibels(signal: Tensor, noisy: Tensor) -> float:
    found = signal_to_noise(signal, noisy)
    return round(min(NO_NOISE if found is None else found, NO_NOISE), 1)


def _most_noise(signal: Tensor, noisy: Tensor) -> tuple[float, float]:
    """Share of the noise in a few elements, and signal to noise of the others."""
    noise = (signal.double() - noisy.double()).square().flatten()
    count = max(1, round(FEW * noise.numel()))
    most = noise.topk(count).indices
    others = torch.ones_like(noise, dtype=torch.bool)
    others[most] = False
    share = float(noise[most].sum() / noise.sum())
    without = _decibels(signal.flatten()[others], noisy.flatten()[others])
    return round(share, 3), without
