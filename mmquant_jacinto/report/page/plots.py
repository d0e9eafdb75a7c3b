"""Plots of a page, as SVG text that stands in the page itself."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..content import LayerReport

MOST_SNR = 60.0  # in a plot: what is nearer to float needs no closer look
MOST_RANGES = 6  # of a training, in one plot: those that moved most


def _figure(height: float = 2.8) -> Any:
    # Not pyplot's: a run may show windows of its own, and has its own settings.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Not laid out by matplotlib, which would draw everything twice.
    figure = Figure(figsize=(11, height))
    figure.subplots_adjust(0.06, 0.18, 0.94, 0.94)
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    # Text stays text: a tenth of the size, and it can be searched.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'report'}):
        figure.savefig(text, format='svg', metadata={'Date': None})
    content = text.getvalue()
    return content[content.index('<svg') :]


def plot_network(layers: Sequence[LayerReport], anchors: Sequence[str]) -> str:
    """Signal to noise along the network; its points lead to the layers.

    Args:
        layers (Sequence[LayerReport]): In the order in which they run.
        anchors (Sequence[str]): Of the layers in the page.
    """
    figure = _figure()
    axes = figure.subplots()
    for key, label, color in (
        ('snr_own', 'own', '#3c8f4a'),
        ('snr_total', 'total', '#14569c'),
    ):
        places = [i for i, x in enumerate(layers) if getattr(x, key) is not None]
        values = [min(getattr(layers[i], key), MOST_SNR) for i in places]
        dots = dict(marker='.', markersize=4) if key == 'snr_own' else {}
        axes.plot(places, values, color=color, linewidth=0.8, label=label, **dots)
        if key == 'snr_total':
            # One by one, which takes as long as all the rest: a layer needs one link.
            points = axes.scatter(places, values, s=7, color=color)
            points.set_urls([f'#{anchors[i]}' for i in places])
    shares = [100 * (layer.share or 0.0) for layer in layers]
    if any(shares):
        second = axes.twinx()
        # One line with gaps: as many bars would take as long as all the rest.
        ends = [(i, i, i) for i, share in enumerate(shares) if share]
        heights = [(0.0, share, math.nan) for share in shares if share]
        second.plot(sum(ends, ()), sum(heights, ()), '#d9822b', alpha=0.6, linewidth=2)
        second.set_ylim(bottom=0)
        second.set_ylabel('share of the outputs’ noise, %', color='#d9822b')
    axes.set_xlabel('layer, in the order in which they run')
    axes.set_ylabel('signal to noise, dB')
    axes.legend(loc='upper right')
    axes.margins(x=0.01)
    return _svg(figure)


def plot_curves(scalars: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Losses, scores and ranges of a training over time.

    Args:
        scalars (Mapping): Name to points, each a step and a value.
    """
    ranges = {name: scalars[name] for name in scalars if name.startswith('range/')}
    losses = {name: scalars[name] for name in scalars if 'loss' in name}
    others = {
        name: points
        for name, points in scalars.items()
        if name not in ranges and name not in losses and '/' in name
    }
    moved = sorted(ranges, key=lambda name: -_movement(ranges[name]))[:MOST_RANGES]
    groups = (
        ('losses', losses),
        ('scores', others),
        ('ranges that moved most', {name: ranges[name] for name in moved}),
    )
    return [_curves(title, group) for title, group in groups if group]


def _movement(points: Sequence[Sequence[float]]) -> float:
    values = [value for _, value in points]
    size = max(abs(value) for value in values)
    return (max(values) - min(values)) / size if size else 0.0


def _curves(title: str, group: Mapping[str, Sequence[Sequence[float]]]) -> str:
    figure = _figure(2.4)
    figure.subplots_adjust(0.06, 0.2, 0.7, 0.88)
    axes = figure.subplots()
    for name, points in group.items():
        steps, values = zip(*points)
        axes.plot(steps, values, linewidth=1.0, marker='.', markersize=3, label=name)
    axes.set_title(title, loc='left', fontsize=10)
    axes.set_xlabel('iteration')
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def plot_sensitivity(found: Sequence[Any], widths: Sequence[int]) -> str:
    """Noise by layer and width, worst first; weights above activations.

    Args:
        found (Sequence[LayerSensitivity]): Worst first.
        widths (Sequence[int]): In rising order.
    """
    figure = _figure(5.0)
    rows = figure.subplots(2, 1)
    for axes, kind in zip(rows, ('weight', 'activation')):
        items = [item for item in found if item.kind == kind]
        for width in widths:
            noise = [max(item.noise[width], 1e-12) for item in items]
            axes.plot(noise, marker='.', markersize=4, label=f'{width} bits')
        axes.set_yscale('log')
        axes.set_title(f'{kind}s, worst first', loc='left', fontsize=10)
        axes.set_ylabel('noise to signal')
        axes.legend(fontsize=8)
    figure.subplots_adjust(hspace=0.35, bottom=0.08)
    return _svg(figure)
