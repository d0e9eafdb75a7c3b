"""What the demo shows: a table of accuracies and a picture of detections."""

from __future__ import annotations

import json
from pathlib import Path

import mmcv
from mmengine.fileio import load
from rich.console import Console
from rich.table import Table

COLUMNS = {
    'dataset': 'Dataset',
    'model': 'Model',
    'resolution': 'Resolution',
    'float': 'Acc Float',
    'ptq': 'Acc 8bit Calib',
    'qat': 'Acc 8bit QAT',
}
SCORE_THRESHOLD = 0.5
NUM_PICTURES = 3
COLORS = ['tab:red', 'tab:blue', 'tab:orange', 'tab:green', 'tab:purple', 'tab:cyan']


def write_table(results: dict, folder: Path) -> None:
    """Print the results and write them as ``results.json`` and ``results.md``.

    Args:
        results: The keys of ``COLUMNS`` and any others, which go only into the
            JSON file. Accuracies are mAP50, from 0 to 1.
        folder: Where the files go.
    """
    cells = [
        f'{100 * results[key]:.1f}' if isinstance(results[key], float) else results[key]
        for key in COLUMNS
    ]
    table = Table(*COLUMNS.values(), title='mAP50 in percent')
    table.add_row(*cells)
    # wide enough for one line a row, also where no terminal tells its width
    Console(width=100).print(table)
    (folder / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
    rows = [COLUMNS.values(), ['---'] * len(COLUMNS), cells]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    (folder / 'results.md').write_text('\n'.join(lines) + '\n')


def draw_detections(
    predictions: dict[str, Path], classes: tuple[str, ...], path: Path
) -> None:
    """Draw what each model detects in the same images, side by side.

    Args:
        predictions: A title for each model, and the file that ``tools/test.py
            --out`` wrote for it.
        classes: The names of the classes.
        path: The picture to write.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import lines, pyplot

    models = {title: load(str(file)) for title, file in predictions.items()}
    num_images = len(next(iter(models.values())))
    num_rows = min(NUM_PICTURES, num_images)
    figure, axes = pyplot.subplots(
        num_rows,
        len(models),
        squeeze=False,
        layout='constrained',
        figsize=(4 * len(models), 3.1 * num_rows),
    )
    for row in range(num_rows):
        # spread over the test set: neighbours may be much alike
        index = row * num_images // num_rows
        for column, (title, samples) in enumerate(models.items()):
            draw_sample(axes[row, column], samples[index])
            if row == 0:
                axes[row, column].set_title(title)
    handles = [
        lines.Line2D([], [], color=COLORS[label % len(COLORS)], label=name)
        for label, name in enumerate(classes[: len(COLORS)])
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(COLORS))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_sample(axis, sample: dict) -> None:
    """Draw one image and its detections.

    Args:
        axis: The matplotlib axes to draw into.
        sample: One element of what ``tools/test.py --out`` writes.
    """
    axis.imshow(mmcv.imread(sample['img_path'], channel_order='rgb'))
    axis.set_axis_off()
    axis.set_autoscale_on(False)
    found = sample['pred_instances']
    for box, label, score in zip(found['bboxes'], found['labels'], found['scores']):
        if score >= SCORE_THRESHOLD:
            left, top, right, bottom = box.tolist()
            axis.plot(
                [left, right, right, left, left],
                [top, top, bottom, bottom, top],
                color=COLORS[int(label) % len(COLORS)],
                linewidth=1.5,
            )
