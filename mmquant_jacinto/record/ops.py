"""What the engine knows about torch functions: a table, and nothing else.

A function that is not in the table runs in float. Its result gets a quantizer only
where a layer reads it, which is right for comparisons and index arithmetic.
"""

from typing import Any, Callable, NamedTuple, Optional, Union

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
# What no grid is fine enough for: a mask among scores stretches their range.
PRECISE = ('softmax', 'log_softmax', 'softmin', 'log', 'reciprocal')
# Of a small number these are large, or steep, and on a grid it would become zero.
# The base and the exponent of a power are its first and second operand.
STEEP = (
    *('log', 'log2', 'log10', 'log1p', 'logit', 'reciprocal', 'rsqrt', 'sqrt'),
    *('root', 'rpow', 'rdiv', 'rfloordiv', 'rmod'),
)
# Their second operand divides.
DIVISIONS = ('div', 'truediv', 'floor_divide', 'floordiv', 'remainder', 'mod', 'fmod')
# They give small numbers, but no zero.
POSITIVE = ('exp', 'rpow', 'sigmoid', 'softplus')
# What is computed element by element on the way there stays in float too.
ELEMENTWISE = (
    *('add', 'sub', 'rsub', 'mul', 'div', 'truediv', 'rdiv', 'neg', 'exp', 'sigmoid'),
    *('clamp', 'clip', 'clamp_min', 'clamp_max', 'masked_fill', 'where'),
    *('pow', 'root', 'rpow', 'square', 'sqrt', 'rsqrt', 'reciprocal', 'log', 'abs'),
    *('softplus', 'tanh', 'maximum', 'minimum', 'addcmul', 'lerp'),
)
# What normalizations written out by hand divide by. On a grid a small one would
# become zero.
STATISTICS = ('pow', 'root', 'square', 'sqrt', 'rsqrt', 'reciprocal')


class Op(NamedTuple):
    """A torch function in the engine's terms.

    Args:
        name (str): Canonical name; all spellings of a function share it.
        kind (str): One of the constants of this module.
        site (str): What call sites are named by; checkpoints hold it.
    """

    name: str
    kind: str
    site: str


def _spellings(name: str) -> list[Callable]:
    owners = (torch, F, Tensor, torch._C._nn)
    # F.max_pool2d is a dispatcher between two functions of other names.
    names = (
        name,
        f'{name}_',
        f'__{name}__',
        f'__i{name}__',
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
        *('reshape', 'view', 'view_as', 'reshape_as', 'flatten', 'unflatten'),
        *('permute', 'transpose', 'swapaxes', 'movedim', 't', 'contiguous', 'clone'),
        *('squeeze', 'unsqueeze', 'expand', 'expand_as', 'repeat', 'repeat_interleave'),
        *('chunk', 'split', 'unbind', 'getitem', 'narrow', 'select', 'index_select'),
        *('gather', 'flip', 'roll', 'tile', 'max_pool1d', 'max_pool2d', 'max_pool3d'),
        *('adaptive_max_pool1d', 'adaptive_max_pool2d', 'adaptive_max_pool3d'),
        *('pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle', 'unfold', 'pad'),
        *('float', 'to', 'type_as', 'broadcast_to', 'amax', 'masked_fill', 'dropout'),
        *('dropout2d', 'alias', 'detach'),
    ),
    COMPUTE: (
        'batch_norm',
        'sub',
        'mul',
        'div',
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
        'lerp',
        'addcmul',
        'maximum',
        'minimum',
        'grid_sample',
        'fold',
        'glu',
        'celu',
        'rsqrt',
        'reciprocal',
        'local_response_norm',
        'bilinear',
        'softmin',
    ),
}


# Other names of functions in the table, by which their sites are called.
_ALIASES = dict(
    divide='div',
    true_divide='div',
    multiply='mul',
    subtract='sub',
    negative='neg',
    absolute='abs',
    moveaxis='movedim',
    swapdims='transpose',
    expit='sigmoid',
)


def _getter(name: str) -> Callable:
    return getattr(Tensor, name).__get__


# Spellings with a name of their own: what they are, and the name of their sites.
# `1 / x` is a method of x, whose operands come the other way round.
_OTHERS: dict[Callable, Op] = {
    Tensor.__itruediv__: Op('truediv', COMPUTE, 'truediv'),
    Tensor.__radd__: Op('add', ADD, 'add'),
    Tensor.__rmul__: Op('mul', COMPUTE, 'mul'),
    Tensor.__rsub__: Op('rsub', COMPUTE, 'rsub'),
    torch.rsub: Op('rsub', COMPUTE, 'rsub'),
    Tensor.__rtruediv__: Op('rdiv', COMPUTE, 'truediv'),
    Tensor.__rpow__: Op('rpow', COMPUTE, 'pow'),
    Tensor.__rmatmul__: Op('rmatmul', MATMUL, 'matmul'),
    # `x.T` and the like are calls too, of a property's getter.
    _getter('T'): Op('T', PASS, 't'),
    _getter('mT'): Op('mT', PASS, 't'),
    _getter('data'): Op('detach', PASS, 't'),
}


def _build_table() -> dict[Callable, Op]:
    table = dict(_OTHERS)
    for kind, names in _TABLE.items():
        for name in names:
            op = Op(name, kind, name)
            for function in _spellings(name):
                if function in _OTHERS:
                    continue
                if table.setdefault(function, op) != op:
                    raise ValueError(f'{function} is {table[function]} and {op}')
    kinds = {name: kind for kind, names in _TABLE.items() for name in names}
    for alias, name in _ALIASES.items():
        op = Op(name, kinds[name], alias)
        special = getattr(torch.special, alias, None)
        for spelling in (*_spellings(alias), *([special] if special else ())):
            table.setdefault(spelling, op)
    return table


OPS = _build_table()
WRITTEN_OUT: dict[Callable, Callable] = {}
# What is written out, where it is one call all the same: in plans of versions that
# had it so, and (named otherwise) in a form that the version does not take.
EARLIER: dict[Callable, Op] = {
    function: Op(name, COMPUTE, name)
    for name in ('scaled_dot_product_attention', 'einsum', 'baddbmm', 'addmm')
    for function in _spellings(name)
}


def register(function: Callable, name: str, kind: str) -> Callable:
    """Adds a function of ours to the table.

    Args:
        function (Callable): Dispatches to torch function modes, as torch's do.
        name (str): Its canonical name.
        kind (str): Its kind.

    Returns:
        Callable: ``function``.
    """
    if function in OPS or function in WRITTEN_OUT:
        raise ValueError(f'{function} is in a table already')
    OPS[function] = Op(name, kind, name)
    return function


def write_out(function: Callable, version: Callable) -> None:
    """Has a function's calls replaced by a version of calls that the table has.

    Args:
        function (Callable): Of torch.
        version (Callable): Takes the same arguments, or returns ``NotImplemented``.
    """
    if function in OPS or function in WRITTEN_OUT:
        raise ValueError(f'{function} is in a table already')
    WRITTEN_OUT[function] = version


def tensor_inputs(op: Op, args: tuple, kwargs: dict) -> list[Tensor]:
    """The activations that a call consumes, in order, weights left out.

    Args:
        op (Op): What is called.
        args (tuple): Positional arguments of the call.
        kwargs (dict): Keyword arguments of the call.

    Returns:
        List[Tensor]: One entry for each activation operand.
    """
    if op.kind == CAT:
        return list(args[0] if args else kwargs['tensors'])
    return [
        args[place] if isinstance(place, int) else kwargs[place]
        for place in _operand_places(op, args, kwargs)
    ]


_ONE_INPUT = (
    *('layer_norm', 'group_norm', 'instance_norm', 'prelu', 'masked_softmax'),
    'grid_sample',  # the other says where
)


def places_of(op: Op, args: tuple, kwargs: dict) -> list[Any]:
    """Tensors of a call that say where it reads its operand, and None among them."""
    if op.kind == DEFORM_CONV:
        return list(args[3:5])
    if op.name == 'grid_sample':
        return [args[1] if len(args) > 1 else kwargs['grid']]
    return []


def _operand_places(op: Op, args: tuple, kwargs: dict) -> list[Union[int, str]]:
    """Where in a call its activations are: positions, and names of arguments."""
    first = next((key for key in ('input', 'self') if key in kwargs), None)
    others = [key for key in kwargs if key not in (first, 'out')]
    places: list[Any] = [*range(len(args)), *([first] if first else []), *others]
    if op.kind not in (ADD, MATMUL, COMPUTE) or op.name in _ONE_INPUT:
        return places[:1]
    items = [*args, *(kwargs[key] for key in places[len(args) :])]
    return [place for place, x in zip(places, items) if isinstance(x, Tensor)]


def replace_inputs(
    op: Op, args: tuple, kwargs: dict, tensors: list[Any]
) -> tuple[tuple, dict]:
    """The same call on other activations, those of :func:`tensor_inputs`."""
    if op.kind == CAT:
        new: Any = type(args[0])(tensors) if args else tensors
        if args:
            return (new,) + args[1:], kwargs
        return args, {**kwargs, 'tensors': new}
    items, named = list(args), dict(kwargs)
    for place, x in zip(_operand_places(op, args, kwargs), tensors):
        if isinstance(place, int):
            items[place] = x
        else:
            named[place] = x
    return tuple(items), named


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
    rest = kwargs and {
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
    if op.name == 'pad':
        mode = kwargs.get('mode', args[2] if len(args) > 2 else 'constant')
        value = kwargs.get('value', args[3] if len(args) > 3 else None)
        return OTHER if mode == 'constant' and value else op.kind
    if op.name in ('interpolate', 'upsample'):
        mode = kwargs.get('mode', args[3] if len(args) > 3 else 'nearest')
        return PASS if mode.startswith('nearest') else op.kind
    if op.name == 'masked_fill':
        value = kwargs.get('value', args[2] if len(args) > 2 else None)
        return PASS if not isinstance(value, Tensor) and value == 0 else OTHER
    return op.kind


def name_of(op: Op, args: tuple, kwargs: dict) -> str:
    """Name of a call's function, of powers by what they are of their operand."""
    if op.name != 'pow':
        return op.name
    if args and not isinstance(args[0], Tensor):
        return 'rpow'
    exponent = kwargs.get('exponent', args[1] if len(args) > 1 else None)
    is_smooth = isinstance(exponent, (int, float)) and exponent >= 1
    return 'pow' if is_smooth else 'root'


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
