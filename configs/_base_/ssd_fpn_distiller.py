# What a float detector teaches a quantized one: the maps of its FPN, and what its head
# makes of them. By MMRazor: pip install 'mmquant_jacinto[mmrazor]'.

# Name of a recorder to the module whose outputs it records, in both detectors.
num_levels = 5
outputs = {
    f'{kind}{i}': f'bbox_head.{kind}_convs.{i}'
    for kind in ('cls', 'reg')
    for i in range(num_levels)
}
sources = dict(neck='neck', **outputs)
recorders = {
    name: dict(type='mmrazor.ModuleOutputs', source=source)
    for name, source in sources.items()
}
distiller = dict(
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
)
