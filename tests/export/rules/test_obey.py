"""Our own files under the rules of their targets."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyNet, calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.rules.check import check  # noqa: E402
from mmquant_jacinto.export.rules.obey import METADATA_KEY  # noqa: E402
from mmquant_jacinto.export.session import Session, kernels  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402
from mmquant_jacinto.targets.rules import TENSORRT_RULES  # noqa: E402

TARGETS = ['tidl', 'tensorrt', 'openvino', 'onnxruntime']


class Residual(nn.Module):
    """Blocks of a backbone, SiLU, an upsampling by a deconvolution, and attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = F.silu(self.stem(x))
        y = F.relu(self.norm(self.first(x)))
        y = F.relu(self.second(y) + self.down(x))
        pooled = F.max_pool2d(y, 3, 2, 1)
        y = torch.cat([self.up(pooled), y], 1)
        y = y * F.adaptive_avg_pool2d(y, 1).sigmoid()
        return self.last(y)


@pytest.mark.parametrize('net', [ToyNet, Residual])
@pytest.mark.parametrize('target', TARGETS)
def test_our_files_break_no_rule(target, net):
    images, model = torch.randn(2, 3, 32, 32), net().eval()
    calibrated(model, images, target=target)
    exported = export_onnx(model, images[:1], target)
    # Sigmoids are in float in OpenVINO; nothing else is to be told.
    told = {(item.operator, item.severity) for item in exported.findings}
    assert told <= ({('Sigmoid', 'host')} if target == 'openvino' else set())
    report = verify(exported, model, [images[:1]])
    assert report.holds()
    assert report.share == 1 or target == 'tensorrt'


def test_zero_points_are_0_where_tidl_wants_them(images):
    model = ToyNet()
    calibrated(model, images, target='tidl')
    exported = export_onnx(model, images, 'tidl')
    graph = exported.model.graph
    zeros = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    behind = {n.input[0]: n for n in graph.node if n.op_type == 'QuantizeLinear'}
    (first,) = [n for name, n in behind.items() if name == graph.input[0].name]
    assert zeros[first.input[2]].dtype.name == 'int8'
    for node in graph.node:
        if node.op_type in ('MaxPool', 'Resize', 'GlobalAveragePool'):
            assert not zeros[makers[node.input[0]].input[2]].any()
            assert not zeros[behind[node.output[0]].input[2]].any()
    # A layer has its zero point still.
    assert any(zeros[node.input[2]].any() for node in behind.values())


def test_signed_activations_are_proven_on_integer_kernels(images):
    from mmquant_jacinto.export.graph.unsigned_twin import unsigned_twin

    images, model = torch.randn(2, 3, 32, 32), Residual().eval()
    calibrated(model, images, target='tidl')
    exported = export_onnx(model, images, 'tidl')
    twin = unsigned_twin(exported.model)
    assert exported.model.SerializeToString() != twin.SerializeToString()
    assert kernels(twin)['QLinearConv'] == 5 > kernels(exported.model)['QLinearConv']
    (found,) = Session(exported.model)(images).values()
    with torch.no_grad():
        assert torch.equal(found, model(images))


def test_file_of_another_targets_numbers_is_refused_by_the_node(images):
    model = ToyNet()
    calibrated(model, images, target='onnxruntime')
    with pytest.raises(QuantizeError) as caught:
        export_onnx(model, images, 'tidl')
    message = str(caught.value)
    assert 'tidl does not take QuantizeLinear' in message
    assert "quantize.target='tidl'" in message and '--allow-violations' in message
    assert 'quantization.md' in message and '\n' not in message


def test_allowed_violations_are_in_the_metadata(images):
    model = ToyNet()
    calibrated(model, images, target='onnxruntime')
    exported = export_onnx(model, images, 'tidl', allow_violations=True)
    props = {item.key: item.value for item in exported.model.metadata_props}
    told = json.loads(props[METADATA_KEY])
    assert {item['severity'] for item in told} == {'violation'}
    assert '/max_pool2d' in {item['node'] for item in told}
    assert len(told) == sum(i.severity == 'violation' for i in exported.findings)


def test_what_runs_on_the_host_is_told_and_written(images):
    model = Forward(
        lambda net, x: F.max_pool2d(net.conv(x), 5, 1, 2), conv=nn.Conv2d(3, 4, 3)
    )
    calibrated(model, images, target='tidl')
    exported = export_onnx(model, images, 'tidl')
    assert {(i.operator, i.severity) for i in exported.findings} == {
        ('MaxPool', 'host')
    }
    keys = [item.key for item in exported.model.metadata_props]
    assert METADATA_KEY not in keys


def test_tidls_file_gives_all_shapes(images):
    model = ToyNet()
    calibrated(model, images, target='tidl')
    graph = export_onnx(model, images, 'tidl').model.graph
    known = {item.name for item in (*graph.value_info, *graph.output)}
    assert known >= {name for node in graph.node for name in node.output}


def test_deformable_convolutions_stay_within_tidls_opset(images):
    ops = pytest.importorskip('mmcv.ops')

    class Deformable(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(3, 18, 3, padding=1)
            self.conv = ops.DeformConv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    model = Deformable()
    calibrated(model, images, target='jacinto')
    exported = export_onnx(model, images, 'tidl')
    assert 'DeformConv' in {node.op_type for node in exported.model.graph.node}
    opsets = {item.domain: item.version for item in exported.model.opset_import}
    assert (opsets[''], exported.model.ir_version) == (19, 8)
    assert not [i for i in exported.findings if i.severity == 'violation']


def test_constants_of_products_are_signed_where_tidl_wants_weights_so():
    # As distances to the sides of a box are: means of 0 to 15.
    net = Forward(
        lambda net, x: net.conv(x).transpose(1, 3).sigmoid().matmul(net.points),
        conv=nn.Conv2d(3, 16, 1),
    )
    net.register_buffer('points', torch.arange(16.0).view(16, 1))
    images = torch.randn(1, 3, 8, 8)
    calibrated(net, images, target='tidl')
    exported = export_onnx(net, images, 'tidl')
    assert not exported.findings
    assert verify(exported, net, [images]).share == 1


@pytest.mark.parametrize('target', ['tidl', 'openvino'])
def test_constants_that_are_added_have_no_zero_point_where_tidl_wants_it_so(target):
    # As queries of a decoder are projected in each of its layers.
    net = Forward(
        lambda net, x: net.last(net.conv(x).flatten(2) + net.project(net.queries)),
        conv=nn.Conv2d(3, 4, 1),
        project=nn.Linear(5, 64),
        last=nn.Conv1d(4, 2, 1),
    )
    torch.manual_seed(0)
    net.queries = nn.Parameter(torch.randn(4, 5))
    images = torch.randn(1, 3, 8, 8)
    calibrated(net, images, target=target)
    exported = export_onnx(net, images, target)
    assert not [item for item in exported.findings if item.severity == 'violation']
    stored = set(map(str, kinds_of_added(exported.model)))
    assert stored == {'float32' if target == 'tidl' else 'uint8'}
    assert verify(exported, net, [images]).share == 1


def kinds_of_added(model):
    """Types of the constants that are added to something."""
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {out: node for node in model.graph.node for out in node.output}
    for node in model.graph.node:
        for name in node.input if node.op_type == 'Add' else ():
            source = makers.get(name)
            name = source.input[0] if source is not None else name
            if name in arrays:
                yield arrays[name].dtype


@pytest.mark.parametrize('target, splits', [('tensorrt', 0), ('jacinto', 2)])
def test_pairs_that_would_split_a_fusion_of_tensorrt(target, splits):
    # A residual sum, SiLU and ReLU behind layers: as TensorRT fuses them, and as a plan
    # that does not know of it puts a pair behind each layer.
    images, model = torch.randn(1, 3, 32, 32), Residual().eval()
    calibrated(model, images, target=target)
    to = 'tensorrt' if target == 'tensorrt' else 'onnxruntime'
    found = check(export_onnx(model, images, to).model, TENSORRT_RULES)
    split = [item.node for item in found if item.rule == 'fusion']
    assert len(split) == splits, split
