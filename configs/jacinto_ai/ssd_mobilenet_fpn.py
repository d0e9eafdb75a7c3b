_base_ = '../_base_/ssd_fpn_voc0712.py'
work_dir = 'work_dirs/jacinto_ai/ssd_mobilenet_fpn'
model = dict(
    backbone=dict(
        type='MobileNetV2',
        out_indices=(2, 4, 7),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[32, 96, 1280]),
)
