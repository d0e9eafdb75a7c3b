"""The description of a head that TIDL's importer reads."""

import re

import numpy as np
import pytest

pytest.importorskip('mmdet')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from dense_heads import SIZE, SmallSSD, make_heads  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.targets.artifacts.meta_arch import describe_head, to_text  # noqa: E402


@pytest.fixture(autouse=True)
def scope():
    # Runners of other tests may have left another one.
    init_default_scope('mmdet')


@pytest.fixture(scope='module')
def ssd():
    return SmallSSD('tidl')


def test_tidl_reads_the_head_of_an_ssd(ssd):
    exported = ssd.export('tidl')
    text = exported.meta_arch
    outputs = {item.name for item in exported.model.graph.output}
    named = re.findall(r'(?:box|class)_input: "(.*)"', text)
    assert len(named) == 10
    assert set(named) == outputs
    generator = ssd.model.bbox_head.prior_generator
    steps = [float(step) for step in re.findall(r'  step: (.*)', text)]
    assert steps == [float(stride[0]) for stride in generator.strides]
    sizes = [float(size) for size in re.findall(r'min_size: (.*)', text)]
    assert sizes == [float(size) for size in generator.base_sizes]
    largest = [float(size) for size in re.findall(r'max_size: (.*)', text)]
    np.testing.assert_allclose(largest[:-1], sizes[1:], rtol=1e-4)
    assert 'code_type: CENTER_SIZE\n' in text
    assert 'nms_threshold: 0.45' in text


def test_tidl_reads_anchors_and_strides():
    heads = make_heads()
    names = [f'{kind}.{i}' for kind in ('cls_scores', 'bbox_preds') for i in (0, 1)]
    retinanet = to_text(describe_head(heads['retinanet'], names, SIZE))
    assert 'octave_base_scale: 4.0' in retinanet
    assert retinanet.count('aspect_ratio') == 3
    assert 'background_label_id: -1' in retinanet
    yolox = describe_head(heads['yolox'], ['yolo_level.0', 'yolo_level.1'], SIZE)
    levels = yolox['tidl_yolo']['yolo_param']
    assert [level['anchor_width'] for level in levels] == [8.0, 16.0]
    with pytest.raises(QuantizeError, match='FCOSHead'):
        describe_head(heads['fcos'], names, SIZE)
