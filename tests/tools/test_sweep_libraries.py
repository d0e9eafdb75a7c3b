"""The matrix of libraries: what is chosen, imported and written."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from run_tools import python_path
from torch import nn

from mmquant_jacinto import QuantizeError

pytest.importorskip('mmdet')
from libraries import imports  # noqa: E402
from libraries.batches import _wake  # noqa: E402
from libraries.cases import CASES, write_case  # noqa: E402
from libraries.configs import all_names  # noqa: E402
from libraries.images import renewed  # noqa: E402
from libraries.report import write_table  # noqa: E402
from sweep_libraries import select  # noqa: E402
from zoo.absent import stand_ins  # noqa: E402

HEADS = dict(heads={'head': 80.0}, least=80.0, missing=[], strayed=[])


def report_of(config, **changes):
    report = dict(
        config=config,
        engine='old',
        status='ok',
        sqnr={'16': HEADS, '8': {**HEADS, 'heads': {'head': 9.0}, 'least': 9.0}},
        noise_gain=-3.0,
        qat=dict(finite=True, lost_gradients=[], new_gradients=[]),
        reload=True,
        in_float={},
        export=dict(equal=1.0, layers=3, integer_layers=3, skipped=[]),
    )
    return {**report, **changes}


def test_table_has_a_row_for_each_config_and_says_what_fails(tmp_path):
    reports = [
        report_of('mmpose/a.py', runner=dict(images=2, equal=2, engine='old')),
        report_of('mmyolo/b.py', runner=dict(reason='no file', engine='new')),
        report_of('mmocr/c.py', export=dict(reason='lacks the function x')),
        dict(
            config='mmdet3d/d.py',
            engine='new',
            status='no float',
            failed='float predict',
            error='not implemented on CPU',
        ),
    ]
    write_table(reports, tmp_path / 'table.md', 'mmpose 1.3')
    text = (tmp_path / 'table.md').read_text()
    assert '4 configs: 3 run quantized' in text and '1 do not run in float' in text
    assert '| `mmpose/a` | 0 | 80.0 | 9.0 | -3.0 | yes | yes | 100 % | 2 of 2 |' in text
    assert text.index('`mmyolo/b`') < text.index('`mmpose/a`')
    assert '- `mmocr/c.py`: lacks the function x' in text
    assert '- `mmyolo/b.py`: no file' in text
    assert '- `mmdet3d/d.py`: float predict: not implemented on CPU' in text
    assert '1 of 1 head outputs below 15 dB' in text
    assert 'Rows are of old (3), new (1); their last column of new (1), old (1)' in text


def test_only_libraries_that_are_there_are_chosen(monkeypatch):
    monkeypatch.setattr('sweep_libraries.installed', lambda: ['mmpose', 'mmocr'])
    names = ['mmpose/a.py', 'mmocr/b/c.py', 'mmyolo/d.py']
    assert select([], names) == names[:2]
    assert select(['mmocr/'], names) == select(['*/b/*'], names) == names[1:2]
    assert select(['mmyolo'], names) == []


def test_each_library_has_configs_and_a_case(tmp_path):
    libraries = {name.partition('/')[0] for name in all_names()}
    assert libraries == set(CASES) == set(imports.LIBRARIES)
    for library in CASES:
        folder = tmp_path / library
        folder.mkdir()
        write_case(library, folder)
        compile((folder / 'config.py').read_text(), library, 'exec')
        assert any((folder / 'data').iterdir())


def test_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(imports.LIBRARIES, 'mmnothing', 'mmnothing-kit')
    with pytest.raises(QuantizeError, match='pip install --no-deps mmnothing-kit'):
        imports.import_library('mmnothing')


def test_stand_ins_are_gone_afterwards_and_replace_nothing():
    with stand_ins(['not_there', 'json']):
        module = importlib.import_module('not_there.part')

        class Derived(module.Base):
            pass

        assert module.function(1).anything is not None
        assert importlib.import_module('json') is json
    assert not any(name.startswith('not_there') for name in sys.modules)
    with pytest.raises(ImportError):
        importlib.import_module('not_there')


def test_batches_are_renewed_in_kind_and_size():
    points = torch.rand(50, 4)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    batch = dict(inputs=dict(img=[image], points=[points]), data_samples=[1])
    again = renewed(batch, 7)
    (other,) = again['inputs']['img']
    assert other.shape == image.shape and other.dtype == image.dtype and other.any()
    assert 0 < (again['inputs']['points'][0] - points).abs().amax() < 0.2
    assert again['data_samples'] == [1]


def test_what_starts_next_to_zero_gets_weights_but_offsets_do_not():
    net = nn.ModuleDict(dict(head=nn.Linear(3, 2), conv_offset=nn.Conv2d(3, 2, 1)))
    for layer in net.values():
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(net['head'].bias)
    net['scale'] = nn.ParameterDict(dict(gamma=nn.Parameter(torch.full((4,), 1e-5))))
    net['norm'] = nn.LayerNorm(4)
    _wake(net)
    assert net['head'].weight.any() and not net['conv_offset'].weight.any()
    assert not net['head'].bias.any()
    assert (net['scale']['gamma'] >= 0.1).all()
    assert (net['norm'].weight == 1).all()


def test_outputs_that_no_image_changes_are_named(tmp_path):
    reports = [
        report_of('mmpose/a.py', seen=dict(head=-999.0)),
        report_of('mmpose/b.py', seen=dict(head=-50.0)),
        report_of('mmpose/c.py', seen=dict(head=-10.0)),
    ]
    write_table(reports, tmp_path / 'table.md', 'mmpose 1.3')
    text = (tmp_path / 'table.md').read_text().partition('hardly change')[2]
    assert '- `mmpose/a.py`: `head` is the same for all' in text
    assert '- `mmpose/b.py`: `head` changes by -50.0 dB' in text
    assert 'the noise of 16 bits has 30.0 dB' in text and '- `mmpose/c.py`' not in text


def test_command_says_that_nothing_matches():
    done = subprocess.run(
        [sys.executable, 'tools/sweep_libraries.py', 'nothing'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': python_path(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'no config of an installed library matches' in done.stderr
