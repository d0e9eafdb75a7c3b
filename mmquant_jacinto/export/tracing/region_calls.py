"""Region calls: what ran of a model's regions, and what of it a file leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SECOND_STAGE = '.roi_head.'  # of MMDetection's two-stage detectors: behind proposals
# What chooses elements; between regions, it chooses detections.
_SELECTIONS = frozenset('nonzero sort argsort unique masked_select getitem'.split())


class Selection(str):
    """Why a tensor has no name: it has as many elements as were chosen of an image.

    What follows is behind decoding, which a file leaves to its user.
    """


def missing_function(op: str, chooses: bool, reason: str) -> str:
    """The reason that a function the exporter lacks gives what it returns.

    Args:
        op (str): The function.
        chooses (bool): Whether the call may choose detections of an image.
        reason (str): What to tell.
    """
    is_selection = chooses and op in _SELECTIONS
    return Selection(reason) if is_selection else reason


@dataclass
class RegionCall:
    """One run of a region that the graph contains.

    Args:
        region (str): Name of the module.
        inputs (List[str]): What it read, by name in the graph.
        is_fixed (bool): Whether no image changes what it read.
        output (Any): What it returned.
        names (List[str | None]): Of the leaves of the output.
        reasons (List[str | None]): Why a leaf has no name.
    """

    region: str
    inputs: list[str]
    is_fixed: bool = False
    output: Any = None
    names: list[str | None] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)

    @property
    def is_left_out(self) -> bool:
        """bool: Whether it is behind the choice of proposals or detections."""
        reasons = [reason for reason in self.reasons if reason is not None]
        if any(self.names) or not reasons:
            return False
        # A second stage begins with what ONNX has no function for, if not outside.
        return _SECOND_STAGE in f'.{self.region}' or all(
            isinstance(item, Selection) for item in reasons
        )
