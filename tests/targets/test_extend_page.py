"""docs/extend.md, word for word: what others register is used like our own."""

import json
import os
import re
import sys

import pytest
import torch
from paths import ROOT, TOOLS

from mmquant_jacinto import QuantizeConfig, QuantizeError

PAGE = (ROOT / 'docs' / 'extend.md').read_text()
MODULE, CONFIG = re.findall(r'```python\n(.*?)```', PAGE, re.S)
CHECKPOINT = 'work_dirs/config/epoch_1.pth'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The page's config in a folder with a small COCO: calibrated, tested, exported."""
    pytest.importorskip('mmdet')
    pytest.importorskip('onnxruntime')
    from upstream_detectors import MIM, SHORT, SSDLITE, Workspace

    workspace = Workspace(tmp_path_factory.mktemp('extend'))
    (workspace.root / 'my_chip.py').write_text(MODULE)
    upstream = str(MIM / 'configs') + '/'
    (workspace.root / 'config.py').write_text(CONFIG.replace('mmdet::', upstream))
    options = {**SHORT, **SSDLITE}
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(workspace.root), os.environ.get('PYTHONPATH', '')]
        patch.setenv('PYTHONPATH', os.pathsep.join(filter(None, paths)))
        out = workspace.run(
            (TOOLS / 'train.py', ['config.py'], options),
            (TOOLS / 'test.py', ['config.py', CHECKPOINT], options),
            (
                TOOLS / 'export.py',
                ['config.py', CHECKPOINT, '-o', 'm.onnx', '--target', 'my_chip'],
                options,
            ),
        )
    return workspace, out


def test_detector_calibrates_for_a_target_of_somebody_else(run):
    workspace, out = run
    assert 'Quantization for my_chip' in out
    assert 'x 6 bits' in out
    assert workspace.detections('val') == workspace.detections('test')


def test_its_plan_has_the_formats_of_the_page(run):
    from mmquant_jacinto.execute.stored_plan import find_plan

    checkpoint = torch.load(run[0].root / CHECKPOINT, weights_only=False)
    plan = find_plan(checkpoint['state_dict'])
    assert plan.config['observer'] == 'energy'
    formats = [spec.format for spec in plan.weights.values()]
    assert {(f.per_channel, f.power_of_two) for f in formats} == {(True, True)}


def test_file_stores_signed_integers_on_power_of_two_scales(run):
    import onnx
    from onnx import numpy_helper

    model = onnx.load(run[0].root / 'm.onnx')
    metadata = {item.key: item.value for item in model.metadata_props}
    assert 'my_chip' in json.dumps(metadata)
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
    assert convolutions
    for node in convolutions:
        integers, scale = (stored[name] for name in makers[node.input[1]].input[:2])
        assert integers.dtype.name == 'int8'
        exponents = torch.from_numpy(scale.copy()).double().log2()
        assert torch.equal(exponents, exponents.round())


def test_unknown_name_is_refused_with_the_nearest(tmp_path, monkeypatch):
    (tmp_path / 'my_chip.py').write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    from mmquant_jacinto.registry import OBSERVERS, QUANT_TARGETS

    for registry in (OBSERVERS, QUANT_TARGETS):
        monkeypatch.setattr(registry, '_module_dict', dict(registry.module_dict))
    __import__('my_chip')
    try:
        config = QuantizeConfig(mode='ptq', target='my_chip')
        assert config.bits == dict(weight=8, activation=6)
        with pytest.raises(QuantizeError, match="did you mean 'my_chip'"):
            QuantizeConfig(target='my_chop')
        with pytest.raises(QuantizeError, match="did you mean 'energy'"):
            QuantizeConfig(mode='ptq', observer='enrgy')
    finally:
        del sys.modules['my_chip']
