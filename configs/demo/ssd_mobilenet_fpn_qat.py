# Fine-tuning of the float detector, quantized, at a hundredth of its learning rate.
_base_ = 'ssd_mobilenet_fpn.py'
quantize = dict(mode='qat', bits=8)
load_from = 'work_dirs/demo/float/epoch_18.pth'
work_dir = 'work_dirs/demo/qat'
max_epochs = {{'$DEMO_QAT_EPOCHS:4'}}
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=max_epochs)]
