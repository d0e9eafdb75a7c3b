"""TIDL's limits of shapes and attributes, operator by operator.

``docs/operators.md`` of TexasInstruments/edgeai-tidl-tools, section "Operators
Supported", in its order. A node that breaks one "will execute on cortex-A core".
"""

from __future__ import annotations

import math

from . import predicates as ask
from .table import Facts, Limit, Source

LIMITS_SOURCE = Source(
    'edgeai-tidl-tools docs/operators.md, Operators Supported', '238cb8b'
)

# In the order of the document's table; several names of ONNX may be one layer.
OPERATORS = tuple(
    (
        'Conv AveragePool GlobalAveragePool MaxPool Relu PRelu Max Sum Add Mul Div Sub '
        'Min Gemm MatMul Softmax BatchNormalization ConvTranspose Concat Slice Split '
        'Flatten ArgMin ArgMax Upsample Resize DepthToSpace Sigmoid Pad ReduceMin '
        'ReduceMax ScatterND ScatterElements Squeeze Tanh HardSigmoid Elu Reshape '
        'Gather Transpose LayerNormalization GridSample TopK DeformConv Clip LeakyRelu '
        'Erf Identity DequantizeLinear QuantizeLinear Sqrt ReduceMean ReduceSum Pow '
        'Cast Asin Asinh HardSwish Mish Log Unsqueeze Abs Floor Exp Sin '
        'InstanceNormalization SpaceToDepth Acos Atan Sinh Neg Cos Cosh Tan Expand '
        'Constant'
    ).split()
)

_HALF_PIXEL = ('half_pixel', 'pytorch_half_pixel')
# Height and width of the kernel, and the stride.
_DEPTHWISE = frozenset(
    ((1, 3, 1), (3, 3, 1), (3, 3, 2), (5, 5, 1), (5, 5, 2), (7, 7, 1), (7, 7, 2))
)


def _depthwise(facts: Facts) -> ask.Verdict:
    if not ask.is_depthwise(facts):
        return True
    kernel, strides = ask.window(facts)
    return (*kernel, *strides[:1]) in _DEPTHWISE


def _large_kernels(facts: Facts) -> ask.Verdict:
    kernel, strides = ask.window(facts)
    return not (2 in strides and max(kernel, default=1) > 7)


def _stride_of_4(facts: Facts) -> ask.Verdict:
    kernel, strides = ask.window(facts)
    return 4 not in strides or kernel == [11, 11]


def _pool_window(facts: Facts) -> ask.Verdict:
    kernel, strides = ask.window(facts)
    sizes, steps = set(kernel), set(strides)
    if len(sizes) != 1 or len(steps) != 1:
        return False
    (size,), (step,) = sizes, steps
    return size in (1, 2, 3) and step in (1, 2) and (size, step) != (2, 1)


def _plane(facts: Facts) -> ask.Verdict:
    shape = facts.shape()
    if shape is None or None in shape[2:]:
        return None
    return math.prod(int(n or 0) for n in shape[2:]) <= 1024


def _constant_beside_known(facts: Facts) -> ask.Verdict:
    constants = [facts.constant(i) is not None for i in range(facts.count())]
    if not any(constants) or all(constants):
        return True
    return facts.has_stored_shape(constants.index(False))


def _deconvolution(facts: Facts) -> ask.Verdict:
    kernel, strides = ask.window(facts)
    return set(strides) == {2} and len(set(kernel)) == 1 and kernel[0] in (2, 3, 4)


def _resized_axes(facts: Facts) -> ask.Verdict:
    scales = ask.resize_scales(facts)
    return None if scales is None else all(n == 1 for n in scales[:-2])


def _resize_factors(facts: Facts) -> ask.Verdict:
    scales = ask.resize_scales(facts)
    if scales is None:
        return None
    height, width = scales[-2:]
    return height == width and height >= 1 and math.log2(height).is_integer()


def _resize_mode(facts: Facts) -> ask.Verdict:
    mode = facts.get('mode', 'nearest')
    where = facts.get('coordinate_transformation_mode', 'half_pixel')
    if mode == 'linear':
        return where in _HALF_PIXEL
    nearest = facts.get('nearest_mode', 'round_prefer_floor')
    return mode == 'nearest' and (
        (where in _HALF_PIXEL and nearest == 'round_prefer_ceil')
        or (where == 'asymmetric' and nearest == 'floor')
    )


def _padded_axes(facts: Facts) -> ask.Verdict:
    pads = facts.constant(1) if facts.count() > 1 else facts.get('pads')
    if pads is None:
        return None
    pads, half = list(pads), len(pads) // 2
    return not any(pads[: half - 2]) and not any(pads[half:-2])


def _pad_value(facts: Facts) -> ask.Verdict:
    value = facts.constant(2) if facts.count() > 2 else None
    return facts.get('mode', 'constant') == 'constant' and not (
        value is not None and value.any()
    )


def _reduced_height(facts: Facts) -> ask.Verdict:
    axes = facts.constant(1) if facts.count() > 1 else facts.get('axes')
    shape = facts.shape()
    if axes is None or shape is None:
        return None
    rank = len(shape)
    return [int(axis) % rank for axis in axes] == [rank - 2]


def _clip_bounds(facts: Facts) -> ask.Verdict:
    bounds = [facts.constant(i) if facts.count() > i else None for i in (1, 2)]
    low, high = (None if b is None or not b.size else float(b) for b in bounds)
    return (low is None or low <= 0) and (high is None or high > 0)


def _transposed_width(facts: Facts) -> ask.Verdict:
    order = facts.get('perm') or []
    return len(order) <= 4 or order.index(len(order) - 1) > 1


def _batch_of_1(facts: Facts) -> ask.Verdict:
    shape = facts.shape()
    return None if shape is None or shape[0] is None else shape[0] == 1


def _scalar_power(facts: Facts) -> ask.Verdict:
    power = facts.constant(1)
    return power is not None and power.size == 1


def _bias_width(facts: Facts) -> ask.Verdict:
    bias, shape = facts.constant(2), facts.output_shape()
    if facts.count() < 3 or bias is None or shape is None:
        return None if facts.count() > 2 else True
    return bias.size == shape[-1]


def _only_grids(facts: Facts) -> ask.Verdict:
    scale = facts.constant(1)
    if scale is None or scale.size == 1 or facts.constant(0) is not None:
        return True  # per-channel weights are what the quantization table asks for
    return facts.get('axis', 1) == 1


def _row(operators: str, right: str, holds: ask.Callable, *shows: str) -> Limit:
    return Limit(tuple(operators.split()), LIMITS_SOURCE, right, holds, shows)


_SIX = 'Softmax Concat Flatten Sigmoid Tanh HardSigmoid Elu Transpose Clip LeakyRelu'
_FOUR = 'Conv AveragePool GlobalAveragePool MaxPool Gemm MatMul ConvTranspose Resize'

LIMITS: tuple[Limit, ...] = (
    _row('Conv ConvTranspose', 'a constant weight', ask.has_constants(1)),
    _row('Conv', 'equal strides', ask.equal_strides, 'strides'),
    _row(
        'Conv',
        'depthwise: 1x3s1, 3x3s1, 3x3s2, 5x5s1, 5x5s2, 7x7s1 or 7x7s2',
        _depthwise,
        *('kernel_shape', 'strides', 'group'),
    ),
    _row(
        'Conv',
        'kernels up to 7 with stride 2',
        _large_kernels,
        *('kernel_shape', 'strides'),
    ),
    _row(
        'Conv',
        'stride 4 with 11 x 11 kernels alone',
        _stride_of_4,
        *('kernel_shape', 'strides'),
    ),
    _row(
        'AveragePool MaxPool',
        'kernel 1, 2 or 3 and stride 1 or 2, but not 2 with stride 1',
        _pool_window,
        *('kernel_shape', 'strides'),
    ),
    _row(
        'AveragePool MaxPool ConvTranspose',
        'dilations of 1',
        ask.all_ones('dilations'),
        'dilations',
    ),
    _row('GlobalAveragePool', 'up to 1024 positions', _plane, 'shape'),
    _row(
        'Max Add Mul Div Sub Min',
        'two operands',
        lambda facts: facts.count() == 2,
    ),
    _row(
        'Max Add Mul Div Sub Min',
        'beside a constant a tensor whose shape the file gives (shape inference)',
        _constant_beside_known,
    ),
    _row('Gemm', 'transA = 0', ask.is_one_of('transA', (0,), 0), 'transA'),
    _row('Gemm', 'alpha = 1', ask.is_one_of('alpha', (1.0,), 1.0), 'alpha'),
    _row('Gemm', 'beta = 1', ask.is_one_of('beta', (1.0,), 1.0), 'beta'),
    _row('Gemm', 'a constant weight', ask.has_constants(1)),
    _row('Gemm', 'a bias as wide as the output', _bias_width),
    _row(
        'Softmax',
        'along the last two axes',
        ask.on_last_axes('axis', 2, -1),
        *('axis', 'shape'),
    ),
    _row(
        'BatchNormalization',
        'constant scale, bias, mean and variance',
        ask.has_constants(1, 2, 3, 4),
    ),
    _row(
        'BatchNormalization',
        'training_mode = 0',
        ask.is_one_of('training_mode', (0,), 0),
        'training_mode',
    ),
    _row(
        'ConvTranspose',
        '2 x 2, 3 x 3 or 4 x 4 kernels with stride 2',
        _deconvolution,
        *('kernel_shape', 'strides'),
    ),
    _row(
        'Concat',
        'along the last three axes',
        ask.on_last_axes('axis', 3, 0),
        *('axis', 'shape'),
    ),
    _row('Slice Split', 'four dimensions', ask.has_rank(4), 'shape'),
    _row('Slice Split', 'batch 1', _batch_of_1, 'shape'),
    _row('Slice', 'steps of 1', ask.slice_steps, 'operand 4'),
    _row('ArgMin ArgMax', 'keepdims = 1', ask.is_one_of('keepdims', (1,), 1)),
    _row('ArgMin ArgMax', 'axis = -3', ask.is_one_of('axis', (-3,), 0), 'axis'),
    _row('Resize Upsample', 'along height and width', _resized_axes, 'shape'),
    _row(
        'Resize Upsample',
        'one power of two, at least 1, for height and width',
        _resize_factors,
        *('operand 2', 'shape'),
    ),
    _row(
        'Resize',
        'nearest with asymmetric and floor, or half_pixel and round_prefer_ceil; '
        'linear with half_pixel',
        _resize_mode,
        *('mode', 'coordinate_transformation_mode', 'nearest_mode'),
    ),
    _row('Resize', 'antialias = 0', ask.is_one_of('antialias', (0,), 0)),
    _row(
        'Resize',
        "keep_aspect_ratio_policy = 'stretch'",
        ask.is_one_of('keep_aspect_ratio_policy', ('stretch',), 'stretch'),
        'keep_aspect_ratio_policy',
    ),
    _row('DepthToSpace SpaceToDepth', 'four dimensions', ask.has_rank(4), 'shape'),
    _row('Pad', 'height and width alone', _padded_axes, 'operand 1'),
    _row('Pad', 'zeros', _pad_value, *('mode', 'operand 2')),
    _row('ReduceMin ReduceMax', 'along the height', _reduced_height, 'axes'),
    _row(
        'ReduceMin ReduceMax',
        'keepdims = 1',
        ask.is_one_of('keepdims', (1,), 1),
        'keepdims',
    ),
    _row('Reshape', 'a constant shape', ask.has_constants(1)),
    _row('Reshape', 'allowzero = 0', ask.is_one_of('allowzero', (0,), 0)),
    _row(
        'Gather',
        'variable data and constant indices',
        lambda facts: facts.constant(0) is None and facts.constant(1) is not None,
    ),
    _row(
        'Transpose',
        'above four dimensions: the width not among the first two',
        _transposed_width,
        'perm',
    ),
    _row(
        'LayerNormalization',
        'along the width',
        ask.on_last_axes('axis', 1, -1),
        *('axis', 'shape'),
    ),
    _row(
        'GridSample',
        'nearest or bilinear',
        ask.is_one_of('mode', ('nearest', 'bilinear', 'linear'), 'bilinear'),
        'mode',
    ),
    _row(
        'GridSample',
        'zeros outside',
        ask.is_one_of('padding_mode', ('zeros',), 'zeros'),
        'padding_mode',
    ),
    _row('TopK', 'sorted = 1', ask.is_one_of('sorted', (1,), 1), 'sorted'),
    _row('TopK', 'a constant K', ask.has_constants(1)),
    _row('TopK', 'along the last two axes', ask.on_last_axes('axis', 2, -1), 'axis'),
    _row(
        'DeformConv',
        '3 x 3 with stride 1',
        lambda facts: ask.window(facts) == ([3, 3], [1, 1]),
        *('kernel_shape', 'strides'),
    ),
    _row('Clip', 'min <= 0 < max', _clip_bounds, *('operand 1', 'operand 2')),
    _row('Pow', 'one constant exponent', _scalar_power, 'operand 1'),
    _row('Cast', 'at an input or output of the network', lambda f: f.is_terminal()),
    _row('QuantizeLinear DequantizeLinear', 'axis = 1', _only_grids, 'axis'),
    _row('Expand', 'a constant shape', ask.has_constants(1)),
    _row(_FOUR, 'up to 4 dimensions above 1', ask.wide_dims(4), 'shape'),
    _row(
        f'{_SIX} Relu PRelu Add Mul Div Sub Max Min Squeeze LayerNormalization',
        'up to 6 dimensions above 1',
        ask.wide_dims(6),
        'shape',
    ),
)
