# QAT with distillation by MMRazor (pip install 'mmquant_jacinto[mmrazor]'): the float
# detector teaches the quantized one, on the maps of its FPN and what its head makes
# of them. Checkpoints are tested and exported with ssd_mobilenet_fpn_qat.py.
_base_ = 'ssd_mobilenet_fpn_qat.py'
work_dir = f'{_base_.work_dir}_distill'

recorders = dict(neck=dict(type='mmrazor.ModuleOutputs', source='neck'))
distill_losses = dict(loss_neck=dict(type='mmrazor.PKDLoss', loss_weight=1.0))
loss_forward_mappings = dict(
    loss_neck=dict(
        preds_S=dict(from_student=True, recorder='neck'),
        preds_T=dict(from_student=False, recorder='neck'),
    )
)
for name in [
    f'{branch}_convs.{level}'
    for branch in ('cls', 'reg')
    for level in range(_base_.model.neck.num_outs)
]:
    key = name.replace('_convs.', '')
    recorders[key] = dict(type='mmrazor.ModuleOutputs', source=f'bbox_head.{name}')
    distill_losses[f'loss_{key}'] = dict(
        type='mmrazor.L2Loss', normalize=False, div_element=True, loss_weight=1.0
    )
    loss_forward_mappings[f'loss_{key}'] = dict(
        s_feature=dict(from_student=True, recorder=key),
        t_feature=dict(from_student=False, recorder=key),
    )

model = dict(
    _delete_=True,
    type='mmrazor.SingleTeacherDistill',
    architecture=_base_.model,
    teacher=_base_.model,
    teacher_ckpt=_base_.load_from,
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=distill_losses,
        loss_forward_mappings=loss_forward_mappings,
    ),
)
