"""Curves of a training, from what MMEngine's visualizer has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCALARS = Path('vis_data', 'scalars.json')
MOST_POINTS = 400  # of a curve
# Of what a log has beside losses and scores, this says nothing of quantization.
LEFT_OUT = frozenset('step iter epoch time data_time memory lr base_lr'.split())


def read_curves(runner: Any) -> dict[str, Any]:
    """Losses, scores and ranges over the iterations of a run.

    Args:
        runner (Any): MMEngine's; its log folder has the scalars where its visualizer
            writes them there (``LocalVisBackend``).

    Returns:
        Dict: ``scalars``: name to points, each a step and a value; ``frozen``: what
        froze when.
    """
    path = Path(runner.log_dir) / SCALARS
    lines = path.read_text().splitlines() if path.exists() else []
    scalars: dict[str, list[list[float]]] = {}
    for line in lines:
        item = json.loads(line)
        step = item.get('step', 0)
        for name, value in item.items():
            if name not in LEFT_OUT and isinstance(value, (int, float)):
                scalars.setdefault(name, []).append([step, value])
    frozen = [
        text
        for hook in runner.hooks
        for text in getattr(hook, 'frozen', ())
        if isinstance(text, str)
    ]
    thin = {
        name: points[:: -(-len(points) // MOST_POINTS)]
        for name, points in scalars.items()
    }
    return dict(scalars=thin, frozen=frozen)
