"""What TIDL takes: TI's published restrictions, for SoCs with MMAv2 and for TDA4VM.

Read in ``docs/quantization.md`` ("TIDL Layer Quantization Restrictions") and
``docs/operators.md`` of TexasInstruments/edgeai-tidl-tools. What breaks a limit of
``operators.md`` runs on the Arm core, says its first line; a grid that a layer does not
take is a violation. No device is at hand: nothing here was tried on one.
"""

from dataclasses import replace

from .table import (
    ANY,
    FILE,
    HOST,
    INPUT,
    OUTPUT,
    SILU,
    Activations,
    Biases,
    Fusion,
    Known,
    Pairs,
    Pattern,
    Row,
    Rules,
    Source,
    Versions,
    Weights,
)
from .tidl_limits import LIMITS, OPERATORS

GRIDS = Source(
    'edgeai-tidl-tools docs/quantization.md, TIDL Layer Quantization Restrictions',
    'b3a7c2c',
)
INPUTS = Source('edgeai-tidl-tools docs/quantization.md, Notes', 'b3a7c2c')
CLIPS = Source(
    'edgeai-tidl-tools docs/quantization.md, Manual Mixed Precision: layers with '
    '"Clip, Relu and No-Activation"',
    'b3a7c2c',
)
VERSIONS = Source('edgeai-tidl-tools docs/operators.md, Version', '238cb8b')

# Elementwise layers take zero points in additions alone. Reshape, Flatten and Transpose
# pass them on.
_AFFINE = (
    *('Conv', 'Gemm', 'MatMul', 'Softmax', 'Concat', 'Add', 'LayerNormalization'),
)
_PASSING = ('Flatten', 'Reshape', 'Transpose', 'Identity')
_ELEMENTWISE = ('Add', 'Mul', 'Sub', 'Div')
_WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
_NEED_NO_PAIR = (
    *('Split', 'Slice', 'Pad', 'Squeeze', 'Unsqueeze', *_PASSING),
    *('QuantizeLinear', 'DequantizeLinear', 'Cast', 'Shape', 'Constant'),
)
_NEED_PAIR = tuple(
    name for name in OPERATORS if name not in _NEED_NO_PAIR and name not in _WEIGHTED
)

_GRID_ROWS: tuple[Row, ...] = (
    Activations((INPUT,), INPUTS, symmetric=True),
    # The table's row TIDL_DataLayer does not say which; the notes tell of inputs alone.
    # Planned, and no violation of a file that has it otherwise.
    Activations((OUTPUT,), GRIDS, symmetric=True, severity=HOST),
    Activations((*_AFFINE, *_PASSING), GRIDS),
    # "Asymmetric quantization is supported only when B is a constant initializer":
    # PRODUCT is among the others.
    Activations((ANY,), GRIDS, symmetric=True),
    Weights(('Conv', 'Gemm', 'MatMul'), GRIDS),
    Weights(
        ('ConvTranspose', 'DeformConv', 'PRelu', 'BatchNormalization'),
        GRIDS,
        per_channel=False,
    ),
    Weights((*_ELEMENTWISE, 'Max', 'Min'), GRIDS, False, types=('int8', 'uint8')),
    Biases(_WEIGHTED, GRIDS),
    Pairs(_WEIGHTED, GRIDS),
    Pairs(_NEED_PAIR, GRIDS, severity=HOST),
    Fusion(
        ('Conv', 'ConvTranspose', *_ELEMENTWISE, 'BatchNormalization'),
        INPUTS,
        followers=('Relu',),
    ),
    Fusion(
        ('Conv', 'ConvTranspose', *_ELEMENTWISE, 'BatchNormalization'),
        CLIPS,
        followers=('Clip',),
    ),
    Fusion(('Conv', 'ConvTranspose'), INPUTS, followers=('BatchNormalization',)),
    # The layer in front keeps its pair: behind what needs none the notes name ReLU and
    # batch normalization alone. SiLU is a layer of its own there, a table of 8 bits.
    Pattern((SILU,), INPUTS),
)
_FORM_ROWS: tuple[Row, ...] = (
    Versions((FILE,), VERSIONS, opset=(1, 19), ir=8),
    Known(
        OPERATORS,
        Source('edgeai-tidl-tools docs/operators.md, Operators Supported', '238cb8b'),
    ),
    *LIMITS,
)

RULES = Rules(
    (*_GRID_ROWS, *_FORM_ROWS),
    host='runs on the Arm core',
    reads='TIDL on AM62A, AM67A, AM68A, AM69A, TDA4AL, TDA4VH; ONNX QDQ with '
    '`advanced_options:prequantized_model 1`, 8 bits',
)

# "Asymmetric quantization is supported by all SoCs except J721E | TDA4VM"; 16 bits are
# asked for when its float model is imported, so widths are no matter of its file.
_SYMMETRIC = Source('edgeai-tidl-tools docs/quantization.md, PTQ', 'b3a7c2c')
_ALL_TYPES = ('int8', 'uint8', 'int16', 'uint16')
TDA4VM_RULES = replace(
    RULES,
    rows=(
        Activations((INPUT, OUTPUT, ANY), _SYMMETRIC, symmetric=True, types=_ALL_TYPES),
        # Its weights are real numbers, on whatever grid.
        *(row for row in _GRID_ROWS if not isinstance(row, (Activations, Weights))),
        *_FORM_ROWS,
    ),
    reads='TIDL on TDA4VM (J721E); a float model with its ranges as Clip',
)
