"""What OpenVINO computes in integers: its low precision transformations.

The documents are those of openvinotoolkit/openvino, ``docs/articles_en/.../advanced-
guides/low-precision-transformations``. A row without a document was measured here, in
OpenVINO 2026.4 on an x86 CPU.
"""

from .table import (
    ANY,
    GELU,
    HARD_SWISH,
    HOST,
    SILU,
    Activations,
    Biases,
    Divided,
    Fusion,
    Known,
    Pattern,
    Rules,
    Source,
    Weights,
)

PRECISIONS = Source(
    'OpenVINO low-precision-transformations.rst: "signed int8 or unsigned int8"; 16 '
    'bits measured here: 2 dB behind three convolutions',
    '025aa1d; OpenVINO 2026.4',
)
CHANNELS = Source(
    'measured here: NNCF gives what depthwise convolutions read a scale for each '
    'channel, and they run in float32 (benchmarks/results/latency_openvino.json)',
    'NNCF 3.4; OpenVINO 2026.4',
)
PER_TENSOR = Source(
    'OpenVINO step3-main/convolution/convolution.rst, Limitations', '042888e'
)
PROPAGATED = Source(
    'OpenVINO low-precision-transformations.rst, Input model requirements', '025aa1d'
)
WEIGHTS = Source(
    'OpenVINO low-precision-transformations.rst, Quantization approaches; INT4 '
    'measured here: convolutions run in float',
    '025aa1d; OpenVINO 2026.4',
)

POST_OPS = Source(
    'OpenVINO src/plugins/intel_cpu/src/dnnl_extension_utils.cpp, '
    'isUnarySupportedAsPostOp (x86-64); measured here: one u8 convolution or '
    'fully connected layer, and one subgraph behind an addition',
    'OpenVINO 2026.4',
)
HARD = Source(
    'NNCF nncf/openvino/hardware/fused_patterns.py, '
    'SWISH_WITH_HARD_SIGMOID; measured here: HardSigmoid is a float32 node of its own',
    'e2f892e; OpenVINO 2026.4',
)
SWISH = Source(
    'measured here: a pair between Sigmoid and Mul parts the convolution from both',
    'OpenVINO 2026.4',
)

SUM = Source(
    'measured here: a convolution and the addition behind it are one, and a pair '
    'between them is left out',
    'OpenVINO 2026.4',
)
DIVISION = Source(
    'measured here: a division for each channel between Sigmoid * Mul and '
    'QuantizeLinear is one with the convolution too',
    'OpenVINO 2026.4',
)

# ONNX's names of the operations that the document lists; Constant, shape arithmetic
# and Q/DQ are none of them.
_OPERATORS = tuple(
    (
        'Add AveragePool GlobalAveragePool Clip Concat Conv ConvTranspose '
        'DepthToSpace QuantizeLinear DequantizeLinear Resize Upsample MatMul Gemm '
        'MaxPool Mul MeanVarianceNormalization LpNormalization PRelu LeakyRelu '
        'ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Flatten Split Squeeze '
        'Slice Transpose Gather Unsqueeze Identity Constant Shape Pad'
    ).split()
)

_TYPES = ('int8', 'uint8', 'int16', 'uint16')
_FUSING = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul', 'Add')

RULES = Rules(
    (
        Activations((ANY,), PRECISIONS, per_channel=True),
        Activations((ANY,), CHANNELS, types=_TYPES, severity=HOST),
        Weights(
            ('Conv', 'ConvTranspose', 'Gemm', 'MatMul'),
            WEIGHTS,
            types=('int8', 'uint8'),
            symmetric=False,
        ),
        Biases(('Conv', 'ConvTranspose', 'Gemm'), PER_TENSOR),
        Fusion(
            _FUSING,
            POST_OPS,
            followers=(
                *(SILU, 'HardSwish', GELU, 'Mish', 'Sigmoid', 'Tanh', 'Elu'),
                *('LeakyRelu', 'PRelu'),
            ),
        ),
        Fusion(_FUSING, HARD, followers=(HARD_SWISH,)),
        Fusion(('Conv',), SUM, followers=('Add',), drops_pairs=True),
        Pattern((SILU,), SWISH),
        Pattern((HARD_SWISH,), HARD),
        Divided(('QuantizeLinear',), DIVISION),
        Known(_OPERATORS, PROPAGATED, severity=HOST, quantized=True),
    ),
    host='is computed in float',
    reads='OpenVINO 2026.4 on a CPU, ONNX QDQ',
)
