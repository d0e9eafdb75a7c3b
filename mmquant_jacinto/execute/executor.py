"""Execute: runs a model as its plan says, while the model's code stays as is.

The executor finds the plan's step for each call and leaves what is done there
to a behaviour: fake quantization (:mod:`simulate`), measuring and correcting
(:mod:`calibrate`) or integer arithmetic (:mod:`integer`).
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Callable, NamedTuple, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import QuantizeError
from ..plan.plan import Plan, Step
from ..record import ops
from ..record.call_mode import CallMode
from ..record.call_tree import Frame
from ..record.deform_conv import make_visible
from ..record.ops import Op
from . import activation_checkpointing as checkpointing
from .behaviour import Behaviour
from .in_place_calls import (
    current_call,
    current_leaves,
    is_in_place,
    operand_of,
    replace,
    with_operand,
)
from .ordinary_tensors import made_ordinary, ordinary_tensors, same_mode
from .plan_tracker import PlanTracker

_UNSEEN = object()


class _Moment(NamedTuple):
    """Where a pass is, to go on from there a second time."""

    behaviour: Behaviour
    memory: Any
    region: Optional[nn.Module]
    norm: Optional[nn.Module]
    frame: Frame


class _Here(threading.local):
    """What is going on in a thread's pass.

    Attributes:
        region (nn.Module, optional): The region that runs.
        entered (Behaviour, optional): What it began with.
        norm (nn.Module, optional): The batch normalization that runs in it.
        in_root (bool): Whether the root runs.
        ordinary (AbstractContextManager, optional): Of the region that runs in
            inference mode.
        spare (Callable, optional): In a part that is run again: gives a
            normalization other buffers.
    """

    def __init__(self) -> None:
        self.region: Optional[nn.Module] = None
        self.entered: Optional[Behaviour] = None
        self.norm: Optional[nn.Module] = None
        self.in_root = False
        self.ordinary: Optional[AbstractContextManager] = None
        self.spare: Optional[Callable[[nn.Module], None]] = None

    def __reduce__(self) -> tuple:
        # A copy of a model (EMA) runs no pass yet.
        return type(self), ()


class Executor(CallMode):
    """Runs the regions of a model under a plan.

    Args:
        root (nn.Module): The model; hooks stay on it until :meth:`remove`.
        plan (Plan): What to do at which call.
    """

    def __init__(self, root: nn.Module, plan: Plan) -> None:
        super().__init__()
        make_visible()
        self.root = root
        self.plan = plan
        self.behaviour = Behaviour()
        self.regions = {root.get_submodule(name) for name in plan.regions}
        self.tracker = PlanTracker(
            root,
            plan,
            on_enter=self._enter,
            on_exit=self._exit,
            on_root=self._run_root,
        )
        # A plan of an earlier version has one step for each.
        called = {name.rpartition('/')[2].partition('#')[0] for name in plan.steps}
        self.whole = {f: op for f, op in ops.EARLIER.items() if op.site in called}
        # In a region nothing happens as other modules start and end.
        self._watched = self.regions | {
            module for module in root.modules() if isinstance(module, _BatchNorm)
        }
        self._here = _Here()
        checkpointing.follow_checkpoints()
        self.tracker.install()

    def remove(self) -> None:
        """Takes the executor off the model."""
        self.tracker.remove()

    def _run_root(self, starts: bool) -> None:
        if starts:
            if self._here.region is not None:
                # A keyboard interrupt runs no hooks.
                with same_mode():
                    self._close()
            checkpointing.forget(self)
            checkpointing.start(self)
            self.behaviour.begin()
        else:
            self.behaviour.end()
            checkpointing.stop(self)
        self._here.in_root = starts

    def _open(self, module: nn.Module) -> None:
        self._here.region = module
        self.tracker.here.watched = self._watched
        checkpointing.start(self)
        self._here.entered = self.behaviour
        self.behaviour.enter_region()
        self.__enter__()

    def _close(self) -> None:
        self.__exit__(None, None, None)
        # In a pass that was broken off another one may have taken its place.
        if self._here.entered is not None:
            self._here.entered.leave_region()
            self._here.entered = None
        checkpointing.stop(self)
        if self._here.ordinary is not None:
            self._here.ordinary.__exit__(None, None, None)
            self._here.ordinary = None
        self._here.region = self._here.norm = self.tracker.here.watched = None

    def remember(self) -> _Moment:
        """Where the pass is: see :mod:`checkpointing`."""
        return _Moment(
            self.behaviour,
            self.behaviour.remember(),
            self._here.region,
            self._here.norm,
            self.tracker.frame.copy(),
        )

    @contextmanager
    def replay(self, moment: _Moment) -> Iterator[None]:
        """Goes on from ``moment`` a second time, during the backward pass."""
        here, there = self._here, self.tracker.here
        present, stack = dict(vars(here)), there.stack
        behaviour, self.behaviour = self.behaviour, moment.behaviour
        here.region, here.norm, here.in_root = None, None, True
        there.stack = [moment.frame.copy()]
        try:
            with (
                moment.behaviour.replay(moment.memory),
                checkpointing.spare_statistics() as here.spare,
            ):
                if moment.region is not None:
                    self._open(moment.region)
                if moment.norm is not None:
                    self._enter_norm(moment.norm)
                try:
                    yield
                finally:
                    if self._here.region is not None:
                        self._close()
        finally:
            there.stack, self.behaviour = stack, behaviour
            vars(here).update(present)

    def settle(self, values: Any) -> Any:
        """What tensors, in any nesting, have become by in-place calls."""
        return current_leaves(values)

    def _refuse_replay(self, module: nn.Module) -> None:
        """Refuses what is run again by other means than torch's checkpoint."""
        if not checkpointing.in_backward():
            return
        name = self.tracker.names[module]
        inside = any((name + '.').startswith(f'{r}.') for r in self.plan.regions)
        if inside:
            raise QuantizeError(
                f'{name} runs again during the backward pass by other means than '
                'torch.utils.checkpoint, and would do so in float; switch its '
                'activation checkpointing off (with_cp, num_cp and the like)'
            )

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        result, here = None, self._here
        if here.region is None:
            if not here.in_root:
                self._refuse_replay(module)
            if module not in self.regions:
                return None
            if not here.in_root:
                # Called by somebody else (`model.extract_feat(x)`): a pass of
                # its own.
                self.behaviour.begin()
            if torch.is_inference_mode_enabled():
                here.ordinary = ordinary_tensors()
                here.ordinary.__enter__()
                args, kwargs = result = made_ordinary((args, kwargs))
            names = self.plan.inputs.get(self.tracker.frame.node.name)
            if names:
                result = self._quantize_inputs(names, args, kwargs)
            self._open(module)
        if isinstance(module, _BatchNorm):
            self._enter_norm(module)
        return result

    def _enter_norm(self, module: nn.Module) -> None:
        self._here.norm = module
        if self._here.spare is not None and module.training:
            self._here.spare(module)

    def _quantize_inputs(self, names: dict[int, str], args: tuple, kwargs: dict) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        for index, name in names.items():
            if index < len(leaves) and isinstance(leaves[index], Tensor):
                leaves[index] = self.behaviour.input(name, leaves[index])
        return tree_unflatten(leaves, structure)

    def _exit(self, module: nn.Module, output: Any) -> Any:
        result, here = None, self._here
        if module is here.norm:
            here.norm = None
            step = self._step('batch_norm', 0)
            if step is not None and isinstance(output, Tensor):
                # What it calls is not the model's.
                with torch._C.DisableTorchFunction():
                    result = self.behaviour.after_norm(step, output)
        if module is here.region:
            self._close()
            if not here.in_root:
                self.behaviour.end()
                self.tracker.restart()
            return current_leaves(output if result is None else result)
        return result

    def _step(self, op: str, index: int) -> Optional[Step]:
        node = self.tracker.here.stack[-1].node
        step = node.sites.get((op, index), _UNSEEN)
        if step is _UNSEEN:
            name = node.site_name(op, index)
            step = self.plan.steps.get(name)
            node.sites[op, index] = step
            if step is None:
                self._note_unseen(op, name)
        return step

    def _note_unseen(self, op: str, name: str) -> None:
        if op in ops.WEIGHT_NAMES and name not in self.plan.in_float:
            print_log(
                f'{name} was not called when quantization was '
                'prepared; it runs in float.',
                'current',
            )

    def call(self, op: Op, func: Callable, args: tuple, kwargs: dict) -> Any:
        norm = self._here.norm
        if norm is not None:
            if op.name == 'batch_norm':
                step = self._step('batch_norm', 0)
                if step is not None and self.behaviour.folds(step, norm):
                    return args[0] if args else kwargs['input']
            return func(*args, **kwargs)
        step = self._step(op.site, self.tracker.here.stack[-1].next(op.site))
        args, kwargs = current_call(args, kwargs)
        if step is None or not _has_floats(args, kwargs):
            return func(*args, **kwargs)
        if step.entries:
            args, kwargs = self._quantize_operands(step, op, args, kwargs)
        if is_in_place(func, kwargs):
            return self._call_in_place(step, op, func, args, kwargs)
        return self.behaviour.call(step, op, func, args, kwargs)

    def _call_in_place(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        """A call that overwrites its first operand, or ``out``."""
        out = kwargs.get('out')
        if isinstance(out, Tensor):
            kwargs = {key: item for key, item in kwargs.items() if key != 'out'}
            result = self.behaviour.call(step, op, func, args, kwargs)
            if out.shape != result.shape:
                out.resize_(result.shape)
            self.behaviour.overwrite(out, result)
            return out
        x = operand_of(args, kwargs)
        # What moves elements in place changes no value, or the memory itself.
        is_shared = step.kind != ops.PASS and (step.is_shared or x._is_view())
        if is_shared:
            # Out of place: autograd may need what it was.
            args, kwargs = with_operand(self.behaviour.copy(x), args, kwargs)
        result = self.behaviour.call(step, op, func, args, kwargs)
        if is_shared:
            self.behaviour.overwrite(x, result)
            return x
        if result is not x:
            replace(x, result)
        return result

    def call_other(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        # Of a getter (`x.shape`) it makes no difference.
        if func.__name__ != '__get__':
            args, kwargs = current_call(args, kwargs)
            func = self.behaviour.instead.get(func, func)
        return func(*args, **kwargs)

    def _quantize_operands(
        self, step: Step, op: Op, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        """Quantizes what comes from calls that the plan does not quantize."""
        layer = op.kind in ops.WEIGHTED
        x, weight, bias = ops.layer_operands(args, kwargs) if layer else (None,) * 3
        operands = [x, weight] if layer else ops.tensor_inputs(op, args, kwargs)
        for index, quantizer in step.entries:
            operands[index] = self.behaviour.input(quantizer, operands[index])
        if layer:
            x, weight = operands
            return ops.replace_operands(args, kwargs, x, weight, bias)
        return ops.replace_inputs(op, args, kwargs, operands)


def _has_floats(args: tuple, kwargs: dict) -> bool:
    """Whether a call reads a tensor of floats.

    By the same name another pass may join a mask, or the letters that are to be
    learned, where this one joins queries.
    """
    if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
        return True
    for item in (*args, *kwargs.values()):
        for x in item if isinstance(item, (list, tuple)) else (item,):
            if isinstance(x, Tensor) and x.is_floating_point():
                return True
    return False
