"""Transposed convolutions whose sums are those of integers, for any order of adding.

ONNX Runtime has no integer kernel for them: between DequantizeLinear and QuantizeLinear
it would add up real numbers. Over integers in float32 the sums are exact, and are
scaled once, behind.
"""

from __future__ import annotations

from ...execute.integer.layers import IntegerLayer
from ...record import ops
from ..operators.table import TRANSLATIONS
from ..operators.translation import Operand, SiteWriter, cut


def write_transposed(
    site: SiteWriter,
    op: str,
    args: tuple,
    kwargs: dict,
    x: str,
    weight: str,
    layer: IntegerLayer,
) -> str:
    """Writes a transposed convolution, and returns the name of its real result.

    Args:
        site (SiteWriter): Where it is called.
        op (str): Its canonical name.
        args (tuple): Of the call.
        kwargs (dict): Of the call.
        x (str): Its input in steps of its grid.
        weight (str): The integers of its weight: (C_in, C_out / groups, ...).
        layer (IntegerLayer): Its operands, that multiply to real numbers.
    """
    source = ops.layer_operands(args, kwargs)[0]
    translate = TRANSLATIONS[op]
    total = None
    for start, end in layer.pieces:
        part, kernel = x, weight
        if len(layer.pieces) > 1:
            # Sums of fewer channels, which float32 holds.
            part = cut(site, x, [1], [start], [end], [1])
            kernel = cut(site, weight, [0], [start], [end], [1])
        shaped = Operand(part, source.shape), Operand(kernel, layer.weight.shape)
        operands, options = ops.replace_operands(args, kwargs, *shaped, None)
        result = translate(site, *operands, **options)
        total = result if total is None else site.node('Add', total, result)
    bias = layer.bias.float().view((-1,) + (1,) * (layer.weight.dim() - 2))
    return site.node('Mul', site.node('Add', total, bias), layer.multiplier)
