"""What the regions of a model return, and how far two runs of it are apart."""

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any, Callable, Optional

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

NO_NOISE = 999.0  # dB, and what is more than that
UNSEEN = -999.0  # dB: what other images change of an output that is the same for all
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
        noise (float): What to add to the images and feature maps among the
            float run's tensors, in units of their root mean square. Defaults to 0.
        replaced (RegionTap, optional): Of a run whose outputs take the place of this
            one's.
        but (str): The call whose outputs stay this one's.
    """

    def __init__(
        self,
        model: nn.Module,
        regions: Iterable[str],
        reference: Optional['RegionTap'] = None,
        noise: float = 0.0,
        replaced: Optional['RegionTap'] = None,
        but: str = '',
    ) -> None:
        self.model = model
        self.regions = {model.get_submodule(name): name for name in regions}
        self.reference = reference
        self.noise = noise
        self.replaced = replaced
        self.but = but
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
        given: list[Optional[Tensor]] = []
        map_tensors((args, kwargs), lambda x: given.append(self._remember(x)) or x)
        self.given[self._call] = given
        if self.reference is None:
            return None
        known = self.reference.given.get(self._call)
        if known is None or not _alike(known, given):
            self.strayed.add(self._call)
            return None
        old = iter(known)

        def replace(mine: Tensor) -> Tensor:
            theirs = next(old)
            if theirs is None:
                return mine
            if self.noise and theirs.dim() >= 4 and theirs.is_floating_point():
                size = self.noise * theirs.square().mean().sqrt()
                return theirs + size * torch.randn_like(theirs)
            return theirs.clone()

        return map_tensors((args, kwargs), replace)

    def _remember(self, leaf: Tensor) -> Optional[Tensor]:
        maker = getattr(leaf, _MADE_BY, None)
        if maker is None:
            return leaf.detach().clone()
        self.read.add(maker)
        return None

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        self._depth -= 1
        if self._depth:
            return output
        found = _floating(output)
        names = [
            f'{self._call}:{index}' if len(found) > 1 else self._call
            for index in range(len(found))
        ]
        if self.replaced is not None and self._call != self.but:
            others = iter([self.replaced.outputs[name] for name in names])
            output = map_tensors(
                output, lambda x: next(others) if x.is_floating_point() else x
            )
            found = _floating(output)
        for name, leaf in zip(names, found):
            self.outputs[name] = leaf.detach().clone()
            setattr(leaf, _MADE_BY, name)
        return output


def _floating(item: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(item, lambda x: found.append(x) or x)
    return [x for x in found if x.is_floating_point()]


def map_tensors(item: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Replaces the tensors in nested lists, dicts and data elements.

    Args:
        item (Any): What holds them; what holds none is returned as it is.
        function (Callable[[Tensor], Tensor]): Gives the new one.
    """
    if isinstance(item, Tensor):
        return function(item)
    if isinstance(item, dict):
        return {key: map_tensors(value, function) for key, value in item.items()}
    if type(item) in (list, tuple):
        return type(item)(map_tensors(value, function) for value in item)
    if isinstance(item, BaseDataElement):
        data = {name: map_tensors(value, function) for name, value in item.items()}
        return item.new(**data)
    return item


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
