"""A model of each library by the commands: both ways, export, test of the file."""

import importlib.util
import os
import pickle

import pytest
from paths import TOOLS
from run_tools import python_path, run_lines

from mmquant_jacinto.export.configs.end_to_end import digest

pytest.importorskip('mmdet')
pytest.importorskip('onnxruntime')
from libraries.cases import CASES, write_case  # noqa: E402

# The others have tests of their own: test_mmyolo.py, test_sister_libraries.py.
LIBRARIES = [name for name in CASES if name not in ('mmyolo', 'mmseg', 'mmpretrain')]


@pytest.fixture(scope='module', params=LIBRARIES)
def case(request, tmp_path_factory):
    """Library, the folder that its commands ran in, and what they printed."""
    library = request.param
    if importlib.util.find_spec(library) is None:
        pytest.skip(f'{library} is not installed')
    root = tmp_path_factory.mktemp(library)
    write_case(library, root)
    ptq, checkpoint = {'quantize.mode': 'ptq'}, 'ptq/epoch_1.pth'
    train, test = TOOLS / 'train.py', TOOLS / 'test.py'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join([str(root), python_path(TOOLS)]))
        log = run_lines(
            root,
            (train, ['config.py', '--work-dir', 'qat'], {}),
            (train, ['config.py', '--work-dir', 'ptq'], ptq),
            (
                TOOLS / 'export.py',
                ['config.py', checkpoint, '-o', 'model.onnx', '--verify', '2'],
                ptq,
            ),
            *(
                (test, ['config.py', tested, '--work-dir', 't', '--out', out], ptq)
                for tested, out in ((checkpoint, 'own.pkl'), ('model.onnx', 'file.pkl'))
            ),
        )
    return library, root, log


def test_it_trains_and_its_loss_is_seen(case):
    _, root, log = case
    assert 'Epoch(train) [1][2/2]' in log
    assert (root / 'qat' / 'epoch_1.pth').exists()
    # A calibration sees the pipeline of validation, which need not make targets.
    (trained,) = (root / 'qat').glob('*/*.log')
    assert 'The loss could not be computed' not in trained.read_text()


def test_file_predicts_as_the_checkpoint_does(case):
    _, root, log = case
    exported = log.partition('equal predictions')[2]
    assert '2 of 2' in exported.partition('\n')[0]
    own, file = (
        pickle.loads((root / name).read_bytes()) for name in ('own.pkl', 'file.pkl')
    )
    assert len(own) == len(file) == 2
    assert list(map(digest, own)) == list(map(digest, file))
