"""Triton's kernels, as :mod:`triton_kernels` launches them."""

import triton
import triton.language as tl


@triton.jit
def _rounded(x, ROUNDING: tl.constexpr):
    if ROUNDING == 1:
        result = tl.floor(x + 0.5)
    else:
        magnitude = tl.abs(x)
        if ROUNDING == 0:
            # Beyond 2**23 there are no fractions to round: adding it drops them,
            # ties to even. Clamped values are far below.
            result = (magnitude + 8388608.0) - 8388608.0
        else:
            result = tl.floor(magnitude + 0.5)
        # Not `-result`, which is 0 - result and loses the sign of zero.
        result = tl.where(x < 0, result * -1.0, result)
    return result


@triton.jit
def _on_grid(value, step, least, most, ROUNDING: tl.constexpr):
    # Comparisons let NaN pass.
    value = tl.where(value < least, least, value)
    value = tl.where(value > most, most, value)
    return _rounded(value * tl.math.div_rn(1.0, step), ROUNDING) * step


@triton.jit(do_not_specialize=['scale', 'low', 'high'])
def put_on_grid(
    x,
    out,
    inside,
    scale,
    low,
    high,
    count,
    above,
    below,
    ROUNDING: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    step = tl.load(scale)
    least = tl.maximum(tl.load(low) * step, above)
    most = tl.minimum(tl.load(high) * step, below)
    program, byte = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    if LANES:
        bits = tl.zeros((BLOCK,), tl.int32)
        for lane in tl.static_range(LANES):
            place = (program * LANES + lane) * BLOCK + byte
            there = place < count
            value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
            strictly = (value > least) & (value < most)
            bits |= strictly.to(tl.int32) << lane
            value = _on_grid(value, step, least, most, ROUNDING)
            tl.store(out + place, value.to(out.dtype.element_ty), mask=there)
        tl.store(inside + program * BLOCK + byte, bits.to(tl.uint8))
    else:
        place = program * BLOCK + byte
        there = place < count
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        value = _on_grid(value, step, least, most, ROUNDING)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def mask(grad, out, inside, count, LANES: tl.constexpr, BLOCK: tl.constexpr):
    program, byte = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    bits = tl.load(inside + program * BLOCK + byte).to(tl.int32)
    for lane in tl.static_range(LANES):
        place = (program * LANES + lane) * BLOCK + byte
        there = place < count
        value = tl.load(grad + place, mask=there, other=0.0)
        passes = ((bits >> lane) & 1) != 0
        tl.store(out + place, tl.where(passes, value, 0.0), mask=there)


@triton.jit(do_not_specialize=['factor', 'bias_grad', 'offset', 'deviation', 'to_norm'])
def fold_gradient(
    grad,
    weight,
    factor,
    bias_grad,
    offset,
    deviation,
    to_norm,
    columns,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start = row.to(tl.int64) * columns
    by = tl.load(factor + row)
    dots = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = column < columns
        value = tl.load(grad + start + column, mask=there, other=0.0)
        dots += value * tl.load(weight + start + column, mask=there, other=0.0)
        tl.store(grad + start + column, value * by, mask=there)
    to_bias = tl.load(bias_grad + row) * tl.load(offset + row)
    dot = (tl.sum(dots, 0) + to_bias) * tl.load(deviation + row)
    tl.store(to_norm + row, dot)


@triton.jit
def quantize_rows(
    weight,
    out,
    factor,
    step,
    columns,
    lowest,
    highest,
    count,
    INVERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    row = place // columns
    size = tl.load(step + row, mask=there, other=1.0)
    if INVERTS:
        by = tl.math.div_rn(1.0, size)
    else:
        by = tl.load(factor + row, mask=there, other=1.0)
    value = tl.load(weight + place, mask=there, other=0.0) * by
    # Before rounding, which is exact for small numbers alone; ends are whole.
    value = tl.where(value < lowest, lowest, value)
    value = tl.where(value > highest, highest, value)
    tl.store(out + place, _rounded(value, 0) * size, mask=there)


@triton.jit
def quantize_all(
    addresses,
    owner,
    offset,
    columns,
    place,
    factor,
    step,
    lowest,
    highest,
    out,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    matrix = tl.load(owner + row)
    start = tl.load(addresses + matrix).to(tl.pointer_type(tl.float32))
    start += tl.load(offset + row)
    out += tl.load(place + row)
    width = tl.load(columns + matrix)
    by, size = tl.load(factor + row), tl.load(step + row)
    least, most = tl.load(lowest + row), tl.load(highest + row)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = column < width
        value = tl.load(start + column, mask=there, other=0.0) * by
        value = tl.where(value < least, least, value)
        value = tl.where(value > most, most, value)
        tl.store(out + column, _rounded(value, 0) * size, mask=there)


@triton.jit
def reach(addresses, owner, offset, columns, low, high, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    matrix = tl.load(owner + row)
    start = tl.load(addresses + matrix).to(tl.pointer_type(tl.float32))
    start += tl.load(offset + row)
    width = tl.load(columns + matrix)
    least = tl.full((BLOCK,), float('inf'), tl.float32)
    most = tl.full((BLOCK,), float('-inf'), tl.float32)
    strange = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = column < width
        value = tl.load(start + column, mask=there, other=0.0)
        least = tl.where(there & (value < least), value, least)
        most = tl.where(there & (value > most), value, most)
        # A comparison skips NaN; this is zero but for NaN and infinity.
        strange += value - value
    nan = tl.sum(strange, 0)
    tl.store(low + row, tl.min(least, 0) + nan)
    tl.store(high + row, tl.max(most, 0) + nan)
