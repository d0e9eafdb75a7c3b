# SSD-FPN on BCCD, photographs of blood smears: small enough to train from
# scratch on a CPU.
_base_ = ['ssd_fpn.py']

# One option for the resolution, because the anchors and both pipelines follow
# from it: `INPUT_SIZE=192 python tools/train.py ...`.
input_size = {{'$INPUT_SIZE:320'}}

# Five levels. A size that 128 does not divide leaves cells a little smaller
# than the nominal stride, and the anchors must be spaced as the cells are.
strides = [input_size / -(-input_size // 2**level) for level in range(3, 8)]
# As fractions of the image: platelets measure 0.05 to 0.12, red cells 0.13 to
# 0.23, white cells 0.21 to 0.51.
anchor_sizes = [0.06, 0.12, 0.22, 0.38, 0.58, 0.8]
classes = ('RBC', 'WBC', 'Platelets')
model = dict(
    neck=dict(out_channels=128, num_outs=5),
    bbox_head=dict(
        num_classes=len(classes),
        in_channels=(128,) * 5,
        anchor_generator=dict(
            strides=strides,
            ratios=[[2], [2, 3], [2, 3], [2, 3], [2]],
            min_sizes=[size * input_size for size in anchor_sizes[:-1]],
            max_sizes=[size * input_size for size in anchor_sizes[1:]],
        ),
    ),
)

# Neither zoom nor crop: photographs of a microscope have one scale, and a short
# training learns it sooner.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    # after Resize, on fewer pixels: loading shares the cores with training
    dict(
        type='PhotoMetricDistortion',
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
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

# XMLDataset, the parent of VOCDataset: the latter takes a folder called VOC2007
# for Pascal VOC and prints the results of red cells as those of aeroplanes.
dataset = dict(
    type='XMLDataset',
    data_root='{{$BCCD_ROOT:../shared/data/bccd}}/VOC2007/',
    data_prefix=dict(sub_data_root=''),
    metainfo=dict(
        classes=classes, palette=[(220, 20, 60), (0, 82, 200), (255, 165, 0)]
    ),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        dataset,
        ann_file='ImageSets/Main/train.txt',
        # Two boxes of BCCD have no area. The one in `train` is ignored: it has
        # no finite regression target. The one in `val` counts as missed.
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=1),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        dataset,
        ann_file='ImageSets/Main/val.txt',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# pascal_voc/mAP is mAP50, coco_style/mAP the mean over IoU 0.50 to 0.95.
val_evaluator = [
    dict(type='VOCMetric', metric='mAP', eval_mode='area'),
    dict(
        type='VOCMetric',
        metric='mAP',
        eval_mode='area',
        iou_thrs=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
        prefix='coco_style',
    ),
]
test_evaluator = val_evaluator

max_epochs = 40
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        by_epoch=True,
        eta_min=0,
    ),
]
default_hooks = dict(logger=dict(interval=10))
