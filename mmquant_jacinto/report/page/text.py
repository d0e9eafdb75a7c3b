"""The table of layers in words."""

from __future__ import annotations

from typing import NamedTuple

from ..content import LayerReport

LONGEST = 88  # characters of a line of a config, beyond which it is broken

COLUMNS = (
    ('name', 'layer', 'call site'),
    ('kind', 'kind', 'of the operation'),
    ('total', 'total dB', 'signal to noise in the quantized network'),
    ('own', 'own dB', 'this layer alone quantized, on float inputs'),
    ('inherited', 'inherited dB', 'what comes from upstream'),
    ('share', 'share %', "of the noise in the network's outputs"),
    ('weight_bits', 'w bits', 'width of the weight'),
    ('weight_used', 'w used', 'bits that the median channel uses'),
    ('weight_low', 'w low', 'smallest weight, normalization folded in'),
    ('weight_high', 'w high', 'largest weight'),
    ('weight_clipped', 'w clipped %', 'weights beyond the grid'),
    ('weight_zero', 'w zero', 'channels that are all zero on the grid'),
    ('weight_spread', 'w spread', 'widest channel over the median one'),
    ('weight_format', 'w format', 'of the weight'),
    ('bits', 'a bits', 'width of the output'),
    ('used', 'a used', 'bits between the ends that were seen'),
    ('low', 'a low', 'smallest number of the grid'),
    ('high', 'a high', 'largest number of the grid'),
    ('clipped', 'a clipped %', 'elements beyond the grid'),
    ('zero', 'a zero', 'channels that were zero everywhere'),
    ('spread', 'a spread', 'widest channel over the median one'),
    ('scale', 'scale', 'step of the output grid'),
    ('format', 'a format', 'of the output'),
)


class Cell(NamedTuple):
    """A cell of the table: what it shows, and what it is sorted by."""

    text: str
    value: float | None = None


def number(value: float | None, digits: str = '.3g') -> Cell:
    return Cell('–') if value is None else Cell(format(value, digits), value)


def cells(layer: LayerReport) -> list[Cell]:
    """The row of a layer, as :data:`COLUMNS` names it."""
    a, w = layer.activation, layer.weight
    share = None if layer.share is None else 100 * layer.share
    found = [Cell(layer.name), Cell(layer.kind)]
    for ratio in (layer.snr_total, layer.snr_own, layer.snr_inherited):
        found.append(number(ratio, '.1f'))
    found.append(number(share, '.1f'))
    if w is None:
        found += [Cell('')] * 8
    else:
        found += [
            number(w.bits, 'd'),
            number(w.bits_used, '.1f'),
            *(number(end) for end in w.range),
            number(100 * w.clipped, '.2f'),
            number(w.zero_channels, 'd'),
            number(w.spread, '.1f'),
            Cell(w.format),
        ]
    return [
        *found,
        number(a.bits, 'd'),
        number(a.bits_used, '.1f'),
        *(number(end) for end in a.range),
        number(100 * a.clipped, '.2f'),
        number(a.zero_channels, 'd'),
        number(a.spread, '.1f'),
        number(a.scale),
        Cell(a.format),
    ]


def broken(line: str) -> str:
    """A line for ``quantize`` as one writes it: many overrides below each other."""
    start, brace, rest = line.partition('{')
    if len(line) <= LONGEST or not brace:
        return line
    # A comma of a width is within parentheses, and no quote follows it.
    entries = rest.removesuffix('}').replace(", '", "\n'").splitlines()
    inner = ''.join(f'        {entry},\n' for entry in entries)
    return f'{start}{{\n{inner}    }}'
