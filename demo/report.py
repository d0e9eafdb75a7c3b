"""What the demo shows: a table of accuracies and a picture of detections."""

from __future__ import annotations

import json
from pathlib import Path

import mmcv
from rich.console import Console
from rich.table import Table

from mmquant_jacinto.report.detections import Detections

COLUMNS = {
    'dataset': 'Dataset',
    'model': 'Model',
    'resolution': 'Resolution',
    'float': 'Acc Float',
    'ptq': 'Acc 8bit Calib',
    'qat': 'Acc 8bit QAT',
}
COLORS = ['tab:red', 'tab:blue', 'tab:orange', 'tab:green', 'tab:purple', 'tab:cyan']


def write_table(results: dict, folder: Path) -> None:
    """Print the results and write them as ``results.json`` and ``results.md``.

    Args:
        results: The keys of ``COLUMNS`` and any others, which go only into the
            JSON file. Accuracies are mAP50, from 0 to 1, and ``'intervals'`` has a
            low and a high one for each.
        folder: Where the files go.
    """
    cells = [_cell(results, key) for key in COLUMNS]
    table = Table(*COLUMNS.values(), title='mAP50 in percent (95 % interval)')
    table.add_row(*cells)
    # wide enough for one line a row, also where no terminal tells its width
    Console(width=110).print(table)
    (folder / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
    rows = [COLUMNS.values(), ['---'] * len(COLUMNS), cells]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    (folder / 'results.md').write_text('\n'.join(lines) + '\n')


def _cell(results: dict, key: str) -> str:
    if key not in results['intervals']:
        return results[key]
    low, high = results['intervals'][key]
    return f'{100 * results[key]:.1f} ({100 * low:.1f} to {100 * high:.1f})'


def draw_detections(
    models: dict[str, list[Detections]],
    images: list[Path],
    threshold: float,
    classes: tuple[str, ...],
    path: Path,
) -> None:
    """Draw what each model detects in the same images, side by side.

    Args:
        models: A title for each model, and what it found in each image.
        images: The images.
        threshold: The score from which detections are drawn.
        classes: The names of the classes.
        path: The picture to write.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import lines, pyplot

    figure, axes = pyplot.subplots(
        len(images),
        len(models),
        squeeze=False,
        layout='constrained',
        figsize=(4 * len(models), 3.1 * len(images)),
    )
    for row, image in enumerate(images):
        for column, (title, found) in enumerate(models.items()):
            draw_image(axes[row, column], image, found[row], threshold)
            if row == 0:
                axes[row, column].set_title(f'{title}, scores from {threshold:.2f}')
    handles = [
        lines.Line2D([], [], color=COLORS[label % len(COLORS)], label=name)
        for label, name in enumerate(classes[: len(COLORS)])
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(COLORS))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_image(axis, image: Path, found: Detections, threshold: float) -> None:
    """Draw an image and its detections into matplotlib's axes."""
    axis.imshow(mmcv.imread(str(image), channel_order='rgb'))
    axis.set_axis_off()
    axis.set_autoscale_on(False)
    for box, label, score in zip(found.boxes, found.labels, found.scores):
        if score >= threshold:
            left, top, right, bottom = box.tolist()
            axis.plot(
                [left, right, right, left, left],
                [top, top, bottom, bottom, top],
                color=COLORS[int(label) % len(COLORS)],
                linewidth=1.5,
            )
