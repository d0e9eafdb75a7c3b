"""What the regions of a model return, and how far two runs of it are apart."""

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

_MADE_BY = '_zoo_made_by'  # on a tensor: the region's call that returned it


class RegionTap:
    """Keeps what regions get and return, call by call.

    Given a float run as ``reference``, each region also gets the float run's
    tensors in place of those that no region made: proposals, the features
    pooled at them, the queries that were picked. Otherwise the two runs would
    differ by a choice, not by noise. What one region hands to another is
    left as it is.

    Args:
        model (nn.Module): The model.
        regions (Iterable[str]): Names of its regions.
        reference (RegionTap, optional): Of the float run.
    """

    def __init__(
        self,
        model: nn.Module,
        regions: Iterable[str],
        reference: Optional['RegionTap'] = None,
    ) -> None:
        self.model = model
        self.regions = {model.get_submodule(name): name for name in regions}
        self.reference = reference
        self.given: dict[str, list[Any]] = {}
        self.outputs: dict[str, list[Tensor]] = {}
        self.read: set[str] = set()  # outputs that another region gets
        self.strayed: set[str] = set()  # calls with other arguments than in float
        self._depth = 0
        self._counts: dict[str, int] = {}

    @contextmanager
    def attached(self) -> Any:
        """Watches the model while the context is open."""
        handles = []
        for module in self.regions:
            handles += [
                module.register_forward_pre_hook(
                    self._enter, with_kwargs=True, prepend=True
                ),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def heads(self) -> list[str]:
        """The outputs that no other region gets."""
        return [name for name in self.outputs if name not in self.read]

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        self._depth += 1
        if self._depth > 1:
            return None
        name = self.regions[module]
        count = self._counts[name] = self._counts.get(name, -1) + 1
        self._call = f'{name}#{count}' if count else name
        leaves, structure = tree_flatten((args, kwargs))
        given = [self._remember(leaf) for leaf in leaves]
        self.given[self._call] = given
        if self.reference is None:
            return None
        known = self.reference.given.get(self._call)
        if known is None or not _alike(known, given):
            self.strayed.add(self._call)
            return None
        leaves = [
            mine if old is None else old.clone() for mine, old in zip(leaves, known)
        ]
        return tree_unflatten(leaves, structure)

    def _remember(self, leaf: Any) -> Optional[Tensor]:
        if not isinstance(leaf, Tensor):
            return None
        maker = getattr(leaf, _MADE_BY, None)
        if maker is None:
            return leaf.detach().clone()
        self.read.add(maker)
        return None

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        leaves = tree_flatten(output)[0]
        found = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
        for index, leaf in enumerate(found):
            name = f'{self._call}:{index}' if len(found) > 1 else self._call
            self.outputs[name] = leaf.detach().clone()
            setattr(leaf, _MADE_BY, name)


def _alike(known: list, given: list) -> bool:
    return len(known) == len(given) and all(
        (a is None) == (b is None) and (a is None or a.shape == b.shape)
        for a, b in zip(known, given)
    )


def signal_to_noise(signal: Tensor, noisy: Tensor) -> Optional[float]:
    """Signal to quantization noise in dB.

    Returns:
        float, optional: None where there is no signal (all zero or empty);
        minus infinity where other elements are infinite than in ``signal``.
    """
    if signal.shape != noisy.shape:
        return -torch.inf
    signal, noisy = signal.double(), noisy.double()
    finite = signal.isfinite()
    if not torch.equal(finite, noisy.isfinite()):
        return -torch.inf
    signal, noisy = signal[finite], noisy[finite]
    power = signal.square().sum()
    noise = (signal - noisy).square().sum()
    if not power:
        return None
    return float(10 * torch.log10(power / noise))
