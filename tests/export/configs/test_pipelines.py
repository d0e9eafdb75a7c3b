"""Where the pipelines of a config are, and what brings one to a size."""

import pytest
from mmengine.config import ConfigDict

from mmquant_jacinto.export.configs.pipelines import fit_dataset, pipelines, steps

SHAPE = (96, 128)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda d: d,
        lambda d: dict(type='RepeatDataset', times=2, dataset=d),
        lambda d: dict(type='ConcatDataset', datasets=[dict(type='X'), d]),
        lambda d: dict(type='A', dataset=dict(type='ConcatDataset', datasets=[d])),
        lambda d: [d],
    ],
)
def test_pipelines_are_found_in_all_wrappers(wrap):
    pipeline = [dict(type='Resize', scale=(640, 640), keep_ratio=True)]
    dataset = wrap(ConfigDict(type='CocoDataset', pipeline=pipeline))
    assert len(pipelines(dataset)) == 1
    assert fit_dataset(dataset, SHAPE)
    assert pipelines(dataset)[0][0]['scale'] == (128, 96)
    assert pipelines(dataset)[0][0]['keep_ratio']


@pytest.mark.parametrize(
    'step, expected',
    [
        (dict(type='mmdet.Resize', scale_factor=2.0), dict(scale=(128, 96))),
        (dict(type='LetterResize', scale=(640, 640)), dict(scale=(128, 96))),
        (dict(type='YOLOv5KeepRatioResize', scale=(640, 640)), dict(scale=(128, 96))),
        (dict(type='FixShapeResize', width=9, height=9), dict(width=128, height=96)),
        (dict(type='Pad', pad_to_square=True), dict(size=(128, 96))),
        (dict(type='Pad', size_divisor=32), dict(size=(128, 96))),
    ],
)
def test_what_resizes_and_pads_gets_the_size(step, expected):
    dataset = ConfigDict(pipeline=[step, dict(type='PackDetInputs')])
    assert fit_dataset(dataset, SHAPE)
    assert dataset.pipeline[0] == dict(type=step['type'], **expected)
    assert not fit_dataset(dataset, SHAPE)


def test_margin_of_a_center_crop_stays_in_proportion():
    pipeline = [
        dict(type='ResizeEdge', scale=256, edge='short'),
        dict(type='CenterCrop', crop_size=224),
    ]
    dataset = ConfigDict(pipeline=pipeline)
    fit_dataset(dataset, (112, 112))
    assert dataset.pipeline[0].scale == 128
    assert dataset.pipeline[1].crop_size == (112, 112)


def test_batch_shapes_of_mmyolo_are_switched_off():
    dataset = ConfigDict(batch_shapes_cfg=dict(type='BatchShapePolicy'), pipeline=[])
    assert fit_dataset(dataset, SHAPE)
    assert dataset.batch_shapes_cfg is None


def test_steps_within_steps_are_found():
    inner = dict(type='Resize', scale=(1, 1))
    pipeline = [dict(type='TestTimeAug', transforms=[[inner], [dict(type='Pack')]])]
    assert inner in list(steps(pipeline))
