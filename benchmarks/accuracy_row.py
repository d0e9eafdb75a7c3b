"""A row of the results table: a config that is trained or calibrated, and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What a run of each kind is: the ending of the config it starts from.
KINDS = {
    'test': '',  # the float checkpoint, tested
    'train': '_qat',  # the float checkpoint, trained on as in QAT
    'ptq': '_ptq',
    'qat': '_qat',
    'distill': '_qat_distill',  # QAT, taught by the float checkpoint
}


@dataclass(frozen=True)
class Row:
    """A row of the results table.

    Args:
        name: Its folder, and what ``--rows`` selects.
        title: What the table calls it.
        kind: One of :data:`KINDS`.
        quantize: The ``quantize`` of the config, without ``mode``.
        epochs: Epochs of a training; None for those of the whole table.
        lr: Its learning rate; None for that of the config.
        options: More keys of the config, merged into it. In a string ``{float}``
            becomes the path of the float checkpoint, ``{config}`` that of its
            config: a teacher's, for example.
        after: The row whose checkpoint, of the same seed, it starts from.
        twin: Starts from the hostile twin of the float checkpoint.
        ablation: Is not in the table but below it: what one switch changes.
        bound: The points of mAP50 and of mAP that may be lost against float.
    """

    name: str
    title: str
    kind: str
    quantize: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    lr: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    twin: bool = False
    ablation: bool = False
    bound: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'{self.name}: kind={self.kind!r} is none of {KINDS}')

    @property
    def is_trained(self) -> bool:
        """Whether it has epochs, which an interrupted run goes on with."""
        return self.kind == 'train' or self.mode == 'qat'

    @property
    def mode(self) -> str | None:
        """The ``quantize.mode`` of its config; None in float."""
        if self.kind in ('test', 'train'):
            return None
        return 'ptq' if self.kind == 'ptq' else 'qat'

    @property
    def bits(self) -> dict[str, int]:
        """Widths of weights and activations; empty in float."""
        if self.mode is None:
            return {}
        bits = self.quantize.get('bits', 8)
        if isinstance(bits, Mapping):
            return {kind: bits.get(kind, 8) for kind in ('weight', 'activation')}
        return dict(weight=bits, activation=bits)
