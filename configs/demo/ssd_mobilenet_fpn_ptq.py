# Calibration on training images: forward passes only, no gradients.
_base_ = 'ssd_mobilenet_fpn.py'
quantize = dict(mode='ptq', bits=8)
load_from = 'work_dirs/demo/float/epoch_18.pth'
work_dir = 'work_dirs/demo/ptq'
