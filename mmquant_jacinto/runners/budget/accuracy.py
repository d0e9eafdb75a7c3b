"""Keeps ``quantize.max_drop``: calibrates and validates until the budget holds."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.utils import ProgressBar

from ...config.max_drop import FILE, KEY, MaxDrop, Raised
from ...config.quantize_config import QuantizeConfig
from ...errors import QuantizeError
from ...execute import quantization as phases
from ...methods.budgets.accuracy_budget import (
    AccuracyBudget,
    Candidate,
    Choice,
    raised_value,
)
from ...plan.planned_widths import levels_above
from ...registry import BIAS_CORRECTIONS, registered
from ...targets.rules.table import Weights
from ...targets.target import get_target
from ..checkpoint_files import write_whole
from ..refusals import pick_metric
from .again import Again


class ScoringBar(Hook):
    """Shows how much of a validation is done, in the place of a runner's hooks."""

    def __init__(self, batches: int) -> None:
        self.bar = ProgressBar(batches) if is_main_process() else None

    def after_val_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()


@contextmanager
def only_hook(runner: Any, hook: Hook) -> Iterator[None]:
    """A runner whose own hooks hear nothing: what is tried is no epoch of its."""
    kept, runner._hooks = runner._hooks, [hook]
    try:
        yield
    finally:
        runner._hooks = kept


class BudgetKeeper:
    """Calibrates so that the score stays within ``quantize.max_drop``.

    Args:
        loop (CalibrationLoop): Of a runner whose model is prepared and loaded.
    """

    def __init__(self, loop: Any) -> None:
        self.loop, self.runner = loop, loop.runner
        self.model = loop.runner.model
        self.config: QuantizeConfig = loop.runner.quantize_config
        self.budget: MaxDrop = self.config.max_drop
        self.path = os.path.join(loop.runner.work_dir, FILE)
        self.again = Again(loop)
        self.calibrated: str | None = None  # the choice that the model is at
        self.state: dict[str, Any] = {}
        self._start, self._earlier = time.monotonic(), 0.0

    def keep(self) -> dict[str, Any]:
        """Finds the least that keeps the budget, and leaves the model calibrated so.

        Returns:
            Dict: What ``max_drop.json`` has.

        Raises:
            QuantizeError: If the float network has no score to keep.
        """
        self.state = self._begin()
        metric, score, allowed = self._float_score()
        sign = self.budget.sign
        search = AccuracyBudget(
            lambda choice: sign * self._score(choice),
            self._rank,
            sign * score - allowed,
            self.budget.scorings,
        )
        choice = search.search(self._remedies(), self._levels())
        self._calibrate(choice)
        final = sign * search.scores[choice.key]
        drop = self._drop(final)
        self.state.update(
            finished=True,
            layers=dict(choice.layers),
            remedies=dict(choice.remedies),
            final=final,
            drop=drop,
            met=sign * final >= search.least,
        )
        self._write()
        self._tell(choice, metric, score, final, drop)
        return self.state

    def _tell(
        self, choice: Choice, metric: str, score: float, final: float, drop: float
    ) -> None:
        state, points = self.state, self.budget.points
        text = (
            f'Budget: {choice}: {metric} {final:.4g}, float {score:.4g}: a drop of '
            f'{drop:.2f} points'
        )
        if state['met']:
            self.runner.logger.info(
                f'{text}, within {points:g}, found with {len(state["trials"])} '
                f'scorings ({self.path})'
            )
        else:
            self.runner.logger.warning(
                f'{text}, which is {drop - points:.2f} more than {KEY}={points:g}: '
                f'nothing that was tried keeps it ({len(state["trials"])} of at most '
                f'{self.budget.scorings} scorings); this is the best of it'
            )

    def _begin(self) -> dict[str, Any]:
        """What an interrupted run has found, if this one goes on with it."""
        found: list[Any] = [None]
        key = self._key()
        if is_main_process() and self.runner.goes_on:
            try:
                with open(self.path) as file:
                    kept = json.load(file)
                if kept['key'] == key:
                    found = [kept]
            except (OSError, ValueError, LookupError, TypeError):
                pass
        broadcast_object_list(found)
        if found[0] is not None:
            self.runner.logger.info(
                f'{self.path}: {len(found[0]["trials"])} scorings are known already.'
            )
            self._earlier = found[0]['seconds']
            return {**found[0], 'finished': False}
        return dict(
            settings=self.budget.to_dict(),
            key=key,
            finished=False,
            layers={},
            remedies={},
            trials=[],
            rankings={},
        )

    def _key(self) -> str:
        """What scores depend on, as far as it can be told."""
        digest = hashlib.sha256(repr(self.config).encode())
        for name, value in sorted(self.again.weights.items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        digest.update(
            repr((len(self.runner.val_loop.dataloader), self.loop.batches)).encode()
        )
        return digest.hexdigest()[:16]

    def _write(self) -> None:
        seconds = self._earlier + time.monotonic() - self._start
        self.state['seconds'] = round(seconds, 1)
        if is_main_process():
            write_whole(self.path, json.dumps(self.state, indent=1) + '\n')

    def _float_score(self) -> tuple[str, float, float]:
        """Name of the metric, float's score, and what may be lost of it.

        Raises:
            QuantizeError: If there is none, or all of it may be lost.
        """
        if 'float' not in self.state:
            self.runner.logger.info(
                f'Budget: scoring float, to keep within {self.budget.points:g} points.'
            )
            metrics = self._validate(phases.FLOAT)
            metric, score = pick_metric(metrics, self.budget)
            self.state.update(metric=metric, float=score)
        metric, score = self.state['metric'], self.state['float']
        allowed = self.budget.points * self._point()
        if allowed >= score and self.budget.sign > 0:
            raise QuantizeError(
                f'{KEY}.points={self.budget.points!r} is all of the '
                f'{score / self._point():.4g} points that float has ({metric}); use '
                'fewer'
            )
        self._write()
        # Numbers that were added up in another order are no drop.
        return metric, score, allowed + 1e-9 * abs(score)

    def _drop(self, score: float) -> float:
        """Points that a score is worse than float's."""
        return self.budget.sign * (self.state['float'] - score) / self._point()

    def _point(self) -> float:
        """A point in the unit of the metric, which may be percent."""
        return 0.01 if abs(self.state['float']) <= 1 else 1.0

    def _levels(self) -> list[Any]:
        """Widths that the target has, above those of the config; then float."""
        rules = get_target(self.config.target).rules
        return [*levels_above(self.config, rules), False]

    def _remedies(self) -> list[dict[str, Any]]:
        """Settings that cost no speed, and that the config leaves open."""
        config, calibration = self.config, self.config.calibration
        found: list[dict[str, Any]] = []
        row = get_target(config.target).rules.row(Weights, 'Conv')
        open_scales = config.per_channel is None and not config.channel_scales
        if open_scales and row is not None and row.per_channel:
            found.append(dict(per_channel=True))
        if calibration.bias_correction is not False and calibration.epochs:
            found += [
                dict(bias_correction=way)
                for way in registered(BIAS_CORRECTIONS)
                if way != calibration.bias_correction
            ]
        return found

    def _score(self, choice: Choice) -> float:
        """Calibrates and validates a choice, unless its score is known."""
        number = len(self.state['trials']) + 1
        for trial in self.state['trials']:
            if trial['key'] == choice.key:
                return trial['score']
        start = time.monotonic()
        self.runner.logger.info(
            f'Budget: scoring {number} of at most {self.budget.scorings}: {choice}'
        )
        self._calibrate(choice)
        metrics = self._validate(phases.TEST)
        # An evaluator that was given nothing may leave the metric out.
        score = float(metrics.get(self.state['metric'], math.nan))
        if not math.isfinite(score):
            # An error has no worst: beyond what any budget allows.
            most = 1000 * (1 + abs(self.state['float']))
            score = 0.0 if self.budget.sign > 0 else most
        drop = self._drop(score)
        self.runner.logger.info(
            f'Budget: {self.state["metric"]} {score:.4g}, a drop of {drop:.2f} points '
            f'of {self.budget.points:g}'
        )
        self.state['trials'].append(
            dict(
                key=choice.key,
                raised=len(choice.layers) - choice.in_float,
                in_float=choice.in_float,
                remedies=dict(choice.remedies),
                score=score,
                drop=drop,
                seconds=round(time.monotonic() - start, 1),
            )
        )
        self._write()
        return score

    def _rank(self, choice: Choice, level: Any) -> list[Candidate]:
        """Layers that may be raised, by the noise that this takes away."""
        key = f'{choice.key} {level}'
        if key not in self.state['rankings']:
            self._calibrate(choice)
            self.state['rankings'][key] = [
                asdict(item) for item in self._measure(choice, level)
            ]
            self._write()
        return [Candidate(**item) for item in self.state['rankings'][key]]

    def _measure(self, choice: Choice, level: Any) -> list[Candidate]:
        count = self.budget.num_images
        self.runner.logger.info(f'Budget: ranking layers on at most {count} images.')
        found = []
        noise = self.again.noise_to_lose(self.config, level, count)
        for name, kinds in noise.items():
            value = False if level is False else raised_value(level, kinds)
            parts = kinds if level is not False and len(kinds) > 1 else {}
            candidate = Candidate(name, value, sum(kinds.values()), parts)
            if candidate.gain > 0 and choice.layers.get(name) != candidate.value:
                found.append(candidate)
        found.sort(key=lambda item: (-item.gain, item.name))
        return found if level is not False else self._but_one(found)

    def _but_one(self, candidates: list[Candidate]) -> list[Candidate]:
        """Candidates for float that leave one weight: else nothing is quantized."""
        plan = self.model.plan
        weights = [plan.steps[item.name].weight for item in candidates]
        if not plan.weights.keys() <= set(weights):
            return candidates
        last = next(weight for weight in reversed(weights) if weight is not None)
        return [c for c, weight in zip(candidates, weights) if weight != last]

    def _calibrate(self, choice: Choice) -> None:
        """Calibrates a choice from the float weights, unless the model is there."""
        if self.calibrated == choice.key:
            return
        self.calibrated = None
        raised = Raised(self.budget, choice.layers, choice.remedies)
        config = self.config.with_raised(raised)
        self.again.calibrate(config)
        self.calibrated = choice.key

    def _validate(self, phase: str) -> dict[str, Any]:
        """Metrics of the model as it is, in float or on integers."""
        loop, model = self.runner.val_loop, self.model
        kept = model.eval_phase
        model.eval_phase = phase
        try:
            with only_hook(self.runner, ScoringBar(len(loop.dataloader))):
                metrics = loop.run()
        finally:
            model.eval_phase = kept
            model.eval()
        if is_main_process():
            print(flush=True)
        return dict(metrics or {})
