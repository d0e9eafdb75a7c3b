"""The plots of the results: accuracy by bits, noise by layer, loss by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from accuracy_row import Row
from accuracy_rows import ROWS
from accuracy_runs import METRICS, TITLES, Run, Setup, is_saved, read_log

matplotlib.use('Agg')
from matplotlib import pyplot

# Of these rows a checkpoint and a training are drawn.
NOISE_OF = ('int8_jacinto_ptq', 'int8_onnxruntime_ptq', 'w4a4_ptq')
LOSS_OF = ('float_longer', 'int8_jacinto_qat', 'w4a4_lsq')
COLORS = dict(zip(TITLES, ('tab:blue', 'tab:orange', 'tab:green', 'tab:red')))
SMOOTHED = 5  # log entries that a point of a loss curve is the mean of


def bits_title(row: Row) -> str:
    """Return what the axis of bits calls a row's widths."""
    if not row.bits:
        return 'float'
    weight, activation = row.bits['weight'], row.bits['activation']
    same = weight == activation and weight >= 8
    return f'{weight}' if same else f'W{weight}A{activation}'


def best_by_bits(
    summary: Sequence[Mapping[str, Any]], arch: str, mode: str, metric: str
) -> dict[str, Mapping[str, float]]:
    """Return the best row of each width, from wide to narrow.

    Args:
        summary: From ``accuracy_report.summarize``.
        arch: The architecture.
        mode: That of the rows; the float test is with each of them.
        metric: What they are compared by.
    """
    rows = {row.name: row for row in ROWS if not row.twin}
    best: dict[str, Mapping[str, float]] = {}
    entries = [
        (rows[entry['row']], entry[metric])
        for entry in summary
        if entry['arch'] == arch and entry['row'] in rows
    ]
    entries.sort(key=lambda item: -sum(item[0].bits.values()) if item[0].bits else -99)
    for row, values in entries:
        if row.kind != 'test' and row.mode != mode:
            continue
        title = bits_title(row)
        if title not in best or values['mean'] > best[title]['mean']:
            best[title] = values
    return best


def draw_bits(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy against bits, of the best row of each width.

    Args:
        summary: From ``accuracy_report.summarize``.
        path: The picture to write.
    """
    figure, axes = pyplot.subplots(
        1, len(METRICS), figsize=(9, 3.6), layout='constrained'
    )
    for axis, metric in zip(axes, METRICS):
        # the places of all widths, in one order, before any line needs them
        axis.plot(['float', '16', '8', 'W4A8', 'W3A8', 'W4A4'], [math.nan] * 6)
        for arch in TITLES:
            for mode, style in (('ptq', '--o'), ('qat', '-s')):
                best = best_by_bits(summary, arch, mode, metric)
                if len(best) > 1:
                    axis.errorbar(
                        list(best),
                        [values['mean'] for values in best.values()],
                        [values['std'] or 0 for values in best.values()],
                        fmt=style,
                        color=COLORS[arch],
                        capsize=3,
                        markersize=4,
                        label=f'{TITLES[arch]} {mode.upper()}',
                    )
        axis.set_title(f'{metric} in percent')
        axis.set_xlabel('bits')
        axis.grid(alpha=0.3)
    save(figure, axes[0], path)


def weight_noise(config: Path, checkpoint: Path) -> dict[str, float]:
    """Return the signal to noise ratio of each layer's weight, in dB.

    Args:
        config: The config of a quantized run.
        checkpoint: What it left.
    """
    import torch
    from mmengine.config import Config

    from mmquant_jacinto.execute.integer.integer import Integer
    from mmquant_jacinto.export.configs.checkpoint import load_quantized

    module = load_quantized(Config.fromfile(config), str(checkpoint))
    quantization = module.quantization
    integer = Integer(quantization)
    noise = {}
    with torch.no_grad():
        integer.begin()
        for name, layer in quantization.layers.items():
            weight, _ = layer.folded()
            step = layer.along_channels(integer.fallback.grids.step(name))
            error = weight - integer.integer_weight(name) * step
            ratio = weight.square().sum() / error.square().sum().clamp(min=1e-30)
            noise[name] = 10 * math.log10(max(ratio.item(), 1e-30))
    return noise


def draw_noise(setup: Setup, archs: Sequence[str], path: Path) -> None:
    """Draw each layer's signal to noise, float weights against quantized.

    Args:
        setup: Says where the runs are.
        archs: The architectures, one below the other.
        path: The picture to write.
    """
    figure, axes = pyplot.subplots(
        len(archs),
        squeeze=False,
        figsize=(9, 2.6 * len(archs)),
        layout='constrained',
    )
    rows = [row for row in ROWS if row.name in NOISE_OF]
    for axis, arch in zip(axes[:, 0], archs):
        for row in rows:
            run = Run(setup, arch, row, 0)
            if run.read() and is_saved(run.checkpoint):
                noise = weight_noise(run.write_config(), run.checkpoint)
                axis.plot(list(noise.values()), '.-', label=row.title, linewidth=0.8)
        axis.set_ylabel('weights: signal to noise, dB')
        axis.set_title(TITLES[arch])
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel('layer, in the order of the forward pass')
    save(figure, axes[0, 0], path)


def loss_curve(folder: Path) -> tuple[list[float], list[float]]:
    """Return steps and losses of a training, smoothed."""
    # a resumed training logs again what it had not saved
    losses = {e['step']: e['loss'] for e in read_log(folder) if 'loss' in e}
    steps = sorted(losses)
    groups = [steps[i : i + SMOOTHED] for i in range(0, len(steps), SMOOTHED)]
    means = [sum(losses[step] for step in group) / len(group) for group in groups]
    return [group[-1] for group in groups], means


def draw_losses(setup: Setup, archs: Sequence[str], path: Path) -> None:
    """Draw the loss of float training and of what goes on from it.

    Args:
        setup: Says where the runs are.
        archs: The architectures, side by side.
        path: The picture to write.
    """
    figure, axes = pyplot.subplots(
        1,
        len(archs),
        squeeze=False,
        figsize=(4 * len(archs), 3.4),
        layout='constrained',
    )
    rows = [row for row in ROWS if row.name in LOSS_OF]
    for axis, arch in zip(axes[0], archs):
        steps, losses = loss_curve(setup.float_checkpoint(arch).parent)
        axis.plot(steps, losses, label='float', color='black', linewidth=1)
        start = steps[-1] if steps else 0
        for row in rows:
            more, losses = loss_curve(Run(setup, arch, row, 0).folder)
            if more:
                axis.plot(
                    [start + step for step in more],
                    losses,
                    label=row.title,
                    linewidth=1,
                )
        axis.set_yscale('log')
        axis.set_title(TITLES[arch])
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3, which='both')
    axes[0, 0].set_ylabel('training loss')
    save(figure, axes[0, 0], path)


def save(figure: Any, labelled: Any, path: Path) -> None:
    """Put one legend below all axes and write the picture."""
    handles, labels = labelled.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc='outside lower center', ncols=3)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def draw_all(
    setup: Setup, summary: Sequence[Mapping[str, Any]], folder: Path
) -> list[Path]:
    """Draw all plots that there are results for, and return where they are."""
    archs = [arch for arch in TITLES if any(e['arch'] == arch for e in summary)]
    if not archs:
        return []
    paths = [folder / f'results_{name}.png' for name in ('bits', 'noise', 'losses')]
    draw_bits(summary, paths[0])
    draw_noise(setup, archs, paths[1])
    draw_losses(setup, archs, paths[2])
    return paths
