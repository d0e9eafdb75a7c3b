"""Late reads: what a model's decoding reads of the graph, behind its last region."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


class LateReads:
    """Tensors that were there when the last region ended, and are read after that.

    A file that takes the place of the regions has to give them, or what they follow
    from: nothing that the model's own code reads before its last region reaches its
    predictions but through the regions.

    Attributes:
        names (Set[str]): Of the tensors, in the graph.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._since: set[str | None] = set()

    def restart(self) -> None:
        """A region has ended, and all that was read so far is behind it."""
        self.names, self._since = set(), set()

    def read(self, names: Iterable[str | None], output: Any) -> None:
        """A call has read tensors of these names and given this."""
        # A size is the same whatever stands in for the tensor.
        if not isinstance(output, (torch.Size, int)):
            self.names |= {name for name in names if name and name not in self._since}

    def wrote(self, output: Any, name_of: Any) -> None:
        """A call has given this."""
        leaves = tree_flatten(output)[0]
        self._since |= {name_of(x) for x in leaves if isinstance(x, Tensor)}
