"""One small config of each library, to be trained, calibrated, exported and tested."""

from pathlib import Path
from typing import Callable, NamedTuple

from . import data


class Case(NamedTuple):
    """A config and its data.

    Attributes:
        base (str): The library's config.
        changes (str): What is changed in it, as Python.
        compose (Callable): Writes the data into a folder.
    """

    base: str
    changes: str
    compose: Callable[[Path], None]


_HEAD = """
_base_ = '{base}'
custom_imports = dict(imports=['import_library', 'mmquant_jacinto'])
quantize = dict(mode='qat', bits=8, target='onnxruntime')
train_cfg = dict(
    _delete_=True, type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
val_cfg = dict(_delete_=True, type='ValLoop')
test_cfg = dict(_delete_=True, type='TestLoop')
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
default_sampler = dict(type='DefaultSampler', shuffle=False)
load_from = None
collation = dict()

def loader(dataset, batch_size):
    return dict(
        _delete_=True, batch_size=batch_size, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
"""
_TAIL = """
train_dataloader = dict(loader(train, 2), **collation)
val_dataloader = loader(val, 1)
test_dataloader = loader(val, 1)
"""

_POSE = """
model = dict(backbone=dict(init_cfg=None))
here = dict(type='CocoDataset', data_root='data', data_mode='topdown')
train = dict(
    here, ann_file='train.json', data_prefix=dict(img='train/'),
    pipeline=[
        step for step in _base_.train_pipeline if step['type'] != 'Albumentation'])
val = dict(
    here, ann_file='val.json', data_prefix=dict(img='val/'), test_mode=True,
    pipeline=_base_.val_pipeline)
val_evaluator = dict(_delete_=True, type='PCKAccuracy', thr=0.2)
test_evaluator = val_evaluator
custom_hooks = []
"""
_ROTATE = """
model = dict(
    backbone=dict(depth=18, init_cfg=None), neck=dict(in_channels=[64, 128, 256, 512]))
load = dict(type='mmdet.LoadImageFromFile')
resize = dict(type='mmdet.Resize', scale=(192, 192), keep_ratio=True)
boxes = [
    dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
    dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox'))]
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='mmdet.PackDetInputs', meta_keys=meta)
here = dict(type='DOTADataset', data_root='data')
train = dict(
    here, ann_file='train_texts/', data_prefix=dict(img_path='train/'),
    pipeline=[load, *boxes, resize, pack])
val = dict(
    here, ann_file='val_texts/', data_prefix=dict(img_path='val/'), test_mode=True,
    pipeline=[load, resize, *boxes, pack])
# DOTAMetric starts processes, in which MMRotate asserts its versions again.
val_evaluator = dict(_delete_=True, type='DumpResults', out_file_path='metric.pkl')
test_evaluator = val_evaluator
custom_hooks = []
"""
_OCR = """
model = dict(backbone=dict(init_cfg=None))
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(128, 128), keep_ratio=False)
boxes = dict(
    type='LoadOCRAnnotations', with_polygon=True, with_bbox=True, with_label=True)
meta = ('img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackTextDetInputs', meta_keys=meta)
here = dict(type='OCRDataset', data_root='data')
train = dict(here, ann_file='train.json', pipeline=[load, boxes, resize, pack])
val = dict(
    here, ann_file='val.json', test_mode=True, pipeline=[load, resize, boxes, pack])
val_evaluator = dict(_delete_=True, type='HmeanIOUMetric')
test_evaluator = val_evaluator
"""
_ACTION = """
model = dict(
    backbone=dict(pretrained=None, pretrained2d=False),
    cls_head=dict(num_classes=2))
def pipeline(test):
    return [
        dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=8,
             test_mode=test),
        dict(type='RawFrameDecode'),
        dict(type='Resize', scale=(64, 64), keep_ratio=False),
        dict(type='FormatShape', input_format='NCHW'),
        dict(type='PackActionInputs')]
here = dict(type='RawframeDataset', with_offset=False)
train = dict(
    here, ann_file='data/train.txt', data_prefix=dict(img='data/train'),
    pipeline=pipeline(False))
val = dict(
    here, ann_file='data/val.txt', data_prefix=dict(img='data/val'), test_mode=True,
    pipeline=pipeline(True))
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
"""
_SPACE = """
model = dict(backbone=dict(init_cfg=None))
load = dict(type='LoadImageFromFileMono3D')
resize = dict(type='AffineResize', img_scale=(160, 64), down_ratio=4)
boxes = dict(
    type='LoadAnnotations3D', with_bbox=True, with_label=True, with_attr_label=False,
    with_bbox_3d=True, with_label_3d=True, with_bbox_depth=True)
keys = ['img', 'gt_bboxes', 'gt_bboxes_labels', 'gt_bboxes_3d', 'gt_labels_3d',
        'centers_2d', 'depths']
here = dict(
    type='KittiDataset', data_root='data', load_type='fov_image_based',
    box_type_3d='Camera', modality=dict(use_lidar=False, use_camera=True),
    metainfo=dict(classes=['Pedestrian', 'Cyclist', 'Car']))
train = dict(
    here, ann_file='train.pkl', data_prefix=dict(img='train'),
    pipeline=[load, boxes, resize, dict(type='Pack3DDetInputs', keys=keys)])
val = dict(
    here, ann_file='val.pkl', data_prefix=dict(img='val'), test_mode=True,
    pipeline=[load, resize, dict(type='Pack3DDetInputs', keys=['img'])])
val_evaluator = dict(_delete_=True, type='DumpResults', out_file_path='metric.pkl')
test_evaluator = val_evaluator
"""
_YOLO = """
collation = dict(collate_fn=dict(type='yolov5_collate'))
here = dict(type='YOLOv5CocoDataset', data_root='data')
train = dict(
    here, ann_file='train.json', data_prefix=dict(img='train/'),
    pipeline=[step for step in _base_.train_pipeline if 'Albu' not in step['type']])
val = dict(
    here, ann_file='val.json', data_prefix=dict(img='val/'), test_mode=True,
    pipeline=_base_.test_pipeline)
val_evaluator = dict(ann_file='data/val.json')
test_evaluator = val_evaluator
custom_hooks = []
"""
_SEGMENT = """
crop_size = (128, 128)  # its pyramid pools 4 x 4 to 3 x 3
model = dict(data_preprocessor=dict(size=crop_size))
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=crop_size, keep_ratio=False)
labels = dict(type='LoadAnnotations')
pack = dict(type='PackSegInputs')
here = dict(
    type='BaseSegDataset', img_suffix='.png', seg_map_suffix='.png',
    metainfo=dict(classes=[str(i) for i in range(19)]))
train = dict(
    here, data_prefix=dict(img_path='data/train', seg_map_path='data/train_maps'),
    pipeline=[load, labels, resize, pack])
val = dict(
    here, data_prefix=dict(img_path='data/val', seg_map_path='data/val_maps'),
    pipeline=[load, resize, labels, pack])
"""
_CLASSIFY = """
load = dict(type='LoadImageFromFile')
resize = dict(type='Resize', scale=(64, 64))
here = dict(type='CustomDataset', pipeline=[load, resize, dict(type='PackInputs')])
train = dict(here, data_root='data', data_prefix='train')
val = dict(here, data_root='data', data_prefix='val')
model = dict(head=dict(num_classes=2, topk=(1,)))
val_evaluator = dict(_delete_=True, type='Accuracy', topk=1)
test_evaluator = val_evaluator
"""
_DEEP = 'tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb.py'
CASES = {
    'mmpose': Case(
        'mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py',
        _POSE,
        data.persons,
    ),
    'mmrotate': Case(
        'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
        _ROTATE,
        data.ships,
    ),
    'mmocr': Case(
        'mmocr::textdet/panet/panet_resnet18_fpem-ffm_600e_icdar2015.py',
        _OCR,
        data.words,
    ),
    'mmaction': Case(f'mmaction::recognition/tsm/{_DEEP}', _ACTION, data.films),
    'mmdet3d': Case(
        'mmdet3d::smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.py',
        _SPACE,
        data.road,
    ),
    'mmyolo': Case(
        'mmyolo::yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py',
        _YOLO,
        data.persons,
    ),
    'mmseg': Case(
        'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
        _SEGMENT,
        data.areas,
    ),
    'mmpretrain': Case(
        'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', _CLASSIFY, data.classes
    ),
}


def write_case(library: str, folder: Path) -> None:
    """Writes ``config.py``, ``import_library.py`` and ``data/`` into a folder.

    Args:
        library (str): Its import name, of :data:`CASES`.
        folder (Path): An empty one.
    """
    case = CASES[library]
    case.compose(folder / 'data')
    head = _HEAD.format(base=case.base)
    (folder / 'config.py').write_text(head + case.changes + _TAIL)
    (folder / 'import_library.py').write_text(
        f'from libraries.imports import import_library\n\nimport_library({library!r})\n'
    )
