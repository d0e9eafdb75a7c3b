"""The measurement behind the presets' default observers, on a random detector."""

import json

import pytest
import torch

pytest.importorskip('mmdet')
import default_observers  # noqa: E402
from mini_bccd import random_detector  # noqa: E402


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Photographs of noise, and a folder as ``accuracy.py`` leaves it."""
    root = tmp_path_factory.mktemp('observers')
    with pytest.MonkeyPatch.context() as patch:
        _, detector, _ = random_detector(root, patch)
        checkpoint = default_observers.checkpoint_of(root, 'mobilenet')
        checkpoint.parent.mkdir(parents=True)
        torch.save(dict(state_dict=detector.state_dict()), checkpoint)
        yield root


def test_results_are_written_and_not_made_again(runs, capsys, monkeypatch):
    path = runs / 'out' / 'observers.json'
    line = ['--archs', 'mobilenet', '--targets', 'onnxruntime', 'jacinto']
    line += ['--epochs', '1']
    line += ['--observers', 'minmax', '--images', '2', '--test-images', '1']
    line += ['--runs', str(runs), '--json', str(path)]
    # Random layers, never trained to be robust, amplify any error.
    monkeypatch.setattr(default_observers, 'BITS', 16)
    default_observers.main(line)
    content = json.loads(path.read_text())
    result = content['models']['mobilenet']
    for stage in default_observers.STAGES:
        found = result['onnxruntime']['minmax'][stage]
        assert 15 < found['mean'] < 200
        mean = (found['scores'] + found['boxes']) / 2
        assert found['mean'] == pytest.approx(mean, abs=0.02)
    assert '| mobilenet | jacinto |' in capsys.readouterr().out
    assert str(runs) not in path.read_text()

    monkeypatch.setattr(default_observers.Detector, 'measure', None)
    default_observers.main(line)
    assert json.loads(path.read_text()) == content
    with pytest.raises(SystemExit, match='name another file by --json'):
        default_observers.main([*line, '--epochs', '0'])


def test_presets_of_the_same_formats_are_measured_once():
    targets = ['jacinto', 'tidl', 'onnxruntime', 'openvino', 'tensorrt']
    groups = default_observers.alike(targets)
    # TIDL's rules ask for symmetric inputs, pooling and more, OpenVINO computes layers
    # and what is behind them as one: their plans are their own.
    assert groups == [
        *(['jacinto'], ['tidl'], ['onnxruntime'], ['openvino'], ['tensorrt']),
    ]


def test_table_marks_the_best():
    def result(mean):
        return {'ranges': dict(scores=mean + 1, boxes=mean - 1, mean=mean)}

    found = dict(percentile=result(20.0), mse=result(22.0))
    content = dict(models=dict(regnet=dict(tidl=found)))
    assert default_observers.table(content, 'ranges').splitlines()[-1] == (
        '| regnet | tidl | 20.0 (21.0, 19.0) |  |  | **22.0** (23.0, 21.0) |'
    )
    assert len(default_observers.table(content, 'corrected').splitlines()) == 2


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'mobilenet/float/epoch_30.pth is not there; train it by'),
        (['--images', '0'], 'at least one image'),
        (['--epochs', '-1'], 'use a count of passes'),
        (['--observers', 'mean'], 'invalid choice'),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        default_observers.parse_args(['--runs', str(tmp_path), *arguments])
    assert message in capsys.readouterr().err
