# What a float detector teaches a quantized one: what its head makes of each level.
# By MMRazor: pip install 'mmquant_jacinto[mmrazor]'.

# Name of a recorder to the module whose outputs it records, in both detectors.
num_levels = 5
sources = {
    f'{kind}{i}': f'bbox_head.{kind}_convs.{i}'
    for kind in ('cls', 'reg')
    for i in range(num_levels)
}
recorders = {
    name: dict(type='mmrazor.ModuleOutputs', source=source)
    for name, source in sources.items()
}
distiller = dict(
    type='mmrazor.ConfigurableDistiller',
    student_recorders=recorders,
    teacher_recorders=recorders,
    distill_losses={
        f'loss_{name}': dict(type='mmrazor.L2Loss', normalize=False, div_element=True)
        for name in sources
    },
    loss_forward_mappings={
        f'loss_{name}': dict(
            s_feature=dict(from_student=True, recorder=name),
            t_feature=dict(from_student=False, recorder=name),
        )
        for name in sources
    },
)
