"""Rounding: how each weight is rounded, chosen by what serves the layer's output.

On correlated inputs, the rounding errors of some weights can make up for those of
others, and for those of the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config.sections import Rounding
from ..registry import ROUNDINGS, look_up
from ..targets.formats import TensorFormat, integer_bounds

# Of AdaRound's rectified sigmoid, sections 3.2 and 5 of the paper.
ZETA, GAMMA = 1.1, -0.1
BETA_START, BETA_END = 20.0, 2.0
WARMUP = 0.2  # share of the iterations without regularizer
BATCH = 256  # rows of an iteration
# Of coordinate descent: passes over all weights, and weights of a pass whose effect on
# the others is added together.
SWEEPS = 4
BLOCK = 128


class RoundingTask(NamedTuple):
    """A layer whose weight is to be rounded, seen at ``n`` positions.

    ``C`` output channels in ``G`` groups, each of which reads ``k`` inputs.

    Args:
        inputs (Tensor): What the weight is multiplied with: (n, G, k), its mean zero.
        target (Tensor): What should come out: (n, C), its mean zero.
        weight (Tensor): A row for each output channel: (C, k).
        step (Tensor): Of each channel's grid: (C, 1).
        format (TensorFormat): Of the weight.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor
    step: Tensor
    format: TensorFormat


def output_of(inputs: Tensor, weight: Tensor) -> Tensor:
    """What rows (n, G, k) give through a weight (C, k): (n, C)."""
    weight = weight.unflatten(0, (inputs.shape[1], -1))
    return torch.einsum('ngk,gck->ngc', inputs, weight).flatten(1)


def soft_round(v: Tensor) -> Tensor:
    """The rectified sigmoid ``h(V)`` of AdaRound's eq. 23: 0 is down, 1 is up."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


@ROUNDINGS.register_module(name='nearest')
def nearest(task: RoundingTask, options: Rounding) -> Tensor:
    """Rounds each weight for itself.

    Args:
        As of :func:`adaround`.

    Returns:
        Tensor: Integers, in a tensor like the weight.
    """
    weight, step, fmt = task.weight, task.step, task.format
    return (weight / step).round_().clamp_(*integer_bounds(fmt))


@ROUNDINGS.register_module(name='adaround')
@torch.enable_grad()
def adaround(task: RoundingTask, options: Rounding) -> Tensor:
    """Rounds each weight up or down.

    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv
    2004.10568), eq. 21 to 25 without the activation.

    Args:
        task (RoundingTask): The layer.
        options (Rounding): Iterations, learning rate, regularization.

    Returns:
        Tensor: Integers, in a tensor like the weight.
    """
    inputs, target, weight, step, fmt = task
    low, high = integer_bounds(fmt)
    rounded = nearest(task, options)
    floor = (weight / step).floor_()
    rest = (weight / step - floor).clamp_(0.01, 0.99)
    v = (-((ZETA - GAMMA) / (rest - GAMMA) - 1).log()).requires_grad_()
    noise = output_of(inputs, rounded * step - weight).square().sum(1).mean()
    # Rounding at random adds a twelfth for each weight. In this unit the regularizer
    # weighs the same in all layers.
    unit = weight.numel() / 12 / noise.clamp(min=torch.finfo(noise.dtype).tiny)
    optimizer = torch.optim.Adam([v], lr=options.lr)
    generator = torch.Generator().manual_seed(0)
    warm = int(WARMUP * options.iterations)
    for iteration in range(options.iterations):
        rows = torch.randint(
            len(inputs), (BATCH,), generator=generator, device=generator.device
        )
        rows = rows.to(inputs.device)
        up = soft_round(v)
        soft = (floor + up).clamp(low, high) * step
        error = output_of(inputs[rows], soft) - target[rows]
        loss = error.square().sum(1).mean() * unit
        if iteration >= warm:
            done = (iteration - warm) / max(1, options.iterations - warm)
            beta = BETA_END + (BETA_START - BETA_END) * (1 - done)
            regularizer = (1 - (2 * up - 1).abs().pow(beta)).sum()
            loss = loss + options.regularization * regularizer
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (floor + (soft_round(v.detach()) >= 0.5)).clamp_(low, high)


@ROUNDINGS.register_module(name='coordinate_descent')
@torch.no_grad()
def coordinate_descent(task: RoundingTask, options: Rounding) -> Tensor:
    """Puts one weight after the other where the error is least, the others as they are.

    Behdin et al., QuantEase: Optimization-based Quantization for Language Models (arXiv
    2309.01885), for all output channels at once, with a penalty for leaving the float
    weight. The error never rises, and weights may move by more than one step.

    Args:
        As of :func:`adaround`; of the options, ``damping``.

    Returns:
        Tensor: Integers, in a tensor like the weight.
    """
    inputs, target, weight, step, fmt = task
    low, high = integer_bounds(fmt)
    groups, count = inputs.shape[1], len(inputs)
    inputs = inputs.transpose(0, 1)
    target = target.unflatten(1, (groups, -1)).transpose(0, 1)
    weight, step = (x.unflatten(0, (groups, -1)) for x in (weight, step))
    second = inputs.transpose(1, 2) @ inputs / count
    cross = target.transpose(1, 2) @ inputs / count
    diagonal = second.diagonal(dim1=1, dim2=2)
    penalty = options.damping * diagonal.mean(1)
    # A view: the penalty is on the diagonal of the moments themselves.
    diagonal.add_(penalty[:, None])
    cross.add_(weight * penalty[:, None, None])
    curvature = diagonal.clamp(min=torch.finfo(second.dtype).tiny)[:, None]
    chosen = (weight / step).round_().clamp_(low, high).mul_(step)
    slope = chosen @ second - cross
    size = step[:, :, 0]
    for _ in range(SWEEPS):
        before = chosen.clone()
        for start in range(0, weight.shape[2], BLOCK):
            block = slice(start, start + BLOCK)
            within, near = second[:, block, block], slope[:, :, block].clone()
            old = chosen[:, :, block].clone()
            for column in range(near.shape[2]):
                place = start + column
                ideal = (
                    chosen[:, :, place] - near[:, :, column] / curvature[:, :, place]
                )
                new = (ideal / size).round_().clamp_(low, high).mul_(size)
                move = (new - chosen[:, :, place]).unsqueeze(2)
                near += move * within[:, column : column + 1]
                chosen[:, :, place] = new
            slope += (chosen[:, :, block] - old) @ second[:, block]
        if torch.equal(chosen, before):
            break
    return (chosen / step).round_().flatten(0, 1)


def round_weight(task: RoundingTask, options: Rounding) -> Tensor:
    """Rounds with the method of ``options``, or to nearest where that is better.

    Args:
        As of :func:`adaround`.

    Returns:
        Tensor: Integers, in a tensor like the weight.
    """
    method = look_up(ROUNDINGS, 'quantize.rounding.method', options.method)
    chosen = method(task, options)
    known = nearest(task, options)
    error, bound = (
        (output_of(task.inputs, integers * task.step) - task.target).square().mean(0)
        for integers in (chosen, known)
    )
    return torch.where((error < bound)[:, None], chosen, known)
