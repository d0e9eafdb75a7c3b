"""What cannot be quantized as asked is refused, before the first iteration."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner
from toy_runner import (
    EPOCHS,
    NUM_TRAIN,
    WatchHook,
    log_of,
    make_config,
    set_pipeline,
    state_of,
    train,
)

from mmquant_jacinto import QuantizeError

QAT = dict(mode='qat', bits=8)
PTQ = dict(mode='ptq', bits=8)
MODES = pytest.mark.parametrize('quantize', [QAT, PTQ], ids=['qat', 'ptq'])


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    """A trained float model."""
    work_dir = tmp_path_factory.mktemp('float')
    train(make_config(work_dir, iters=4))
    return work_dir / 'iter_4.pth'


@pytest.fixture(scope='module')
def ptq_checkpoint(float_checkpoint, tmp_path_factory):
    """A calibrated model."""
    work_dir = tmp_path_factory.mktemp('ptq')
    train(make_config(work_dir, PTQ, load_from=str(float_checkpoint)))
    return work_dir / 'epoch_1.pth'


@pytest.fixture(scope='module')
def other_checkpoint(tmp_path_factory):
    """A calibrated model whose layers have other widths."""
    work_dir = tmp_path_factory.mktemp('other')
    train(make_config(work_dir, PTQ, **{'model.channels': 4}))
    return work_dir / 'epoch_1.pth'


def refused(act, *words):
    """Runs ``act``; its one sentence of refusal must hold all of ``words``."""
    with pytest.raises(QuantizeError) as caught:
        act()
    message = str(caught.value)
    for word in words:
        assert word in message
    assert '\n' not in message
    assert not message.endswith('.')
    return message


@pytest.fixture
def refused_training(tmp_path):
    """Refusal of ``train()``; nothing may have been trained or saved."""

    def refuse(quantize, *words, change=None, **changes):
        hook = dict(type='WatchHook')
        cfg = make_config(tmp_path, quantize, custom_hooks=[hook], **changes)
        if change is not None:
            change(cfg)
        runners = []

        def act():
            runners.append(Runner.from_cfg(cfg))
            runners[0].train()

        message = refused(act, *words)
        for runner in runners:
            hooks = [hook for hook in runner.hooks if isinstance(hook, WatchHook)]
            assert hooks
            assert not hooks[0].losses
        assert not list(tmp_path.glob('*.pth*'))
        return message

    return refuse


@pytest.mark.parametrize(
    ('quantize', 'words'),
    [
        (dict(mode='qatt'), ["quantize.mode='qatt'", "did you mean 'qat'?"]),
        ('trainings', ["quantize='trainings'", "did you mean 'training'?"]),
        (3, ['quantize=3', "dict(mode='qat', bits=8)"]),
        (dict(mdoe='qat'), ['quantize.mdoe', "did you mean 'mode'?"]),
        (
            dict(calibration=dict(num_image=1)),
            ['quantize.calibration.num_image', "'num_images'"],
        ),
        (dict(freeze=dict(range=1)), ['quantize.freeze.range', "'ranges'"]),
        (dict(bits=3.5), ['quantize.bits=3.5']),
        (dict(bits=0), ['quantize.bits=0']),
        (dict(bits=33), ['quantize.bits=33']),
        (dict(bits=dict(weights=8)), ['quantize.bits.weights', "'weight'"]),
        (dict(bits=dict(weight=33)), ['quantize.bits.weight=33']),
        (dict(target='jacinta'), ["'jacinta'", "did you mean 'jacinto'?"]),
        (
            dict(overrides={'bakbone.*': 16}),
            ['quantize.overrides', "'bakbone.*'", "'backbone'"],
        ),
        (dict(overrides={'head': 99}), ["quantize.overrides['head']=99"]),
    ],
    ids=str,
)
def test_unknown_key_or_value_is_named_with_the_nearest(
    quantize, words, refused_training
):
    refused_training(quantize, *words)


@MODES
def test_model_with_nothing_to_quantize(quantize, refused_training):
    def change(cfg):
        cfg.model = dict(type='Weightless')

    refused_training(quantize, 'nothing', change=change)


@pytest.mark.parametrize('quantize', [PTQ, dict(PTQ, calibration=dict(epochs=0))])
def test_empty_calibration_set(quantize, refused_training):
    refused_training(
        quantize,
        'calibration set is empty',
        'train_dataloader',
        **{'train_dataloader.dataset.stop': 0},
    )


def test_empty_calibration_dataloader_of_the_config(refused_training, tmp_path):
    loader = make_config(tmp_path).test_dataloader
    loader.dataset.stop = loader.dataset.start
    refused_training(
        dict(PTQ, calibration=dict(dataloader=loader)),
        'quantize.calibration.dataloader has no images',
    )


def test_calibration_dataloader_without_an_end(refused_training, tmp_path):
    loader = make_config(tmp_path).train_dataloader
    loader.sampler = dict(type='InfiniteSampler', shuffle=True)
    refused_training(
        dict(PTQ, calibration=dict(dataloader=loader)),
        'quantize.calibration.dataloader.sampler is an InfiniteSampler',
        'DefaultSampler',
    )


@pytest.mark.parametrize('observer', ['mse', 'moving_average'])
def test_learned_scales_without_a_finite_image(observer, refused_training):
    def change(cfg):
        set_pipeline(cfg, 'val_dataloader', dict(type='Break', nan=True))

    quantize = dict(mode='qat', learned_scale=True, observer=observer)
    refused_training(quantize, 'NaN or infinity on every calibration', change=change)


def test_a_training_that_diverges_says_so(tmp_path):
    cfg = make_config(tmp_path, dict(mode='qat', learned_scale=True))
    cfg.optim_wrapper.optimizer.lr = 1e8
    with pytest.raises(QuantizeError, match='has diverged; use a lower optim_wrapper'):
        train(cfg)


@MODES
def test_images_that_are_missing(quantize, refused_training):
    def change(cfg):
        for loader in ('train_dataloader', 'val_dataloader'):
            set_pipeline(cfg, loader, dict(type='Break'))

    message = refused_training(quantize, 'train_dataloader', change=change)
    assert 'FileNotFoundError' in message
    assert 'data_prefix' in message


def test_image_that_is_missing_among_others(refused_training):
    def change(cfg):
        set_pipeline(cfg, 'val_dataloader', dict(type='Break', places=[NUM_TRAIN - 1]))

    message = refused_training(PTQ, 'calibration set', change=change)
    assert f'FileNotFoundError: {NUM_TRAIN - 1}.png' in message
    assert 'quantize.calibration.dataloader' in message


def test_first_image_that_is_missing_does_not_hinder_preparing(tmp_path):
    cfg = make_config(tmp_path, QAT, iters=2)
    set_pipeline(cfg, 'val_dataloader', dict(type='Break', places=[NUM_TRAIN]))
    runner = Runner.from_cfg(cfg)
    # A real data set skips it in validation too, this one does not.
    with pytest.raises(FileNotFoundError):
        runner.train()
    assert runner.iter == 2


def test_calibration_without_a_pipeline_of_inference(refused_training):
    refused_training(
        PTQ,
        'quantize.calibration.dataloader',
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        test_dataloader=None,
        test_cfg=None,
        test_evaluator=None,
    )


@MODES
def test_training_without_a_train_loop(quantize, refused_training):
    refused_training(
        quantize,
        f'quantize.mode={quantize["mode"]!r}',
        'train_cfg',
        'tools/test.py',
        train_cfg=None,
        train_dataloader=None,
        optim_wrapper=None,
        param_scheduler=None,
    )


# Checkpoints


@MODES
@pytest.mark.parametrize('resume', [False, True])
def test_checkpoint_of_another_model_to_train(
    resume, quantize, refused_training, tmp_path_factory
):
    path = tmp_path_factory.mktemp('other') / 'other.pth'
    torch.save(
        dict(state_dict={'layer1.weight': torch.ones(3)}, meta=dict(epoch=1, iter=1)),
        path,
    )
    refused_training(
        quantize,
        str(path),
        'another model',
        '0 of ',
        load_from=str(path),
        resume=resume,
    )


def test_checkpoint_of_another_model_to_resume(refused_training, other_checkpoint):
    # One layer fits: enough to fine-tune from it, but not to resume.
    refused_training(
        QAT,
        f'{other_checkpoint} is a checkpoint of another model',
        load_from=str(other_checkpoint),
        resume=True,
    )


@MODES
def test_float_checkpoint_to_resume(quantize, refused_training, float_checkpoint):
    refused_training(
        quantize,
        f'{float_checkpoint} is a float checkpoint',
        f'resume=False load_from={float_checkpoint}',
        load_from=str(float_checkpoint),
        resume=True,
    )


def test_checkpoint_of_another_model_to_test(other_checkpoint, tmp_path):
    cfg = make_config(tmp_path, QAT, load_from=str(other_checkpoint))
    refused(Runner.from_cfg(cfg).test, str(other_checkpoint), 'another model')


@MODES
@pytest.mark.parametrize('act', ['test', 'val'])
def test_float_checkpoint_to_test(act, quantize, float_checkpoint, tmp_path):
    cfg = make_config(tmp_path, quantize, load_from=str(float_checkpoint))
    refused(
        getattr(Runner.from_cfg(cfg), act),
        f'{float_checkpoint} is a float checkpoint',
        'tools/train.py CONFIG',
        f'quantize.mode=ptq load_from={float_checkpoint}',
        'quantize.mode=qat',
    )


@pytest.mark.parametrize('act', ['test', 'val'])
def test_no_checkpoint_to_test(act, tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path, QAT))
    refused(getattr(runner, act), 'no quantization ranges', 'load_from')


def test_quantized_model_given_to_the_runner(ptq_checkpoint, tmp_path):
    cfg = make_config(tmp_path / 'first', PTQ, load_from=str(ptq_checkpoint))
    runner = Runner.from_cfg(cfg)
    runner.test()
    cfg = make_config(tmp_path / 'second', QAT)
    cfg = Config(dict(cfg, model=None))
    for model in (runner.model, runner.model.module):
        # A Config deep-copies a module; as in a script, it is set afterwards.
        cfg._cfg_dict['model'] = model
        refused(lambda: Runner.from_cfg(cfg), 'give QuantRunner the float model')


# Numbers


def test_calibration_on_nan_alone(refused_training, float_checkpoint):
    def change(cfg):
        set_pipeline(cfg, 'val_dataloader', dict(type='Break', nan=True))

    refused_training(
        PTQ,
        'backbone/input gave NaN or infinity',
        'load_from',
        change=change,
        load_from=str(float_checkpoint),
    )


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_calibration_of_a_checkpoint_with_numbers_that_are_none(
    value, refused_training, float_checkpoint, tmp_path_factory
):
    checkpoint = torch.load(float_checkpoint, weights_only=False)
    checkpoint['state_dict']['head.bias'].fill_(value)
    path = tmp_path_factory.mktemp('broken') / 'broken.pth'
    torch.save(checkpoint, path)
    refused_training(
        PTQ, 'head/linear gave NaN or infinity', 'load_from', load_from=str(path)
    )


def test_calibration_leaves_a_broken_image_out_and_warns(float_checkpoint, tmp_path):
    cfg = make_config(tmp_path, PTQ, load_from=str(float_checkpoint))
    broken = dict(type='Break', places=[7], nan=True)
    train(set_pipeline(cfg, 'val_dataloader', broken))
    state = state_of(tmp_path / 'epoch_1.pth')
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    assert (state['quantization.activations.count'] == 3).all()
    assert 'NaN or infinity was left out of the ranges of backbone/input' in log_of(
        tmp_path
    )


def test_training_leaves_a_broken_batch_out_of_the_ranges_and_warns(tmp_path):
    # What a NaN does to weights and statistics is the same in float: here the
    # former change in the last iteration, the latter never.
    cfg = make_config(
        tmp_path,
        dict(QAT, freeze=dict(bn=0)),
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        **{'train_cfg.max_epochs': 1, 'optim_wrapper.accumulative_counts': 100},
    )
    set_pipeline(cfg, 'train_dataloader', dict(type='Break', places=[7], nan=True))
    runner = train(cfg)
    state = runner.model.quantization.activations
    assert state.low.isfinite().all()
    assert state.high.isfinite().all()
    assert state.count.tolist() == [3] * len(state.count)
    assert 'NaN or infinity was left out of the ranges of backbone/input' in log_of(
        tmp_path
    )


# What quantization cannot be combined with


@pytest.mark.parametrize(
    'changes',
    [
        dict(efficient_conv_bn_eval='[backbone]'),
        dict(efficient_conv_bn_eval=['backbone']),
        dict(compile=True),
        dict(compile=dict(backend='inductor')),
    ],
    ids=str,
)
@MODES
def test_setting_that_excludes_quantization(changes, quantize, refused_training):
    (key,) = changes
    refused_training(quantize, f'{key}=', 'remove it', **changes)


@MODES
def test_flexible_runner(quantize, tmp_path):
    cfg = make_config(tmp_path, quantize, runner_type='FlexibleRunner')
    refused(
        lambda: RUNNERS.build(cfg),
        "runner_type='FlexibleRunner'",
        "runner_type='QuantRunner'",
    )


def test_flexible_runner_in_float_is_left_alone(tmp_path):
    cfg = make_config(tmp_path, False, runner_type='FlexibleRunner')
    cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    assert type(RUNNERS.build(cfg)).__name__ == 'FlexibleRunner'


def test_model_wrapper_that_cannot_be_quantized(refused_training):
    refused_training(
        QAT,
        "model_wrapper_cfg.type='MMFullyShardedDataParallel'",
        'MMDistributedDataParallel',
        model_wrapper_cfg=dict(type='MMFullyShardedDataParallel'),
    )


@MODES
def test_custom_imports_that_replaced_those_of_upstream(quantize, refused_training):
    assert MODELS.get('mmrotate.ReResNet') is None
    message = refused_training(
        quantize,
        'mmrotate.ReResNet',
        'custom_imports',
        "imports=['mmquant_jacinto', ...]",
        **{'model.type': 'mmrotate.ReResNet'},
    )
    assert '_base_' in message


def test_same_config_in_float_raises_what_mmengine_raises(tmp_path):
    cfg = make_config(tmp_path, **{'model.type': 'mmrotate.ReResNet'})
    with pytest.raises(KeyError) as caught:
        Runner.from_cfg(cfg)
    assert not isinstance(caught.value, QuantizeError)


def test_schedule_longer_than_the_training_is_no_error(tmp_path):
    quantize = dict(QAT, freeze=dict(bn=EPOCHS * 10, ranges=EPOCHS * 10))
    train(make_config(tmp_path, quantize, iters=2))
    assert 'frozen' not in log_of(tmp_path)
