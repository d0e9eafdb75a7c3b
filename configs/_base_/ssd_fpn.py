# SSD head on an FPN neck, whatever the backbone, the data and the resolution.
_base_ = ['mmdet::_base_/default_runtime.py']

# Importing the package also mends SSD testing, which mmdet 3.3.0 cannot do, so
# the float detector needs the import as well. No `quantize = False` beside it:
# MMEngine would refuse to replace that by the dict of a quantized variant.
custom_imports = dict(imports=['mmquant_jacinto'])

# BN everywhere: it folds into the convolution before it, so a quantized model
# has one rounding per layer and no float normalization left.
norm_cfg = dict(type='BN')
model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    # the backbone and the neck's in_channels come with each architecture
    neck=dict(
        type='FPN',
        norm_cfg=norm_cfg,
        # The extra levels start from the P5 output: it has out_channels maps
        # where the backbone's last stage has up to 2048.
        add_extra_convs='on_output',
    ),
    # num_classes, in_channels and the anchors come with each data set
    bbox_head=dict(
        type='SSDHead',
        anchor_generator=dict(type='SSDAnchorGenerator', scale_major=False),
        # The features are normalized, so the default Xavier weights would make
        # large random scores, which the first epochs only unlearn.
        init_cfg=dict(type='Normal', layer='Conv2d', std=0.001),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type='nms', iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=200,
    ),
)

custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW'),
]

# Two checkpoints, so that a run killed while it writes one can resume from the
# other.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
