# QAT with distillation by MMRazor (pip install 'mmquant_jacinto[mmrazor]'): the float
# detector teaches the quantized one, on the maps of its FPN and what its head makes
# of them. Checkpoints are tested and exported with ssd_mobilenet_fpn_qat.py.
_base_ = 'ssd_mobilenet_fpn_qat.py'
work_dir = f'{_base_.work_dir}_distill'

# Name of a recorder to the module whose outputs it records, in both detectors.
sources = dict(neck='neck')
sources.update(
    {
        f'{branch}{level}': f'bbox_head.{branch}_convs.{level}'
        for branch in ('cls', 'reg')
        for level in range(_base_.model.neck.num_outs)
    }
)
recorders = {
    name: dict(type='mmrazor.ModuleOutputs', source=source)
    for name, source in sources.items()
}
outputs = list(sources)[1:]
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
        distill_losses=dict(
            loss_neck=dict(type='mmrazor.PKDLoss', loss_weight=1.0),
            **{
                f'loss_{name}': dict(
                    type='mmrazor.L2Loss', normalize=False, div_element=True
                )
                for name in outputs
            },
        ),
        loss_forward_mappings=dict(
            loss_neck=dict(
                preds_S=dict(from_student=True, recorder='neck'),
                preds_T=dict(from_student=False, recorder='neck'),
            ),
            **{
                f'loss_{name}': dict(
                    s_feature=dict(from_student=True, recorder=name),
                    t_feature=dict(from_student=False, recorder=name),
                )
                for name in outputs
            },
        ),
    ),
)
