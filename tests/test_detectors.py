"""Upstream's detectors by upstream's configs and tools, on real images.

Set ``MMQUANT_ALL_DETECTORS=1`` to run all of those that the README promises.
"""

import json
import os
from pathlib import Path

import pytest

mmdet = pytest.importorskip('mmdet')
from mini_coco import NUM_IMAGES, compose  # noqa: E402
from run_tools import run_lines  # noqa: E402
from toy_runner import load, log_of, scalars  # noqa: E402

from mmquant_jacinto.execute.quantization import find_plan  # noqa: E402

TESTS = Path(__file__).parent
OUR_TOOLS = TESTS.parent / 'tools'
MIM = Path(mmdet.__file__).parent / '.mim'
UPSTREAM_TOOLS = MIM / 'tools'

# What makes two iterations on four small images of an upstream schedule.
SHORT = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 2,
    'val_dataloader.batch_size': 1,
    # As in validation: sigmoid's last bit depends on where in a tensor a number is.
    'test_dataloader.batch_size': 1,
    # So that a validation and a test can be compared detection by detection.
    'val_evaluator.outfile_prefix': 'val',
    'test_evaluator.outfile_prefix': 'test',
    'randomness.seed': 0,
}
for _loader in ('train', 'val', 'test'):
    SHORT[f'{_loader}_dataloader.num_workers'] = 0
    SHORT[f'{_loader}_dataloader.persistent_workers'] = False

NO_PRETRAINED = {'model.backbone.init_cfg': None}


def resize(size, train, test):
    """Options that shrink images, given the paths of both Resize transforms."""
    paths = [f'train_dataloader.dataset.{train}']
    paths += [f'{loader}_dataloader.dataset.{test}' for loader in ('val', 'test')]
    return {f'{path}.scale': f'({size},{size})' for path in paths}


SSDLITE = {
    'train_dataloader.dataset.times': 1,
    'model.test_cfg.score_thr': 0.0,
    **resize(96, 'dataset.pipeline.4', 'pipeline.1'),
}
TWO_STAGE = {
    **NO_PRETRAINED,
    'model.test_cfg.rcnn.score_thr': 0.0,
    **resize(128, 'pipeline.2', 'pipeline.1'),
}
DENSE = {
    **NO_PRETRAINED,
    'model.test_cfg.score_thr': 0.0,
    **resize(128, 'pipeline.2', 'pipeline.1'),
}
YOLOX = {
    'model.test_cfg.score_thr': 0.0,
    'model.data_preprocessor.batch_augments.0.random_size_range': '(96,128)',
    'train_dataloader.dataset.pipeline.0.img_scale': '(96,96)',
    'train_dataloader.dataset.pipeline.1.border': '(-48,-48)',
    **resize(96, 'pipeline.4', 'pipeline.1'),
}

DETECTORS = {
    'ssdlite': ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', SSDLITE),
    'yolox_tiny': ('yolox/yolox_tiny_8xb8-300e_coco.py', YOLOX),
    'faster_rcnn': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', TWO_STAGE),
}
if os.environ.get('MMQUANT_ALL_DETECTORS', '0') not in ('', '0'):
    DETECTORS.update(
        ssd300=(
            'ssd/ssd300_coco.py',
            {
                **NO_PRETRAINED,
                'train_dataloader.dataset.times': 1,
                'model.test_cfg.score_thr': 0.0,
            },
        ),
        retinanet=('retinanet/retinanet_r50_fpn_1x_coco.py', DENSE),
        fcos=('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', DENSE),
    )

OLD_STYLE = """
_base_ = {base!r}
custom_imports = dict(imports=['mmquant_jacinto'])
quantize = dict(mode='qat', bits=8)
"""

NEW_STYLE = """
from mmengine.config import read_base

from mmdet.models import SingleStageDetector
from mmquant_jacinto import QuantRunner

with read_base():
    from .upstream import *

model.update(type=SingleStageDetector)
runner_type = QuantRunner
quantize = dict(mode='qat', bits=8)
"""


class Workspace:
    """A folder with a COCO in it, and the command lines that a user types there."""

    def __init__(self, root):
        self.root = root
        compose(root / 'data' / 'coco')

    def run(self, *lines):
        """Runs lines of [tool, arguments, options] and returns what they print."""
        return run_lines(self.root, *lines)

    def detections(self, split):
        return json.loads((self.root / f'{split}.bbox.json').read_text())


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def assert_trained(work_dir, bits=8):
    """Returns the plan in the checkpoint of a finished, healthy run."""
    checkpoint = load(work_dir / 'epoch_1.pth')
    state = checkpoint['state_dict']
    for name, value in state.items():
        assert value.isfinite().all(), name
    assert state['quantization.activations.count'].any()
    plan = find_plan(state)
    assert {spec.format.bits for spec in plan.weights.values()} == {bits}
    assert any('range/' in key for line in scalars(work_dir) for key in line)
    return plan


@pytest.mark.parametrize('name', DETECTORS)
def test_two_lines_quantize_an_untouched_upstream_config(name, workspace):
    base, options = DETECTORS[name]
    options = {**SHORT, **options}
    config = OLD_STYLE.format(base=str(MIM / 'configs' / base))
    (workspace.root / 'config.py').write_text(config)
    checkpoint = 'work_dirs/config/epoch_1.pth'
    workspace.run(
        (UPSTREAM_TOOLS / 'train.py', ['config.py'], options),
        (UPSTREAM_TOOLS / 'test.py', ['config.py', checkpoint], options),
    )
    work_dir = workspace.root / 'work_dirs' / 'config'
    plan = assert_trained(work_dir)
    losses = [line['loss'] for line in scalars(work_dir) if 'loss' in line]
    assert losses
    assert all(loss == loss for loss in losses)
    # Backbone, neck and head, all their convolutions.
    assert len(plan.regions) >= 3
    assert len(plan.weights) > 30
    validated, tested = workspace.detections('val'), workspace.detections('test')
    assert len({found['image_id'] for found in validated}) == NUM_IMAGES['val']
    assert tested == validated


def test_command_line_switches_to_calibration_and_other_bits(workspace):
    base, options = DETECTORS['ssdlite']
    options = {
        **SHORT,
        **options,
        'quantize.mode': 'ptq',
        'quantize.bits': 16,
    }
    config = OLD_STYLE.format(base=str(MIM / 'configs' / base))
    (workspace.root / 'config.py').write_text(config)
    checkpoint = 'work_dirs/config/epoch_1.pth'
    out = workspace.run(
        (OUR_TOOLS / 'train.py', ['config.py'], options),
        (
            OUR_TOOLS / 'test.py',
            ['config.py', checkpoint, '--out', 'results.pkl'],
            options,
        ),
    )
    work_dir = workspace.root / 'work_dirs' / 'config'
    assert_trained(work_dir, bits=16)
    assert 'Calibration of ranges' in out
    assert 'optimizer' not in load(work_dir / 'epoch_1.pth')
    assert workspace.detections('test') == workspace.detections('val') != []
    assert (workspace.root / 'results.pkl').is_file()


def test_pure_python_config_names_the_runner(workspace):
    # MMDetection installs no pure Python configs: one is made of an old one.
    from mmengine.config import Config

    base, options = DETECTORS['ssdlite']
    Config.fromfile(MIM / 'configs' / base).dump(workspace.root / 'upstream.py')
    (workspace.root / 'config.py').write_text(NEW_STYLE)
    options = {**SHORT, **options}
    workspace.run((UPSTREAM_TOOLS / 'train.py', ['config.py'], options))
    work_dir = workspace.root / 'work_dirs' / 'config'
    assert_trained(work_dir)
    # What was dumped has every option in it.
    (dumped,) = work_dir.glob('2*/vis_data/config.py')
    again = ['--work-dir', 'again']
    workspace.run((UPSTREAM_TOOLS / 'train.py', [dumped, *again], {}))
    assert_trained(workspace.root / 'again')
    assert 'Quantization for jacinto' in log_of(workspace.root / 'again')
