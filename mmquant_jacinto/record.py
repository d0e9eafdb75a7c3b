"""Record: one eval pass of the unmodified model gives a graph of call sites.

Regions are the outermost modules that own weights and are called (backbone,
neck, a head's ``forward``); what runs outside them (losses, assigners,
decoding, NMS) is not seen and later runs untouched.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from . import ops
from .call_tree import CallTracker
from .ops import OPS, Op
from .untouched import untouched


@dataclass
class Site:
    """One call of a torch function in a region.

    Args:
        name (str): See :mod:`~mmquant_jacinto.call_tree`.
        op (str): Canonical name of the function.
        kind (str): Its kind, a constant of :mod:`~mmquant_jacinto.ops`.
        module (str): Qualified name of the module that made the call.
        inputs (List[int | None]): Values of the activation operands; None
            for one that no recorded call made (a constant, a parameter).
        outputs (List[int]): Values of the floating point results.
        weight (str, optional): Name of the parameter that is its weight.
        bias (str, optional): Name of the parameter that is its bias.
        clip (tuple, optional): Real bounds of a clamping activation.
        shape (tuple): Shape of the first result.
        further_inputs (List[int]): What it read in another pass instead.
    """

    name: str
    op: str
    kind: str
    module: str
    inputs: list[Optional[int]]
    outputs: list[int]
    weight: Optional[str] = None
    bias: Optional[str] = None
    clip: Optional[tuple[Optional[float], Optional[float]]] = None
    shape: tuple[int, ...] = ()
    further_inputs: list[int] = field(default_factory=list)


@dataclass
class Graph:
    """What was recorded: sites in order, and how values flow between them.

    Args:
        regions (List[str]): Names of the regions' modules.
        sites (Dict[str, Site]): By name, in order of execution.
        region_inputs (Dict[int, List[Tuple[str, int]]]): Value to the places
            where it enters: (call of a region, index among the leaves of its
            arguments). Values that come from outside all regions.
        region_outputs (Set[int]): Values that a region returns.
        unused (List[str]): Weights in the regions that no recorded call used.
    """

    regions: list[str] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    region_inputs: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    region_outputs: set[int] = field(default_factory=set)
    unused: list[str] = field(default_factory=list)

    def producers(self) -> dict[int, Site]:
        """Value to the site that made it."""
        return {value: site for site in self.sites.values() for value in site.outputs}

    def consumers(self) -> dict[int, list[Site]]:
        """Value to the sites that read it."""
        readers: dict[int, list[Site]] = {}
        for site in self.sites.values():
            for value in site.inputs + site.further_inputs:
                if value is not None:
                    readers.setdefault(value, []).append(site)
        return readers


class Recorder(TorchFunctionMode):
    """Records the calls made inside regions while a model runs.

    Args:
        model (nn.Module): Runs unmodified; hooks are on it until
            :meth:`remove`.
        is_region (Callable[[nn.Module], bool]): Whether a module that is
            called outside any region starts one.
    """

    def __init__(
        self, model: nn.Module, is_region: Callable[[nn.Module], bool]
    ) -> None:
        super().__init__()
        self.graph = Graph()
        self.is_region = is_region
        self._given: list[Tensor] = []  # tensors of the caller that were marked
        self._token = object()  # a recorder would keep the model alive
        self.parameters = {
            id(p): name for name, p in model.named_parameters(remove_duplicate=True)
        }
        self.tracker = CallTracker(model, self._enter, self._exit)
        self._region: Optional[nn.Module] = None
        self._opaque: Optional[nn.Module] = None
        self._opaque_input: Optional[int] = None
        self._values: dict[tuple[str, int], int] = {}

    def remove(self) -> None:
        """Takes the recorder off the model."""
        self.tracker.remove()
        for tensor in self._given:
            del tensor._mmquant_value

    # A value's number travels on the tensor object itself: it dies with it,
    # so nothing is kept alive and no id can be mistaken for a reused one.
    def _value_of(self, item: Any) -> Optional[int]:
        token, value = getattr(item, '_mmquant_value', (None, None))
        return value if token is self._token else None

    def _name_value(self, tensor: Tensor, origin: tuple[str, int]) -> int:
        # The same origin in a further pass is the same value.
        value = self._values.setdefault(origin, len(self._values))
        tensor._mmquant_value = (self._token, value)
        return value

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._region is None and self.is_region(module):
            name = self.tracker.names[module]
            if name not in self.graph.regions:
                self.graph.regions.append(name)
            self._region = module
            call = self.tracker.frame.node.name
            for index, leaf in enumerate(tree_flatten((args, kwargs))[0]):
                if not _is_activation(leaf):
                    continue
                value = self._value_of(leaf)
                if value is None:
                    value = self._name_value(leaf, (call, index))
                    self._given.append(leaf)
                    self.graph.region_inputs.setdefault(value, [])
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
            self._opaque_input = self._value_of(args[0])

    def _exit(self, module: nn.Module, output: Any) -> None:
        if module is self._opaque:
            self._opaque = None
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
            for leaf in tree_flatten(output)[0]:
                value = self._value_of(leaf)
                if value is not None:
                    self.graph.region_outputs.add(value)

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable,
        args: tuple = (),
        kwargs: Optional[dict] = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = OPS.get(func)
        if op is None or self._opaque is not None:
            return func(*args, **kwargs)
        frame = self.tracker.frame
        name = frame.node.site_name(op.name, frame.next('/' + op.name))
        if op.kind == ops.AVERAGE and ops.is_exact(op, args, kwargs):
            op = Op(op.name, ops.PASS)
        operands = ops.tensor_inputs(op, args, kwargs)
        inputs = [self._value_of(item) for item in operands]
        result = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_flatten(result)[0] if _is_activation(leaf)]
        if not leaves:
            return result
        site = Site(
            name,
            op.name,
            op.kind,
            frame.node.module,
            inputs,
            [
                self._name_value(leaf, (name, index))
                for index, leaf in enumerate(leaves)
            ],
            shape=tuple(leaves[0].shape),
        )
        if op.kind in ops.WEIGHTED:
            self._describe_weights(site, func, args, kwargs)
        elif op.kind == ops.CLIP:
            site.clip = ops.clip_bounds(op, args, kwargs)
            if site.clip is None:
                site.kind = ops.COMPUTE
        self._add(site)
        return result

    def _describe_weights(
        self, site: Site, func: Callable, args: tuple, kwargs: dict
    ) -> None:
        weight = kwargs.get('weight', args[1] if len(args) > 1 else None)
        bias = kwargs.get('bias', args[2] if len(args) > 2 else None)
        site.weight = self.parameters.get(id(weight))
        site.bias = self.parameters.get(id(bias))
        if site.weight is None or (bias is not None and site.bias is None):
            # A weight that is computed: two activations, in effect.
            site.kind, site.weight, site.bias = ops.COMPUTE, None, None

    def _add(self, site: Site) -> None:
        known = self.graph.sites.setdefault(site.name, site)
        if known is not site:
            known.further_inputs += [
                value
                for value in site.inputs
                if value is not None and value not in known.inputs
            ]


def _is_activation(item: Any) -> bool:
    return (
        isinstance(item, Tensor)
        and item.is_floating_point()
        and not isinstance(item, nn.Parameter)
    )


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
    with untouched(model), torch.no_grad():
        recorder = Recorder(model, is_region)
        try:
            model.eval()
            for run in passes:
                run()
        finally:
            recorder.remove()
    used = {site.weight for site in recorder.graph.sites.values()}
    recorder.graph.unused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
        and name not in used
        and _is_below(name, recorder.graph.regions)
    ]
    return recorder.graph


def _is_below(name: str, regions: Iterable[str]) -> bool:
    return any(not region or name.startswith(region + '.') for region in regions)
