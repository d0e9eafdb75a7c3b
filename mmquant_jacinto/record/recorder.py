"""Record: one eval pass of the unmodified model gives a graph of call sites.

Regions are the outermost modules that own weights and are called (backbone,
neck, a head's ``forward``); what runs outside them (losses, assigners,
decoding, NMS) is not seen and later runs untouched.
"""

from collections.abc import Iterable
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten

from ..errors import QuantizeError
from . import ops
from .call_mode import CallMode
from .deform_conv import make_visible
from .graph import Graph, Site
from .inference import LOSS, reached_by_inference
from .memory import unseen_version, writes_in_place
from .ops import Op
from .same_work import Operand, SameWork, WorkTracker, is_activation
from .side_effects import untouched

# Each but the last finds out what of the former one does not hold.
ATTEMPTS = 20
_VALUE = '_mmquant_value'  # (token, number, version) on a tensor object


class Recorder(CallMode):
    """Records the calls made inside regions while a model runs.

    Args:
        model (nn.Module): Runs unmodified; hooks are on it until
            :meth:`remove`.
        is_region (Callable[[nn.Module], bool]): Whether a module that is
            called outside any region starts one.
        work (SameWork): Finds the runs that do the same work.
    """

    def __init__(
        self,
        model: nn.Module,
        is_region: Callable[[nn.Module], bool],
        work: SameWork,
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self.work = work
        self.is_region = is_region
        self._given: list[Tensor] = []  # tensors of the caller that were marked
        self._token = object()  # a recorder would keep the model alive
        self.parameters = {
            id(p): name for name, p in model.named_parameters(remove_duplicate=True)
        }
        self.readers: dict[str, str] = {}  # parameter to a function that reads it
        self.multiplied: set[str] = set()  # operands of matrix products
        # No activations, though they come from no recorded call.
        self._constants = {id(buffer) for buffer in model.buffers()}
        make_visible()
        self.tracker = WorkTracker(
            model,
            work,
            self._read,
            on_enter=self._enter,
            on_exit=self._exit,
            on_root=self._run_root,
        )
        self._has_run = False  # a region, in this pass
        self._region_name = ''
        self.mode: Any = None  # of this pass
        self.modes: dict[str, set] = {}  # of the passes that ran a region
        self._region: Optional[nn.Module] = None
        self._opaque: Optional[nn.Module] = None
        self._opaque_input: Optional[int] = None
        self._values: dict[tuple[str, int], int] = {}
        self._writers: dict[int, Site] = {}  # by address: who wrote there last
        self.tracker.install()

    def remove(self) -> None:
        """Takes the recorder off the model."""
        self.tracker.remove()
        for tensor in self._given:
            tensor.__dict__.pop(_VALUE, None)

    # A value's number travels on the tensor object itself: it dies with it,
    # so nothing is kept alive and no id can be mistaken for a reused one.
    def _value_of(self, item: Any) -> Optional[int]:
        token, value, version = getattr(item, _VALUE, (None, None, None))
        if token is not self._token:
            return None
        # Written to through another view of its memory: it is another value now.
        return value if version == unseen_version(item) else None

    def _name_value(self, tensor: Tensor, origin: tuple[str, int]) -> int:
        # The same origin in a further pass is the same value.
        value = self._values.setdefault(origin, len(self._values))
        setattr(tensor, _VALUE, (self._token, value, unseen_version(tensor)))
        return value

    def _operand(self, item: Any, origin: tuple[str, int]) -> Optional[int]:
        """Value of an operand; a new one where it came out of nowhere."""
        if isinstance(item, Tensor):
            for owner in (item, item._base):
                name = self.parameters.get(id(owner))
                if name is not None:
                    self.readers.setdefault(name, origin[0])
        if not is_activation(item):
            return None
        known = self._value_of(item)
        if known is not None:
            return known
        self._note_writer(item)
        if self._constants.intersection((id(item), id(item._base))) or isinstance(
            item._base, nn.Parameter
        ):
            return None
        value = self._name_value(item, origin)
        self._given.append(item)
        self.graph.hidden.add(value)
        return value

    def _note_writer(self, item: Tensor) -> None:
        """Notes that something reads what a call in place changed through a view."""
        if getattr(item, _VALUE, (None,))[0] is self._token:
            site = self._writers.get(_address(item))
            if site is not None:
                site.is_shared = True

    def _read(self, tensor: Tensor) -> Operand:
        """What is known of a tensor that a module is given."""
        value, shape = self._value_of(tensor), tuple(tensor.shape)
        if self._region is None and (
            value is None or value in self.graph.region_inputs
        ):
            return Operand(None, shape=shape, enters=True, is_raw=not self._has_run)
        if value is None:
            return Operand(None, shape=shape)
        return Operand(value, *self.work.works(value), shape)

    def _run_root(self, starts: bool) -> None:
        self._has_run = False
        self.mode = self.tracker.mode if starts else None

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._region is None and self.is_region(module):
            name = self.tracker.names[module]
            if name not in self.graph.regions:
                self.graph.regions.append(name)
            self._region = module
            self._region_name = name
            self.modes.setdefault(name, set()).add(self.mode)
            call = self.tracker.frame.node.name
            reads = self.graph.calls.setdefault(call, (name, {}))[1]
            for index, leaf in enumerate(tree_flatten((args, kwargs))[0]):
                if not is_activation(leaf):
                    continue
                value = self._value_of(leaf)
                if value is None:
                    value = self._name_value(leaf, (call, index))
                    self._given.append(leaf)
                    self.graph.region_inputs.setdefault(value, [])
                values = reads.setdefault(index, [])
                if value not in values:
                    values.append(value)
                entries = self.graph.region_inputs.get(value)
                if entries is not None and (call, index) not in entries:
                    entries.append((call, index))
            self.__enter__()
        if (
            self._region is not None
            and self._opaque is None
            and isinstance(module, _BatchNorm)
        ):
            self._opaque = module
            self.is_opaque = True
            origin = f'{self.tracker.frame.node.name}/batch_norm:input'
            self._opaque_input = self._operand(args[0], (origin, 0))

    def _exit(self, module: nn.Module, output: Any) -> None:
        if module is self._opaque:
            self._opaque = None
            self.is_opaque = False
            node = self.tracker.frame.node
            if isinstance(output, Tensor):
                name = node.site_name('batch_norm', 0)
                # Without running statistics there is nothing to fold.
                kind = ops.COMPUTE if module.running_var is None else ops.NORM
                self._add(
                    Site(
                        name,
                        'batch_norm',
                        kind,
                        node.module,
                        [self._opaque_input],
                        [self._name_value(output, (name, 0))],
                        shape=tuple(output.shape),
                    )
                )
        if module is self._region:
            self.__exit__(None, None, None)
            self._region = None
            self._has_run = True
            for leaf in tree_flatten(output)[0]:
                value = self._value_of(leaf)
                if value is not None:
                    self.graph.region_outputs.add(value)

    def call(self, op: Op, func: Callable, args: tuple, kwargs: dict) -> Any:
        if self._opaque is not None:
            return func(*args, **kwargs)
        frame: Any = self.tracker.frame
        name = frame.node.site_name(op.site, frame.next(op.site))
        kind = ops.kind_of(op, args, kwargs)
        operands = ops.tensor_inputs(op, args, kwargs)
        inputs = [
            self._operand(item, (f'{name}:input', index))
            for index, item in enumerate(operands)
        ]
        reads = [self._read(x) for x in operands if is_activation(x)]
        result = func(*args, **kwargs)
        called = ops.name_of(op, args, kwargs)
        site = self._make_site(name, called, kind, inputs, result)
        if site is None:
            return result
        known = map(self._value_of, ops.places_of(op, args, kwargs))
        site.places = [value for value in known if value is not None]
        self.work.call(frame, f'/{op.name}', name, reads)
        if kind in ops.WEIGHTED:
            self._describe_weights(site, args, kwargs)
        elif kind == ops.CLIP:
            site.clip = ops.clip_bounds(op, args, kwargs)
            if site.clip is None:
                site.kind = ops.COMPUTE
        elif kind == ops.MATMUL:
            self.multiplied.update(
                self.parameters.get(id(item), '') for item in operands
            )
        self._add(site, args)
        if writes_in_place(func, kwargs):
            written = kwargs.get('out', result)
            if isinstance(written, Tensor):
                self._writers[_address(written)] = self.graph.sites[name]
        return result

    def _make_site(
        self,
        name: str,
        op: str,
        kind: str,
        inputs: list[Optional[int]],
        result: Any,
    ) -> Optional[Site]:
        """Describes a call; None where it gives no activations."""
        leaves = [leaf for leaf in tree_flatten(result)[0] if is_activation(leaf)]
        if not leaves:
            return None
        return Site(
            name,
            op,
            kind,
            self.tracker.frame.node.module,
            inputs,
            [
                self._name_value(leaf, (name, index))
                for index, leaf in enumerate(leaves)
            ],
            shape=tuple(leaves[0].shape),
        )

    def call_other(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Values flow through it."""
        if self._opaque is not None:
            return func(*args, **kwargs)
        frame: Any = self.tracker.frame
        op = func.__name__
        name = frame.node.site_name(op, frame.next(op))
        operands = [
            item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)
        ]
        inputs = [
            self._operand(item, (f'{name}:input', index))
            for index, item in enumerate(operands)
        ]
        reads = [self._read(x) for x in operands if is_activation(x)]
        result = func(*args, **kwargs)
        # `x[...] = y` returns nothing and changes x.
        changed = args[0] if op == '__setitem__' else result
        site = self._make_site(name, op, ops.OTHER, inputs, changed)
        if site is not None:
            self.work.call(frame, f'/{op}', name, reads)
            self._add(site)
        return result

    def _describe_weights(self, site: Site, args: tuple, kwargs: dict) -> None:
        _, weight, bias = ops.layer_operands(args, kwargs)
        site.weight, site.rows = self._find_parameter(weight)
        site.bias, bias_rows = self._find_parameter(bias)
        if (
            site.weight is None
            or (bias is not None and site.bias is None)
            or bias_rows not in (None, site.rows)
        ):
            site.weight = site.bias = site.rows = None
            site.computed_weight = True
            site.weight_value = self._operand(weight, (f'{site.name}:weight', 0))

    def _find_parameter(
        self, item: Any
    ) -> tuple[Optional[str], Optional[tuple[int, int]]]:
        """Name of the parameter that a tensor is or has rows of, and which."""
        name = self.parameters.get(id(item))
        if name is not None or not isinstance(item, Tensor):
            return name, None
        base = item._base
        name = self.parameters.get(id(base))
        if (
            name is None
            or base is None
            or item.shape[1:] != base.shape[1:]
            or item.stride() != base.stride()
        ):
            return None, None
        start = (item.storage_offset() - base.storage_offset()) // base.stride(0)
        return name, (start, start + item.shape[0])

    def _add(self, site: Site, args: tuple = ()) -> None:
        self.work.note(site, args)
        self.graph.region_of.setdefault(site.name, self._region_name)
        known = self.graph.sites.setdefault(site.name, site)
        if known is not site:
            known.further_inputs += [
                value
                for value in site.inputs
                if value is not None and value not in known.inputs
            ]


def _address(x: Tensor) -> int:
    """Of the memory that a tensor and its views share."""
    return x.untyped_storage().data_ptr()


def record(
    model: nn.Module,
    passes: Iterable[Callable[[], Any]],
    is_region: Callable[[nn.Module], bool],
) -> Graph:
    """Runs ``passes`` on a model in eval mode and records what they call.

    The model is left as it was: training flags, attributes, statistics, gradients,
    and so is the random state.

    Args:
        model (nn.Module): The float model.
        passes (Iterable[Callable]): Each runs the model once.
        is_region (Callable[[nn.Module], bool]): Whether a module starts a
            region.

    Returns:
        Graph: The union of what the passes called.
    """
    passes = list(passes)
    work = SameWork()
    for _ in range(ATTEMPTS):
        recorder, predictions = _record_once(model, passes, is_region, work)
        if work.settle():
            break
        work = SameWork(work.told_apart, work.kept)
    else:
        raise QuantizeError(
            f'{type(model).__name__} calls other modules in each pass over the same '
            'input; give it an input on which it does the same each time'
        )
    graph = recorder.graph
    graph.repeats = work.found()
    only_loss = [name for name, modes in recorder.modes.items() if modes == {LOSS}]
    if only_loss and predictions:
        reached = reached_by_inference(model, predictions, only_loss)
        graph.only_loss = tuple(name for name in only_loss if name not in reached)
    graph.read_elsewhere = set(recorder.readers)
    used = {site.weight for site in graph.sites.values()} | recorder.multiplied
    graph.unused = {
        name: _function_of(recorder.readers.get(name, ''))
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and name not in used
    }
    return graph


def _record_once(
    model: nn.Module,
    passes: Iterable[Callable[[], Any]],
    is_region: Callable[[nn.Module], bool],
    work: SameWork,
) -> tuple[Recorder, list[Callable[[], Any]]]:
    """Records the passes; returns also which of them compute no loss."""
    predictions = []
    with untouched(model), torch.no_grad():
        recorder = Recorder(model, is_region, work)
        try:
            model.eval()
            for run in passes:
                recorder.tracker.mode = None
                run()
                if recorder.tracker.mode != LOSS:
                    predictions.append(run)
        finally:
            recorder.remove()
    return recorder, predictions


def _function_of(origin: str) -> str:
    """The function in the origin of a value: ``call/function#number:place``."""
    return origin.rpartition('/')[2].partition(':')[0].partition('#')[0]
