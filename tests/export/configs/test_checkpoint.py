"""Checkpoints that an export cannot start from."""

import pytest
import torch
from refusals import refused
from toy_runner import PTQ, make_config, train

pytest.importorskip('onnx')

from mmquant_jacinto.export.configs.checkpoint import load_quantized  # noqa: E402


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """Of a calibrated model, whose checkpoint is in its work_dir."""
    cfg = make_config(tmp_path_factory.mktemp('calibrated'), PTQ)
    train(cfg)
    return cfg


def test_checkpoint_of_another_model_is_refused(config):
    path = f'{config.work_dir}/epoch_1.pth'
    assert load_quantized(config, path).plan is not None
    other = make_config(config.work_dir, PTQ, **{'model.channels': 4})
    refused(
        lambda: load_quantized(other, path),
        f'{path} is a checkpoint of another model: 1 of 8 parameters',
        'backbone.stem.weight is (4, 1, 3, 3) here and (8, 1, 3, 3) in it',
    )
    other = make_config(config.work_dir, PTQ, **{'model.even_head': True})
    words = 'even_head.weight is (10, 128) here and missing'
    refused(lambda: load_quantized(other, path), words)


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'is not there'),
        (b'text', 'is no checkpoint that torch can load'),
        (b'PK\x03\x04', 'is cut off or damaged'),
        ({'model': [1]}, 'holds no weights'),
        ({'a.weight': torch.zeros(1)}, 'is a float checkpoint'),
    ],
)
def test_file_that_is_no_quantized_checkpoint(content, words, config, tmp_path):
    path = tmp_path / 'given.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    refused(lambda: load_quantized(config, str(path)), f'{path} {words}')
