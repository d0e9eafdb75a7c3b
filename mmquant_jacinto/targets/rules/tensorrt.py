"""What TensorRT takes of an ONNX file: its parser's table and its quantization guide.

``docs/operators.md`` of onnx/onnx-tensorrt for TensorRT 10.15, "Working with Quantized
Types" of the developer guide for 11.0, and issues where only those tell. Checked
against these; no TensorRT has read a file here.
"""

from __future__ import annotations

from . import predicates as ask
from .table import (
    ANY,
    FILE,
    GELU,
    HARD_SWISH,
    SILU,
    VIOLATION,
    Activations,
    Biases,
    Divided,
    Facts,
    Fusion,
    Known,
    Limit,
    Pattern,
    Rules,
    Source,
    Versions,
    Weights,
)

OPERATORS_MD = Source(
    'onnx-tensorrt docs/operators.md, Operator Support Matrix', 'TensorRT 10.15'
)
GUIDE = Source(
    'TensorRT developer guide, Working with Quantized Types', 'TensorRT 11.0.0'
)
PLACEMENT = Source(
    'TensorRT developer guide, Explicit Quantization, Q/DQ Layer-Placement '
    'Recommendations',
    'TensorRT 8.2 to 11.0',
)
SMOOTH = Source(
    'TensorRT developer guide, Explicit Quantization, Q/DQ Layer-Placement '
    'Recommendations: the outputs of weighted operations stay unquantized by default, '
    'for an activation such as SiLU that needs the precision; reported: 3205 '
    '(one kernel for DQ, convolution, Sigmoid, Mul and Q)',
    'TensorRT 8.2 to 11.0',
)
POINTWISE = Source(
    'reported: NVIDIA/TensorRT 3629, Sigmoid and Mul without a pair become one '
    'pointwise operator',
    'of January 2024',
)
DIVISION = Source(
    'TensorRT developer guide, Types of Fusions: elementwise operations by constants '
    'become part of a pointwise one; whether that stays one with the convolution is '
    'not measured',
    'TensorRT 10 and 11',
)
BIASES = Source(
    'reported: onnxruntime 14229, onnx-tensorrt 850, NVIDIA/TensorRT 3360',
    'TensorRT 8.4 to 8.6',
)
DECONVOLUTION = Source(
    'NVIDIA/TensorRT 2380: "we do not support per-output-channel quant for '
    'ConvTranspose"',
    'TensorRT 8.5',
)
GROUPS = Source('reported: NVIDIA/TensorRT 1934', 'TensorRT 8.4')

_WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
_OPERATORS = tuple(
    (
        'Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention '
        'AveragePool BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip '
        'Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum '
        'DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf '
        'Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm '
        'GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual '
        'GridSample GroupNormalization GRU HammingWindow HannWindow HardSigmoid '
        'HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN '
        'LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM '
        'LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min '
        'Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad '
        'ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike '
        'RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 '
        'ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd '
        'ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence '
        'RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan '
        'Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh '
        'Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum '
        'Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where '
        'Xor'
    ).split()
)


def _single_group(facts: Facts) -> bool | None:
    return not facts.is_quantized() or facts.get('group', 1) == 1


def _row(operators: str, right: str, holds: ask.Callable, *shows: str) -> Limit:
    names = tuple(operators.split())
    return Limit(names, OPERATORS_MD, right, holds, shows, VIOLATION)


RULES = Rules(
    (
        Versions((FILE,), OPERATORS_MD, opset=(9, 24)),
        Known(_OPERATORS, OPERATORS_MD, severity=VIOLATION),
        Activations((ANY,), OPERATORS_MD, symmetric=True, types=('int8',)),
        # INT4 is "weight-only quantization", which no activation is quantized beside.
        Weights(('Conv', 'Gemm', 'MatMul'), GUIDE),
        Weights(('ConvTranspose',), DECONVOLUTION, axis=0),
        Weights((ANY,), GUIDE, per_channel=False),
        Biases(_WEIGHTED, BIASES, types=('float32',)),
        Limit(
            ('ConvTranspose',),
            GROUPS,
            'one group, where it is quantized',
            _single_group,
            ('group',),
            VIOLATION,
        ),
        _row('AveragePool MaxPool', '2D or 3D', ask.has_rank(4, 5), 'shape'),
        _row(
            'AveragePool MaxPool LpPool',
            'dilations of 1',
            ask.all_ones('dilations'),
            'dilations',
        ),
        _row(
            'Resize',
            'a mode that it has',
            ask.is_one_of('mode', ('nearest', 'linear'), 'nearest'),
            'mode',
        ),
        _row(
            'Resize',
            'a nearest mode that it has',
            ask.is_one_of(
                'nearest_mode',
                ('floor', 'ceil', 'round_prefer_floor', 'round_prefer_ceil'),
                'round_prefer_floor',
            ),
            'nearest_mode',
        ),
        _row(
            'Resize',
            'a transformation that it has',
            ask.is_one_of(
                'coordinate_transformation_mode',
                (
                    *('half_pixel', 'pytorch_half_pixel', 'tf_half_pixel_for_nn'),
                    *('asymmetric', 'align_corners'),
                ),
                'half_pixel',
            ),
            'coordinate_transformation_mode',
        ),
        _row('Resize', 'antialias = 0', ask.is_one_of('antialias', (0,), 0)),
        _row('GridSample', 'four dimensions', ask.has_rank(4), 'shape'),
        _row(
            'ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum',
            'constant axes',
            ask.has_constants(1),
        ),
        _row(
            'ScatterND',
            "reduction = 'none'",
            ask.is_one_of('reduction', ('none',), 'none'),
            'reduction',
        ),
        Fusion(('Conv', 'ConvTranspose'), PLACEMENT, followers=('BatchNormalization',)),
        Fusion(
            (*_WEIGHTED, 'Add', 'BatchNormalization'),
            PLACEMENT,
            followers=('Relu', 'Clip'),
        ),
        Fusion(('Conv',), PLACEMENT, followers=('Add',)),
        Fusion(
            _WEIGHTED, SMOOTH, followers=(SILU, HARD_SWISH, 'HardSwish', GELU, 'Mish')
        ),
        Pattern((SILU, HARD_SWISH), POINTWISE),
        Divided(('QuantizeLinear',), DIVISION),
    ),
    host='is refused',
    reads='TensorRT 10 and 11, explicit quantization by QDQ',
)
