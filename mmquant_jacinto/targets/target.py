"""Target: all that is particular to one engine, in one class.

A new target is a subclass in a file of its own, registered by name; nothing else in the
package knows a target by its name. See ``docs/extend.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import QuantizeError, nearest
from ..registry import QUANT_TARGETS, look_up
from .fixed_point import FixedPoint
from .formats import TensorFormat
from .grid import Grid
from .preset import Preset
from .rules.table import Rules
from .storage import SIGNED, UNSIGNED, Storage

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

# Forms of a file: integers between QuantizeLinear and DequantizeLinear, or a float
# model that carries its ranges as clips.
QDQ, CLIP = 'qdq', 'clip'


class Target:
    """What an engine computes with, and what it takes.

    Args:
        name (str): The key that it is registered under.

    Attributes:
        preset (Preset): Formats that ``quantize.target`` stands for.
        arithmetic (type): How the engine scales and rounds, see
            :class:`~mmquant_jacinto.targets.fixed_point.FixedPoint`.
        has_file (bool): Whether there is a file of its own, for ``--target``.
        storage (str): ``'unsigned'``: activations as unsigned integers with a zero
            point (ONNX Runtime has integer kernels for those alone on x86);
            ``'signed'``: without a zero point.
        max_bits (int): Widest activation or weight of a file.
        integer_clips (bool): Whether a clamp that the storage type does not imply
            may stand behind QuantizeLinear, on the integers. In front of it, it
            would keep ONNX Runtime from fusing the layer.
        packs_4_bits (bool): Whether 4-bit weights are stored as INT4 (opset 21).
            ONNX Runtime has no convolution on them; in an INT8 they take the
            integer kernel.
        backend (str, optional): The engine that runs its files here, as ``--backend``
            of ``tools/test.py``. None: none does, so nothing is proven in it.
        has_float_biases (bool): Whether biases are stored as real numbers, on the grid
            of the accumulator, because the engine reads no INT32.
        describes_heads (bool): Whether :meth:`head_text` says anything.
        stores_shapes (bool): Whether a file gives the shape of each of its tensors,
            for an importer that infers less.
        gains_by_surgery (bool): Whether ``quantize.surgery`` replaces what the engine
            is slow at or does not take.
        rules (Rules): What the engine takes, as a table: the planner plans by it, the
            exporter holds its file against it.

    Examples:
        >>> @QUANT_TARGETS.register_module(name='my_chip')
        ... class MyChip(Target):
        ...     preset = Preset(TensorFormat(per_channel=True), TensorFormat())
        ...     arithmetic = FixedPoint
    """

    preset: ClassVar[Preset]
    arithmetic: ClassVar[type[FixedPoint]] = FixedPoint
    has_file: ClassVar[bool] = True
    storage: ClassVar[str] = UNSIGNED
    max_bits: ClassVar[int] = 16
    integer_clips: ClassVar[bool] = False
    packs_4_bits: ClassVar[bool] = False
    backend: ClassVar[str | None] = None
    has_float_biases: ClassVar[bool] = False
    describes_heads: ClassVar[bool] = False
    stores_shapes: ClassVar[bool] = False
    gains_by_surgery: ClassVar[bool] = False
    rules: ClassVar[Rules] = Rules()

    def __init__(self, name: str) -> None:
        self.name = name

    def takes(self, preset: Preset) -> bool:
        """Whether a file can hold what was quantized for a preset's formats."""
        activation: TensorFormat = preset.activation
        return self.storage != SIGNED or (
            activation.symmetric and not activation.unsigned_if_positive
        )

    def engine(self, preset: str) -> str:
        """The target whose arithmetic computes a file of this one.

        Args:
            preset (str): The checkpoint's ``quantize.target``.
        """
        return self.name

    def form(self, preset: str) -> str:
        """``'qdq'``, or ``'clip'``; ``preset`` as of :meth:`engine`."""
        return QDQ

    def rules_for(self, preset: str) -> Rules:
        """The table that a file must obey; ``preset`` as of :meth:`engine`."""
        return self.rules

    def widest(self, preset: str) -> int:
        """Most bits of a tensor in a file; ``preset`` as of :meth:`engine`."""
        return self.max_bits

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuses settings that the engine cannot compute with.

        Args:
            config (Mapping[str, Any]): What the plan kept of ``quantize``.

        Raises:
            QuantizeError: If there is one; it names the key.
        """

    def activation_storage(self, grid: Grid) -> Storage:
        """How an activation that lies on ``grid`` is stored."""
        width = 8 if grid.levels <= 256 else 16
        half = 2 ** (width - 1)
        if self.storage == SIGNED:
            return Storage(f'int{width}', 0, -half, half - 1)
        return Storage(f'uint{width}', -int(grid.low), 0, 2 * half - 1)

    def weight_storage(self, bits: int) -> Storage:
        """How weights of a width are stored."""
        width = 4 if bits <= 4 and self.packs_4_bits else 8 if bits <= 8 else 16
        half = 2 ** (width - 1)
        return Storage(f'int{width}', 0, -half, half - 1)

    def finish(self, model: onnx.ModelProto) -> None:
        """Changes a written model to what the engine is fastest at, in place."""

    def import_options(
        self, outputs: list[str], weights: list[str], in_float: list[str]
    ) -> dict[str, str]:
        """What the engine's importer has to be told of a float model with ranges.

        Args:
            outputs (List[str]): Tensors of the file that have more than 8 bits.
            weights (List[str]): Tensors of 8 bits whose layers' weights have more.
            in_float (List[str]): Nodes of the file that are not to be quantized.
        """
        return {}

    def head_outputs(
        self, trace: Any, head: nn.Module, raw: Any
    ) -> dict[str, tuple[str, Tensor]]:
        """Further outputs that the engine's decoder of a dense head reads.

        Args:
            trace (export.trace.Trace): Running.
            head (nn.Module): The head.
            raw (Any): What it returned in this trace.

        Returns:
            dict: Name of an output to the tensor's name in the graph, and the tensor.
        """
        return {}

    def head_text(
        self, head: nn.Module, outputs: list[str], shape: tuple[int, int]
    ) -> str | None:
        """A dense head described for the engine's decoder, if it has one.

        Args:
            head (nn.Module): The head.
            outputs (List[str]): Outputs of the file.
            shape (Tuple[int, int]): Height and width of the image.
        """
        return None

    def artifacts(
        self,
        model: onnx.ModelProto,
        stem: str,
        preset: str,
        head: str | None,
        options: Mapping[str, str],
        is_whole: bool,
    ) -> dict[str, str]:
        """Files for the engine's own importer, by name: ``--artifacts``.

        Args:
            model (onnx.ModelProto): The file.
            stem (str): Its name, without the suffix.
            preset (str): As of :meth:`engine`.
            head (str, optional): What :meth:`head_text` gave.
            options (Mapping[str, str]): What :meth:`import_options` gave.
            is_whole (bool): Whether all of it runs on the accelerator.
        """
        return {}


def get_target(name: object, key: str = 'quantize.target') -> Target:
    """Looks a target up by the name given in a config.

    Args:
        name (object): Of the target.
        key (str): Where it was given, for the error.

    Raises:
        QuantizeError: If there is no such target.
    """
    return look_up(QUANT_TARGETS, key, name)(name)


def get_preset(target: object) -> Preset:
    """The numeric formats of a target, by the name in ``quantize.target``.

    Raises:
        QuantizeError: If there is no such target.
    """
    return get_target(target).preset


def file_targets() -> list[str]:
    """Targets that have a file: what ``--target`` may name."""
    return sorted(
        name for name, cls in QUANT_TARGETS.module_dict.items() if cls.has_file
    )


def get_file_target(name: object) -> Target:
    """Looks a target up by the name given as ``--target``.

    Raises:
        QuantizeError: If there is none that has a file.
    """
    if name not in file_targets():
        raise QuantizeError(
            f'--target {name!r} is unknown; ' + nearest(name, file_targets())
        )
    return get_target(name)


def ruled_targets() -> list[str]:
    """Targets that have a table of rules: what ``tools/check_onnx.py`` may check."""
    return sorted(
        name for name, cls in QUANT_TARGETS.module_dict.items() if cls.rules.rows
    )


def ruled_target(name: object) -> Target:
    """Looks a target up whose table a file is held against.

    Raises:
        QuantizeError: If there is none, or it has no table.
    """
    if name not in ruled_targets():
        raise QuantizeError(
            f'--target {name!r} has no rules; ' + nearest(name, ruled_targets())
        )
    return get_target(name)


class _Presets(Mapping[str, Preset]):
    """The presets of all targets that are registered."""

    def __getitem__(self, name: str) -> Preset:
        return QUANT_TARGETS.module_dict[name].preset

    def __iter__(self) -> Iterator[str]:
        return iter(QUANT_TARGETS.module_dict)

    def __len__(self) -> int:
        return len(QUANT_TARGETS.module_dict)


PRESETS: Mapping[str, Preset] = _Presets()
