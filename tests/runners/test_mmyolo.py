"""A detector of MMYOLO by the commands: its schedule is a hook, its batches flat."""

import importlib.util

import pytest
from paths import HELPERS, TOOLS
from run_tools import python_path, run_lines

if importlib.util.find_spec('mmyolo') is None:
    pytest.skip('MMYOLO is not installed', allow_module_level=True)
pytest.importorskip('onnxruntime')
import mini_coco  # noqa: E402

# As upstream has it, on four photographs. Albumentations is no requirement of ours.
CONFIG = """
_base_ = 'mmyolo::yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py'
custom_imports = dict(imports=['import_mmyolo', 'mmquant_jacinto'])
quantize = dict(mode='qat', bits=8, target='onnxruntime')
here = dict(num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(
    here,
    batch_size=2,
    dataset=dict(
        pipeline=[step for step in _base_.train_pipeline if 'Albu' not in step['type']]
    ),
)
val_dataloader = dict(here)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1, dynamic_intervals=None)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.fixture(scope='module')
def log(tmp_path_factory):
    """What the commands print: QAT, calibration, export with a test of the file."""
    root = tmp_path_factory.mktemp('mmyolo')
    mini_coco.compose(root / 'data' / 'coco')
    (root / 'config.py').write_text(CONFIG)
    ptq = {'quantize.mode': 'ptq'}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', python_path(HELPERS))
        return run_lines(
            root,
            (TOOLS / 'train.py', ['config.py', '--work-dir', 'qat'], {}),
            (TOOLS / 'train.py', ['config.py', '--work-dir', 'ptq'], ptq),
            (
                TOOLS / 'export.py',
                ['config.py', 'ptq/epoch_1.pth', '-o', 'yolo.onnx', '--verify', '2'],
                ptq,
            ),
        )


def test_it_trains_and_all_of_it_is_quantized(log):
    assert 'Epoch(train) [1][2/2]' in log
    assert 'could not be computed' not in log.partition('Epoch(train)')[0]
    assert log.count('in float     no layer') == 2


def test_its_schedule_is_off_in_a_calibration(log):
    calibrated = log.partition('Calibration does not train')[2]
    assert 'YOLOv5ParamSchedulerHook, which asks for the optimizer' in calibrated


def test_file_predicts_the_same(log):
    exported = log.partition('equal predictions')[2]
    assert '2 of 2' in exported.partition('\n')[0]
