# Fine-tuning of the float detector, quantized, at a hundredth of its learning rate.
_base_ = 'ssd_resnet_fpn.py'
quantize = dict(mode='qat', bits=8)
load_from = f'{_base_.work_dir}/epoch_{_base_.train_cfg.max_epochs}.pth'
work_dir = f'{_base_.work_dir}_qat'
train_cfg = dict(max_epochs=12, val_interval=4)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=12)]
