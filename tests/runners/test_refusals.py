"""What cannot be quantized as asked is refused, before the first iteration."""

import pytest
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner
from refusals import refused
from toy_runner import (
    EPOCHS,
    NUM_TRAIN,
    PTQ,
    QAT,
    log_of,
    make_config,
    set_pipeline,
    train,
)

from mmquant_jacinto import QuantizeError

MODES = pytest.mark.parametrize('quantize', [QAT, PTQ], ids=['qat', 'ptq'])


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
