"""Surgery: layers of a float model, in place of which an engine is quicker or exact.

Sources: TexasInstruments ``edgeai-tidl-tools`` ``docs/operators.md`` (238cb8b: pooling
of 1, 2 and 3 alone; what else runs on the Arm core) and ``docs/quantization.md``
(b3a7c2c: SiLU is a table of 8 bits). Two poolings of 3 x 3 in a row are one of 5 x 5,
exactly. ReLU in place of SiLU is another function: the model is to be trained with it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

# Activation functions by the name of their class, mmcv's too.
_SMOOTH = ('SiLU', 'Swish', 'Hardswish', 'HSwish', 'Mish')
MOST = 3  # elements along an axis that are pooled at once


class Replacement(NamedTuple):
    """
    Args:
        name (str): Of the module.
        old (str): What it is.
        new (nn.Module): What takes its place.
        is_exact (bool): Whether the model computes what it did.
    """

    name: str
    old: str
    new: nn.Module
    is_exact: bool


def replacements(model: nn.Module) -> list[Replacement]:
    """What :func:`operate` would do to a model, in its order of modules."""
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _SMOOTH:
            inplace = bool(getattr(module, 'inplace', False))
            found.append(Replacement(name, kind, nn.ReLU(inplace), False))
        elif isinstance(module, nn.MaxPool2d) and _is_wide(module):
            count = (_size(module.kernel_size) - 1) // (MOST - 1)
            pools = [nn.MaxPool2d(MOST, 1, 1) for _ in range(count)]
            size = _size(module.kernel_size)
            found.append(
                Replacement(name, f'MaxPool2d({size})', nn.Sequential(*pools), True)
            )
    return found


def operate(model: nn.Module) -> list[Replacement]:
    """Replaces modules of a float model, in place; names of parameters stay.

    Args:
        model (nn.Module): In float. Functions that are called by name stay.

    Returns:
        List[Replacement]: What was done; a second time there is nothing.
    """
    found = replacements(model)
    for item in found:
        parent, _, child = item.name.rpartition('.')
        setattr(model.get_submodule(parent), child, item.new)
    return found


def summary(found: list[Replacement]) -> list[str]:
    """What there is to replace, in lines."""
    counts: dict[tuple[str, str], int] = {}
    for item in found:
        new = (
            f'{len(list(item.new.children()))} MaxPool2d({MOST}), exactly'
            if item.is_exact
            else f'{type(item.new).__name__}, another function: train it'
        )
        counts[item.old, new] = counts.get((item.old, new), 0) + 1
    return [f'{count} x {old} -> {new}' for (old, new), count in counts.items()]


def _is_wide(pool: nn.MaxPool2d) -> bool:
    """Whether a pooling keeps the size and is one of several in a row."""
    values = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    if not all(len(set(_pair(value))) == 1 for value in values):
        return False
    size, stride, padding, dilation = (_size(value) for value in values)
    is_odd = size > MOST and size % 2 == 1
    keeps = (stride, padding, dilation) == (1, size // 2, 1)
    return is_odd and keeps and not pool.return_indices


def _pair(value: object) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _size(value: object) -> int:
    return int(_pair(value)[0])
