"""State: what all behaviours work on."""

from typing import Optional, Protocol

from torch import Tensor, nn

from ..config.sections import Calibration
from ..plan.plan import Plan
from ..quantizers.activations import ActivationQuantizers
from ..quantizers.layers import Layer
from ..quantizers.learned_scales import LearnedWeightScales
from ..quantizers.mmrazor.fake_quants import FakeQuants
from .executor import Executor
from .uneven_ranges import UnevenRanges


class State(Protocol):
    """What the behaviours work on: ``quantization.Quantization``.

    Attributes:
        plan (Plan): The plan.
        executor (Executor): What runs the model under it.
        activations (ActivationQuantizers): Ranges and grids.
        layers (Dict[str, Layer]): By weight quantizer.
        bias_correction (Tensor): What calibration adds to the biases, all
            layers one after the other.
        weight_scale (Tensor): Steps of the weights' grids that do not follow from
            the weights, laid out alike; zero where they do.
        learned (LearnedWeightScales, optional): What a training learns of them.
        fake_quants (FakeQuants, optional): Of others, for training.
        weight_correction (Tensor): What calibration multiplies the weights' channels
            with, laid out alike; ``Layer.weight`` has it in it.
        calibration (Calibration): What calibration measures and corrects.
        equalized (Tensor): Whether the channels were equalized, ().
        constrained (Tensor): Whether the weights were constrained, ().
        uneven (UnevenRanges): What calibration saw concatenated.
        engine (str, optional): Whose arithmetic a test computes with; None: the
            plan's target's.
    """

    plan: Plan
    executor: Executor
    activations: ActivationQuantizers
    layers: dict[str, Layer]
    bias_correction: Tensor
    weight_scale: Tensor
    learned: Optional[LearnedWeightScales]
    fake_quants: Optional[FakeQuants]
    weight_correction: Tensor
    calibration: Calibration
    equalized: Tensor
    constrained: Tensor
    uneven: UnevenRanges
    engine: Optional[str]

    @property
    def root(self) -> nn.Module:
        """The float model."""

    def correction(self, name: str) -> Tensor:
        """A layer's part of ``bias_correction``: (C,)."""

    def note_weight_correction(self) -> None:
        """Takes note that ``weight_correction`` was changed."""
