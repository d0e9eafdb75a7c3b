# Calibration on training images: forward passes only, no gradients.
_base_ = 'ssd_mobilenet_imagenet_fpn.py'
quantize = dict(mode='ptq', bits=8)
load_from = f'{_base_.work_dir}/epoch_{_base_.train_cfg.max_epochs}.pth'
work_dir = f'{_base_.work_dir}_ptq'
