"""tools/analysis_tools/check_target.py on an upstream detector."""

import json
import runpy
import sys

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('onnx_ir')

from paths import TOOLS  # noqa: E402
from upstream_detectors import MIM  # noqa: E402

YOLOX = MIM / 'configs' / 'yolox' / 'yolox_tiny_8xb8-300e_coco.py'


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'path', list(sys.path))
        monkeypatch.setattr(sys, 'argv', ['check_target.py', *map(str, arguments)])
        code = 0
        try:
            script = TOOLS / 'analysis_tools' / 'check_target.py'
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def test_modules_that_run_on_the_arm_core_are_named(run):
    line = [YOLOX, '--target', 'tidl', '--shape', '64', '64']
    code, out, _ = run(*line)
    assert code == 0
    assert out.rstrip().splitlines()[-1].startswith('0 violations, ')
    told = out.partition('MaxPool, limit: kernel_shape [5, 5]')[2].splitlines()[1]
    assert told.strip() == 'backbone.stage4.1.poolings.0/max_pool2d'
    # Focus is one with its convolution.
    assert 'Slice' not in out
    assert '1 x MaxPool2d(5) -> 2 MaxPool2d(3), exactly' in out
    code, out, _ = run(*line, '--json')
    assert {item['severity'] for item in json.loads(out)['findings']} == {'host'}


def test_surgery_takes_the_poolings_off_the_arm_core(run):
    line = [YOLOX, '--target', 'tidl', '--shape', '64', '64']
    code, out, _ = run(*line, '--cfg-options', 'quantize.surgery=True')
    assert code == 0
    assert 'kernel_shape' not in out and 'would replace' not in out
    # What is left is the decoder's.
    assert 'backbone' not in out and 'neck' not in out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['none.py', '--target', 'tidl'], 'none.py'),
        ([YOLOX, '--target', 'tydl'], "did you mean 'tidl'"),
        ([YOLOX, '--target', 'tidl', '--shape', '0', '64'], '--shape 0 64'),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    code, out, error = run(*arguments)
    assert (code, out) == (2, '')
    assert error.startswith('error: ') and message in error.splitlines()[0]
