"""Keeps ``quantize.mixed_precision.latency``: raises what gains most for its time."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, get_rank, is_main_process

from ...config.max_drop import Raised
from ...config.mixed_precision import FILE, MixedPrecision
from ...config.quantize_config import QuantizeConfig
from ...methods.budgets.latency_budget import latency_of, raise_within
from ...methods.operations import CountOperations
from ...plan.planned_widths import levels_above
from ...report.build import Subject
from ...targets.target import get_target
from ..checkpoint_files import write_whole
from .again import Again

SHOWN = 20  # rows of the log


class LatencyKeeper:
    """Calibrates with as little noise as a latency allows.

    Ranges are measured with nothing raised, then what raising each tensor gains and
    costs; what is chosen is calibrated from the float weights. Nothing is scored.

    Args:
        loop (CalibrationLoop): Of a runner whose model is prepared and loaded.
    """

    def __init__(self, loop: Any) -> None:
        self.loop, self.runner = loop, loop.runner
        self.model = loop.runner.model
        self.config: QuantizeConfig = loop.runner.quantize_config
        assert isinstance(self.config.mixed_precision, MixedPrecision)
        self.budget = self.config.mixed_precision
        self.path = os.path.join(loop.runner.work_dir, FILE)

    def keep(self) -> dict[str, Any]:
        """Finds what to raise, and leaves the model calibrated so.

        Returns:
            Dict: What ``mixed_precision.json`` has.
        """
        again = Again(self.loop)
        self.loop.measure_ranges(self.config.calibration)
        base, operations = self.model.plan, self._operations(again)
        layers = raise_within(
            base, operations, self._gains(again), self.budget.latency or 1.0
        )
        again.calibrate(self.config.with_raised(Raised(self.budget, layers)))
        found = dict(
            settings=self.budget.to_dict(),
            finished=True,
            latency=latency_of(self.model.plan, base, operations),
            operations=sum(operations.values()),
            layers=layers,
            remedies={},
        )
        self._tell(found)
        if is_main_process():
            write_whole(self.path, json.dumps(found, indent=1) + '\n')
        return found

    def _operations(self, again: Again) -> dict[str, int]:
        """Operations of each call on an image, the first process's on all."""
        behaviour = CountOperations()
        self.model.eval()
        with torch.no_grad():
            for batch in again.images(1):
                Subject(self.model).run(behaviour, batch)
        found = [behaviour.operations if get_rank() == 0 else None]
        broadcast_object_list(found)
        return found[0] or {}

    def _gains(self, again: Again) -> dict[int, dict[str, dict[str, float]]]:
        kinds, found = self.budget.kinds or (), {}
        for level in levels_above(self.config, get_target(self.config.target).rules):
            self.runner.logger.info(
                f'Latency: what raising calls to {level} bits gains, on '
                f'{self.budget.num_images} images of the calibration set at most.'
            )
            noise = again.noise_to_lose(self.config, level, self.budget.num_images)
            found[level] = {
                name: {kind: parts[kind] for kind in parts if kind in kinds}
                for name, parts in noise.items()
            }
        return found

    def _tell(self, found: dict[str, Any]) -> None:
        rows = [
            f'  {name}: ' + ', '.join(f'{kind} {bits}' for kind, bits in value.items())
            for name, value in list(found['layers'].items())[:SHOWN]
        ]
        if len(found['layers']) > SHOWN:
            rows.append(f'  and {len(found["layers"]) - SHOWN} more ({self.path})')
        self.runner.logger.info(
            f'Latency: {found["latency"]:.3f} times that with nothing raised, of '
            f'{self.budget.latency:g}; {len(found["layers"])} calls raised, most gain '
            'for the time first:\n' + '\n'.join(rows)
        )
