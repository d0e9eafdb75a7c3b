"""What OpenVINO computes in integers: its low precision transformations.

The documents are those of openvinotoolkit/openvino, ``docs/articles_en/.../advanced-
guides/low-precision-transformations``. A row without a document was measured here, in
OpenVINO 2026.4 on an x86 CPU.
"""

from .table import (
    ANY,
    HOST,
    Activations,
    Biases,
    Known,
    Rules,
    Source,
    Weights,
)

PRECISIONS = Source(
    'OpenVINO low-precision-transformations.rst: "signed int8 or unsigned int8"; 16 '
    'bits measured here: 2 dB behind three convolutions',
    '025aa1d; OpenVINO 2026.4',
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

RULES = Rules(
    (
        Activations((ANY,), PRECISIONS),
        Weights(
            ('Conv', 'ConvTranspose', 'Gemm', 'MatMul'),
            WEIGHTS,
            types=('int8', 'uint8'),
            symmetric=False,
        ),
        Biases(('Conv', 'ConvTranspose', 'Gemm'), PER_TENSOR),
        Known(_OPERATORS, PROPAGATED, severity=HOST, quantized=True),
    ),
    host='is computed in float',
    reads='OpenVINO 2026.4 on a CPU, ONNX QDQ',
)
