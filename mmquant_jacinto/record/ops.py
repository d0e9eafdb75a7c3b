"""What the engine knows about torch functions: a table, and nothing else.

A function that is not in the table runs in float. Its result gets a quantizer only
where a layer reads it, which is right for comparisons and index arithmetic.
"""

from typing import Any, Callable, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

CONV = 'conv'
CONV_TRANSPOSE = 'conv_transpose'
LINEAR = 'linear'
DEFORM_CONV = 'deform_conv'  # samples between pixels, see deform_conv.py
MATMUL = 'matmul'  # two activations
NORM = 'norm'  # a batch normalization module, SyncBN too
CLIP = 'clip'  # an activation that only clamps
ADD = 'add'
CAT = 'cat'  # inputs and output share one scale
AVERAGE = 'average'  # linear in one input, no weights: pooling, resizing
PASS = 'pass'  # elements keep their values: reshape, max_pool, nearest
COMPUTE = 'compute'  # everything else whose result is a new activation
OTHER = 'other'  # a function that is not in the table

WEIGHTED = (CONV, CONV_TRANSPOSE, LINEAR, DEFORM_CONV)
# What no grid is fine enough for: a mask among scores stretches their range, and of
# a small number the logarithm and the inverse are large.
PRECISE = ('softmax', 'log', 'reciprocal')
# What is computed element by element on the way there stays in float too.
ELEMENTWISE = (
    *('add', 'sub', 'rsub', 'mul', 'div', 'truediv', 'neg', 'exp', 'sigmoid'),
    *('clamp', 'clip', 'clamp_min', 'clamp_max', 'masked_fill', 'where'),
)
# What normalizations written out by hand divide by. On a grid a small one would
# become zero.
STATISTICS = ('pow', 'square', 'sqrt', 'rsqrt', 'reciprocal')


class Op(NamedTuple):
    """A torch function in the engine's terms.

    Args:
        name (str): Canonical name; all spellings of a function share it.
        kind (str): One of the constants of this module.
    """

    name: str
    kind: str


def _spellings(name: str) -> list[Callable]:
    owners = (torch, F, Tensor, torch._C._nn)
    # F.max_pool2d is a dispatcher between two functions of other names.
    names = (
        name,
        f'{name}_',
        f'__{name}__',
        f'__i{name}__',
        f'__r{name}__',
        f'_{name}',
        f'{name}_with_indices',
    )
    found = [getattr(owner, spelling, None) for owner in owners for spelling in names]
    return [item for item in found if callable(item)]


_TABLE: dict[str, tuple[str, ...]] = {
    CONV: ('conv1d', 'conv2d', 'conv3d'),
    CONV_TRANSPOSE: ('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d'),
    LINEAR: ('linear',),
    MATMUL: ('matmul', 'bmm', 'mm'),
    CLIP: ('relu', 'relu6', 'hardtanh', 'clamp', 'clip', 'clamp_min', 'clamp_max'),
    ADD: ('add',),
    CAT: ('cat', 'concat', 'concatenate', 'stack'),
    AVERAGE: (
        'avg_pool1d',
        'avg_pool2d',
        'avg_pool3d',
        'adaptive_avg_pool1d',
        'adaptive_avg_pool2d',
        'adaptive_avg_pool3d',
        'mean',
        'interpolate',
        'upsample',
    ),
    PASS: (
        'reshape',
        'view',
        'view_as',
        'reshape_as',
        'flatten',
        'unflatten',
        'permute',
        'transpose',
        'swapaxes',
        'movedim',
        't',
        'contiguous',
        'clone',
        'squeeze',
        'unsqueeze',
        'expand',
        'expand_as',
        'repeat',
        'repeat_interleave',
        'chunk',
        'split',
        'unbind',
        'getitem',
        'narrow',
        'select',
        'index_select',
        'gather',
        'flip',
        'roll',
        'tile',
        'max_pool1d',
        'max_pool2d',
        'max_pool3d',
        'adaptive_max_pool1d',
        'adaptive_max_pool2d',
        'adaptive_max_pool3d',
        'pixel_shuffle',
        'pixel_unshuffle',
        'channel_shuffle',
        'unfold',
        'pad',
        'float',
        'to',
        'type_as',
        'broadcast_to',
        'amax',
        'masked_fill',
        'dropout',
        'dropout2d',
        'alias',
        'detach',
    ),
    COMPUTE: (
        'batch_norm',
        'sub',
        'mul',
        'div',
        'truediv',
        'rsub',
        'neg',
        'exp',
        'log',
        'sigmoid',
        'logsigmoid',
        'tanh',
        'silu',
        'gelu',
        'hardswish',
        'hardsigmoid',
        'leaky_relu',
        'prelu',
        'elu',
        'selu',
        'mish',
        'softplus',
        'softmax',
        'log_softmax',
        'sqrt',
        'pow',
        'abs',
        'square',
        'layer_norm',
        'group_norm',
        'instance_norm',
        'normalize',
        'sum',
        'einsum',
        'baddbmm',
        'addmm',
        'lerp',
        'addcmul',
        'maximum',
        'minimum',
        'grid_sample',
        'fold',
        'scaled_dot_product_attention',
        'glu',
        'celu',
        'rsqrt',
        'reciprocal',
        'local_response_norm',
        'bilinear',
        'softmin',
    ),
}


def _build_table() -> dict[Callable, Op]:
    return {
        function: Op(name, kind)
        for kind, names in _TABLE.items()
        for name in names
        for function in _spellings(name)
    }


OPS = _build_table()
# `x.T` and the like are calls too, of a property's getter.
OPS.update(
    (getattr(Tensor, name).__get__, Op('t', PASS)) for name in ('T', 'mT', 'data')
)


def register(function: Callable, name: str, kind: str) -> Callable:
    """Adds a function of ours to the table.

    Args:
        function (Callable): Dispatches to torch function modes, as torch's do.
        name (str): Its canonical name.
        kind (str): Its kind.

    Returns:
        Callable: ``function``.
    """
    OPS[function] = Op(name, kind)
    return function


def tensor_inputs(op: Op, args: tuple, kwargs: dict) -> list[Tensor]:
    """The activations that a call consumes, in order, weights left out.

    Args:
        op (Op): What is called.
        args (tuple): Positional arguments of the call.
        kwargs (dict): Keyword arguments of the call.

    Returns:
        List[Tensor]: One entry for each activation operand.
    """
    first: Any = (
        args[0]
        if args
        else kwargs.get('input', kwargs.get('tensors', kwargs.get('self')))
    )
    if op.kind == CAT:
        return list(first)
    if op.kind in (ADD, MATMUL, COMPUTE) and op.name not in _ONE_INPUT:
        rest = args[1:] + tuple(kwargs.values())
        return [first] + [item for item in rest if isinstance(item, Tensor)]
    return [first]


_ONE_INPUT = (
    *('layer_norm', 'group_norm', 'instance_norm', 'prelu', 'masked_softmax'),
    'grid_sample',  # the other says where
)


def replace_inputs(
    op: Op, args: tuple, kwargs: dict, tensors: list[Any]
) -> tuple[tuple, dict]:
    """The same call on other activations, those of :func:`tensor_inputs`."""
    if op.kind == CAT:
        new: Any = type(args[0])(tensors) if args else tensors
        if args:
            return (new,) + args[1:], kwargs
        return args, {**kwargs, 'tensors': new}
    replaced = iter(tensors)
    head: tuple
    if args:
        head, rest = (next(replaced),), args[1:]
        kwargs = dict(kwargs)
    else:
        kwargs = {**kwargs, 'input': next(replaced)}
        head, rest = (), ()
    left = list(replaced)
    out = []
    for item in rest:
        out.append(left.pop(0) if left and isinstance(item, Tensor) else item)
    for key, item in kwargs.items():
        if left and key != 'input' and isinstance(item, Tensor):
            kwargs[key] = left.pop(0)
    return head + tuple(out), kwargs


def per_axis(value: Any, dims: int) -> list[int]:
    """One value for each dimension of space, of an argument that may be one for all."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * dims if len(values) == 1 else values)]


def layer_operands(
    args: tuple, kwargs: dict
) -> tuple[Tensor, Tensor, Optional[Tensor]]:
    """Input, weight and bias in the call of a layer."""
    names = ('input', 'weight', 'bias')
    given = dict(zip(names, args[:3]))
    operands: Any = tuple(given.get(name, kwargs.get(name)) for name in names)
    return operands


def replace_operands(
    args: tuple, kwargs: dict, x: Any, weight: Any, bias: Any
) -> tuple[tuple, dict]:
    """The same call of a layer on another input, weight and bias, or their names."""
    rest = {
        key: value
        for key, value in kwargs.items()
        if key not in ('input', 'weight', 'bias')
    }
    return (x, weight, bias, *args[3:]), rest


def kind_of(op: Op, args: tuple, kwargs: dict) -> str:
    """Kind of a call, which may depend on its arguments.

    Resizing to the nearest neighbour only copies elements; filling or padding with
    anything but zero puts a value among them that no range allows for.
    """
    if op.name in ('interpolate', 'upsample'):
        mode = kwargs.get('mode', args[3] if len(args) > 3 else 'nearest')
        return PASS if mode.startswith('nearest') else op.kind
    if op.name == 'masked_fill':
        value = kwargs.get('value', args[2] if len(args) > 2 else None)
        return PASS if not isinstance(value, Tensor) and value == 0 else OTHER
    if op.name == 'pad':
        return OTHER if kwargs.get('value', args[3] if len(args) > 3 else 0) else PASS
    return op.kind


def clip_bounds(op: Op, args: tuple, kwargs: dict) -> Optional[tuple]:
    """Real lower and upper bound of a clamping activation, None where open.

    Returns:
        tuple, optional: ``(low, high)``, each a float or None; None in place
        of the tuple where a bound is a tensor.
    """
    if op.name == 'relu':
        return 0.0, None
    if op.name == 'relu6':
        return 0.0, 6.0
    if op.name == 'hardtanh':
        low = kwargs.get('min_val', args[1] if len(args) > 1 else -1.0)
        high = kwargs.get('max_val', args[2] if len(args) > 2 else 1.0)
    elif op.name == 'clamp_max':
        low = None
        high = kwargs.get('max', args[1] if len(args) > 1 else None)
    else:
        low = kwargs.get('min', args[1] if len(args) > 1 else None)
        high = kwargs.get('max', args[2] if len(args) > 2 else None)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return (None if low is None else float(low), None if high is None else float(high))


WEIGHT_NAMES = frozenset(
    ['deform_conv2d', *(name for kind in WEIGHTED for name in _TABLE.get(kind, ()))]
)
