_base_ = '../_base_/ssd_fpn_bccd.py'
work_dir = 'work_dirs/bccd/ssd_mobilenet_fpn'
model = dict(
    backbone=dict(type='MobileNetV2', out_indices=(2, 4, 7)),
    neck=dict(in_channels=[32, 96, 1280]),
)
