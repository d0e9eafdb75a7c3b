"""Grids of all kinds, and values that tell one kernel for them from another."""

import numpy as np
import torch

from mmquant_jacinto.targets.grid import Grid

# Unsigned and signed of a power of two, affine, and four bits.
GRIDS = {
    'unsigned': Grid(2.0**-5, 0, 255, 256, 'half_up'),
    'signed': Grid(2.0**-5, -128, 127, 256, 'half_up'),
    'affine': Grid(float(np.float32(0.0371)), -37, 218, 256, 'half_even'),
    'symmetric': Grid(float(np.float32(0.0123)), -128, 127, 256, 'half_even'),
    'four bits': Grid(0.5, -8, 7, 16, 'half_up'),
    'sixteen bits': Grid(2.0**-12, -32768, 32767, 65536, 'half_up'),
}
CLIPS = [(None, None), (0.0, None), (0.0, 1.25), (-0.7, 0.7)]


def sample(grid):
    """Values all over a grid, ties, and both sides of its very ends."""
    rng = np.random.default_rng(0)
    ends = np.array([grid.low, grid.high])[:, None] * grid.scale
    beyond = np.array([-0.75, -0.4, 0.4, 0.75, 3.0]) * grid.scale
    ties = (np.arange(-4, 4) + 0.5) * grid.scale
    x = np.concatenate(
        [rng.uniform(*(ends.ravel() * 1.5), 2000), (ends + beyond).ravel(), ties]
    )
    return x.astype(np.float32)


def on_accelerator(grid):
    """The grid as an accelerator holds it: tensors of no dimension."""
    ends = (torch.tensor(float(end)) for end in (grid.scale, grid.low, grid.high))
    return Grid(*ends, grid.levels, grid.rounding)
