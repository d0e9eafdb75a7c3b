"""Products under other names, written out in matrix products.

``torch.einsum``, ``addmm`` and ``baddbmm`` multiply as ``matmul`` does. As functions of
their own they would be computed in float, where engines add up in orders of their
own: a tie in one of a hundred thousand elements then rounds another way, and where a
mask is cut from it, all that follows differs. A matrix product of integers is exact.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops


class _Product(NamedTuple):
    """What an equation of two operands says.

    Args:
        left (str): Labels of the first operand.
        right (str): Labels of the second.
        out (str): Labels of the result.
    """

    left: str
    right: str
    out: str

    @property
    def batch(self) -> str:
        """str: Labels of both operands that stay."""
        return ''.join(x for x in self.left if x in self.right and x in self.out)

    @property
    def contracted(self) -> str:
        """str: Labels that are summed over."""
        return ''.join(x for x in self.left if x not in self.out)

    @property
    def rows(self) -> str:
        """str: Labels of the first operand alone."""
        return ''.join(x for x in self.left if x not in self.right)

    @property
    def columns(self) -> str:
        """str: Labels of the second operand alone."""
        return ''.join(x for x in self.right if x not in self.left)

    @classmethod
    def of(cls, equation: str, x: Tensor, y: Tensor) -> _Product | None:
        """None of an equation that is no product of two matrices."""
        operands, arrow, out = equation.replace(' ', '').partition('->')
        left, _, right = operands.partition(',')
        labels = left + right
        if not arrow:
            out = ''.join(sorted(c for c in set(labels) if labels.count(c) == 1))
        product = cls(left, right, out)
        if (
            any(len(set(part)) < len(part) for part in product)
            or not (labels + out).isalpha()
        ):
            return None
        # A label that one operand alone has, and the result has not, is a sum first.
        summed = set(labels) - set(out)
        if not summed <= set(left) & set(right) or not set(out) <= set(labels):
            return None
        sizes = dict(zip(left, x.shape))
        fits = len(left) == x.dim() and len(right) == y.dim()
        if not fits or any(sizes.get(c, n) != n for c, n in zip(right, y.shape)):
            return None  # torch says what is wrong, or expands
        return product


def einsum(equation: Any, *operands: Any) -> Any:
    """``torch.einsum`` of two operands whose labels each occur once in an operand.

    Args:
        equation (str): Such as ``'bqc,bchw->bqhw'``.
        *operands (Tensor): Or one list of them, of any shapes.

    Returns:
        Tensor: In the order of the equation; ``NotImplemented`` for all others.
    """
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        (operands,) = operands
    if len(operands) != 2 or not isinstance(equation, str):
        return NotImplemented
    x, y = operands
    product = _Product.of(equation, x, y)
    if product is None:
        return NotImplemented
    sizes = {**dict(zip(product.left, x.shape)), **dict(zip(product.right, y.shape))}
    batch, summed = product.batch, product.contracted
    rows, columns = product.rows, product.columns

    def arranged(operand: Tensor, labels: str, *groups: str) -> Tensor:
        operand = _permuted(operand, labels, ''.join(groups))
        shape = [math.prod(sizes[c] for c in group) for group in groups[-2:]]
        return _reshaped(operand, [*(sizes[c] for c in batch), *shape])

    left = arranged(x, product.left, batch, rows, summed)
    right = arranged(y, product.right, batch, summed, columns)
    # Without a sum it is a product of elements: (B, R, 1) and (B, 1, C).
    out = torch.matmul(left, right) if summed else left * right
    out = _reshaped(out, [sizes[c] for c in batch + rows + columns])
    return _permuted(out, batch + rows + columns, product.out)


def _permuted(x: Tensor, labels: str, wanted: str) -> Tensor:
    if labels == wanted:
        return x
    return x.permute([labels.index(label) for label in wanted])


def _reshaped(x: Tensor, shape: list[int]) -> Tensor:
    return x if list(x.shape) == shape else x.reshape(shape)


def add_product(
    input: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor | None = None,
) -> Any:
    """``torch.addmm`` and ``torch.baddbmm``: ``beta * input + alpha * first @ second``.

    Args:
        input (Tensor): Broadcastable to the product.
        first (Tensor): ([B,] L, K).
        second (Tensor): ([B,] K, M).
        beta (float): 0 leaves ``input`` out, even where it is not finite.
        alpha (float): Factor of the product.
        out (Tensor, optional): Not written out.

    Returns:
        Tensor: ([B,] L, M); ``NotImplemented`` with an ``out``.
    """
    if out is not None:
        return NotImplemented
    product = torch.matmul(first, second)
    if alpha != 1:
        product = product * alpha
    if beta == 0:
        return product
    return (input if beta == 1 else input * beta) + product


def add_product_(
    input: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """``Tensor.addmm_`` and ``Tensor.baddbmm_``, see :func:`add_product`."""
    product = torch.matmul(first, second)
    if alpha != 1:
        product = product * alpha
    if beta == 0:
        return input.copy_(product)
    if beta != 1:
        input.mul_(beta)
    return input.add_(product)


ops.write_out(torch.einsum, einsum)
for _function in (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm):
    ops.write_out(_function, add_product)
for _function in (Tensor.addmm_, Tensor.baddbmm_):
    ops.write_out(_function, add_product_)
