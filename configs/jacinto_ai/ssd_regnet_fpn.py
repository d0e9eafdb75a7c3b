_base_ = '../_base_/ssd_fpn_voc0712.py'
work_dir = 'work_dirs/jacinto_ai/ssd_regnet_fpn'
model = dict(
    backbone=dict(
        type='RegNet',
        arch='regnetx_800mf',
        out_indices=(1, 2, 3),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://regnetx_800mf'),
    ),
    neck=dict(in_channels=[128, 288, 672]),
)
