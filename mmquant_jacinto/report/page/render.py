"""The page: one HTML file with all that it needs, for a browser without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import QuantizeError
from ..content import Report, is_weighed
from .plots import plot_curves, plot_network
from .text import COLUMNS, broken, cells
from .verdict import verdict

FOLDER = Path(__file__).parent


def render(
    report: Report,
    pictures: Sequence[str] = (),
    data: str | None = None,
) -> str:
    """Renders a report.

    Args:
        report (Report): What it shows.
        pictures (Sequence[str]): Of detections, as ``data:`` addresses.
        data (str, optional): What ``report.json`` has, where that is known already.

    Raises:
        QuantizeError: If a library that it takes is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, FileSystemLoader
    except ImportError as error:
        raise QuantizeError(
            f'the report page needs {error.name}: pip install jinja2 matplotlib, or '
            'set quantize.report=False'
        ) from error
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True
    )
    environment.filters['broken'] = broken
    template = environment.get_template('report.html.j2')
    anchors = [f'layer-{index}' for index in range(len(report.layers))]
    place = {layer.name: anchor for layer, anchor in zip(report.layers, anchors)}
    return template.render(
        report=report,
        verdict=verdict(report),
        weighed=is_weighed(report.layers),
        columns=COLUMNS,
        rows=[
            dict(anchor=anchor, cells=cells(layer))
            for layer, anchor in zip(report.layers, anchors)
        ],
        costliest=[
            dict(
                anchor=place[layer.name],
                module=layer.module,
                name=layer.name,
                share=layer.share,
                own='–' if layer.snr_own is None else f'{layer.snr_own:.1f}',
            )
            for layer in report.costliest()
        ],
        findings=[
            {**vars(item), 'anchor': place.get(item.layer)} for item in report.findings
        ],
        network_plot=plot_network(report.layers, anchors) if report.layers else '',
        curves=plot_curves(report.curves.get('scalars', {})),
        pictures=list(pictures),
        pictures_note=_note(report.pictures),
        data=embedded(report.to_json() if data is None else data),
        css=_own('report.css'),
        js=_own('report.js'),
    )


def _own(name: str) -> Any:
    # Script and style are ours, and not to be escaped.
    from markupsafe import Markup

    return Markup((FOLDER / name).read_text())


def embedded(data: str) -> str:
    """What the page's script reads, as JSON that no tag can end."""
    return data.replace('<', '\\u003c')


def _note(pictures: dict[str, Any]) -> str:
    if not pictures:
        return ''
    networks = pictures['networks']
    if 'threshold' not in pictures:
        return _masks_note(pictures)
    text = (
        f'Detections above {pictures["threshold"]:.2f}, where those of '
        f'{networks[0]} have their best F1 on {pictures["images"]} images. From left '
        f'to right: {", ".join(networks)}; green: a hit, red: none, thin and black: a '
        'truth.'
    )
    if 'kept' not in pictures:
        return text
    return (
        f'{text} Of the hits in float, {pictures["kept"]} are kept and '
        f'{pictures["lost"]} lost by the quantized network, which has '
        f'{pictures["gained"]} others.'
    )


def _masks_note(pictures: dict[str, Any]) -> str:
    """Of a segmentor."""
    networks = pictures['networks']
    first = networks[0]
    text = (
        f'From left to right: the truth, {", ".join(networks)}; a color for each class.'
    )
    if len(networks) > 1:
        text += f' Red: right in {first} alone, green: wrong in {first} alone.'
    if 'kept' not in pictures:
        return text
    kept, lost, gained = (f'{pictures[key]:.1%}' for key in ('kept', 'lost', 'gained'))
    return (
        f'{text} Of the pixels of {pictures["images"]} images {kept} are right in both '
        f'float and quantized network, {lost} in float alone, {gained} in quantized '
        'alone.'
    )
