"""The seed's configs of Pascal VOC: float, calibration, QAT, test and export.

On images in the devkit's layout; the path is that of the results on BCCD.
"""

import json

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')
from mini_voc import compose  # noqa: E402
from paths import CONFIGS, TOOLS  # noqa: E402
from run_tools import run_lines  # noqa: E402

from mmquant_jacinto.execute.stored_plan import find_plan  # noqa: E402

# Two iterations of a small batch in place of days, and nothing downloaded.
SHORT = {
    'model.backbone.init_cfg': None,
    'train_cfg.max_epochs': 1,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 4,
    'default_hooks.logger.interval': 1,
    'randomness.seed': 0,
}
for _loader in ('train', 'val', 'test'):
    SHORT[f'{_loader}_dataloader.num_workers'] = 0
    SHORT[f'{_loader}_dataloader.persistent_workers'] = False


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Where the commands ran, as a user runs them one after the other."""
    root = tmp_path_factory.mktemp('voc0712')
    compose(root / 'data' / 'VOCdevkit')
    configs = {
        variant: CONFIGS / 'jacinto_ai' / f'ssd_mobilenet_fpn{variant}.py'
        for variant in ('', '_ptq', '_qat')
    }
    work_dir = 'work_dirs/jacinto_ai/ssd_mobilenet_fpn'
    qat = f'{work_dir}_qat/epoch_1.pth'
    start = {**SHORT, 'load_from': f'{work_dir}/epoch_1.pth'}
    train, test, export = (TOOLS / f'{n}.py' for n in ('train', 'test', 'export'))
    run_lines(
        root,
        (train, [configs['']], SHORT),
        (train, [configs['_ptq']], start),
        (train, [configs['_qat']], start),
        (test, [configs['_qat'], qat, '--work-dir', 'tested'], SHORT),
        (export, [configs['_qat'], qat, '-o', 'model.onnx', '--verify', 1], SHORT),
    )
    return root


def test_each_step_starts_from_the_one_before_it(runs):
    import torch

    def load(variant):
        path = f'work_dirs/jacinto_ai/ssd_mobilenet_fpn{variant}/epoch_1.pth'
        return torch.load(runs / path, weights_only=False)['state_dict']

    start, calibrated, trained = (load(variant) for variant in ('', '_ptq', '_qat'))
    assert find_plan(start) is None
    weights = [name for name in start if name.endswith('conv.weight')]
    assert len(weights) > 50
    for name in weights:
        assert torch.equal(start[name], calibrated[name])
        # a hundredth of the float learning rate, in its warmup
        assert torch.allclose(start[name], trained[name], rtol=0.1, atol=0.01)
    assert not all(torch.equal(start[name], trained[name]) for name in weights)
    for state in (calibrated, trained):
        plan = find_plan(state)
        assert plan.config['target'] == 'jacinto' and plan.config['bits'] == 8
        assert len(plan.weights) > 60 and not plan.in_float


def test_its_checkpoint_is_tested_and_exported_with_proof(runs):
    found = (runs / 'tested').glob('*/*.json')
    (scores,) = [path for path in found if path.name != 'report.json']
    assert 'pascal_voc/mAP' in json.loads(scores.read_text())
    # Written only where all elements are what the checkpoint gives.
    assert (runs / 'model.onnx').stat().st_size > 1e6
