"""A model that is calibrated again, from its float weights, with other settings."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner.utils import set_random_seed
from torch import Tensor

from ...config.quantize_config import QuantizeConfig
from ...plan.overrides import Overrides
from ...plan.plan import module_of, wide_name
from ...plan.planned_widths import widest
from ...record.side_effects import preserved_random_state
from ...report.build import Images, Subject
from ...report.measuring.noise_to_lose import noise_to_lose
from ...targets.target import get_target


class Again:
    """The model of a calibration, as both budgets work on it.

    Args:
        loop (CalibrationLoop): Of a runner whose model is prepared and loaded.
    """

    def __init__(self, loop: Any) -> None:
        self.loop, self.runner = loop, loop.runner
        self.model = loop.runner.model
        # A calibration may equalize, round or train them.
        self.weights = {
            name: value.detach().clone() for name, value in self._float_state().items()
        }

    def calibrate(self, config: QuantizeConfig) -> None:
        """Calibrates from the float weights.

        Args:
            config (QuantizeConfig): In place of the runner's.
        """
        with torch.no_grad():
            for name, value in self._float_state().items():
                value.copy_(self.weights[name])
        with preserved_random_state():
            set_random_seed(self.runner.seed)
            self.model.plan_anew(config)
            self.loop.calibrate_with(config.calibration)

    def images(self, count: int) -> Images:
        """Images of the calibration set, of all processes together.

        Args:
            count (int): How many at most.
        """
        loader, world = self.loop.dataloader, get_world_size()
        images = Images(loader.dataset, loader.collate_fn, count)
        # As many in each process, if there are enough.
        images.indices = images.indices[get_rank() :: world][
            : max(1, len(images) // world)
        ]
        return images

    def noise_to_lose(
        self, config: QuantizeConfig, level: Any, count: int
    ) -> dict[str, dict[str, float]]:
        """What raising calls of the model as it is takes off the outputs' noise.

        Args:
            config (QuantizeConfig): What its ``overrides`` name stays as it is.
            level (int | bool): A width, or False for float.
            count (int): Images to measure it on.

        Returns:
            Dict[str, Dict[str, float]]: Call site, or quantizer of an input, to the
            noise to signal by kind, without kinds that the target has no such width of.
        """
        self.model.eval()
        noise = noise_to_lose(
            self.model.quantization,
            Subject(self.model).run,
            self.images(count),
            level,
            get_rank() * count,
        )
        most = widest(get_target(config.target).rules)
        given = Overrides(config.overrides)
        return {
            name: {
                kind: value
                for kind, value in kinds.items()
                if level is False or level <= most[kind]
            }
            for name, kinds in noise.items()
            if given.find(module_of(name)) is None
            # What layers read narrower than it is, is no call that could be in float.
            and (level is not False or wide_name(name) == name)
        }

    def _float_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the model, less what quantization adds."""
        root = self.model.module
        own = self.model.quantization
        added = {id(value) for value in (*own.parameters(), *own.buffers())}
        named = [*root.named_parameters(), *root.named_buffers()]
        return {name: value for name, value in named if id(value) not in added}
