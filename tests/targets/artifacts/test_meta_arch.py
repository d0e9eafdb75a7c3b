"""The description of a head that TIDL's importer reads."""

import importlib.util
import re

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from dense_heads import SIZE, TEST_CFG, SmallSSD, make_heads  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from toy_models import calibrated  # noqa: E402

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.targets.artifacts.meta_arch import (  # noqa: E402
    describe_head,
    has_decoder,
    to_text,
)


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


def yolov3():
    from mmdet.models.dense_heads import YOLOV3Head

    return YOLOV3Head(
        num_classes=3,
        in_channels=(8, 8),
        out_channels=(8, 8),
        featmap_strides=(16, 8),
        anchor_generator=dict(
            type='YOLOAnchorGenerator',
            base_sizes=[[(40, 30), (20, 60)], [(10, 12), (8, 16)]],
            strides=[16, 8],
        ),
        bbox_coder=dict(type='YOLOBBoxCoder'),
        test_cfg=TEST_CFG,
    )


def test_boxes_of_yolov3_are_what_tidl_makes_of_its_description():
    head = yolov3()
    assert has_decoder(head)
    names = ['pred_maps.0', 'pred_maps.1']
    described = describe_head(head, names, SIZE)
    assert described['name'] == 'yolo_v3'
    levels = described['tidl_yolo']['yolo_param']
    assert [level['input'] for level in levels] == names
    sizes = [(4, 6), (8, 12)]
    anchors = head.prior_generator.grid_priors(sizes, device='cpu')
    torch.manual_seed(0)
    for level, (rows, columns), prior, stride in zip(levels, sizes, anchors, (16, 8)):
        raw = torch.randn(rows, columns, 2, 4)
        # TIDL_boxParamsDecoding, codeType 4.
        widths, heights = (torch.tensor(level[f'anchor_{x}']) for x in _SIDES)
        x = (raw[..., 0].sigmoid() + torch.arange(columns)[None, :, None]) * stride
        y = (raw[..., 1].sigmoid() + torch.arange(rows)[:, None, None]) * stride
        w, h = raw[..., 2].exp() * widths / 2, raw[..., 3].exp() * heights / 2
        boxes = torch.stack([x - w, y - h, x + w, y + h], -1).reshape(-1, 4)
        flat = raw.reshape(-1, 4).clone()
        flat[:, :2] = flat[:, :2].sigmoid()
        expected = head.bbox_coder.decode(prior, flat, stride)
        torch.testing.assert_close(boxes, expected)


_SIDES = ('width', 'height')


@pytest.fixture
def yolov8():
    if importlib.util.find_spec('mmyolo') is None:
        pytest.skip('MMYOLO is not installed')
    import import_mmyolo  # noqa: F401
    from mmengine.registry import MODELS

    init_default_scope('mmyolo')
    module = dict(type='YOLOv8HeadModule', num_classes=3, in_channels=(16, 16))
    module.update(featmap_strides=(8, 16))
    return lambda reg_max=16: MODELS.build(
        dict(
            type='YOLOv8Head',
            head_module=dict(module, reg_max=reg_max),
            prior_generator=dict(
                type='mmdet.MlvlPointGenerator', offset=0.5, strides=[8, 16]
            ),
            test_cfg=TEST_CFG,
        )
    )


def test_boxes_of_yolov8_are_what_tidl_makes_of_its_distributions(yolov8):
    head = yolov8().eval()
    features = [torch.randn(1, 16, 4, 6), torch.randn(1, 16, 2, 3)]
    # Distances in strides: what the file has beside what TIDL reads.
    distances = head(features)[1]
    priors = head.prior_generator.grid_priors([(4, 6), (2, 3)], device='cpu')
    for level, stride in enumerate((8, 16)):
        (raw,) = head.head_module.reg_preds[level](features[level])
        _, rows, columns = raw.shape
        # TIDL_boxParamsDecoding, codeType 9, and what it is given.
        shares = raw.reshape(4, 16, rows, columns).softmax(1)
        sides = (shares * torch.arange(16)[None, :, None, None]).sum(1) * stride
        x = (torch.arange(columns)[None] + 0.5) * stride
        y = (torch.arange(rows)[:, None] + 0.5) * stride
        ends = [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]
        boxes = torch.stack([end.expand(rows, columns) for end in ends], -1)
        given = distances[level][0].permute(1, 2, 0).reshape(1, -1, 4)
        expected = head.bbox_coder.decode(
            priors[level][None], given, torch.full((len(priors[level]),), stride)
        )
        torch.testing.assert_close(boxes.reshape(1, -1, 4), expected)


def test_file_of_a_yolov8_names_its_distributions(yolov8):
    class Detector(BaseModel):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 3, 8, 1)
            self.down = torch.nn.Conv2d(16, 16, 3, 2, 1)
            self.bbox_head = yolov8()

        def forward(self, x, mode='tensor'):
            first = self.stem(x).relu()
            return self.bbox_head([first, self.down(first).relu()])

    model, images = Detector().eval(), torch.randn(1, 3, 64, 64)
    calibrated(model, images, target='tidl')
    exported = export_onnx(model, images, 'tidl')
    made = {name: n for n in exported.model.graph.node for name in n.output}
    inputs = re.findall(r'box_input: "(.*)"', exported.meta_arch)
    assert inputs == ['bbox_distributions.0', 'bbox_distributions.1']
    for level, name in enumerate(inputs):
        node = made[name]
        while node.op_type != 'Conv':
            node = made[node.input[0]]
        assert node.name.startswith(f'bbox_head.head_module.reg_preds.{level}.2/')
    assert 'code_type: CODE_TYPE_DIST2BBOX' in exported.meta_arch
    files = exported.target.artifacts(
        exported.model, 'net', 'tidl', exported.meta_arch, exported.options, True
    )
    assert 'meta_arch_type: 8' in files['net.yaml']


def test_tidl_has_16_distances(yolov8):
    assert has_decoder(yolov8())
    assert not has_decoder(yolov8(reg_max=8))
