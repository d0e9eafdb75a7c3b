# A one-stage detector that a core trains in minutes: MobileNetV2 of ImageNet, FPN, SSD,
# on photographs of blood smears. `budget.py` and `peer_autoquantize.py` train it.
_base_ = '../../configs/bccd/ssd_mobilenet_imagenet_fpn.py'
work_dir = 'work_dirs/budget/ssd_fpn_bccd'
# Starting workers takes longer than reading so few images.
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = here
val_dataloader = here
test_dataloader = here
train_cfg = dict(max_epochs=6, val_interval=6)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=6, by_epoch=True, eta_min=0),
]
