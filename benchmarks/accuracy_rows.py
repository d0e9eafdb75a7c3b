"""The rows of the results table, as data: a method more is an entry more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accuracy_row import Row

# The images and the pass that calibration takes; which images, the seed decides.
CALIBRATION = dict(num_images=128)
SEQUENTIAL = dict(CALIBRATION, bias_correction='sequential')
ANALYTIC = dict(CALIBRATION, bias_correction='analytic')
PLAIN = dict(CALIBRATION, epochs=0)  # ranges only
# Four bits have to be learned from float, at more than the hundredth of the float
# learning rate that is enough for 8, but with the statistics of batch normalization as
# they are: with those of batches of 4 images W4A4 ends a point of mAP lower.
LEARNED = dict(lr=1e-4, epochs=8)
FROZEN_BN = dict(freeze=dict(bn=0), distill=False)
# The default would freeze it at once in so few epochs, and 8 bits need no such help.
LIVE_BN = dict(freeze=dict(bn=False), distill=False)
TAUGHT = dict(options=dict(model=dict(teacher_ckpt='{float}')))
# Below 8 bits the field leaves the first and the last layers at 8 (as in LSQ,
# arXiv 1902.08153, and AdaRound, 2004.10568).
EDGES_AT_8 = {'backbone.conv1': 8, 'bbox_head.*': 8}
# What the last layers read, too.
HEAD_INPUTS_AT_8 = {'neck.fpn_convs.*': dict(activation=8)}
# By one line.
W4A8 = dict(target='onnxruntime', bits=dict(weight=4, activation=8))
W4A4 = dict(target='onnxruntime', bits=4)


def _low(activation: int, weight: int = 4, **more: Any) -> dict[str, Any]:
    """Few bits; ONNX Runtime's formats, first and last layers at 8.

    The image is one of 8 bits, whatever the activations have. As in the literature,
    4-bit activations are those that layers multiply: sums of residual branches, which
    no layer multiplies as they are, keep 8 bits.
    """
    bits = dict(weight=weight, activation=activation, output=8)
    overrides = EDGES_AT_8
    if activation < 8:
        bits['sum'] = 8
        overrides = {**EDGES_AT_8, **HEAD_INPUTS_AT_8}
    return dict(
        dict(
            target='onnxruntime',
            bits=bits,
            overrides=overrides,
            calibration=CALIBRATION,
        ),
        **more,
    )


def _switch(name: str, title: str, quantize: Mapping[str, Any]) -> Row:
    """What one switch of a calibration changes."""
    return Row(name, title, 'ptq', quantize, ablation=True)


def _eight(target: str, **more: Any) -> dict[str, Any]:
    return dict(dict(target=target, bits=8, calibration=CALIBRATION), **more)


def _sixteen(**more: Any) -> dict[str, Any]:
    """16 bits; steps are fine enough for the whole range.

    Percentiles would cut off the highest scores, and with them their order.
    """
    return dict(target='jacinto', bits=16, observer='minmax', **more)


ROWS = (
    Row('float', 'float', 'test'),
    Row('float_longer', 'float, trained as long as QAT', 'train', lr=1.5e-5),
    Row(
        *('int16_jacinto_ptq', '16 bits jacinto, calibrated', 'ptq'),
        _sixteen(calibration=CALIBRATION),
        bound=(0.05, 0.1),
    ),
    Row(
        *('int16_jacinto_qat', '16 bits jacinto, QAT', 'qat'),
        _sixteen(**LIVE_BN),
        bound=(0.05, 0.1),
    ),
    Row(
        *('int8_jacinto_plain', '8 bits jacinto, plain ranges', 'ptq'),
        _eight('jacinto', calibration=PLAIN),
    ),
    Row(
        *('int8_jacinto_ptq', '8 bits jacinto, calibrated', 'ptq'),
        _eight('jacinto'),
        bound=(0.3, 0.5),
    ),
    Row(
        *('int8_jacinto_qat', '8 bits jacinto, QAT', 'qat'),
        dict(target='jacinto', bits=8, **LIVE_BN),
        bound=(0.1, 0.2),
    ),
    Row(
        *('int8_onnxruntime_plain', '8 bits onnxruntime, plain ranges', 'ptq'),
        _eight('onnxruntime', calibration=PLAIN),
        bound=(0.1, 0.2),
    ),
    Row(
        *('int8_onnxruntime_ptq', '8 bits onnxruntime, calibrated', 'ptq'),
        _eight('onnxruntime'),
        bound=(0.1, 0.2),
    ),
    Row(
        *('int8_onnxruntime_qat', '8 bits onnxruntime, QAT', 'qat'),
        dict(target='onnxruntime', bits=8, **LIVE_BN),
    ),
    Row(
        *('w4a8_plain', 'W4A8, plain ranges', 'ptq'),
        _low(8, calibration=PLAIN),
    ),
    Row('w4a8_ptq', 'W4A8, calibrated', 'ptq', _low(8), bound=(0.5, 1.0)),
    Row(
        *('w4a8_descent', 'W4A8, percentiles, coordinate descent', 'ptq'),
        _low(
            8,
            observer='percentile',
            calibration=SEQUENTIAL,
            rounding='coordinate_descent',
        ),
        bound=(0.5, 1.0),
    ),
    Row(
        *('w4a8_finetune', 'W4A8, calibrated, fine-tuned without labels', 'ptq'),
        _low(8, finetune=True),
        bound=(0.5, 1.0),
    ),
    Row(
        *('w4a8_qat', 'W4A8, QAT, live normalization', 'qat'),
        _low(8, observer='mse', learned_scale=True, **LIVE_BN),
        lr=5e-5,
        bound=(0.2, 0.5),
    ),
    # As the next, but without a teacher.
    Row(
        *('w4a8_lsq', 'W4A8, QAT, frozen normalization', 'qat'),
        _low(8, observer='mse', learned_scale=True, **FROZEN_BN),
        lr=1.5e-4,
        bound=(0.2, 0.5),
    ),
    Row(
        *('w4a8_distill', 'W4A8, QAT, frozen normalization, distilled', 'distill'),
        _low(8, observer='mse', learned_scale=True),
        lr=1.5e-4,
        **TAUGHT,
        bound=(0.2, 0.5),
    ),
    Row(
        *('w4a4_plain', 'W4A4, plain ranges', 'ptq'),
        _low(4, observer='percentile', calibration=PLAIN),
    ),
    Row(
        *('w4a4_ptq', 'W4A4, calibrated', 'ptq'),
        _low(4, observer='mse'),
        bound=(1.5, 2.5),
    ),
    Row(
        *('w4a4_finetune', 'W4A4, calibrated, fine-tuned without labels', 'ptq'),
        _low(4, observer='mse', finetune=True),
        bound=(1.5, 2.5),
    ),
    Row(
        'w4a4_finetune_qat',
        'W4A4, QAT after the fine-tuned calibration, live normalization',
        'qat',
        _low(4, observer='mse', learned_scale=True, **LIVE_BN),
        lr=5e-5,
        after='w4a4_finetune',
        bound=(0.5, 1.0),
    ),
    # As the next, but without a teacher.
    Row(
        'w4a4_finetune_lsq',
        'W4A4, QAT after the fine-tuned calibration, frozen normalization',
        'qat',
        _low(4, observer='mse', learned_scale=True, **FROZEN_BN),
        lr=LEARNED['lr'],
        after='w4a4_finetune',
        bound=(0.5, 1.0),
    ),
    Row(
        'w4a4_finetune_distill',
        'W4A4, QAT after the fine-tuned calibration, frozen normalization, distilled',
        'distill',
        _low(4, observer='mse', learned_scale=True, freeze=dict(bn=0)),
        lr=LEARNED['lr'],
        after='w4a4_finetune',
        **TAUGHT,
        bound=(0.5, 1.0),
    ),
    Row(
        *('w4a4_lsq', 'W4A4, QAT from float', 'qat'),
        _low(4, observer='mse', learned_scale=True, **FROZEN_BN),
        **LEARNED,
        bound=(0.5, 1.0),
    ),
    Row(
        *('w4a4_distill', 'W4A4, QAT from float, distilled', 'distill'),
        _low(4, observer='mse', learned_scale=True, freeze=dict(bn=0)),
        **LEARNED,
        **TAUGHT,
        bound=(0.5, 1.0),
    ),
    # Nothing but the widths: what a user gets who names no more.
    Row(
        *('w4a8_default_ptq', 'W4A8, calibrated by default', 'ptq'),
        dict(W4A8, calibration=CALIBRATION, finetune=None),
        bound=(0.5, 1.0),
    ),
    Row(
        *('w4a4_default_ptq', 'W4A4, calibrated by default', 'ptq'),
        dict(W4A4, calibration=CALIBRATION, finetune=None),
        bound=(1.5, 2.5),
    ),
    Row(
        *('int8_jacinto_default', '8 bits jacinto, QAT by default', 'qat'),
        dict(target='jacinto', bits=8),
        bound=(0.1, 0.2),
    ),
    Row(
        *('int8_onnxruntime_default', '8 bits onnxruntime, QAT by default', 'qat'),
        dict(target='onnxruntime', bits=8),
    ),
    Row(
        *('w4a8_default', 'W4A8, QAT by default', 'qat'),
        W4A8,
        bound=(0.2, 0.5),
    ),
    Row(
        *('w4a4_default', 'W4A4, QAT by default', 'qat'),
        W4A4,
        bound=(0.5, 1.0),
    ),
    # Both of the same size: no layer is exempt.
    Row(
        *('w3a8_ptq', 'W3A8 in all layers, calibrated', 'ptq'),
        _low(8, 3, overrides={}, edge_bits=3, calibration=SEQUENTIAL),
    ),
    Row(
        *('mixed3_ptq', '3 bits on average, A8, calibrated', 'ptq'),
        _low(
            8,
            3,
            overrides={},
            calibration=SEQUENTIAL,
            mixed_precision=dict(average_bits=3, candidates=(2, 3, 4, 5, 6, 8)),
        ),
    ),
    Row('twin', 'hostile twin, float', 'test', twin=True),
    Row(
        *('twin_int8_jacinto_plain', 'twin, 8 bits jacinto, plain ranges', 'ptq'),
        _eight('jacinto', calibration=PLAIN),
        twin=True,
    ),
    Row(
        *('twin_int8_jacinto_equalized', 'twin, 8 bits jacinto, equalized', 'ptq'),
        _eight('jacinto', equalize=True),
        twin=True,
        bound=(0.3, 0.5),
    ),
    Row(
        *('twin_int8_onnxruntime_plain', 'twin, 8 bits onnxruntime, plain', 'ptq'),
        _eight('onnxruntime', calibration=PLAIN),
        twin=True,
    ),
    Row(
        'twin_int8_onnxruntime_equalized',
        'twin, 8 bits onnxruntime, equalized',
        'ptq',
        _eight('onnxruntime', equalize=True),
        twin=True,
        bound=(0.3, 0.5),
    ),
    _switch(
        'int8_onnxruntime_minmax',
        '8 bits onnxruntime, calibrated, extremes of all images',
        _eight('onnxruntime', observer='minmax'),
    ),
    *(
        _switch(f'int8_{target}_ptq', f'8 bits {target}, calibrated', _eight(target))
        for target in ('tidl', 'openvino', 'tensorrt')
    ),
    _switch(
        'int8_jacinto_iterative',
        '8 bits jacinto, iterative correction',
        _eight('jacinto', calibration=dict(CALIBRATION, bias_correction='iterative')),
    ),
    _switch(
        'int8_jacinto_depthwise',
        '8 bits jacinto, scales of each channel in depthwise layers',
        _eight('jacinto', per_channel='depthwise'),
    ),
    _switch(
        'w4a8_sequential',
        'W4A8, sequential correction',
        _low(8, calibration=SEQUENTIAL),
    ),
    _switch(
        'w4a8_analytic', 'W4A8, analytic correction', _low(8, calibration=ANALYTIC)
    ),
    _switch('w4a8_equalize', 'W4A8, calibrated, equalized', _low(8, equalize=True)),
    _switch(
        'w4a8_weight_mse',
        'W4A8, weight scales of least error, ranges only',
        _low(8, weight_observer='mse', calibration=PLAIN),
    ),
    _switch(
        'w4a4_mse_plain',
        'W4A4, mse ranges only',
        _low(4, observer='mse', calibration=PLAIN),
    ),
    _switch(
        'w4a4_all_tensors',
        'W4A4, calibrated, sums and inputs of the head at 4 bits too',
        _low(
            4,
            observer='mse',
            overrides=EDGES_AT_8,
            bits=dict(weight=4, activation=4, output=8),
        ),
    ),
    _switch(
        'w4a4_sequential',
        'W4A4, sequential correction',
        _low(4, observer='mse', calibration=SEQUENTIAL),
    ),
    _switch(
        'w4a4_equalize',
        'W4A4, calibrated, equalized',
        _low(4, observer='mse', equalize=True),
    ),
    _switch(
        'w4a4_descent',
        'W4A4, coordinate descent, sequential',
        _low(4, observer='mse', rounding='coordinate_descent', calibration=SEQUENTIAL),
    ),
)
ROWS_BY_NAME = {row.name: row for row in ROWS}
# What calibration and QAT cost a MobileNetV2 from ImageNet at most, as in the table of
# the original.
FROM_IMAGENET = {
    f'int8_{target}_{mode}': (0.7, None)
    for target in ('jacinto', 'onnxruntime')
    for mode in ('ptq', 'qat', 'default')
}


def bound_of(row: Row, arch: str) -> tuple[float | None, float | None] | None:
    """Return the points of mAP50 and mAP that a row may lose on an architecture."""
    return FROM_IMAGENET.get(row.name) if arch == 'mobilenet_imagenet' else row.bound
