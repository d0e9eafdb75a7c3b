"""Upstream's detectors by upstream's configs and tools, on real images."""

import pytest

pytest.importorskip('mmdet')
from mini_coco import NUM_IMAGES  # noqa: E402
from paths import TOOLS  # noqa: E402
from toy_runner import load, log_of, scalars  # noqa: E402
from upstream_detectors import (  # noqa: E402
    DETECTORS,
    MIM,
    OLD_STYLE,
    SHORT,
    UPSTREAM_TOOLS,
    Workspace,
)

from mmquant_jacinto.execute.stored_plan import find_plan  # noqa: E402

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
    reports = workspace.reports()
    assert set(reports) == {'training', 'test'}
    named = {layer['module'] for layer in reports['training']['layers']}
    assert len(named) > 30 and any(name.startswith('backbone.') for name in named)
    assert 'coco/bbox_mAP' in {s['metric'] for s in reports['test']['scores']}
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
        (TOOLS / 'train.py', ['config.py'], options),
        (
            TOOLS / 'test.py',
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
