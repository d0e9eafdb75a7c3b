"""A float teacher distils into a student that our engine quantizes."""

import pytest
import torch
import toy_runner
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from toy_distiller import distilling_model
from toy_runner import differences, make_config, state_of, train

import mmquant_jacinto  # noqa: F401 - lets MMRazor be imported
from mmquant_jacinto import QuantizeError, QuantTrainModule

pytest.importorskip('mmrazor.models', reason='MMRazor is not installed')

FLOAT_EPOCHS = 2
QAT = dict(mode='qat', bits=8, target='onnxruntime')


def student_config(work_dir, quantize=None, **changes):
    cfg = make_config(work_dir, quantize, **changes)
    cfg.model = dict(type='DigitsStudent')
    return cfg


def distilling_config(
    work_dir, teacher_ckpt, quantize=QAT, source='backbone', **changes
):
    cfg = make_config(work_dir, quantize, **changes)
    cfg.model = distilling_model(teacher_ckpt, source)
    return cfg


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('float')
    cfg = student_config(work_dir)
    cfg.train_cfg.max_epochs = FLOAT_EPOCHS
    train(cfg)
    return str(work_dir / f'epoch_{FLOAT_EPOCHS}.pth')


@pytest.fixture(scope='module')
def distilled(float_checkpoint, tmp_path_factory):
    """The runner of a distillation that started from the float student."""
    work_dir = tmp_path_factory.mktemp('distilled')
    cfg = distilling_config(work_dir, float_checkpoint, load_from=float_checkpoint)
    return train(cfg), work_dir / 'epoch_6.pth'


def test_only_the_student_is_quantized(distilled, float_checkpoint):
    runner, checkpoint = distilled
    state = state_of(checkpoint)
    quantizers = [key for key in state if 'quantization' in key]
    assert 'architecture.quantization.plan' in quantizers
    assert all(key.startswith('architecture.quantization.') for key in quantizers)
    plan = runner.model.plan
    assert plan.regions == ('backbone', 'head')
    assert set(plan.weights) == {'backbone.stem', 'backbone.conv', 'head'}


def test_the_teacher_stays_as_it_was_and_the_student_learns(
    distilled, float_checkpoint
):
    state, teacher = state_of(distilled[1]), state_of(float_checkpoint)

    def below(prefix):
        return {
            key[len(prefix) :]: value
            for key, value in state.items()
            if key.startswith(prefix) and 'quantization' not in key
        }

    assert not differences(below('teacher.'), teacher)
    changed = differences(below('architecture.'), teacher)
    assert {'backbone.stem.weight', 'backbone.conv.weight', 'head.weight'} <= set(
        changed
    )


def test_losses_of_both_are_logged(distilled):
    lines = toy_runner.scalars(distilled[1].parent)
    logged = [line for line in lines if 'loss' in line]
    names = {'student.loss', 'distill.loss_feature', 'distill.loss_scores'}
    assert names <= logged[0].keys()
    total = sum(logged[0][name] for name in names)
    assert logged[0]['loss'] == pytest.approx(total, rel=1e-4)


def test_the_students_config_tests_the_checkpoint(distilled, tmp_path):
    scores = toy_runner.val_scores(distilled[1].parent)[-1]
    cfg = student_config(tmp_path, QAT, load_from=str(distilled[1]))
    assert Runner.from_cfg(cfg).test() == scores


def test_the_distillations_config_tests_it_too(distilled, float_checkpoint, tmp_path):
    scores = toy_runner.val_scores(distilled[1].parent)[-1]
    cfg = distilling_config(tmp_path, float_checkpoint, load_from=str(distilled[1]))
    assert Runner.from_cfg(cfg).test() == scores


def test_a_students_quantized_checkpoint_can_be_distilled_further(
    float_checkpoint, tmp_path
):
    plain = student_config(tmp_path / 'plain', QAT, load_from=float_checkpoint)
    trained = train(plain)
    scores = toy_runner.val_scores(tmp_path / 'plain')[-1]
    start = str(tmp_path / 'plain' / 'epoch_6.pth')
    cfg = distilling_config(tmp_path / 'more', float_checkpoint, load_from=start)
    runner = Runner.from_cfg(cfg)
    assert runner.test() == scores
    assert runner.model.plan.to_json() == trained.model.plan.to_json()


def test_calibration_calibrates_the_student(float_checkpoint, tmp_path):
    ptq = dict(QAT, mode='ptq')
    plain = student_config(tmp_path / 'plain', ptq, load_from=float_checkpoint)
    train(plain)
    cfg = distilling_config(
        tmp_path / 'both', float_checkpoint, ptq, load_from=float_checkpoint
    )
    train(cfg)
    expected = state_of(tmp_path / 'plain' / 'epoch_1.pth')
    found = state_of(tmp_path / 'both' / 'epoch_1.pth')
    student = {
        key[len('architecture.') :]: value
        for key, value in found.items()
        if key.startswith('architecture.')
    }
    assert not differences(student, expected)


def test_resuming_ends_where_the_uninterrupted_run_ends(
    distilled, float_checkpoint, tmp_path
):
    cfg = distilling_config(tmp_path, float_checkpoint, load_from=float_checkpoint)
    cfg.custom_hooks = [dict(type='KillHook', after_epoch=3)]
    with pytest.raises(toy_runner.Killed):
        train(cfg)
    cfg = distilling_config(tmp_path, float_checkpoint, resume=True)
    train(cfg)
    assert not differences(state_of(tmp_path / 'epoch_6.pth'), state_of(distilled[1]))


def distiller_of(float_checkpoint, tmp_path, **kwargs):
    cfg = distilling_config(tmp_path, float_checkpoint, **kwargs)
    Runner.from_cfg(cfg)  # registers what the config names
    return MODELS.build(cfg.model)


def digits_batch():
    images, labels = toy_runner.digits()
    place = torch.arange(8)
    return dict(inputs=images[:8], labels=labels[:8], place=place)


def test_recorders_see_what_the_next_module_sees(float_checkpoint, tmp_path):
    model = distiller_of(float_checkpoint, tmp_path)
    seen = []
    model.architecture.backbone.register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    bits = dict(weight=3, activation=3, sum=3, output=3)
    wrapper = QuantTrainModule(
        model, digits_batch(), bits=bits, edge_bits=3, target='onnxruntime'
    )
    wrapper.train()
    data = model.data_preprocessor(digits_batch(), True)
    for _ in range(2):  # the first measures the ranges
        wrapper(**data, mode='loss')
    assert len(seen[-1].unique()) <= 2**3
    assert seen[-1].grad_fn is not None


def test_the_loss_and_its_gradient_are_those_of_the_formula(float_checkpoint, tmp_path):
    model = distiller_of(float_checkpoint, tmp_path)
    model.distiller.loss_forward_mappings['loss_feature']['s_feature'].pop('connector')
    wrapper = QuantTrainModule(model, digits_batch(), bits=4, target='onnxruntime')
    wrapper.train()
    data = model.data_preprocessor(digits_batch(), True)
    wrapper(**data, mode='loss')
    kept = {}

    def keep(name):
        def hook(module, args, output):
            kept[name] = output
            if output.requires_grad:
                output.retain_grad()

        return hook

    model.architecture.head.register_forward_hook(keep('student'))
    model.teacher.head.register_forward_hook(keep('teacher'))
    losses = wrapper(**data, mode='loss')
    student, teacher = (kept[name].double() for name in ('student', 'teacher'))
    p = torch.softmax(teacher / 2, 1)
    difference = p.log() - torch.log_softmax(student / 2, 1)
    expected = 4 * (p * difference).sum() / len(p)
    assert losses['distill.loss_scores'].item() == pytest.approx(expected.item())
    losses['distill.loss_scores'].backward()
    q = torch.softmax(student.detach() / 2, 1)
    torch.testing.assert_close(
        kept['student'].grad.double(), 2 * (q - p) / len(p), rtol=1e-4, atol=1e-7
    )
    assert model.architecture.backbone.stem.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_inside_of_an_operation_is_no_target(float_checkpoint, tmp_path):
    cfg = distilling_config(tmp_path, float_checkpoint, source='backbone.stem')
    with pytest.raises(QuantizeError, match=r'student_recorders\.feature\.source=.*'):
        train(cfg)


def test_a_teacher_without_a_checkpoint_is_noticed(tmp_path):
    cfg = distilling_config(tmp_path, None)
    cfg.train_cfg.max_epochs = 1
    train(cfg)
    assert 'teacher_ckpt is not set' in toy_runner.log_of(tmp_path)


def test_a_model_with_an_architecture_of_its_own_is_no_algorithm():
    model = nn.Module()
    model.architecture = nn.Linear(2, 2)
    names = {'architecture.weight': torch.zeros(2, 2)}
    assert mmquant_jacinto.wrappers.distillation.fit_names(names, model) is names
