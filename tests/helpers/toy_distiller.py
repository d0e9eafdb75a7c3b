"""A toy student and teacher for MMRazor's distillers."""

import copy

from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from toy_runner import DigitsClassifier


@MODELS.register_module()
class PackDigits(BaseDataPreprocessor):
    """Gives the batch the signature that MMRazor's algorithms have."""

    def forward(self, data, training=False):
        if 'data_samples' not in data:
            truth = dict(labels=data['labels'], place=data['place'])
            data = dict(inputs=data['inputs'], data_samples=truth)
        return super().forward(data, training)


@MODELS.register_module()
class DigitsStudent(DigitsClassifier):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.data_preprocessor = PackDigits()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return super().forward(inputs, **(data_samples or {}), mode=mode)


def distilling_model(teacher_ckpt, source='backbone'):
    """The config of a student that a float checkpoint teaches.

    Args:
        teacher_ckpt (str): Of a ``DigitsStudent``.
        source (str): Module whose outputs are compared beside the head's.
    """
    recorders = dict(
        feature=dict(type='mmrazor.ModuleOutputs', source=source),
        scores=dict(type='mmrazor.ModuleOutputs', source='head'),
    )

    def sides(recorder, student, teacher):
        return {
            student: dict(from_student=True, recorder=recorder),
            teacher: dict(from_student=False, recorder=recorder),
        }

    distiller = dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=recorders,
        teacher_recorders=copy.deepcopy(recorders),
        connectors=dict(
            align=dict(type='mmrazor.ConvModuleConnector', in_channel=8, out_channel=8)
        ),
        distill_losses=dict(
            loss_feature=dict(type='mmrazor.L2Loss', normalize=False, div_element=True),
            loss_scores=dict(type='mmrazor.KLDivergence', tau=2.0),
        ),
        loss_forward_mappings=dict(
            loss_feature=sides('feature', 's_feature', 't_feature'),
            loss_scores=sides('scores', 'preds_S', 'preds_T'),
        ),
    )
    mappings = distiller['loss_forward_mappings']
    mappings['loss_feature']['s_feature']['connector'] = 'align'
    return dict(
        type='mmrazor.SingleTeacherDistill',
        architecture=dict(type='DigitsStudent'),
        teacher=dict(type='DigitsStudent'),
        teacher_ckpt=teacher_ckpt,
        distiller=distiller,
    )
