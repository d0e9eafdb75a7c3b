"""Operators: the ONNX nodes of each torch function, one small function each.

To teach the exporter a function, register its nodes here::

    @translates('relu')
    def _relu(site, x, inplace=False):
        return site.node('Relu', x)

The arguments are those of the call; ``site.out`` is its result, for shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable, Union

import numpy as np
import torch
from torch import Tensor

from .graph_writer import GraphWriter, onnx_dtype

Names = Union[str, list]
TO_THE_END = np.iinfo(np.int64).max  # whatever the size is
TRANSLATIONS: dict[str, Callable] = {}


def translates(*names: str) -> Callable:
    """Registers how calls of the named torch functions are written.

    Args:
        *names (str): Canonical names, see :mod:`~mmquant_jacinto.ops`; for a
            function that is not in its table, the name without underscores.
    """

    def register(function: Callable) -> Callable:
        TRANSLATIONS.update(dict.fromkeys(names, function))
        return function

    return register


class SiteWriter:
    """Writes the nodes of one call.

    Args:
        writer (GraphWriter): The graph.
        name (str): Of the call site.
        out (Any): What the call returned.
        name_of (Callable): Tensor to the name it has in the graph, None for a
            constant.
    """

    def __init__(
        self, writer: GraphWriter, name: str, out: Any, name_of: Callable
    ) -> None:
        self.writer = writer
        self.name = name
        self.out = out
        self.name_of = name_of

    def value(self, x: Any, like: Tensor | None = None) -> str:
        """Name of an operand; numbers become constants of ``like``'s dtype."""
        if isinstance(x, str):
            return x
        if isinstance(x, Tensor):
            return self.name_of(x) or self.writer.constant(x, f'{self.name}:constant')
        dtype = self.out.dtype if like is None else like.dtype
        return self.writer.constant(torch.tensor(x, dtype=dtype))

    def ints(self, values: Any) -> str:
        """A constant of int64."""
        return self.writer.constant(np.asarray(values, np.int64), 'shape')

    def node(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Names:
        """Adds a node; operands may be tensors, numbers or names."""
        names = ['' if x is None else self.value(x) for x in inputs]
        return self.writer.node(op, names, self.name, outputs, **attributes)

    def cast(self, x: Any, dtype: torch.dtype) -> str:
        return self.node('Cast', x, to=onnx_dtype(dtype))

    def reshape(self, x: Any, shape: Sequence[int]) -> str:
        return self.node('Reshape', x, self.ints(list(shape)))


def _pair(value: Any, dims: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * dims if len(values) == 1 else values)]


def _axis(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


# --- layers


@translates('conv1d', 'conv2d', 'conv3d')
def _conv(site, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    dims = x.dim() - 2
    dilation, stride = _pair(dilation, dims), _pair(stride, dims)
    kernel = list(weight.shape[2:])
    if padding == 'valid':
        padding = 0
    if padding == 'same':
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        before = [t // 2 for t in total]
        pads = before + [t - b for t, b in zip(total, before)]
    else:
        pads = _pair(padding, dims) * 2
    return site.node(
        'Conv',
        x,
        weight,
        bias,
        kernel_shape=kernel,
        strides=stride,
        pads=pads,
        dilations=dilation,
        group=groups,
    )


@translates('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
def _conv_transpose(
    site,
    x,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    dims = x.dim() - 2
    return site.node(
        'ConvTranspose',
        x,
        weight,
        bias,
        kernel_shape=list(weight.shape[2:]),
        strides=_pair(stride, dims),
        pads=_pair(padding, dims) * 2,
        output_padding=_pair(output_padding, dims),
        dilations=_pair(dilation, dims),
        group=groups,
    )


@translates('linear')
def _linear(site, x, weight, bias=None):
    if x.dim() == 2:
        return site.node('Gemm', x, weight, bias, transB=1)
    flat = site.reshape(x, (-1, x.shape[-1]))
    out = site.node('Gemm', flat, weight, bias, transB=1)
    return site.reshape(out, site.out.shape)


@translates('matmul', 'bmm', 'mm')
def _matmul(site, x, y):
    return site.node('MatMul', x, y)


@translates('baddbmm')
def _baddbmm(site, x, first, second, *, beta=1, alpha=1):
    product = site.node('MatMul', first, second)
    if alpha != 1:
        product = site.node('Mul', product, alpha)
    return site.node('Add', product, x if beta == 1 else site.node('Mul', x, beta))


@translates('addmm')
def _addmm(site, x, first, second, *, beta=1, alpha=1):
    return _baddbmm(site, x, first, second, beta=beta, alpha=alpha)


@translates('einsum')
def _einsum(site, equation, *operands):
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = operands[0]
    return site.node('Einsum', *operands, equation=equation.replace(' ', ''))


# --- normalization


@translates('batch_norm')
def _batch_norm(
    site,
    x,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    ones = torch.ones_like(running_mean)
    weight = ones if weight is None else weight
    bias = torch.zeros_like(running_mean) if bias is None else bias
    return site.node(
        'BatchNormalization', x, weight, bias, running_mean, running_var, epsilon=eps
    )


@translates('layer_norm')
def _layer_norm(site, x, normalized_shape, weight=None, bias=None, eps=1e-5):
    weight = torch.ones(tuple(normalized_shape)) if weight is None else weight
    return site.node(
        'LayerNormalization', x, weight, bias, axis=-len(normalized_shape), epsilon=eps
    )


@translates('group_norm')
def _group_norm(site, x, num_groups, weight=None, bias=None, eps=1e-5):
    # As ONNX had it before opset 21 had one that fits: instances of groups.
    grouped = site.reshape(x, (x.shape[0], num_groups, -1))
    ones, zeros = torch.ones(num_groups), torch.zeros(num_groups)
    out = site.node('InstanceNormalization', grouped, ones, zeros, epsilon=eps)
    out = site.reshape(out, x.shape)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    if weight is not None:
        out = site.node('Mul', out, weight.view(shape))
    return out if bias is None else site.node('Add', out, bias.view(shape))


@translates('instance_norm')
def _instance_norm(
    site,
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    channels = x.shape[1]
    weight = torch.ones(channels) if weight is None else weight
    bias = torch.zeros(channels) if bias is None else bias
    return site.node('InstanceNormalization', x, weight, bias, epsilon=eps)


@translates('normalize')
def _normalize(site, x, p=2.0, dim=1, eps=1e-12):
    norm = site.node(
        'ReduceL2' if p == 2 else 'ReduceL1', x, axes=[_axis(dim, x.dim())]
    )
    return site.node('Div', x, site.node('Max', norm, eps))


# --- activations


@translates('relu')
def _relu(site, x, inplace=False):
    return site.node('Relu', x)


@translates('relu6')
def _relu6(site, x, inplace=False):
    return site.node('Clip', x, 0.0, 6.0)


@translates('hardtanh')
def _hardtanh(site, x, min_val=-1.0, max_val=1.0, inplace=False):
    return site.node('Clip', x, float(min_val), float(max_val))


@translates('clamp', 'clip')
def _clamp(site, x, min=None, max=None):
    return site.node('Clip', x, min, max)


@translates('clamp_min')
def _clamp_min(site, x, min):
    return site.node('Clip', x, min, None)


@translates('clamp_max')
def _clamp_max(site, x, max):
    return site.node('Clip', x, None, max)


@translates('sigmoid')
def _sigmoid(site, x):
    return site.node('Sigmoid', x)


@translates('silu')
def _silu(site, x, inplace=False):
    return site.node('Mul', x, site.node('Sigmoid', x))


@translates('logsigmoid')
def _logsigmoid(site, x):
    return site.node('Log', site.node('Sigmoid', x))


@translates('tanh')
def _tanh(site, x):
    return site.node('Tanh', x)


@translates('hardsigmoid')
def _hardsigmoid(site, x, inplace=False):
    return site.node('HardSigmoid', x, alpha=1 / 6, beta=0.5)


@translates('hardswish')
def _hardswish(site, x, inplace=False):
    return site.node('HardSwish', x)


@translates('leaky_relu')
def _leaky_relu(site, x, negative_slope=0.01, inplace=False):
    return site.node('LeakyRelu', x, alpha=negative_slope)


@translates('prelu')
def _prelu(site, x, weight):
    slope = weight.view((-1,) + (1,) * (x.dim() - 2)) if weight.numel() > 1 else weight
    return site.node('PRelu', x, slope)


@translates('elu')
def _elu(site, x, alpha=1.0, inplace=False):
    return site.node('Elu', x, alpha=float(alpha))


@translates('celu')
def _celu(site, x, alpha=1.0, inplace=False):
    return site.node('Celu', x, alpha=float(alpha))


@translates('selu')
def _selu(site, x, inplace=False):
    return site.node('Selu', x)


@translates('softplus')
def _softplus(site, x, beta=1, threshold=20):
    if beta == 1:
        return site.node('Softplus', x)
    scaled = site.node('Mul', x, float(beta))
    return site.node('Div', site.node('Softplus', scaled), float(beta))


@translates('mish')
def _mish(site, x, inplace=False):
    return site.node('Mul', x, site.node('Tanh', site.node('Softplus', x)))


@translates('gelu')
def _gelu(site, x, approximate='none'):
    if approximate == 'tanh':
        cube = site.node('Mul', site.node('Mul', x, x), x)
        inner = site.node('Add', x, site.node('Mul', cube, 0.044715))
        inner = site.node('Tanh', site.node('Mul', inner, math.sqrt(2 / math.pi)))
    else:
        inner = site.node('Erf', site.node('Div', x, math.sqrt(2)))
    gate = site.node('Mul', site.node('Add', inner, 1.0), 0.5)
    return site.node('Mul', x, gate)


@translates('glu')
def _glu(site, x, dim=-1):
    axis = _axis(dim, x.dim())
    first, second = site.node('Split', x, outputs=2, axis=axis)
    return site.node('Mul', first, site.node('Sigmoid', second))


@translates('softmax')
def _softmax(site, x, dim=None, _stacklevel=3, dtype=None):
    return site.node('Softmax', x, axis=_axis(dim, x.dim()))


@translates('masked_softmax')
def _masked_softmax(site, scores, scale, mask, safe=False):
    if scale != 1:
        scores = site.node('Mul', scores, float(scale))
    if mask is not None:
        scores = site.node('Add', scores, mask)
    weights = site.node('Softmax', scores, axis=-1)
    empty = None if mask is None else (mask == -math.inf).all(-1, keepdim=True)
    if not safe or empty is None or not empty.any():
        return weights
    return site.node('Where', empty, site.value(0.0), weights)


@translates('softmin')
def _softmin(site, x, dim=None, _stacklevel=3, dtype=None):
    return site.node('Softmax', site.node('Neg', x), axis=_axis(dim, x.dim()))


@translates('log_softmax')
def _log_softmax(site, x, dim=None, _stacklevel=3, dtype=None):
    return site.node('LogSoftmax', x, axis=_axis(dim, x.dim()))


# --- arithmetic


def _unary(op: str) -> Callable:
    return lambda site, x: site.node(op, x)


for _name, _op in {
    'neg': 'Neg',
    'exp': 'Exp',
    'log': 'Log',
    'sqrt': 'Sqrt',
    'abs': 'Abs',
    'reciprocal': 'Reciprocal',
    'floor': 'Floor',
    'ceil': 'Ceil',
    'round': 'Round',
    'sin': 'Sin',
    'cos': 'Cos',
    'erf': 'Erf',
    'sign': 'Sign',
    'logical_not': 'Not',
    'invert': 'Not',
}.items():
    TRANSLATIONS[_name] = _unary(_op)


def _binary(op: str) -> Callable:
    def translate(site, x, y, *, alpha=1, rounding_mode=None):
        if rounding_mode is not None:
            raise NotImplementedError(f'rounding_mode={rounding_mode!r}')
        first, second = _operands(site, x, y)
        if alpha != 1:
            second = site.node('Mul', second, alpha)
        return site.node(op, first, second)

    return translate


def _operands(site: SiteWriter, x: Any, y: Any) -> tuple[str, str]:
    """Both operands, of one dtype: ONNX promotes none."""
    tensors = [item for item in (x, y) if isinstance(item, Tensor)]
    dtype = torch.result_type(x, y)
    names = []
    for item in (x, y):
        if not isinstance(item, Tensor):
            names.append(site.writer.constant(torch.tensor(item, dtype=dtype)))
        elif item.dtype != dtype:
            names.append(site.cast(item, dtype))
        else:
            names.append(site.value(item))
    assert tensors
    return names[0], names[1]


for _name, _op in {
    'add': 'Add',
    'sub': 'Sub',
    'mul': 'Mul',
    'div': 'Div',
    'truediv': 'Div',
    'maximum': 'Max',
    'minimum': 'Min',
    'lt': 'Less',
    'gt': 'Greater',
    'le': 'LessOrEqual',
    'ge': 'GreaterOrEqual',
    'eq': 'Equal',
    'logical_and': 'And',
    'logical_or': 'Or',
}.items():
    TRANSLATIONS[_name] = _binary(_op)


@translates('rsub')
def _rsub(site, x, y, *, alpha=1):
    second, first = _operands(site, x, y)
    return site.node('Sub', first, second)


@translates('square')
def _square(site, x):
    return site.node('Mul', x, x)


@translates('pow')
def _pow(site, x, exponent):
    if not isinstance(exponent, Tensor) and exponent == 2:
        return site.node('Mul', x, x)
    return site.node('Pow', *_operands(site, x, exponent))


@translates('rsqrt')
def _rsqrt(site, x):
    return site.node('Reciprocal', site.node('Sqrt', x))


@translates('lerp')
def _lerp(site, x, end, weight):
    return site.node('Add', x, site.node('Mul', site.node('Sub', end, x), weight))


@translates('addcmul')
def _addcmul(site, x, first, second, *, value=1):
    product = site.node('Mul', first, second)
    if value != 1:
        product = site.node('Mul', product, float(value))
    return site.node('Add', x, product)


@translates('where')
def _where(site, condition, x, y):
    return site.node('Where', condition, x, y)


@translates('masked_fill')
def _masked_fill(site, x, mask, value):
    return site.node('Where', mask, site.value(value, like=x), x)


def _reduce(op: str) -> Callable:
    def translate(site, x, dim=None, keepdim=False, *, dtype=None):
        dims = range(x.dim()) if dim is None else _pair(dim, 1)
        axes = [_axis(d, x.dim()) for d in dims]
        if op == 'Mean' and axes == [2, 3] and x.dim() == 4:
            pooled = site.node('GlobalAveragePool', x)
            return pooled if keepdim else site.reshape(pooled, site.out.shape)
        if op == 'Sum':
            return site.node('ReduceSum', x, site.ints(axes), keepdims=int(keepdim))
        return site.node(f'Reduce{op}', x, axes=axes, keepdims=int(keepdim))

    return translate


for _name, _op in {
    'mean': 'Mean',
    'sum': 'Sum',
    'amax': 'Max',
    'amin': 'Min',
}.items():
    TRANSLATIONS[_name] = _reduce(_op)


@translates('scaled_dot_product_attention')
def _attention(
    site,
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    if is_causal or enable_gqa:
        raise NotImplementedError('causal or grouped attention')
    rank = key.dim()
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = site.node('MatMul', query, site.node('Transpose', key, perm=order))
    scores = site.node('Mul', scores, scale or query.shape[-1] ** -0.5)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = site.node('Where', attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = site.node('Add', scores, attn_mask)
    return site.node('MatMul', site.node('Softmax', scores, axis=-1), value)


# --- pooling and resizing


@translates('max_pool1d', 'max_pool2d', 'max_pool3d')
def _max_pool(
    site,
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
):
    dims = _pooled_dims(site)
    return site.node(
        'MaxPool',
        x,
        kernel_shape=_pair(kernel_size, dims),
        strides=_pair(stride or kernel_size, dims),
        pads=_pair(padding, dims) * 2,
        dilations=_pair(dilation, dims),
        ceil_mode=int(ceil_mode),
    )


def _pooled_dims(site: SiteWriter) -> int:
    out = site.out[0] if isinstance(site.out, tuple) else site.out
    return out.dim() - 2


@translates('avg_pool1d', 'avg_pool2d', 'avg_pool3d')
def _avg_pool(
    site,
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    if divisor_override is not None:
        raise NotImplementedError('divisor_override')
    dims = _pooled_dims(site)
    return site.node(
        'AveragePool',
        x,
        kernel_shape=_pair(kernel_size, dims),
        strides=_pair(stride or kernel_size, dims),
        pads=_pair(padding, dims) * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )


def _adaptive(kind: str) -> Callable:
    def translate(site, x, output_size, return_indices=False):
        dims = _pooled_dims(site)
        given = _pair(output_size, dims)
        sizes = [n if t is None else t for t, n in zip(given, x.shape[2:])]
        if all(size == 1 for size in sizes):
            return site.node(f'Global{kind}', x)
        if any(n % size for n, size in zip(x.shape[2:], sizes)):
            raise NotImplementedError(
                f'adaptive pooling from {tuple(x.shape[2:])} to {tuple(sizes)}'
            )
        kernel = [n // size for n, size in zip(x.shape[2:], sizes)]
        return site.node(kind, x, kernel_shape=kernel, strides=kernel)

    return translate


for _dims in (1, 2, 3):
    TRANSLATIONS[f'adaptive_avg_pool{_dims}d'] = _adaptive('AveragePool')
    TRANSLATIONS[f'adaptive_max_pool{_dims}d'] = _adaptive('MaxPool')


@translates('interpolate', 'upsample')
def _interpolate(
    site,
    x,
    size=None,
    scale_factor=None,
    mode='nearest',
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    if antialias:
        raise NotImplementedError('antialias')
    if mode == 'nearest':
        options = dict(
            coordinate_transformation_mode='asymmetric', nearest_mode='floor'
        )
    elif mode == 'nearest-exact':
        options = dict(
            coordinate_transformation_mode='half_pixel',
            nearest_mode='round_prefer_ceil',
        )
    else:
        way = 'align_corners' if align_corners else 'pytorch_half_pixel'
        options = dict(coordinate_transformation_mode=way)
        if mode == 'bicubic':
            options['cubic_coeff_a'] = -0.75
    kind = 'nearest' if mode.startswith('nearest') else 'linear'
    kind = 'cubic' if mode == 'bicubic' else kind
    source, target = x.shape[2:], site.out.shape[2:]
    if all(t % s == 0 for s, t in zip(source, target)):
        scales = [1.0, 1.0, *(float(t // s) for s, t in zip(source, target))]
        scales = site.writer.constant(np.asarray(scales, np.float32), 'scales')
        return site.node('Resize', x, None, scales, mode=kind, **options)
    sizes = site.ints(list(site.out.shape))
    return site.node('Resize', x, None, None, sizes, mode=kind, **options)


@translates('grid_sample')
def _grid_sample(
    site, x, grid, mode='bilinear', padding_mode='zeros', align_corners=None
):
    return site.node(
        'GridSample',
        x,
        grid,
        mode=mode,
        padding_mode=padding_mode,
        align_corners=int(bool(align_corners)),
    )


# --- moving elements


@translates(
    'reshape',
    'view',
    'flatten',
    'unflatten',
    'view_as',
    'reshape_as',
    'squeeze',
    'unsqueeze',
)
def _reshape(site, x, *args, **kwargs):
    return site.reshape(x, site.out.shape)


@translates('permute')
def _permute(site, x, *dims):
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = dims[0]
    return site.node('Transpose', x, perm=[_axis(d, x.dim()) for d in dims])


@translates('transpose', 'swapaxes')
def _transpose(site, x, dim0, dim1):
    order = list(range(x.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return site.node('Transpose', x, perm=order)


@translates('t')
def _t(site, x):
    return site.node('Transpose', x, perm=list(range(x.dim()))[::-1])


@translates('movedim')
def _movedim(site, x, source, destination):
    order = torch.arange(x.dim()).movedim(0, 0).tolist()
    moved = torch.empty(tuple(range(2, 2 + x.dim()))).movedim(source, destination)
    order = [size - 2 for size in moved.shape]
    return site.node('Transpose', x, perm=order)


@translates(
    'contiguous',
    'clone',
    'dropout',
    'dropout2d',
    'alias',
    'detach',
    'requires_grad',
    'identity',
    'channels_last',
)
def _identity(site, x, *args, **kwargs):
    return site.value(x)


@translates('float', 'to', 'type_as', 'half', 'double', 'long', 'int', 'bool', 'type')
def _to(site, x, *args, **kwargs):
    return site.value(x) if site.out.dtype == x.dtype else site.cast(x, site.out.dtype)


@translates('expand', 'expand_as', 'broadcast_to')
def _expand(site, x, *args, **kwargs):
    return site.node('Expand', x, site.ints(list(site.out.shape)))


@translates('repeat', 'tile')
def _repeat(site, x, *args, **kwargs):
    missing = site.out.dim() - x.dim()
    shape = [1] * missing + list(x.shape)
    if missing:
        x = site.reshape(x, shape)
    times = [o // n if n else 1 for o, n in zip(site.out.shape, shape)]
    return site.node('Tile', x, site.ints(times))


@translates('cat', 'concat', 'concatenate')
def _cat(site, tensors, dim=0, **kwargs):
    axis = kwargs.get('axis', dim)
    kept = [x for x in tensors if not (x.dim() == 1 and x.numel() == 0)]
    return site.node('Concat', *kept, axis=_axis(axis, site.out.dim()))


@translates('stack')
def _stack(site, tensors, dim=0):
    axis = _axis(dim, site.out.dim())
    shape = list(site.out.shape)
    shape[axis] = 1
    return site.node('Concat', *[site.reshape(x, shape) for x in tensors], axis=axis)


@translates('chunk', 'split', 'split_with_sizes', 'tensor_split')
def _split(site, x, sections=None, dim=0, **kwargs):
    axis = _axis(dim, x.dim())
    sizes = [part.shape[axis] for part in site.out]
    if len(sizes) == 1:
        return [site.value(x)]
    return site.node('Split', x, site.ints(sizes), outputs=len(sizes), axis=axis)


@translates('unbind')
def _unbind(site, x, dim=0):
    axis = _axis(dim, x.dim())
    return [
        site.node('Gather', x, site.ints(i), axis=axis) for i in range(len(site.out))
    ]


@translates('narrow')
def _narrow(site, x, dim, start, length):
    return _slice(site, x, [_axis(dim, x.dim())], [start], [start + length], [1])


@translates('select')
def _select(site, x, dim, index):
    return site.node('Gather', x, site.ints(index), axis=_axis(dim, x.dim()))


@translates('index_select')
def _index_select(site, x, dim, index):
    return site.node('Gather', x, index, axis=_axis(dim, x.dim()))


@translates('gather')
def _gather(site, x, dim, index, *, sparse_grad=False):
    return site.node('GatherElements', x, index, axis=_axis(dim, x.dim()))


@translates('topk')
def _topk(site, x, k, dim=-1, largest=True, sorted=True):
    axis = _axis(dim, x.dim())
    return site.node(
        'TopK', x, site.ints([k]), outputs=2, axis=axis, largest=int(largest)
    )


def _slice(site, x, axes, starts, ends, steps):
    return site.node('Slice', x, *map(site.ints, (starts, ends, axes, steps)))


@translates('getitem')
def _getitem(site, x, index):
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in items if not isinstance(item, Tensor)]:
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        used = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (x.dim() - used)
    axes, starts, ends, steps = [], [], [], []
    indexed: dict[int, Tensor] = {}
    axis = 0
    for item in items:
        if item is None:
            continue
        if isinstance(item, Tensor):
            if item.dtype == torch.bool:
                raise NotImplementedError('indexing by a mask')
            indexed[axis] = item
        elif isinstance(item, int):
            start = _axis(item, x.shape[axis])
            axes.append(axis), starts.append(start), ends.append(start + 1)
            steps.append(1)
        elif item != slice(None):
            start, end, step = item.indices(x.shape[axis])
            if item.stop is None and step > 0:
                end = TO_THE_END
            axes.append(axis), starts.append(start), ends.append(end)
            steps.append(step)
        axis += 1
    if len(indexed) > 1:
        raise NotImplementedError('indexing by several tensors')
    out = site.value(x)
    if axes:
        out = _slice(site, out, axes, starts, ends, steps)
    for axis, item in indexed.items():
        out = site.node('Gather', out, item, axis=axis)
        if any(isinstance(other, int) for other in items):
            return site.reshape(out, site.out.shape)
    kept = any(item is None or isinstance(item, int) for item in items)
    return site.reshape(out, site.out.shape) if kept else out


@translates('flip')
def _flip(site, x, *dims):
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    axes = [_axis(d, x.dim()) for d in dims]
    low = [np.iinfo(np.int64).min] * len(axes)
    return _slice(site, x, axes, [-1] * len(axes), low, [-1] * len(axes))


@translates('roll')
def _roll(site, x, shifts, dims):
    out = site.value(x)
    for shift, dim in zip(_pair(shifts, 1), _pair(dims, 1)):
        axis = _axis(dim, x.dim())
        cut = -shift % x.shape[axis]
        if cut:
            tail = _slice(site, out, [axis], [cut], [x.shape[axis]], [1])
            head = _slice(site, out, [axis], [0], [cut], [1])
            out = site.node('Concat', tail, head, axis=axis)
    return out


@translates('pad')
def _pad(site, x, pad, mode='constant', value=None):
    before, after = [0] * x.dim(), [0] * x.dim()
    for i in range(len(pad) // 2):
        before[-1 - i], after[-1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    mode = {'replicate': 'edge', 'circular': 'wrap'}.get(mode, mode)
    fill = [float(value)] if value else []
    return site.node('Pad', x, site.ints(before + after), *fill, mode=mode)


@translates('unfold')
def _unfold(site, x, kernel_size, dilation=1, padding=0, stride=1):
    if site.out.dim() != 3 or any(_pair(padding, 2)):
        raise NotImplementedError('Tensor.unfold, or padding')
    (rows, columns), (down, right) = _pair(kernel_size, 2), _pair(stride, 2)
    spread_y, spread_x = _pair(dilation, 2)
    batch, channels, height, width = x.shape
    high = (height - spread_y * (rows - 1) - 1) // down + 1
    wide = (width - spread_x * (columns - 1) - 1) // right + 1
    taps = []
    for i in range(rows):
        for j in range(columns):
            starts = [i * spread_y, j * spread_x]
            ends = [
                starts[0] + down * (high - 1) + 1,
                starts[1] + right * (wide - 1) + 1,
            ]
            tap = _slice(site, x, [2, 3], starts, ends, [down, right])
            taps.append(site.reshape(tap, (batch, channels, 1, high * wide)))
    out = site.node('Concat', *taps, axis=2)
    return site.reshape(out, site.out.shape)


@translates('pixel_shuffle')
def _pixel_shuffle(site, x, upscale_factor):
    return site.node('DepthToSpace', x, blocksize=upscale_factor, mode='CRD')


@translates('pixel_unshuffle')
def _pixel_unshuffle(site, x, downscale_factor):
    n, c, h, w = x.shape
    r = downscale_factor
    out = site.reshape(x, (n, c, h // r, r, w // r, r))
    out = site.node('Transpose', out, perm=[0, 1, 3, 5, 2, 4])
    return site.reshape(out, site.out.shape)


@translates('channel_shuffle')
def _channel_shuffle(site, x, groups):
    n, c, h, w = x.shape
    out = site.reshape(x, (n, groups, c // groups, h, w))
    out = site.node('Transpose', out, perm=[0, 2, 1, 3, 4])
    return site.reshape(out, x.shape)
