"""Checkpoints that a run cannot start from, resume or test."""

import itertools

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from ptq_runs import CHECKPOINT
from refusals import refused
from toy_runner import PTQ, QAT, DigitsDataset, make_config, train

MODES = pytest.mark.parametrize('quantize', [QAT, PTQ], ids=['qat', 'ptq'])


@pytest.fixture(scope='module')
def other_checkpoint(tmp_path_factory):
    """A calibrated model whose layers have other widths."""
    work_dir = tmp_path_factory.mktemp('other')
    train(make_config(work_dir, PTQ, **{'model.channels': 4}))
    return work_dir / 'epoch_1.pth'


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


NO_CHECKPOINTS = {
    'missing': (None, 'is not there'),
    'empty': (b'', 'is empty'),
    'text': (b'no pickle', 'is no checkpoint that torch can load'),
    'another archive': (b'PK\x05\x06' + bytes(18), 'is no checkpoint that torch can'),
    'cut off': (b'PK\x03\x04' + bytes(1000), 'is cut off or damaged'),
}


@pytest.fixture
def no_data(monkeypatch):
    """No data set may be built."""

    def build(*args, **kwargs):
        raise AssertionError('a data set was built')

    monkeypatch.setattr(DigitsDataset, '__init__', build)


@pytest.mark.parametrize('case', NO_CHECKPOINTS)
def test_file_that_is_no_checkpoint(case, tmp_path, no_data):
    content, message = NO_CHECKPOINTS[case]
    path = tmp_path / 'given.pth'
    if content is not None:
        path.write_bytes(content)
    for quantize, resume in itertools.product((QAT, PTQ), (False, True)):
        cfg = make_config(tmp_path, quantize, load_from=str(path), resume=resume)
        refused(Runner.from_cfg(cfg).train, f'{path} {message}', '.pth file')
    refused(Runner.from_cfg(cfg).test, f'{path} {message}')


@pytest.mark.parametrize('content', [[1], {}, dict(state_dict=1), dict(a=1)], ids=repr)
def test_file_without_weights(content, tmp_path, no_data):
    path = tmp_path / 'given.pth'
    torch.save(content, path)
    cfg = make_config(tmp_path, QAT, load_from=str(path))
    for act in ('train', 'test', 'val'):
        refused(getattr(Runner.from_cfg(cfg), act), f'{path} holds no weights')


def test_checkpoint_is_checked_before_the_data(
    float_checkpoint, other_checkpoint, tmp_path, no_data
):
    cfg = make_config(tmp_path, QAT, load_from=str(float_checkpoint))
    refused(Runner.from_cfg(cfg).test, 'is a float checkpoint')
    cfg = make_config(tmp_path, QAT, load_from=str(other_checkpoint), resume=True)
    refused(Runner.from_cfg(cfg).train, 'another model')


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


def test_quantized_model_given_to_the_runner(ptq_dir, tmp_path):
    cfg = make_config(tmp_path / 'first', PTQ, load_from=str(ptq_dir / CHECKPOINT))
    runner = Runner.from_cfg(cfg)
    runner.test()
    cfg = make_config(tmp_path / 'second', QAT)
    cfg = Config(dict(cfg, model=None))
    for model in (runner.model, runner.model.module):
        # A Config deep-copies a module; as in a script, it is set afterwards.
        cfg._cfg_dict['model'] = model
        refused(lambda: Runner.from_cfg(cfg), 'give QuantRunner the float model')
