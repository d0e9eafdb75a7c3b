_base_ = '../_base_/ssd_fpn_bccd.py'
work_dir = 'work_dirs/bccd/ssd_resnet_fpn'
model = dict(
    backbone=dict(type='ResNet', depth=50, out_indices=(1, 2, 3), norm_eval=False),
    neck=dict(in_channels=[512, 1024, 2048]),
)
