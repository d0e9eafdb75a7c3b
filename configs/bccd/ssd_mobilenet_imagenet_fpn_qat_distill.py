# QAT with distillation: the float detector teaches the quantized one. Checkpoints are
# tested and exported with ssd_mobilenet_imagenet_fpn_qat.py.
_base_ = ['ssd_mobilenet_imagenet_fpn_qat.py', '../_base_/ssd_fpn_distiller.py']
work_dir = f'{_base_.work_dir}_distill'
model = dict(
    _delete_=True,
    type='mmrazor.SingleTeacherDistill',
    architecture=_base_.model,
    teacher=_base_.model,
    teacher_ckpt=_base_.load_from,
    distiller=_base_.distiller,
)
