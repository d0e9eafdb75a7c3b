"""What ONNX Runtime computes in integers on x86.

"Quantize ONNX Models" of onnxruntime.ai, and what was measured here in ONNX Runtime
1.32. It computes any valid file; a row tells where it leaves its integer kernels.
"""

from .table import ANY, SLOWER, Activations, Biases, Rules, Source, Weights

KERNELS = Source(
    'onnxruntime.ai, Quantize ONNX Models, Data type selection; measured here: x86 has '
    'integer kernels for UINT8 activations alone',
    'ONNX Runtime 1.32',
)
FORMAT = Source(
    'onnxruntime.ai, Quantize ONNX Models, Quantization Overview', 'ONNX Runtime 1.32'
)

RULES = Rules(
    (
        Activations((ANY,), KERNELS, types=('uint8',), severity=SLOWER),
        Weights(
            ('Conv', 'ConvTranspose', 'Gemm', 'MatMul'),
            FORMAT,
            types=('int8', 'uint8', 'int4', 'uint4', 'int16', 'uint16'),
            symmetric=False,
        ),
        Biases(('Conv', 'Gemm'), FORMAT),
    ),
    host='is computed in float',
    reads='ONNX Runtime 1.32 on x86 with VNNI, QDQ and QOperator',
)
