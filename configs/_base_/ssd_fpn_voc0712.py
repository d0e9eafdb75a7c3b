# SSD-FPN on Pascal VOC: trained on 2007+2012 trainval, tested on 2007 test.
_base_ = ['ssd_fpn.py', 'mmdet::_base_/datasets/voc0712.py']

# Six levels, strides 8 to 256: 64x64 down to 2x2 cells.
input_size = 512
strides = [8, 16, 32, 64, 128, 256]
# Anchor sizes as fractions of the image, SSD's own for six levels: a level's
# anchors lie between its entry and the next one's.
anchor_sizes = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
model = dict(
    neck=dict(out_channels=256, num_outs=6),
    bbox_head=dict(
        num_classes=20,
        in_channels=(256,) * 6,
        anchor_generator=dict(
            strides=strides,
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            min_sizes=[size * input_size for size in anchor_sizes[:-1]],
            max_sizes=[size * input_size for size in anchor_sizes[1:]],
        ),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PhotoMetricDistortion',
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
    dict(
        type='Expand',
        mean=_base_.model.data_preprocessor.mean,
        to_rgb=_base_.model.data_preprocessor.bgr_to_rgb,
        ratio_range=(1, 4),
    ),
    dict(
        type='MinIoURandomCrop', min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3
    ),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    # after Resize: the metric wants the boxes of the original image
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

# Boxes of less than a pixel cannot be encoded: their targets are log(0).
filter_cfg = dict(filter_empty_gt=True, min_size=32, bbox_min_size=1)
train_dataset = dict(
    type='VOCDataset',
    data_root=_base_.data_root,
    filter_cfg=filter_cfg,
    pipeline=train_pipeline,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    # every image has the same size after Resize: no grouping by aspect ratio
    batch_sampler=None,
    dataset=dict(
        times=1,
        dataset=dict(
            datasets=[
                dict(
                    train_dataset,
                    ann_file='VOC2007/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root='VOC2007/'),
                ),
                dict(
                    train_dataset,
                    ann_file='VOC2012/ImageSets/Main/trainval.txt',
                    data_prefix=dict(sub_data_root='VOC2012/'),
                ),
            ]
        ),
    ),
)
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Schedule: the 120 passes over the data of mmdet's own SSD on VOC.
max_epochs = 120
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        eta_min=0,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
