"""``quantize.weight`` and ``quantize.activation``: fake quantizers of MMRazor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import QuantizeError
from ..targets.preset import Preset

# What they get from the plan.
FROM_PLAN = ('quant_min', 'quant_max', 'dtype', 'qscheme', 'ch_axis')


@dataclass(frozen=True)
class FakeQuant:
    """The fake quantizers of one kind of tensors.

    Args:
        fake_quant (dict): Type in a registry, as in
            ``dict(type='mmrazor.LearnableFakeQuantize')``, and further arguments.
        observer (dict): The same of what gives it the first scale, as in
            ``dict(type='mmrazor.LSQObserver')``.
    """

    fake_quant: Mapping[str, Any]
    observer: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the plan."""
        return dict(fake_quant=dict(self.fake_quant), observer=dict(self.observer))


def check_fake_quants(
    given: Mapping[str, FakeQuant],
    mode: str,
    learns_own: bool,
    target: str,
    preset: Preset,
) -> None:
    """Checks fake quantizers against the other settings.

    Args:
        given (Mapping[str, FakeQuant]): By kind, ``'weight'`` or ``'activation'``.
        mode (str): ``quantize.mode``.
        learns_own (bool): Whether ``quantize.learned_scale`` is on.
        target (str): ``quantize.target``.
        preset (Preset): That target's formats.

    Raises:
        QuantizeError: If they are not described as the registry needs it, or cannot
            be combined with a setting; it names the key.
    """
    for kind, item in given.items():
        key = f'quantize.{kind}.fake_quant'
        _check_type(key, item.fake_quant)
        _check_type(f'quantize.{kind}.observer', item.observer)
        if mode != 'qat':
            raise QuantizeError(
                f'{key} is for training, and quantize.mode={mode!r} does not train; '
                "use mode='qat'"
            )
        if learns_own:
            raise QuantizeError(
                f'{key} and quantize.learned_scale both learn scales; leave one of '
                'them away'
            )
        if getattr(preset, kind).power_of_two:
            raise QuantizeError(
                f'{key} learns any scale, and quantize.target={target!r} computes '
                "with powers of two; use target='onnxruntime' or another"
            )


def _check_type(key: str, value: object) -> None:
    if not isinstance(value, Mapping) or not isinstance(value.get('type'), str):
        raise QuantizeError(
            f'{key}={value!r} is not a dict with a type; use one of MMRazor, such as '
            "dict(type='mmrazor.LearnableFakeQuantize')"
        )
    for name in FROM_PLAN:
        if name in value:
            raise QuantizeError(
                f'{key}.{name}={value[name]!r} follows from quantize.bits; remove it'
            )
