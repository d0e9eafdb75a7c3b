"""What is going on in a pass: several threads may run passes of one model at a time."""

import threading
from contextlib import ExitStack
from typing import Optional

from .stable_topk import StableOrder

# What is computed once is computed by one thread.
COMPUTING = threading.Lock()


class OngoingPass(threading.local):
    """What is going on in a thread's pass.

    Attributes:
        contexts (List[ExitStack]): Of the regions that run.
        order (StableOrder, optional): Of the pass.
        folded (Set[str]): Chains whose normalization is part of a weight that the
            model has just computed.
    """

    def __init__(self) -> None:
        self.contexts: list[ExitStack] = []
        self.order: Optional[StableOrder] = None
        self.folded: set[str] = set()

    def __reduce__(self) -> tuple:
        # A copy of a model (EMA) runs no pass yet.
        return type(self), ()
