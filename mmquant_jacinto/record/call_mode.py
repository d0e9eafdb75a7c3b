"""Call mode: sees the torch functions that a model calls, to record or to run them."""

from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional

from torch.overrides import TorchFunctionMode

from . import attention as attention  # fills WRITTEN_OUT
from . import products as products  # that too
from .ops import EARLIER, OPS, WRITTEN_OUT, Op
from .single_indices import make_seen

make_seen(OPS)


class CallMode(TorchFunctionMode):
    """Context in which each torch function goes to one of two methods.

    Attributes:
        is_opaque (bool): Whether what is called now is no business of this mode.
        whole (Mapping[Callable, Op]): Functions that could be written out, and are
            not.
    """

    is_opaque = False
    whole: Mapping[Callable, Op] = {}

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable,
        args: tuple = (),
        kwargs: Optional[dict] = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = OPS.get(func)
        if op is not None:
            return self.call(op, func, args, kwargs)
        written_out = None if self.is_opaque else WRITTEN_OUT.get(func)
        if written_out is None:
            return self.call_other(func, args, kwargs)
        if func in self.whole:
            return self.call(self.whole[func], func, args, kwargs)
        with self:
            result = written_out(*args, **kwargs)
        if result is not NotImplemented:
            return result
        op = EARLIER[func]
        # Not the name by which a plan of an earlier version is known.
        return self.call(op._replace(site=f'whole_{op.site}'), func, args, kwargs)

    def call(self, op: Op, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A function of the table is called."""
        raise NotImplementedError

    def call_other(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """A function that is not in the table is called."""
        raise NotImplementedError
