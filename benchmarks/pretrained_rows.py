"""The rows of the table of networks that others trained, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accuracy_configs import merged

W4A8 = dict(weight=4, activation=8)
# Of two steps each, on 13 images.
QAT_EPOCHS = 20


@dataclass(frozen=True)
class PretrainedRow:
    """A row: one way to quantize, on each network.

    Args:
        name: What ``--rows`` selects.
        title: What the table calls it.
        quantize: The ``quantize`` of the config, without ``mode``; None in float.
        switch: The row that it differs from by one key; such rows have a table of
            their own.
        bound: The points of mAP that each network may lose.
        epochs: Of a training, on the images of the calibration; None: it is calibrated.
    """

    name: str
    title: str
    quantize: Mapping[str, Any] | None
    switch: str | None = None
    bound: Mapping[str, float] = field(default_factory=dict)
    epochs: int | None = None

    @property
    def is_finetuned(self) -> bool:
        """Whether it asks for training, which takes minutes."""
        return bool((self.quantize or {}).get('finetune')) or self.epochs is not None


def _bound(yolox: float, ssd: float) -> dict[str, float]:
    return dict(yolox_nano=yolox, ssd_mobilenetv2=ssd)


EIGHT = dict(
    jacinto=_bound(4.0, 1.5),
    tidl=_bound(1.0, 0.5),
    onnxruntime=_bound(1.0, 0.5),
    openvino=_bound(1.0, 0.5),
    tensorrt=_bound(1.0, 0.5),
)
# Targets with 16 bits.
FORMATS = ('jacinto', 'onnxruntime')
# One key that is not the default: another switch is another entry.
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    'uncorrected': (
        'biases not corrected',
        dict(calibration=dict(bias_correction=False)),
    ),
    'iterative': (
        'biases corrected all at once',
        dict(calibration=dict(bias_correction='iterative')),
    ),
    'analytic': (
        'biases corrected in one pass',
        dict(calibration=dict(bias_correction='analytic')),
    ),
    'weights': ('all weights corrected', dict(calibration=dict(weights=True))),
    'plain_weights': ('weights not corrected', dict(calibration=dict(weights=False))),
    'one_scale': ('`scale_channels=False`', dict(scale_channels=False)),
    'fewer_scales': ('`scale_channels=8`', dict(scale_channels=8)),
    'equalized': ('`equalize=True`', dict(equalize=True)),
    'minmax': ("`observer='minmax'`", dict(observer='minmax')),
    'percentile': ("`observer='percentile'`", dict(observer='percentile')),
    'moving_average': ("`observer='moving_average'`", dict(observer='moving_average')),
    'mse': ("`observer='mse'`", dict(observer='mse')),
    'entropy': ("`observer='entropy'`", dict(observer='entropy')),
    'weight_minmax': ("`weight_observer='minmax'`", dict(weight_observer='minmax')),
    'weight_mse': ("`weight_observer='mse'`", dict(weight_observer='mse')),
    'per_channel': ('`per_channel=True`', dict(per_channel=True)),
    'per_tensor': ('`per_channel=False`', dict(per_channel=False)),
    'saturate': ("`constrain_bias='saturate'`", dict(constrain_bias='saturate')),
    'clamped': ('`constrain_weights=True`', dict(constrain_weights=True)),
    'descent': (
        "`rounding='coordinate_descent'`",
        dict(rounding='coordinate_descent'),
    ),
    'activations16': (
        'activations of 16 bits',
        dict(bits=dict(weight=8, activation=16)),
    ),
    'weights16': ('weights of 16 bits', dict(bits=dict(weight=16, activation=8))),
}
# Switches that are what a target does by itself.
DEFAULTS = {
    'jacinto': ('weight_mse', 'percentile', 'plain_weights'),
    'onnxruntime': ('weight_minmax', 'per_channel', 'minmax'),
}


def _eight(target: str, **more: Any) -> dict[str, Any]:
    return dict(target=target, bits=8, **more)


def _switches(target: str) -> list[PretrainedRow]:
    base = f'int8_{target}'
    return [
        PretrainedRow(
            f'{base}_{name}',
            f'8 bits `{target}`, {title}',
            merged(_eight(target), keys),
            switch=base,
        )
        for name, (title, keys) in SWITCHES.items()
        if name not in DEFAULTS[target]
    ]


def _low(bits: Any, name: str, title: str, bound: Mapping[str, float]) -> list:
    """Few bits: calibrated alone, and fine-tuned without labels, as by default."""
    rows = []
    for target in ('onnxruntime', 'jacinto'):
        keys = dict(target=target, bits=bits)
        rows += [
            PretrainedRow(
                f'{name}_{target}',
                f'{title} `{target}`, `finetune=False`',
                dict(keys, finetune=False),
            ),
            PretrainedRow(
                f'{name}_{target}_finetune',
                f'{title} `{target}`, `finetune=True`',
                dict(keys, finetune=True),
                bound=bound,
            ),
        ]
    return rows


def _light(share: float) -> PretrainedRow:
    """A row of W4A8 with another share of weights in layers that keep 8 bits."""
    keys = dict(bits=W4A8, finetune=False, light_share=share)
    return PretrainedRow(
        f'w4a8_onnxruntime_light{round(100 * share)}',
        f'W4A8 `onnxruntime`, `finetune=False`, `light_share={share:g}`',
        dict(target='onnxruntime', **keys),
        switch='w4a8_onnxruntime',
    )


ROWS = (
    PretrainedRow('float', 'float', None),
    *(
        PretrainedRow(f'int8_{name}', f'8 bits `{name}`', _eight(name), bound=bound)
        for name, bound in EIGHT.items()
    ),
    PretrainedRow(
        'int8_jacinto_finetune',
        '8 bits `jacinto`, `finetune=True`',
        _eight('jacinto', finetune=True),
        bound=_bound(1.5, 0.7),
    ),
    PretrainedRow(
        'int8_onnxruntime_finetune',
        '8 bits `onnxruntime`, `finetune=True`',
        _eight('onnxruntime', finetune=True),
    ),
    *(
        PretrainedRow(
            f'int16_{name}',
            f'16 bits `{name}`',
            dict(target=name, bits=16),
            bound=_bound(0.2, 0.2),
        )
        for name in FORMATS
    ),
    *(
        PretrainedRow(
            f'int8_{name}_qat',
            f'8 bits `{name}`, QAT of {QAT_EPOCHS} epochs',
            _eight(name),
            epochs=QAT_EPOCHS,
        )
        for name in FORMATS
    ),
    *_low(W4A8, 'w4a8', 'W4A8', _bound(3.0, 2.0)),
    *_low(4, 'w4a4', 'W4A4', {}),
    *map(_light, (0.0, 0.02, 0.1)),
    *_switches('onnxruntime'),
    *_switches('jacinto'),
)
ROWS_BY_NAME = {row.name: row for row in ROWS}
