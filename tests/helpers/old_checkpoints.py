"""Kinds of checkpoints that older versions left, and how each is tested."""

from pathlib import Path

import torch
from toy_runner import NUM_TRAIN, NUM_VAL, digits, make_config

FOLDER = Path(__file__).resolve().parent.parent / 'runners' / 'old_checkpoints'
LSQ = dict(type='mmrazor.LearnableFakeQuantize')
# Kind to its `quantize`.
KINDS = dict(
    qat=dict(mode='qat', bits=8),
    ptq=dict(
        mode='ptq', target='onnxruntime', calibration=dict(num_images=32, weights=True)
    ),
    learned_scale=dict(
        mode='qat', bits=4, target='onnxruntime', learned_scale=dict(num_images=32)
    ),
    mixed_precision=dict(
        mode='ptq',
        target='tidl',
        calibration=dict(num_images=32, bias_correction='sequential'),
        mixed_precision=dict(average_bits=6.0, num_images=8),
    ),
    rounded=dict(
        mode='ptq',
        bits=dict(weight=4, activation=8),
        target='tensorrt',
        observer='mse',
        calibration=dict(num_images=32, bias_correction='analytic'),
        rounding=dict(method='coordinate_descent', num_images=16),
        finetune=dict(iterations=10),
    ),
    wide=dict(mode='ptq', bits=16, target='openvino', calibration=dict(num_images=32)),
    distilled=dict(mode='qat', target='onnxruntime'),
    fake_quants=dict(
        mode='qat',
        target='onnxruntime',
        weight=dict(fake_quant=LSQ, observer=dict(type='mmrazor.LSQObserver')),
        activation=dict(fake_quant=LSQ, observer=dict(type='mmrazor.LSQObserver')),
    ),
)


def config_of(kind, work_dir):
    """The config that tests a checkpoint of a kind."""
    cfg = make_config(work_dir, KINDS[kind])
    if kind == 'distilled':
        cfg.custom_imports.imports.append('toy_distiller')
        cfg.model = dict(type='DigitsStudent')
    return cfg


def scores_of(model):
    """Class scores of the validation images, float32: (N, 10)."""
    images, labels = digits()
    part = slice(NUM_TRAIN, NUM_TRAIN + NUM_VAL)
    batch = dict(inputs=images[part], labels=labels[part], place=labels[part])
    model.eval()
    with torch.no_grad():
        return torch.stack(model.test_step(batch))
