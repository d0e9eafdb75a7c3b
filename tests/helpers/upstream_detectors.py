"""Upstream's detectors for COCO in small: configs, options, and where they run.

Set ``MMQUANT_ALL_DETECTORS=1`` to have all of those that the README promises.
"""

import json
import os
from pathlib import Path

import mmdet
from mini_coco import compose
from run_tools import run_lines

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


class Workspace:
    """A folder with a COCO in it, and the command lines that a user types there."""

    def __init__(self, root):
        self.root = root
        compose(root / 'data' / 'coco')

    def run(self, *lines):
        """Runs lines of [tool, arguments, options] and returns what they print."""
        return run_lines(self.root, *lines)

    def reports(self, work_dir='work_dirs/config'):
        """The pages that runs left, by kind of run."""
        paths = sorted((self.root / work_dir).glob('*/report.json'))
        found = [json.loads(path.read_text()) for path in paths]
        return {report['kind']: report for report in found}

    def detections(self, split):
        return json.loads((self.root / f'{split}.bbox.json').read_text())
