"""Attention, written out in calls that the engine knows.

``F.multi_head_attention_forward`` and ``F.scaled_dot_product_attention`` hide
projections and products from a torch function mode. Recording and executing replace
them by what is here: the same numbers, from linear layers, matrix products and a
softmax. Masks never become operands of their own: what they hold (minus infinity)
fits no range.
"""

import math
from collections.abc import Iterable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import ops


def masked_softmax(
    scores: Tensor, scale: float, mask: Optional[Tensor], safe: bool = False
) -> Tensor:
    """Softmax over the last axis of ``scores * scale + mask``.

    Args:
        scores (Tensor): Of queries and keys: (..., L, S).
        scale (float): Factor of the scores.
        mask (Tensor, optional): Added: broadcastable to the scores.
        safe (bool): Whether a row that is masked altogether gives zeros
            rather than NaN. Defaults to False.

    Returns:
        Tensor: Shape of ``scores``.
    """
    if has_torch_function((scores,)):
        return handle_torch_function(
            masked_softmax, (scores,), scores, scale, mask, safe=safe
        )
    if scale != 1:
        scores = scores * scale
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1)
    if safe and mask is not None:
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = weights.masked_fill(empty, 0.0)
    return weights


ops.register(masked_softmax, 'masked_softmax', ops.COMPUTE)


def additive_mask(mask: Tensor, hides: bool, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores. Recording and executing see one call.

    Args:
        mask (Tensor): To add already, or booleans.
        hides (bool): Whether a true element hides a key, or leaves it.
        dtype (torch.dtype): Of the scores.

    Returns:
        Tensor: Shape of ``mask``: zeros and minus infinities where it is boolean.
    """
    if has_torch_function((mask,)):
        return handle_torch_function(additive_mask, (mask,), mask, hides, dtype)
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(mask if hides else ~mask, -torch.inf)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention``.

    Args:
        query (Tensor): (..., L, E).
        key (Tensor): (..., S, E).
        value (Tensor): (..., S, Ev).
        attn_mask (Tensor, optional): To add, or booleans that are true where
            a key takes part: broadcastable to (..., L, S).
        dropout_p (float): Of the weights, applied whatever the mode.
        is_causal (bool): Hides the keys behind a query; in place of a mask.
        scale (float, optional): Of the scores. Defaults to 1/sqrt(E).
        enable_gqa (bool): Whether several heads of queries share a key.

    Returns:
        Tensor: (..., L, Ev).
    """
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    if scale is None:
        scale = 1.0 / math.sqrt(query.size(-1))
    if is_causal:
        with torch._C.DisableTorchFunction():
            shape = query.size(-2), key.size(-2)
            attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    mask = None if attn_mask is None else additive_mask(attn_mask, False, query.dtype)
    scores = torch.matmul(query, key.transpose(-2, -1))
    weights = masked_softmax(scores, scale, mask, safe=True)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return laid_out_like(torch.matmul(weights, value), query)


def laid_out_like(x: Tensor, query: Tensor) -> Tensor:
    """Heads in the order in memory in which torch's own function returns them.

    Args:
        x (Tensor): (N, heads, L, Ev).
        query (Tensor): (N, heads, L, E). Where its heads are inside of its positions,
            as projections give them, those of the result are too, and may be viewed
            as one axis.
    """
    if has_torch_function((x,)):
        return handle_torch_function(laid_out_like, (x,), x, query)
    if query.dim() != 4 or query.stride(1) >= query.stride(2):
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


ops.register(laid_out_like, 'laid_out_like', ops.PASS)


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Optional[Tensor],
    in_proj_bias: Optional[Tensor],
    bias_k: Optional[Tensor],
    bias_v: Optional[Tensor],
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Optional[Tensor],
    training: bool = True,
    key_padding_mask: Optional[Tensor] = None,
    need_weights: bool = True,
    attn_mask: Optional[Tensor] = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Optional[Tensor] = None,
    k_proj_weight: Optional[Tensor] = None,
    v_proj_weight: Optional[Tensor] = None,
    static_k: Optional[Tensor] = None,
    static_v: Optional[Tensor] = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Optional[Tensor]]:
    """``F.multi_head_attention_forward``, with its arguments.

    The weights that it returns are for people to look at and stay in float.

    Returns:
        Tuple[Tensor, Tensor | None]: (L, N, E), and the weights: (N, L, S)
        or (N, heads, L, S).
    """
    is_batched = query.dim() == 3
    if not is_batched:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    length, batch, width = query.shape
    if width != embed_dim_to_check:
        raise AssertionError(
            f'was expecting embedding dimension of {embed_dim_to_check}, but got '
            f'{width}'
        )
    weights: Iterable[Any] = (
        (q_proj_weight, k_proj_weight, v_proj_weight)
        if use_separate_proj_weight
        else _parts(in_proj_weight, width)
    )
    biases = _parts(in_proj_bias, width)
    q, k, v = map(F.linear, (query, key, value), weights, biases)
    q, k, v, padding = _by_head(
        q, k, v, num_heads, (bias_k, bias_v), (static_k, static_v), add_zero_attn
    )
    mask = None
    if attn_mask is not None or key_padding_mask is not None:
        mask = merged_masks(attn_mask, key_padding_mask, num_heads, padding, q.dtype)
    scores = torch.bmm(q, k.transpose(1, 2))
    # Without weights torch takes another way, which gives zeros for NaN.
    attention = masked_softmax(
        scores, 1.0 / math.sqrt(width // num_heads), mask, safe=not need_weights
    )
    dropped = F.dropout(attention, dropout_p) if training and dropout_p else attention
    out = torch.bmm(dropped, v).transpose(0, 1).reshape(length, batch, width)
    out = F.linear(out, out_proj_weight, out_proj_bias)
    if not is_batched:
        out = out.squeeze(1)
    if not need_weights:
        return out, None
    with torch._C.DisableTorchFunction():
        shown = dropped.view(batch, num_heads, length, dropped.shape[-1])
        shown = shown.mean(1) if average_attn_weights else shown
    return out, shown if is_batched else shown.squeeze(0)


def _by_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    biases: tuple[Optional[Tensor], Optional[Tensor]],
    static: tuple[Optional[Tensor], Optional[Tensor]],
    add_zeros: bool,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Projections (L, N, E) as one row for each head: (N * heads, L, E / heads).

    Returns:
        Tuple[Tensor, Tensor, Tensor, int]: Queries, keys, values, and how many keys
        were added.
    """
    batch, width = q.shape[1:]
    padding = 0
    bias_k, bias_v = biases
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.repeat(1, batch, 1)])
        v = torch.cat([v, bias_v.repeat(1, batch, 1)])
        padding += 1

    def split(x: Tensor) -> Tensor:
        x = x.contiguous().view(x.shape[0], batch * num_heads, width // num_heads)
        return x.transpose(0, 1)

    q = split(q)
    k, v = (split(x) if fixed is None else fixed for x, fixed in zip((k, v), static))
    if add_zeros:
        zeros = k.new_zeros(k.shape[0], 1, width // num_heads)
        k, v = torch.cat([k, zeros], 1), torch.cat([v, zeros], 1)
        padding += 1
    return q, k, v, padding


def _parts(packed: Optional[Tensor], size: int) -> tuple[Optional[Tensor], ...]:
    """The projections' parts of a parameter that packs them."""
    if packed is None:
        return None, None, None
    return tuple(packed[start * size : (start + 1) * size] for start in range(3))


def merged_masks(
    attn_mask: Optional[Tensor],
    key_padding_mask: Optional[Tensor],
    num_heads: int,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    """One mask to add to scores. Recording and executing see one call.

    Args:
        attn_mask (Tensor, optional): (L, S) or (N * heads, L, S); true hides a key.
        key_padding_mask (Tensor, optional): (N, S); one of the two is given.
        num_heads (int): How many rows of scores an image has.
        padding (int): How many keys were added, which nothing hides.
        dtype (torch.dtype): Of the scores.

    Returns:
        Tensor: Broadcastable to (N * heads, L, S + padding).
    """
    given = tuple(x for x in (attn_mask, key_padding_mask) if x is not None)
    if has_torch_function(given):
        masks = attn_mask, key_padding_mask
        return handle_torch_function(
            merged_masks, given, *masks, num_heads, padding, dtype
        )
    found = []
    if attn_mask is not None:
        mask = additive_mask(attn_mask, True, dtype)
        found.append(mask.unsqueeze(0) if mask.dim() == 2 else mask)
    if key_padding_mask is not None:
        mask = additive_mask(key_padding_mask, True, dtype)
        found.append(mask.repeat_interleave(num_heads, 0).unsqueeze(1))
    found = [F.pad(mask, (0, padding)) for mask in found]
    return sum(found[1:], found[0])


ops.write_out(F.multi_head_attention_forward, multi_head_attention_forward)
ops.write_out(F.scaled_dot_product_attention, scaled_dot_product_attention)
