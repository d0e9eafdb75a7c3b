"""The formulas, in plain NumPy: nothing of the package is used here."""

import numpy as np

ROUND = {
    'half_up': lambda x: np.floor(x + 0.5),
    'half_even': np.rint,
    'half_away': lambda x: np.trunc(x + np.copysign(0.5, x)),
}


def power_of_two(x):
    """The least power of two that is not below x."""
    return 2.0 ** np.ceil(np.log2(x))


def to_grid(x, scale, low, high, rounding, clip=(None, None)):
    """Integers of real numbers, clamped to the grid and to a fused clip."""
    above = -np.inf if clip[0] is None else clip[0]
    below = np.inf if clip[1] is None else clip[1]
    # In the dtype of x: engines divide in float32.
    steps = np.clip(x, above, below) / x.dtype.type(scale)
    return np.clip(ROUND[rounding](steps), low, high)


def convolve(x, weight, stride=1, padding=0, groups=1):
    """A 2-d convolution in the dtype of its operands (int64 stays exact)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    out_channels, per_group, height, width = weight.shape
    rows = (x.shape[2] - height) // stride + 1
    columns = (x.shape[3] - width) // stride + 1
    out = np.zeros((x.shape[0], out_channels, rows, columns), x.dtype)
    step = out_channels // groups
    for channel in range(out_channels):
        first = channel // step * per_group
        for i in range(height):
            for j in range(width):
                patch = x[
                    :,
                    first : first + per_group,
                    i : i + stride * rows : stride,
                    j : j + stride * columns : stride,
                ]
                taps = weight[channel, :, i, j][None, :, None, None]
                out[:, channel] += (patch * taps).sum(1)
    return out
