"""Random images in what libraries make a model's inputs of."""

from typing import Any

import torch
from torch import Tensor
from zoo.batches import smooth_noise
from zoo.outputs import map_tensors

MAP = 3  # dimensions of an image


def frames(shape: tuple[int, ...], seed: int) -> Tensor:
    """Smooth noise of any number of maps: (..., H, W), uint8."""
    maps = 1
    for size in shape[:-2]:
        maps *= size
    return smooth_noise((maps, *shape[-2:]), seed).reshape(shape)


def renewed(batch: dict, seed: int) -> dict:
    """A batch with other images, and points that are moved a little.

    Args:
        batch (dict): Of the dataloader.
        seed (int): Of the images.
    """
    generator = torch.Generator().manual_seed(seed)

    def renew(x: Tensor) -> Tensor:
        if x.dim() >= MAP:
            return _like(x, frames(tuple(x.shape), seed + next(count)))
        return x + 0.02 * torch.randn(x.shape, generator=generator)

    count = iter(range(10**6))
    inputs: Any = map_tensors(batch['inputs'], renew)
    return {**batch, 'inputs': inputs}


def _like(old: Tensor, images: Tensor) -> Tensor:
    if old.dtype == torch.uint8:
        return images
    # Coordinates of joints, say: with the same mean and spread.
    new = images.float()
    new = (new - new.mean()) / new.std()
    return (new * old.float().std() + old.float().mean()).to(old.dtype)
