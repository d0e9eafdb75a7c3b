"""Batches of a training: equally many in each process, and repeatable."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size, is_distributed
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from ..errors import QuantizeError


class FirstIndices:
    """The first that a sampler gives; in all else the sampler itself.

    Args:
        sampler (Any): Gives indices, or batches of them.
        size (int): How many to take.
    """

    def __init__(self, sampler: Any, size: int) -> None:
        self._given, self._size = sampler, size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._given, self._size)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        return getattr(self._given, name)


def equalize_batches(loader: DataLoader, key: str) -> None:
    """Lets each process take as many batches as the one that has the fewest.

    Each step waits for all processes, so one with a batch more would wait for ever.
    Every process has to call it.

    Args:
        loader (DataLoader): Of this process; changed in place.
        key (str): Its config key, for messages.

    Raises:
        QuantizeError: In every process, if one has no batch at all.
    """
    counts = [len(loader)]
    if is_distributed():
        counts = [int(count) for count in all_gather(torch.tensor(counts))]
    least, most = min(counts), max(counts)
    if not least:
        raise QuantizeError(
            f'{key} has no batch in process {counts.index(0)} of {get_world_size()}; '
            'use fewer processes, a smaller batch_size, or drop_last=False'
        )
    if counts[get_rank()] > least:
        name = 'sampler' if loader.batch_sampler is None else 'batch_sampler'
        # A loader refuses the assignment of what it reads in each pass.
        vars(loader)[name] = FirstIndices(getattr(loader, name), least)
    if most > least:
        print_log(
            f'{key} has {least} to {most} batches in the {len(counts)} processes; '
            f'each takes {least}.',
            'current',
            30,
        )


def equalize_epochs(loop: Any) -> None:
    """Lets the epochs of a training have the same length in each process."""
    # Iterations draw from endless batches.
    if isinstance(loop, EpochBasedTrainLoop):
        equalize_batches(loop.dataloader, 'train_dataloader')
        loop._max_iters = loop.max_epochs * len(loop.dataloader)


def with_new_workers(loop: Any, loader: Any) -> Any:
    """A loader whose epochs have workers of their own: a resumed run has no old ones.

    Args:
        loop (Any): The config of the training loop, or the loop.
        loader (Any): The config of the loader, or the loader; that is left as it is.
    """
    if not isinstance(loop, dict) or not isinstance(loader, dict):
        return loader
    by_iteration = (
        loop['type'] in (IterBasedTrainLoop, IterBasedTrainLoop.__name__)
        if 'type' in loop
        else not loop.get('by_epoch')
    )
    if loader.get('persistent_workers') and not by_iteration:
        return {**loader, 'persistent_workers': False}
    return loader
