# A small Deformable DETR that a core fits to 12 photographs of blood smears in minutes.
# It is scored on these very ones: on no others would so short a training do, and a
# budget needs a score that quantization can take away. `budget.py --train` trains it.
_base_ = '../../configs/_base_/ssd_fpn_bccd.py'
work_dir = 'work_dirs/budget/deformable_detr_bccd'
pretrained = '{{$MMQUANT_PRETRAINED:../shared/pretrained}}'
width = 256  # MMDetection's positions of proposals have no other
sampling = dict(embed_dims=width, num_levels=3, batch_first=True, dropout=0.0)
feed_forward = dict(embed_dims=width, feedforward_channels=2 * width, ffn_drop=0.0)
model = dict(
    _delete_=True,
    type='DeformableDETR',
    num_queries=40,
    num_feature_levels=3,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=dict(
        type='MobileNetV2',
        out_indices=(2, 4, 7),
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint=f'{pretrained}/mobilenet_v2_imagenet.pth'
        ),
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[32, 96, 1280],
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=16),
        num_outs=3,
    ),
    encoder=dict(
        num_layers=1, layer_cfg=dict(self_attn_cfg=sampling, ffn_cfg=feed_forward)
    ),
    decoder=dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=width, num_heads=8, dropout=0.0, batch_first=True
            ),
            cross_attn_cfg=sampling,
            ffn_cfg=feed_forward,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=width // 2, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='DeformableDETRHead',
        num_classes=len(_base_.classes),
        embed_dims=width,
        sync_cls_avg_factor=True,
        loss_cls=dict(
            type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
        ),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=40),
)
# Starting workers takes longer than reading so few images.
here = dict(num_workers=0, persistent_workers=False)
# The same each time: what is shown anew differently takes longer to fit.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(_base_.input_size,) * 2, keep_ratio=False),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(here, dataset=dict(indices=12, pipeline=train_pipeline))
val_dataloader = dict(
    here, dataset=dict(ann_file='ImageSets/Main/train.txt', indices=12)
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=65, val_interval=65)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.5),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.25),
            'sampling_offsets': dict(lr_mult=0.25),
            'reference_points': dict(lr_mult=0.25),
        }
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    # Half of a schedule: it has learned them by then.
    dict(type='CosineAnnealingLR', T_max=130, by_epoch=True, eta_min=0),
]
default_hooks = dict(checkpoint=dict(interval=65))
