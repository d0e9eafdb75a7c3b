"""Fake quantizers of others (MMRazor's, torch's), in place of our own in training.

``quantize.weight`` and ``quantize.activation`` name a fake quantizer and an observer
in MMRazor's registry, such as ``LearnableFakeQuantize`` (LSQ, Esser et al., arXiv
1902.08153). Each tensor that the plan quantizes gets one of its own. Width, range of
integers and scheme come from the plan; scale and zero point are what the module
learned or observed. Tests and exports need no MMRazor: there, the scales are the
engine's own state.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...errors import QuantizeError
from ...plan.plan import Plan
from ...targets.formats import TensorFormat, integer_bounds
from ..activations import ActivationQuantizers
from ..observers import is_distributed
from .importing import mmrazor_types, require_mmrazor

WEIGHT, ACTIVATION = 'weight', 'activation'


class _Tensor(NamedTuple):
    """What a fake quantizer has to know of its tensor."""

    name: str
    low: int
    high: int
    symmetric: bool
    channels: int


class FakeQuantizers(nn.Module):
    """A fake quantizer for each of several tensors.

    Args:
        kind (str): ``'weight'`` or ``'activation'``.
        tensors (Sequence[_Tensor]): What for.
        fake_quant (Mapping): Type and further arguments of the fake quantizers.
        observer (Mapping): Type and further arguments of their observers.

    Raises:
        QuantizeError: If they cannot be built.
    """

    ready: Tensor

    def __init__(
        self,
        kind: str,
        tensors: Sequence[_Tensor],
        fake_quant: Mapping[str, Any],
        observer: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.tensors = tuple(tensors)
        self.index = {tensor.name: i for i, tensor in enumerate(tensors)}
        self.observer_type = observer['type']
        key = f'quantize.{kind}'
        for item in mmrazor_types([fake_quant, observer], key):
            require_mmrazor(item)
        quantizer_class = _registered(f'{key}.fake_quant', fake_quant)
        observer_class = _registered(f'{key}.observer', observer)
        per_channel = 'ch_axis' in inspect.signature(observer_class).parameters or (
            'PerChannel' in observer_class.__name__
        )
        if per_channel and kind == ACTIVATION:
            raise QuantizeError(
                f'{key}.observer.type={observer["type"]!r} is for one scale per '
                'channel, and activations have one per tensor; use '
                "'mmrazor.LSQObserver' or another for tensors"
            )
        arguments = {**_further(observer), **_further(fake_quant)}
        try:
            self.quantizers = nn.ModuleList(
                _build(quantizer_class, observer_class, tensor, per_channel, arguments)
                for tensor in tensors
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise QuantizeError(
                f'{key}.fake_quant={dict(fake_quant)!r} with observer='
                f'{dict(observer)!r} cannot be built: {error}'
            ) from error
        self.learns = hasattr(quantizer_class, 'enable_param_learning')
        if not self.learns and is_distributed() and dist.get_world_size() > 1:
            raise QuantizeError(
                f'{key}.fake_quant.type={fake_quant["type"]!r} measures ranges in each '
                "process for itself; on several use 'mmrazor.LearnableFakeQuantize'"
            )
        self.register_buffer('ready', torch.zeros(len(tensors)))
        self._ready: set[int] = set()  # the same, on the host
        self._agreed: set[int] = set()  # those that all processes have
        self.observing = True

    def quantize(self, name: str, x: Tensor) -> Tensor:
        """Fake-quantizes a tensor; the first that is seen gives the first scale.

        Args:
            name (str): Which tensor.
            x (Tensor): An activation, or a weight as rows, one for each output
                channel: (C, n).

        Returns:
            Tensor: Shape and dtype of ``x``.
        """
        index = self.index[name]
        module: Any = self.quantizers[index]
        if not self.learns:
            module.enable_observer(self.observing)
            self._ready.add(index)
        elif index not in self._ready:
            with torch.no_grad():
                module.enable_static_estimate()
                module(x.detach().float())
            self._start_learning(index)
        return module(x.float()).to(x.dtype)

    def _start_learning(self, index: int) -> None:
        module: Any = self.quantizers[index]
        module.enable_param_learning()
        self._ready.add(index)
        # What the observer saw has served, is of this process alone, and has a shape
        # that a copy made before (EMA) has not.
        reset = getattr(module.activation_post_process, 'reset_min_max_vals', None)
        if reset is not None:
            reset()

    @torch.no_grad()
    def end_step(self) -> None:
        """Makes first scales equal on all processes; each calls it equally often."""
        if len(self._agreed) == len(self.tensors):
            return
        if is_distributed():
            self._agree()
        for index in self._ready - self._agreed:
            self.ready[index] = 1
        self._agreed = set(self._ready)

    def _agree(self) -> None:
        """Averages first scales and zero points over the processes that have one."""
        fresh = [i for i in range(len(self.tensors)) if i not in self._agreed]
        parts = []
        for index in fresh:
            module: Any = self.quantizers[index]
            has = float(index in self._ready)
            state = torch.cat([module.scale.flatten(), module.zero_point.flatten()])
            parts.append(torch.cat([state * has, state.new_tensor([has])]))
        flat = torch.cat(parts)
        dist.all_reduce(flat)
        for index, part in zip(fresh, flat.split([len(part) for part in parts])):
            if part[-1] > 0:
                module = self.quantizers[index]
                scale, zero_point = (part[:-1] / part[-1]).chunk(2)
                module.scale.copy_(scale.view_as(module.scale))
                module.zero_point.copy_(zero_point.view_as(module.zero_point).round())
                self._start_learning(index)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = set(self.ready.nonzero().flatten().tolist())
        self._agreed = set(self._ready)
        for index in self._ready:
            if self.learns:
                module: Any = self.quantizers[index]
                module.enable_param_learning()

    @torch.no_grad()
    def qparams(self, index: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a tensor: one of each, or one for each channel."""
        module: Any = self.quantizers[index]
        # As LearnableFakeQuantize computes with.
        least = torch.finfo(torch.float32).eps
        scale = module.scale.detach().flatten().clamp(min=least)
        zero_point = module.zero_point.detach().flatten().to(scale.dtype).round()
        return scale, zero_point.clamp(module.quant_min, module.quant_max)

    @property
    def grows(self) -> bool:
        """bool: Whether the first step gives a buffer another shape, for good."""
        return not self.learns and any(not item.numel() for item in self.buffers())

    @property
    def is_ready(self) -> set[int]:
        """Set[int]: The tensors that have a scale."""
        return self._ready


class FakeQuants(nn.Module):
    """The fake quantizers of a model in training.

    Args:
        plan (Plan): Its ``config['fake_quant']`` says what to build.
    """

    weight: Optional[FakeQuantizers]
    activation: Optional[FakeQuantizers]

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        given = plan.config['fake_quant']
        weights = [
            _of_weight(spec.name, spec.format, spec.channels)
            for spec in plan.weights.values()
        ]
        activations = [
            _of_activation(spec.name, spec.format) for spec in plan.activations
        ]
        for kind, items in ((WEIGHT, weights), (ACTIVATION, activations)):
            built = FakeQuantizers(kind, items, **given[kind]) if given[kind] else None
            self.add_module(kind, built)

    @property
    def is_ready(self) -> bool:
        """bool: Whether each kind of tensors has first scales."""
        return all(part.is_ready for part in self.children())

    def check_averaged(self) -> None:
        """Checks that an average of the model can be kept.

        Raises:
            QuantizeError: If the first step changes shapes: a copy made before cannot
                follow.
        """
        for kind, part in self.named_children():
            if part.grows:
                raise QuantizeError(
                    f'quantize.{kind}.observer.type={part.observer_type!r} has no '
                    'shape before the first step, so EMAHook cannot average it; take '
                    "fake_quant=dict(type='mmrazor.LearnableFakeQuantize'), or leave "
                    'EMAHook out'
                )

    def write(self, activations: ActivationQuantizers, weight_scale: Tensor) -> None:
        """Makes the scales the engine's own.

        Args:
            activations (ActivationQuantizers): Get the ranges, in place.
            weight_scale (Tensor): Gets the weights' steps, end to end, in place.
        """
        if self.activation is not None:
            self._write_ranges(activations)
        if self.weight is not None:
            start = 0
            for index, tensor in enumerate(self.weight.tensors):
                if index in self.weight.is_ready:
                    steps = weight_scale[start : start + tensor.channels]
                    steps.copy_(self.weight.qparams(index)[0].expand_as(steps))
                start += tensor.channels

    def _write_ranges(self, activations: ActivationQuantizers) -> None:
        for index in self.activation.is_ready:
            tensor = self.activation.tensors[index]
            scale, zero_point = self.activation.qparams(index)
            if tensor.symmetric:
                low, high = -scale * tensor.high, scale * tensor.high
            else:
                low = scale * (tensor.low - zero_point)
                high = low + scale * (tensor.high - tensor.low)
            activations.low[index] = low[0]
            activations.high[index] = high[0]
            activations.count[index] = 1
        activations.refresh()


def _of_weight(name: str, fmt: TensorFormat, channels: int) -> _Tensor:
    return _Tensor(name, *integer_bounds(fmt), True, channels)


def _of_activation(name: str, fmt: TensorFormat) -> _Tensor:
    if fmt.symmetric:
        return _Tensor(name, *integer_bounds(fmt), True, 1)
    return _Tensor(name, 0, 2**fmt.bits - 1, False, 1)


def _further(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cfg.items() if name != 'type'}


def _registered(key: str, cfg: Mapping[str, Any]) -> type:
    found = MODELS.get(cfg['type'])
    if found is None:
        raise QuantizeError(
            f'{key}.type={cfg["type"]!r} is in no registry; use a type of MMRazor, '
            "such as 'mmrazor.LearnableFakeQuantize' with 'mmrazor.LSQObserver' or "
            "'mmrazor.LSQPerChannelObserver'"
        )
    return found


def _build(
    quantizer_class: type,
    observer_class: type,
    tensor: _Tensor,
    per_channel: bool,
    arguments: Mapping[str, Any],
) -> nn.Module:
    scheme = ('per_channel' if per_channel else 'per_tensor') + (
        '_symmetric' if tensor.symmetric else '_affine'
    )
    eight = torch.qint8 if tensor.symmetric else torch.quint8
    own = dict(
        quant_min=tensor.low,
        quant_max=tensor.high,
        dtype=eight if tensor.high - tensor.low < 2**8 else torch.qint32,
        qscheme=getattr(torch, scheme),
    )
    if per_channel:
        own['ch_axis'] = 0
    module = quantizer_class(observer=observer_class, **own, **arguments)
    if per_channel:
        # They take their shape from the first weight, too late for an optimizer.
        for name in ('scale', 'zero_point'):
            value = getattr(module, name)
            value.data = value.data.new_zeros(tensor.channels)
        module.scale.data.fill_(1)
    return module
