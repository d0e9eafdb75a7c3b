"""Rules of an engine as data: what it takes of an ONNX file, row by row.

A row says what must hold for some operators of ONNX, and where that is written. The
planner reads the rows to plan what the engine computes
(:meth:`Rules.is_symmetric`), the exporter and ``tools/check_onnx.py`` to tell what a
file breaks. Imports no ONNX: a training reads the rows too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Protocol

# How much a broken row matters. A file with a violation is refused, or computed
# otherwise than it was tested.
VIOLATION = 'violation'
HOST = 'host'  # the node runs on the host's processor, in float
SLOWER = 'slower'  # the engine takes more passes over memory than it needs
SEVERITIES = (VIOLATION, HOST, SLOWER)

ANY = '*'  # all operators that have no row of their own
INPUT = '(input)'  # what enters the network
OUTPUT = '(output)'  # what leaves it, and nothing in it reads
FILE = '(file)'  # the file as a whole
PRODUCT = 'MatMul of activations'  # a MatMul without a constant
# What several operators of ONNX compute, both of one value.
SILU = 'Sigmoid*Mul'
HARD_SWISH = 'HardSigmoid*Mul'
GELU = 'Gelu'  # one operator from opset 20 on, a pattern before
EIGHT_BITS = ('int8', 'uint8')


@dataclass(frozen=True)
class Source:
    """Where a rule is written.

    Args:
        document (str): Its name and section, or the issue that reports it.
        version (str): Of the document, the engine, or the commit that was read.
    """

    document: str
    version: str

    def __str__(self) -> str:
        return f'{self.document} ({self.version})'


class Facts(Protocol):
    """What a :class:`Limit` may ask of a node.

    Attributes:
        op (str): Operator of ONNX.
    """

    op: str

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute as Python's number, string or list."""

    def constant(self, index: int) -> Any:
        """Operand ``index`` as ``np.ndarray``; None where it is none, or computed."""

    def shape(self, index: int = 0) -> list[int | None] | None:
        """Shape of operand ``index``, None where it is not known, likewise in it."""

    def output_shape(self, index: int = 0) -> list[int | None] | None:
        """The same of a result."""

    def count(self) -> int:
        """Number of operands."""

    def is_quantized(self) -> bool:
        """Whether any operand lies on a grid."""

    def has_stored_shape(self, index: int = 0) -> bool:
        """Whether the file itself gives the shape of operand ``index``."""

    def is_terminal(self) -> bool:
        """Whether the node reads an input of the graph, or gives an output."""


@dataclass(frozen=True)
class Row:
    """What all rows have.

    Args:
        operators (Tuple[str, ...]): Of ONNX; :data:`ANY`, :data:`INPUT`.
        source (Source): Where it is written.
    """

    operators: tuple[str, ...]
    source: Source


def _width(name: str) -> int:
    return int(name.lstrip('uint'))


@dataclass(frozen=True)
class Activations(Row):
    """Grids of the activations that operators read and give.

    Args:
        symmetric (bool): Whether the zero point must be 0.
        types (Tuple[str, ...]): Stored types, by their names in NumPy.
        per_channel (bool): Whether each channel may have a scale of its own.
        severity (str): One of :data:`SEVERITIES`.
    """

    symmetric: bool = False
    types: tuple[str, ...] = EIGHT_BITS
    per_channel: bool = False
    severity: str = VIOLATION

    @property
    def bits(self) -> int:
        """int: Of the widest type; 16 where others are no violation."""
        return max(map(_width, self.types)) if self.severity == VIOLATION else 16


@dataclass(frozen=True)
class Weights(Row):
    """Grids of constant operands that a layer multiplies by, or adds.

    Args:
        per_channel (bool): Whether each channel may have a scale of its own.
        axis (int, optional): Of these scales. None: that of the output channels.
        types (Tuple[str, ...]): Stored types.
        symmetric (bool): Whether zero points must be 0.
        severity (str): One of :data:`SEVERITIES`.
    """

    per_channel: bool = True
    axis: int | None = None
    types: tuple[str, ...] = ('int8',)
    symmetric: bool = True
    severity: str = VIOLATION

    @property
    def bits(self) -> int:
        """int: Of the widest type; 16 where others are no violation."""
        return max(map(_width, self.types)) if self.severity == VIOLATION else 16


@dataclass(frozen=True)
class Biases(Row):
    """How biases are stored.

    Args:
        types (Tuple[str, ...]): ``'float32'`` for real numbers.
        severity (str): One of :data:`SEVERITIES`.
    """

    types: tuple[str, ...] = ('float32', 'int32')
    severity: str = VIOLATION


@dataclass(frozen=True)
class Pairs(Row):
    """Operators behind which a pair of Q/DQ must stand, if they read quantized values.

    Args:
        severity (str): One of :data:`SEVERITIES`.
    """

    severity: str = VIOLATION


@dataclass(frozen=True)
class Fusion(Row):
    """Operators that are one with what follows, so that no pair may stand between.

    Args:
        followers (Tuple[str, ...]): Of ONNX, each alone; :data:`SILU` and its kin.
        drops_pairs (bool): Whether a pair between them is left out, so that it splits
            nothing. The engine may want one to see that both are one.
        severity (str): One of :data:`SEVERITIES`.
    """

    followers: tuple[str, ...] = ()
    drops_pairs: bool = False
    severity: str = SLOWER


@dataclass(frozen=True)
class Pattern(Row):
    """Operators that the engine computes as one function, with no pair inside.

    Args:
        severity (str): One of :data:`SEVERITIES`.
    """

    severity: str = SLOWER


@dataclass(frozen=True)
class Divided(Row):
    """Operators that take a division of the channels in front of them into themselves.

    A planner may give the channels of what is quantized scales of their own there.
    """


@dataclass(frozen=True)
class Limit(Row):
    """A limit of shapes or attributes.

    Args:
        right (str): What must hold, in words.
        holds (Callable): Of :class:`Facts`: whether it does; None: not known.
        shows (Tuple[str, ...]): What to name of a node that breaks it: attributes,
            ``'shape'`` of its first operand, ``'operand N'``: a constant one.
        severity (str): One of :data:`SEVERITIES`.
    """

    right: str = ''
    holds: Callable[[Facts], bool | None] = lambda facts: None
    shows: tuple[str, ...] = ()
    severity: str = HOST


@dataclass(frozen=True)
class Versions(Row):
    """Versions of ONNX that a file may have.

    Args:
        opset (Tuple[int, int]): Least and largest of the operators'.
        ir (int, optional): Largest of the file's form.
    """

    opset: tuple[int, int] = (1, 10**6)
    ir: int | None = None


@dataclass(frozen=True)
class Known(Row):
    """All operators that the engine has; another one breaks the row.

    Args:
        severity (str): One of :data:`SEVERITIES`.
        quantized (bool): Whether only those matter that read quantized values.
    """

    severity: str = HOST
    quantized: bool = False


@dataclass(frozen=True)
class Rules:
    """The table of one engine.

    Args:
        rows (Tuple[Row, ...]): In the order in which they are told.
        host (str): What :data:`HOST` means there, in words.
        reads (str): What the engine is, for the head of a page.
    """

    rows: tuple[Row, ...] = ()
    host: str = 'runs in float'
    reads: str = ''

    def of(self, kind: type) -> Iterator[Any]:
        """Rows of a kind."""
        return (row for row in self.rows if isinstance(row, kind))

    def row(self, kind: type, operator: str) -> Any:
        """The row of a kind for an operator, or that for :data:`ANY`, or None."""
        for wanted in (operator, ANY):
            for row in self.of(kind):
                if wanted in row.operators:
                    return row
        return None

    def is_symmetric(self, operators: Iterable[str]) -> bool:
        """Whether any of some operators takes activations without zero point alone."""
        rows = [self.row(Activations, operator) for operator in operators]
        return any(row is not None and row.symmetric for row in rows)

    def scales_channels(self, operator: str) -> bool:
        """Whether output channels of an operator's weight may have their own scales."""
        row = self.row(Weights, operator)
        return row is None or (row.per_channel and row.axis is None)

    def fuses(self, head: str, follower: str) -> bool:
        """Whether an engine computes two operators as one."""
        return any(
            head in row.operators and follower in row.followers
            for row in self.of(Fusion)
        )

    @property
    def drops_pairs_in_sums(self) -> bool:
        """bool: Whether a pair between a convolution and an addition is left out."""
        return any(
            row.drops_pairs and 'Add' in row.followers for row in self.of(Fusion)
        )

    @property
    def has_symmetric_constants(self) -> bool:
        """bool: Whether constants that are added lie on grids without zero point."""
        row = self.row(Weights, 'Add')
        return row is not None and row.symmetric

    @property
    def divides_channels(self) -> bool:
        """bool: Whether quantizing takes a factor for each channel along."""
        return self.row(Divided, 'QuantizeLinear') is not None

    def is_one(self, pattern: str) -> bool:
        """Whether an engine computes the operators of a pattern as one function."""
        return any(pattern in row.operators for row in self.of(Pattern))
