"""Reports that no network had to be measured for."""

from mmquant_jacinto.report.content import (
    ActivationReport,
    FileReport,
    Finding,
    Histogram,
    LayerReport,
    Report,
    Score,
    Trial,
    WeightReport,
)


def layer(index, share=None):
    """A layer with numbers that differ from layer to layer."""
    histogram = Histogram(-1.0, 1.0 + index, [index % 7] * 40, [1] * 40)
    weight = WeightReport(
        f'backbone.layer{index}',
        *(8, 'symmetric', 576, 64, [0.01, 0.02], [-1.0, 1.0], 0.0, 7.0, 0, 2.0, 0.0),
        [[-0.5, 0.5 + index / 100]] * 64,
        histogram,
    )
    activation = ActivationReport(
        f'backbone.layer{index}/conv2d',
        *(8, 'with zero point', 0.05, [-2.0, 3.0], [-1.9, 2.9], 0.001, 7.5, 0, 64),
        *(4.0, 2.0, histogram),
    )
    return LayerReport(
        f'backbone.layer{index}/conv2d',
        f'backbone.layer{index}',
        'conv',
        *(20.0 + index % 11, 40.0 - index % 17, None if index == 1 else 21.0),
        *(1e-3, 2e-3, share, False, weight, activation),
    )


def made_up(layers=4, **changes):
    """A report with something in each section."""
    rows = [layer(index, share=1 / layers) for index in range(layers)]
    report = Report(
        'toy <network>',
        'calibration',
        dict(target='jacinto'),
        dict(weights={'8': layers}, activations={'8': layers}),
        dict(head='quantize.overrides'),
        dict(float=4.0, quantized=1.0),
        images=2,
        layers=rows,
        outputs={rows[-1].name: 12.0},
        findings=[
            Finding(rows[0].name, rows[0].module, 'Rounding: </script>.', 'bits=16')
        ],
        trials=[Trial('per_channel=True', 'weights', 12.0, 18.0)],
        scores=[
            Score('float', 'mAP50', 50.0, 44.0, 58.0, 20),
            Score('quantized', 'mAP50', 41.0, 33.0, 50.0, 20),
        ],
        skipped=['4 of 8 images'],
        curves=dict(
            scalars={
                'loss': [[1, 2.0], [2, 1.0]],
                'range/a/high': [[1, 1.0], [2, 3.0]],
            },
            frozen=['activation ranges frozen from epoch 5 of 8 on.'],
        ),
        file=FileReport(
            'model.onnx',
            'onnxruntime',
            123456,
            [dict(name='out', elements=9, equal=1.0, largest=0.0, unit='steps')],
            ['Conv backbone, weights: 16 bits; right: 8 bits'],
            [
                dict(
                    engine='ONNX Runtime',
                    node='backbone',
                    kind='QLinearConv',
                    milliseconds=1.5,
                )
            ],
        ),
    )
    for name, value in changes.items():
        setattr(report, name, value)
    return report
