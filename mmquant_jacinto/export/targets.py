"""Targets: how each engine wants integers stored, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import QuantizeError, nearest
from ..kernels import Grid
from ..plan import Plan

UNSIGNED, SIGNED = 'unsigned', 'signed'
QDQ, CLIP = 'qdq', 'clip'


@dataclass(frozen=True)
class Target:
    """What an engine takes.

    Args:
        name (str): As on the command line.
        presets (Tuple[str]): Values of ``quantize.target`` whose numbers it can
            compute with.
        storage (str): ``'unsigned'``: activations as unsigned integers with a
            zero point (ONNX Runtime has integer kernels for those alone on
            x86); ``'signed'``: without a zero point.
        max_bits (int): Widest activation or weight.
        integer_clips (bool): Whether a clamp that the storage type does not
            imply may stand behind QuantizeLinear, on the integers. In front
            of it, it would keep ONNX Runtime from fusing the layer.
        packs_4_bits (bool): Whether 4-bit weights are stored as INT4 (opset
            21). ONNX Runtime has no convolution on them; in an INT8 they
            take the integer kernel.
    """

    name: str
    presets: tuple[str, ...]
    storage: str = UNSIGNED
    max_bits: int = 16
    integer_clips: bool = False
    packs_4_bits: bool = False


_AFFINE = ('onnxruntime', 'openvino', 'tidl')

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target('onnxruntime', (*_AFFINE, 'tensorrt', 'jacinto'), integer_clips=True),
        Target('openvino', (*_AFFINE, 'tensorrt', 'jacinto'), packs_4_bits=True),
        Target('tensorrt', ('tensorrt',), SIGNED, max_bits=8, packs_4_bits=True),
        Target('tidl', (*_AFFINE, 'tensorrt', 'jacinto')),
    )
}


@dataclass(frozen=True)
class Storage:
    """The integer type of a tensor, and its zero point.

    Args:
        dtype (str): NumPy's name of the type, or ``'int4'``.
        zero_point (int): What the type stores for zero.
        low (int): Smallest integer of the type.
        high (int): Largest integer of the type.
    """

    dtype: str
    zero_point: int
    low: int
    high: int


def choose_target(name: str, plan: Plan) -> Target:
    """The target called ``name``, if it can compute what the plan says.

    Raises:
        QuantizeError: If there is no such target, or if its engine lacks the
            plan's number formats, or scales for each channel.
    """
    if name not in TARGETS:
        raise QuantizeError(f'--target {name!r} is unknown; ' + nearest(name, TARGETS))
    target = TARGETS[name]
    preset = plan.config['target']
    if preset not in target.presets:
        raise QuantizeError(
            f'the model was quantized with quantize.target={preset!r}, whose numbers '
            f'--target {name} cannot compute with; quantize it with one of '
            + ', '.join(repr(item) for item in target.presets)
        )
    for spec in (*plan.activations, *plan.weights.values()):
        if spec.format.bits > target.max_bits:
            raise QuantizeError(
                f'{spec.name} has {spec.format.bits} bits, and --target {name} takes '
                f'up to {target.max_bits}; set quantize.bits or quantize.overrides'
            )
    if form_of(target, plan) == CLIP and plan.config.get('per_channel') is True:
        raise QuantizeError(
            'the model was quantized with quantize.per_channel=True, and the importer '
            'of TDA4VM (--target tidl of quantize.target=\'jacinto\') gives channels '
            'scales of their own in depthwise layers alone; use '
            "quantize.per_channel='depthwise' or False, or another --target"
        )
    return target


def form_of(target: Target, plan: Plan) -> str:
    """``'qdq'``, or ``'clip'`` for the importer of TDA4VM."""
    preset = plan.config['target']
    return CLIP if engine_name(target.name, preset) != target.name else QDQ


def engine_name(target: str, preset: str) -> str:
    """Whose arithmetic a file for ``target`` is computed with.

    Args:
        target (str): A key of :data:`TARGETS`.
        preset (str): The checkpoint's ``quantize.target``.
    """
    on_tda4vm = target == 'tidl' and preset == 'jacinto'
    return preset if on_tda4vm else target


def activation_storage(target: Target, grid: Grid) -> Storage:
    """How a target stores an activation that lies on ``grid``."""
    width = 8 if grid.levels <= 256 else 16
    half = 2 ** (width - 1)
    if target.storage == SIGNED:
        return Storage(f'int{width}', 0, -half, half - 1)
    return Storage(f'uint{width}', -int(grid.low), 0, 2 * half - 1)


def weight_storage(target: Target, bits: int) -> Storage:
    """How a target stores weights of a width."""
    width = 4 if bits <= 4 and target.packs_4_bits else 8 if bits <= 8 else 16
    half = 2 ** (width - 1)
    return Storage(f'int{width}', 0, -half, half - 1)
