_base_ = '../_base_/ssd_fpn_voc0712.py'
work_dir = 'work_dirs/jacinto_ai/ssd_resnet_fpn'
model = dict(
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(1, 2, 3),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(in_channels=[512, 1024, 2048]),
)
