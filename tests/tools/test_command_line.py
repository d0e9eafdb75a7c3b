"""What the command lines refuse before anything runs."""

import argparse
import sys

import pytest
from command_line import (
    check_file,
    check_shape,
    load_config,
    merge_options,
    read_config,
)
from mmengine.config import Config
from refusals import refused

CONFIGS = {
    'missing': (None, 'is not there'),
    'no Python': ('x = (\n', 'line 1'),
    'missing base': ("_base_ = 'gone.py'\n", 'gone.py is not there'),
    'no model': ('x = 1\n', 'has no model'),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_file_that_is_no_config(case, tmp_path):
    content, words = CONFIGS[case]
    path = tmp_path / 'config.py'
    if content is not None:
        path.write_text(content)
    refused(lambda: read_config(str(path)), str(path), words)


def test_file_of_another_kind_is_no_config(tmp_path):
    path = tmp_path / 'model.pth'
    path.touch()
    refused(lambda: read_config(str(path)), str(path), '.py, .yaml or .json')
    refused(lambda: read_config(str(tmp_path)), str(tmp_path))


def test_folder_that_cannot_be_made(tmp_path):
    config, taken = tmp_path / 'config.py', tmp_path / 'taken'
    config.write_text('model = dict()\n')
    taken.touch()
    args = argparse.Namespace(
        config=str(config),
        work_dir=str(taken / 'work'),
        cfg_options=None,
        launcher='none',
        local_rank=0,
    )
    refused(lambda: load_config(args), f'--work-dir {taken}/work cannot be made')
    args.work_dir = str(tmp_path / 'work')
    assert load_config(args).work_dir == args.work_dir


@pytest.mark.parametrize('quantize', [True, 'training', None])
def test_option_that_goes_into_no_dict(quantize):
    cfg = Config(dict(quantize=quantize))
    words = '--cfg-options quantize.mode=ptq does not fit', 'quantize'
    refused(lambda: merge_options(cfg, {'quantize.mode': 'ptq'}), *words)
    merge_options(cfg, None)
    merge_options(cfg, dict(quantize=False))
    assert cfg.quantize is False


@pytest.mark.parametrize('shape', [(0, 0), (320, -1), (10**6, 320)])
def test_size_of_no_image(shape):
    refused(lambda: check_shape(shape), f'--shape {shape[0]} {shape[1]} is not')
    check_shape((1, 320))


def test_file_that_is_not_whole(tmp_path):
    path = tmp_path / 'model.pth'
    refused(lambda: check_file(str(path)), f'{path} is not there')
    path.write_bytes(b'PK\x03\x04cut')
    refused(lambda: check_file(str(path)), f'{path} is cut off or damaged')
    path.write_bytes(b'not looked into')
    check_file(str(path))
    check_file('https://somewhere/model.pth')


@pytest.mark.parametrize(
    'given, words',
    [
        (['--min-equal', 'nan'], '--min-equal nan is not a share'),
        (['--min-equal', '-1'], '--min-equal -1.0 is not a share'),
        (['--min-equal', 'inf'], '--min-equal inf is not a share'),
        (['--shape', '0', '0'], '--shape 0 0 is not the size of an image'),
        (['--verify', '-1'], '--verify -1 is not a number of images'),
        ([], 'gone.pth is not there'),
    ],
)
def test_arguments_of_an_export(given, words, monkeypatch, tmp_path):
    export = pytest.importorskip('export')
    line = ['export.py', 'config.py', 'gone.pth', '-o', str(tmp_path / 'a.onnx')]
    monkeypatch.setattr(sys, 'argv', [*line, *given])
    refused(lambda: export.check_arguments(export.parse_args()), words)
