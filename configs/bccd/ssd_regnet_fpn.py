_base_ = '../_base_/ssd_fpn_bccd.py'
work_dir = 'work_dirs/bccd/ssd_regnet_fpn'
model = dict(
    backbone=dict(
        type='RegNet', arch='regnetx_800mf', out_indices=(1, 2, 3), norm_eval=False
    ),
    neck=dict(in_channels=[128, 288, 672]),
)
