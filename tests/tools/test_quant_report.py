"""The tools that report on a checkpoint and rank its layers, as a user types them."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from free_port import free_port
from mmengine.device import get_device
from paths import HELPERS, ROOT, TOOLS
from ptq_runs import CHECKPOINT, ptq_config
from toy_runner import PTQ, make_config, train

REPORT, SENSITIVITY = 'quant_report.py', 'quant_sensitivity.py'


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
    """A config file and a calibrated checkpoint of it."""
    folder = tmp_path_factory.mktemp('tools')
    train(make_config(folder / 'float', None))
    quantize = dict(PTQ, report=False)
    cfg = ptq_config(folder / 'ptq', folder / 'float' / 'epoch_6.pth', quantize)
    cfg.dump(folder / 'config.py')
    train(cfg)
    return folder / 'config.py', folder / 'ptq' / CHECKPOINT


@pytest.fixture
def run(monkeypatch, capsys):
    def run(tool, *arguments):
        # As Python does for a script.
        folder = str(TOOLS / 'analysis_tools')
        monkeypatch.setattr(sys, 'path', [folder, *sys.path])
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        code = 0
        try:
            script = TOOLS / 'analysis_tools' / tool
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def test_a_report_is_written_beside_the_checkpoint(run, calibrated):
    code, out, _ = run(REPORT, *calibrated, '--images', 3)
    assert code == 0
    folder = calibrated[1].parent / 'report'
    assert out.splitlines()[-1].startswith(str(folder / 'report.html'))
    report = json.loads((folder / 'report.json').read_text())
    assert report['images'] == 3 and report['skipped'] == []
    assert report['kind'] == 'report' and report['title'] == 'config'


def test_layers_are_ranked_at_each_width(run, calibrated, tmp_path):
    line = [*calibrated, '--bits', 8, 4, '--images', 4, '--out', tmp_path]
    code, out, _ = run(SENSITIVITY, *line)
    assert code == 0 and '4 bits' in out and 'backbone.conv' in out
    found = json.loads((tmp_path / 'sensitivity.json').read_text())
    assert found['widths'] == [4, 8]
    noise = [item['noise']['4'] for item in found['layers']]
    assert noise == sorted(noise, reverse=True)
    kinds = {(item['module'], item['kind']) for item in found['layers']}
    assert {('backbone.stem', 'weight'), ('head', 'activation')} <= kinds
    for item in found['layers']:
        # Four bits more are 24 dB.
        if item['kind'] == 'weight':
            assert 50 < item['noise']['4'] / item['noise']['8'] < 1500
    assert (tmp_path / 'sensitivity.svg').read_text().startswith('<svg')


@pytest.mark.skipif(get_device() != 'cpu', reason='needs no GPU')
def test_two_processes_rank_as_one_does(run, calibrated, tmp_path):
    line = [*calibrated, '--images', 4, '--bits', 4]
    assert run(SENSITIVITY, *line, '--out', tmp_path / 'one')[0] == 0
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(HELPERS), str(ROOT)]),
        'OMP_NUM_THREADS': '1',
    }
    command = [
        *(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2'),
        f'--master_port={free_port()}',
        str(TOOLS / 'analysis_tools' / SENSITIVITY),
        *map(str, line),
        *('--launcher', 'pytorch', '--out', str(tmp_path / 'two')),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((tmp_path / name / 'sensitivity.json').read_text())['layers']
        for name in ('one', 'two')
    )
    # Other projections of the same images.
    assert {item['name'] for item in one[:4]} & {item['name'] for item in two[:4]}
    assert len(one) == len(two)


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        (REPORT, ['--images', 0], '--images 0 is not a number of images'),
        (REPORT, ['none.onnx'], 'none.onnx'),
        (SENSITIVITY, ['--bits', 1], '--bits=1 is not a bit width'),
        (SENSITIVITY, ['--top', 0], '--top 0 is not a count'),
    ],
)
def test_bad_input_is_one_sentence(run, calibrated, tool, arguments, message):
    code, out, error = run(tool, *calibrated, *arguments)
    assert (code, out) == (2, '')
    assert error.startswith('error: ') and message in error.splitlines()[0]


@pytest.mark.parametrize('score', [0, 2])
def test_a_file_that_is_none_is_refused(run, calibrated, tmp_path, score):
    pytest.importorskip('onnxruntime')
    (tmp_path / 'broken.onnx').write_bytes(b'no protobuf')
    line = [*calibrated, tmp_path / 'broken.onnx', '--images', 1, '--score', score]
    code, out, error = run(REPORT, *line, '--out', tmp_path / 'out')
    assert (code, out) == (2, '')
    assert 'broken.onnx is no ONNX file' in error.splitlines()[0]
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('tool', [REPORT, SENSITIVITY])
def test_a_float_checkpoint_is_refused(run, calibrated, tool):
    config, checkpoint = calibrated
    start = checkpoint.parents[1] / 'float' / 'epoch_6.pth'
    code, _, error = run(tool, config, start)
    assert code == 2 and 'is a float checkpoint' in error


@pytest.mark.parametrize('tool', [REPORT, SENSITIVITY])
def test_a_folder_that_is_none_is_named(run, calibrated, tmp_path, tool):
    taken = tmp_path / 'taken'
    taken.write_text('')
    code, out, error = run(tool, *calibrated, '--images', 1, '--out', taken)
    # Nothing is loaded or measured for it.
    assert (code, out) == (2, '')
    assert str(taken) in error and 'another' in error
    assert len(error.splitlines()) == 1
    below = taken / 'below' / 'it'
    code, _, error = run(tool, *calibrated, '--images', 1, '--out', below)
    assert code == 2 and str(below) in error
