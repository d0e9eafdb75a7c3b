"""All activation quantizers of a model, as one module of flat tensors: their grids."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from ..errors import UntrainableError
from ..plan.plan import ActivationSpec
from ..plan.scalar_names import scalar_names
from ..targets.grid import Bounds, Grid
from .activation_grids import GridFormats
from .kernels.fake_quantize import fake_quantize
from .learned_scales import LearnedActivationScales, learned_quantize
from .statistics.ranges import Ranges


class ActivationQuantizers(Ranges):
    """Ranges of all activations, and their grids.

    Args:
        specs (Sequence[ActivationSpec]): The quantizers, from the plan.
        observer (str): Name of the observer.
        percentile (float): Of the percentile observer, in percent.
        learned (bool): Whether the steps are parameters of the training, see
            :mod:`learned_scales`. A range is then the first that was measured.
        fine_observer (str, optional): Name of the observer of grids of more than
            ``FINE_BITS``. None: ``observer``.

    Raises:
        QuantizeError: If one of two observers searches ranges.
    """

    def __init__(
        self,
        specs: Sequence[ActivationSpec],
        observer: str,
        percentile: float,
        learned: bool = False,
        fine_observer: Optional[str] = None,
    ) -> None:
        super().__init__(specs, observer, percentile, fine_observer)
        if learned:
            self.learned = LearnedActivationScales(specs)
        # Constants; copied once to where they are used.
        self._formats_on: dict[torch.device, GridFormats] = {}
        self._grids: Optional[list[Grid]] = None
        self._host_grids: Optional[list[Grid]] = None
        self._scales: Optional[Tensor] = None
        self._is_on_host = True

    def learn_scales(self) -> None:
        """Makes the steps parameters of a training; the grids stay as they are."""
        self.settle()
        self.learned = LearnedActivationScales(self.specs).to(self.low.device)
        self._forget_grids()

    def grid(self, name: str) -> Optional[Grid]:
        """The grid for training; None while the quantizer has no range.

        On an accelerator its members are tensors there: reading them would
        stall every step.
        """
        index = self.index[name]
        if index not in self._ranged:
            return None
        grids = self._host_grids if self._is_on_host else self._grids
        if grids is not None:
            return grids[index]
        if self._is_on_host:
            return self.host_grid(name)
        self._grids = self._make_grids(on_host=False)
        return self._grids[index]

    def host_grid(self, name: str) -> Grid:
        """The grid in Python numbers, for what is computed once."""
        if self._host_grids is None:
            self._host_grids = self._make_grids(on_host=True)
        return self._host_grids[self.index[name]]

    def quantize(self, name: str, x: Tensor, bounds: Bounds, in_place: bool) -> Tensor:
        """Fake-quantizes a tensor, where there is a range already.

        Args:
            name (str): The quantizer.
            x (Tensor): (N, ...), floating point.
            bounds (tuple, optional): Real ``(low, high)`` of a fused activation.
            in_place (bool): Whether ``x`` may be overwritten.

        Returns:
            Tensor: Shape and dtype of ``x``.
        """
        grid = self.grid(name)
        # The first batch runs in float: its range is known when it ends.
        if grid is None:
            return x
        factor = self.factors.get(name)
        if factor is not None:
            return self._on_grid(name, grid, x / factor, bounds, True) * factor
        return self._on_grid(name, grid, x, bounds, in_place)

    def _on_grid(
        self, name: str, grid: Grid, x: Tensor, bounds: Bounds, in_place: bool
    ) -> Tensor:
        if self.learned is None or not torch.is_grad_enabled():
            return fake_quantize(x, grid, bounds, in_place)
        return learned_quantize(x, grid, bounds, self.learned, self.index[name])

    def factor(self, name: Optional[str]) -> Optional[Tensor]:
        """What the channels of a tensor are divided by before it is quantized."""
        return None if name is None else self.factors.get(name)

    def begin_step(self) -> None:
        """Takes note that learned steps may have changed."""
        if self.learned is not None:
            self._forget_grids()

    def present(self) -> tuple:
        """The grids as they are; :meth:`commit` does not change what this holds."""
        if self._ranged:
            # Made on demand; later it would be from other ranges.
            self.grid(self.specs[min(self._ranged)].name)
        return self._ranged, self._grids, self._host_grids

    def become(self, grids: tuple) -> None:
        """Goes back to what :meth:`present` gave."""
        self._ranged, self._grids, self._host_grids = grids

    @property
    def scales(self) -> Tensor:
        """Tensor: Steps of all grids, infinite where there is none yet: (Q,)."""
        if self._scales is None:
            scale = self._grid_columns(self.low.device)[0].float()
            self._scales = torch.where(self.count > 0, scale, torch.inf)
        return self._scales

    def refresh(self) -> None:
        """Takes note that the ranges were changed from outside."""
        self._steps = int(self.steps)
        self._ranged = set(self.count.nonzero().flatten().tolist())
        self._forget_grids()

    def _forget_grids(self) -> None:
        self._is_on_host = not self.low.is_cuda
        self._grids = self._host_grids = self._scales = None

    def scalars(self) -> dict[str, float]:
        """The ranges, for a visualizer: ``range/<name>/low`` and high."""
        self.settle()
        names = scalar_names(spec.name for spec in self.specs)
        ends = zip(names, self.low.tolist(), self.high.tolist(), self.count.tolist())
        return {
            f'range/{name}/{end}': value
            for name, low, high, count in ends
            if count
            for end, value in (('low', low), ('high', high))
        }

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Leaves it to the parent, which knows the checkpoint's plan."""

    def _make_grids(self, on_host: bool) -> list[Grid]:
        scale, low, high = self._grid_columns('cpu' if on_host else self.low.device)
        columns: tuple[Sequence, Sequence, Sequence]
        if on_host:
            self._check_finite(scale)
            columns = scale.tolist(), low.long().tolist(), high.long().tolist()
        else:
            steps, lowest, highest = (
                item.float().unbind() for item in (scale, low, high)
            )
            columns = steps, lowest, highest
        return [
            Grid(step, first, last, 2**spec.format.bits, spec.format.rounding)
            for spec, step, first, last in zip(self.specs, *columns)
        ]

    def _check_finite(self, scale: Tensor) -> None:
        if scale.isfinite().all():
            return
        known = torch.tensor(sorted(self._ranged), dtype=torch.long)
        broken = known[~scale[known].isfinite()]
        if len(broken):
            raise UntrainableError(
                f'the scale of {self.specs[broken[0]].name} is not a number: the '
                'training that it comes from has diverged; use a lower '
                'optim_wrapper.optimizer.lr or quantize.learned_scale.lr_mult, in a '
                'calibration a lower quantize.finetune.lr'
            )

    def _grid_columns(self, device: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, lowest and highest step of all grids, float64: (Q,) each."""
        self.settle()
        low, high = self.low.detach().to(device), self.high.detach().to(device)
        formats = self._formats_on.get(low.device)
        if formats is None:
            formats = self._formats.to(low.device)
            self._formats_on[low.device] = formats
        grids = formats.grids(low, high)
        return grids if self.learned is None else self.learned.adjust(*grids)
