"""Graph: what a model calls, and how values flow between the calls."""

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class Site:
    """One call of a torch function in a region.

    Args:
        name (str): See :mod:`~mmquant_jacinto.record.call_tree`.
        op (str): Canonical name of the function.
        kind (str): Its kind, a constant of :mod:`~mmquant_jacinto.record.ops`.
        module (str): Qualified name of the module that made the call.
        inputs (List[int | None]): Values of the activation operands; None
            for a constant, such as a parameter or what follows from it.
        outputs (List[int]): Values of the floating point results.
        weight (str, optional): Name of the parameter that is its weight.
        bias (str, optional): Name of the parameter that is its bias.
        rows (Tuple[int, int], optional): The part of both that it uses, along
            their first axis: start and stop. None: all.
        computed_weight (bool): Whether it has a weight that is no parameter.
        weight_value (int, optional): Value of such a weight; None where it
            is a constant.
        clip (tuple, optional): Real bounds of a clamping activation.
        shape (tuple): Shape of the first result.
        further_inputs (List[int]): What it read in another pass instead.
        is_shared (bool): Whether it overwrites a tensor whose memory another call
            reads through a view.
        places (List[int]): Values that say where and how much of the operand it reads:
            offsets and masks of a deformable convolution, positions of samples.
    """

    name: str
    op: str
    kind: str
    module: str
    inputs: list[Optional[int]]
    outputs: list[int]
    weight: Optional[str] = None
    bias: Optional[str] = None
    rows: Optional[tuple[int, int]] = None
    computed_weight: bool = False
    weight_value: Optional[int] = None
    clip: Optional[tuple[Optional[float], Optional[float]]] = None
    shape: tuple[int, ...] = ()
    further_inputs: list[int] = field(default_factory=list)
    is_shared: bool = False
    places: list[int] = field(default_factory=list)


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
        hidden (Set[int]): Values that appeared in a region without a call
            that could be seen, such as those of an ``autograd.Function``.
        unused (Dict[str, str]): Parameters of two axes or more that no layer
            uses, and which function reads them; an empty string for none.
        read_elsewhere (Set[str]): Parameters that something else reads than the
            layer or the normalization that they belong to.
        repeats (Dict[str, Tuple[str, Tuple[str]]]): Run of a module to the former
            one that it is again, and what its caller goes on counting: see
            :mod:`~mmquant_jacinto.record.same_work`.
        calls (Dict[str, Tuple[str, Dict[int, List[int]]]]): Call of a region to its
            name, and (index among the leaves of its arguments to values).
        region_of (Dict[str, str]): Site to the region that it is in.
        only_loss (Tuple[str]): Regions that inference does not run.
    """

    regions: list[str] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    region_inputs: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    region_outputs: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    unused: dict[str, str] = field(default_factory=dict)
    read_elsewhere: set[str] = field(default_factory=set)
    repeats: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    calls: dict[str, tuple[str, dict[int, list[int]]]] = field(default_factory=dict)
    region_of: dict[str, str] = field(default_factory=dict)
    only_loss: tuple[str, ...] = ()

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
