"""Quantization: the module that a quantized model carries.

It is a child of the float model, named ``quantization``, so ``.to()``,
``state_dict``, deepcopy (EMA), DDP and resume need no special case, and the
float model's own names stay as they were.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Callable, Optional, Union, cast

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..config.sections import Calibration
from ..errors import QuantizeError
from ..plan.plan import Plan
from ..quantizers.activations import ActivationQuantizers
from ..quantizers.layers import Layer
from ..quantizers.learned_scales import LearnedWeightScales
from ..quantizers.mmrazor.fake_quants import FakeQuants
from ..quantizers.weight_grids import WeightGrids
from .behaviour import Behaviour
from .calibrate import Correct, Observe
from .corrections.channel_factors import ChannelReach
from .corrections.conditioning import compute_grids, condition_once
from .executor import Executor
from .fake_quantize import Simulate
from .integer.integer import Integer
from .state import State
from .stored_plan import NAME, encode_plan, read_plan
from .uneven_ranges import UnevenRanges

Phase = Union[str, Callable[[State], Behaviour]]

FLOAT, TRAIN, TEST = 'float', 'train', 'test'
OBSERVE, CORRECT, REACH = 'observe', 'correct', 'reach'
_BEHAVIOURS: Mapping[str, Callable[[State], Behaviour]] = {
    FLOAT: lambda state: Behaviour(),
    TRAIN: lambda state: Simulate(state, state.fake_quants),
    REACH: ChannelReach,
    OBSERVE: Observe,
    CORRECT: Correct,
    TEST: Integer,
}


class Quantization(nn.Module):
    """Plan, ranges and bias corrections of a model, and what executes them.

    Args:
        root (nn.Module): The float model; gets this module as a child.

    Attributes:
        on_other_plan (str): What loading a checkpoint that was made with
            another plan does: ``'adopt'`` it, ``'ignore'`` its quantizer
            state (weights load as usual), or ``'refuse'``.
        trains (bool): Whether fake quantizers of others, where the plan has some, are
            built: in training they take the place of our own.
        may_learn (bool): Whether a calibration may end with :meth:`learn_scales`.
        engine (str, optional): Target whose arithmetic a test computes with, from
            the next :meth:`set_phase` on. None: the plan's own.
        calibration (Calibration): What calibration measures and corrects.
    """

    activations: ActivationQuantizers
    layers: dict[str, Layer]
    learned: Optional[LearnedWeightScales]
    bias_correction: Tensor
    weight_scale: Tensor
    weight_correction: Tensor
    equalized: Tensor
    constrained: Tensor
    channel_factor: Optional[Tensor]

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        if hasattr(root, NAME):
            raise QuantizeError(
                f'{type(root).__name__} already has an attribute {NAME!r}: '
                'it is quantized already, or the name is taken'
            )
        self._root = (root,)  # a plain attribute: the root is no child
        self.plan: Optional[Plan] = None
        self.executor: Optional[Executor] = None
        self.on_other_plan = 'adopt'
        self.trains = self.may_learn = False
        self.fake_quants: Optional[FakeQuants] = None
        self.phase: Phase = FLOAT
        self.engine: Optional[str] = None
        self.calibration = Calibration()
        self.uneven = UnevenRanges()
        root.add_module(NAME, self)

    @classmethod
    def of(cls, root: nn.Module) -> Optional['Quantization']:
        """The quantization that a model carries; None if it has none."""
        found = getattr(root, NAME, None)
        return found if isinstance(found, cls) else None

    @property
    def root(self) -> nn.Module:
        return self._root[0]

    @property
    def has_ranges(self) -> bool:
        """bool: Whether anything was calibrated or trained."""
        return self.plan is not None and self.activations.has_ranges

    @property
    def has_scales(self) -> bool:
        """bool: Whether there is what learned scales start from."""
        fake_quants = None if self.plan is None else self.fake_quants
        return self.has_ranges if fake_quants is None else fake_quants.is_ready

    def forward(self, x: Any) -> Any:
        """Returns ``x``: a child of ``nn.Sequential`` is called."""
        return x

    def build(self, plan: Plan) -> None:
        """Sets the quantizers of ``plan`` up, without ranges.

        Raises:
            QuantizeError: If the plan names what the model does not have.
        """
        self.detach()
        root = self.root
        try:
            layers = {
                name: Layer.find(root, spec) for name, spec in plan.weights.items()
            }
            for layer in layers.values():
                layer.check()
            executor = Executor(root, plan)
        except AttributeError as error:
            raise QuantizeError(
                'the plan was made for another model than '
                f'{type(root).__name__}: {error}'
            ) from None
        device = next(root.parameters()).device
        self.plan = plan
        self._plan_tensor = encode_plan(plan)
        self.executor = executor
        self.layers = layers
        self.activations = ActivationQuantizers(
            plan.activations,
            plan.config['observer'],
            plan.config['percentile'],
            plan.is_learned,
            plan.config.get('fine_observer'),
        ).to(device)
        self.learned = (
            LearnedWeightScales(plan.weights).to(device) if plan.is_learned else None
        )
        builds = self.trains and plan.config.get('fake_quant')
        self.fake_quants = FakeQuants(plan).to(device) if builds else None
        self._offsets = {}
        channels = 0
        for name, spec in plan.weights.items():
            self._offsets[name] = channels
            channels += spec.channels
        self.register_buffer('bias_correction', torch.zeros(channels, device=device))
        self.register_buffer('weight_scale', torch.zeros(channels, device=device))
        self.register_buffer('weight_correction', torch.ones(channels, device=device))
        self.register_buffer('equalized', torch.zeros((), device=device))
        self.register_buffer('constrained', torch.zeros((), device=device))
        scaled = sum(group.channels for group in plan.scaled)
        factors = torch.ones(scaled, device=device) if scaled else None
        self.register_buffer('channel_factor', factors)
        self.set_phase(self.phase)

    def choose_weight_bits(self, widths: Mapping[str, int]) -> None:
        """Gives weight quantizers, by name, other widths; ranges stay."""
        plan = replace(self.plan.with_weight_bits(widths), undecided=())
        # Of grids of other widths; found again below.
        self.weight_scale.zero_()
        self.plan = self.executor.plan = plan
        self._plan_tensor = encode_plan(plan)
        self.layers = {
            name: layer.with_spec(plan.weights[name])
            for name, layer in self.layers.items()
        }
        self.set_phase(self.phase)
        with torch.no_grad():
            condition_once(self)

    @torch.no_grad()
    def learn_scales(self) -> None:
        """Gives all grids learned scales, which start as the grids are, bit for bit.

        Ranges must be known.
        """
        plan = self.plan.with_learned_scales()
        grids = WeightGrids(plan, self.layers, self.activations)
        # What a bias needs is asked of learned steps too, with each that they take.
        grids.widens = False
        compute_grids(grids, self)
        self.weight_scale.copy_(grids.all_steps)
        self.activations.learn_scales()
        learned = LearnedWeightScales(plan.weights)
        self.learned = learned.to(self.weight_scale.device)
        self.plan = self.executor.plan = plan
        self._plan_tensor = encode_plan(plan)
        self.set_phase(self.phase)

    def detach(self) -> None:
        """Takes all hooks off the model; it runs in float again."""
        if self.executor is not None:
            self.executor.remove()
        self.executor = None

    def set_phase(self, phase: Phase) -> None:
        """Chooses what the model computes from now on.

        Args:
            phase (str | Callable): ``'float'``, ``'train'`` (fake quantization),
                ``'reach'``, ``'observe'`` and ``'correct'`` (the passes of
                calibration) or
                ``'test'`` (integers); or what makes a behaviour from this state.
        """
        self.phase = phase
        if self.plan is None:
            return
        self._take_fake_quants()
        self.activations.settle()
        self.activations.refresh()
        self.note_weight_correction()
        self.note_channel_factors()
        self.executor.behaviour.discard()
        if phase == TEST:
            self.uneven.warn()
        make = _BEHAVIOURS[phase] if isinstance(phase, str) else phase
        self.executor.behaviour = make(self)

    @torch.no_grad()
    def measure_channels(self, passes: Iterable[Callable[[], Any]]) -> None:
        """Finds what channels are divided by; ranges are those of the divided ones.

        Args:
            passes (Iterable[Callable]): Each runs the model once, on some images;
                equally many in each process.
        """
        self.set_phase(REACH)
        behaviour = cast(ChannelReach, self.executor.behaviour)
        for run in passes:
            run()
        self.channel_factor.copy_(behaviour.factors())

    def note_weight_correction(self) -> None:
        """Gives the layers the corrections of their weights, if there are any."""
        # Asked, because one that multiplies by 1 costs training as much as any.
        corrected = bool((self.weight_correction != 1).any())
        sizes = [spec.channels for spec in self.plan.weights.values()]
        parts = self.weight_correction.split(sizes)
        for layer, part in zip(self.layers.values(), parts):
            layer.correction = part if corrected else None

    def note_channel_factors(self) -> None:
        """Gives layers and quantizers what channels are divided by, if they are."""
        self.activations.factors.clear()
        for layer in self.layers.values():
            layer.input_factor = layer.output_factor = None
        if self.channel_factor is None:
            return
        sizes = [group.channels for group in self.plan.scaled]
        parts = self.channel_factor.split(sizes)
        # Asked, because a factor of 1 costs as much as any.
        changed = torch.stack([(part != 1).any() for part in parts]).tolist()
        for group, factor, is_scaled in zip(self.plan.scaled, parts, changed):
            if not is_scaled:
                continue
            shaped = factor.view(-1, *(1,) * group.dims)
            self.activations.factors[group.quantizer] = shaped
            if group.producer is not None:
                self.layers[group.producer].output_factor = factor
            for name in group.consumers:
                self.layers[name].input_factor = factor

    def _take_fake_quants(self) -> None:
        """Makes what fake quantizers of others learned the engine's own state."""
        if self.fake_quants is not None:
            with torch.no_grad():
                self.fake_quants.write(self.activations, self.weight_scale)

    def correction(self, name: str) -> Tensor:
        """What calibration adds to the bias of a layer: (C,)."""
        return self.part_of(self.bias_correction, name)

    def part_of(self, values: Tensor, name: str) -> Tensor:
        """A layer's part of what all layers have end to end: a view, (C,)."""
        start = self._offsets[name]
        return values[start : start + self.plan.weights[name].channels]

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> nn.Module:
        super()._apply(fn, *args, **kwargs)
        # A behaviour keeps what it computed on the old device.
        self.set_phase(self.phase)
        return self

    def _save_to_state_dict(
        self, destination: dict, prefix: str, keep_vars: bool
    ) -> None:
        self._take_fake_quants()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.plan is not None:
            destination[prefix + 'plan'] = self._plan_tensor

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = [key for key in state_dict if key.startswith(prefix)]
        stored = state_dict.get(prefix + 'plan')
        if stored is None:
            # A float checkpoint: the quantizers stay as they are, but what was
            # computed from the weights does not hold any more.
            self._keep_children(state_dict, prefix)
            self.set_phase(self.phase)
            return
        plan = read_plan(stored)
        if self.fake_quants is None or plan.to_json() != self.plan.to_json():
            # Fake quantizers of others that are not there, or other ones.
            for key in [key for key in mine if key.startswith(f'{prefix}fake_quants.')]:
                mine.remove(key)
                del state_dict[key]
        if not self._accepts(plan):
            # Those of its children, too.
            for key in mine:
                del state_dict[key]
            self._keep_children(state_dict, prefix)
            return
        self.activations.forget_histograms()
        for key in mine:
            name = key[len(prefix) :]
            if name == 'plan' or name.startswith('fake_quants.'):
                continue
            owner, _, leaf = name.rpartition('.')
            target = getattr(self.get_submodule(owner), leaf)
            with torch.no_grad():
                target.copy_(state_dict[key])
        self.activations.refresh()
        self.set_phase(self.phase)

    def _keep_children(self, state_dict: dict, prefix: str) -> None:
        """Gives a checkpoint without state of the children theirs, which so stays."""
        for name, child in self.named_children():
            for key, value in child.state_dict(prefix=f'{prefix}{name}.').items():
                state_dict.setdefault(key, value)

    def _accepts(self, plan: Plan) -> bool:
        """Whether the state of a checkpoint's plan is taken; builds it if it must.

        Raises:
            QuantizeError: If another plan is to be refused.
        """
        if self.plan is not None and plan.to_json() == self.plan.to_json():
            return True
        policy = self.on_other_plan
        if self.plan is None or policy == 'refuse' and self._may_end_in(plan):
            policy = 'adopt'
        if policy == 'refuse':
            raise QuantizeError(
                'the checkpoint was made with another quantization plan '
                f'({_settings(plan)}) than this config gives ({_settings(self.plan)}); '
                'resume with the same `quantize`, or use load_from to start anew from '
                'its weights'
            )
        if policy == 'adopt':
            self.build(plan)
            return True
        if self.plan.takes_state_of(plan):
            return True
        print_log(
            'The ranges in the checkpoint belong to another quantization plan '
            f'({_settings(plan)}); only its weights are loaded.',
            'current',
        )
        return False

    def _may_end_in(self, plan: Plan) -> bool:
        """Whether the run of the present plan may have left a checkpoint of another."""
        own = self.plan
        if self.may_learn and plan.is_learned:
            own = own.with_learned_scales()
        return (
            plan.to_json() == own.to_json()
            or plan.decides(own)
            # Of a version that did not rescale channels.
            or plan == replace(own, scaled=())
            or plan.keeps_budget_of(own)
        )


def _settings(plan: Plan) -> str:
    return ', '.join(f'{key}={plan.config[key]!r}' for key in ('target', 'bits'))
