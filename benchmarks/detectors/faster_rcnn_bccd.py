# A two-stage detector that a core trains in minutes: MobileNetV2 of ImageNet, FPN,
# Faster R-CNN, on photographs of blood smears. `budget.py --train` trains it.
_base_ = '../../configs/_base_/ssd_fpn_bccd.py'
work_dir = 'work_dirs/budget/faster_rcnn_bccd'
pretrained = '{{$MMQUANT_PRETRAINED:../shared/pretrained}}'
norm_cfg = dict(type='BN')
box_coder = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
class_loss = dict(type='CrossEntropyLoss', loss_weight=1.0)
box_loss = dict(type='L1Loss', loss_weight=1.0)
# Of BCCD, as a fraction of the image: platelets 0.05 to 0.12, white cells to 0.51.
strides = [8, 16, 32]
model = dict(
    _delete_=True,
    type='FasterRCNN',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=dict(
        type='MobileNetV2',
        out_indices=(2, 4, 7),
        init_cfg=dict(
            type='Pretrained', checkpoint=f'{pretrained}/mobilenet_v2_imagenet.pth'
        ),
    ),
    neck=dict(
        type='FPN',
        in_channels=[32, 96, 1280],
        out_channels=96,
        num_outs=len(strides),
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(
        type='RPNHead',
        in_channels=96,
        feat_channels=96,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[2, 4], ratios=[0.75, 1.33], strides=strides
        ),
        bbox_coder=dict(box_coder, target_stds=[1.0] * 4),
        loss_cls=dict(class_loss, use_sigmoid=True),
        loss_bbox=box_loss,
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2),
            out_channels=96,
            featmap_strides=strides,
            finest_scale=32,
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=96,
            fc_out_channels=256,
            num_classes=len(_base_.classes),
            bbox_coder=box_coder,
            loss_cls=dict(class_loss, use_sigmoid=False),
            loss_bbox=box_loss,
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0.3
            ),
            sampler=dict(
                type='RandomSampler',
                num=128,
                pos_fraction=0.5,
                add_gt_as_proposals=False,
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=500, max_per_img=200, nms=dict(type='nms', iou_threshold=0.7)
        ),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5
            ),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.25),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=150, nms=dict(type='nms', iou_threshold=0.7)),
        rcnn=dict(
            score_thr=0.02, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
        ),
    ),
)
# Starting workers takes longer than reading so few images.
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = here
val_dataloader = here
test_dataloader = here
train_cfg = dict(max_epochs=5, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=8e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=5, by_epoch=True, eta_min=0),
]
