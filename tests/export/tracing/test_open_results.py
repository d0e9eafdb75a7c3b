"""Files of layers that are one with a function: no pair in between."""

import json

import pytest
import torch
import torch.nn.functional as F
from exporting import export, results
from smooth_functions import SPELLINGS, smooth_net
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto.export.exporter import export_onnx
from mmquant_jacinto.export.graph.exact_twin import exact_twin
from mmquant_jacinto.export.graph.unsigned_twin import unsigned_twin
from mmquant_jacinto.export.rules.check import check
from mmquant_jacinto.export.verify import verify
from mmquant_jacinto.targets.target import get_target


@pytest.fixture
def x():
    return torch.randn(2, 3, 24, 24)


def splits(model, target):
    """Pairs in the file that part what the target computes as one."""
    return [f for f in check(model, get_target(target).rules) if f.rule == 'fusion']


@pytest.mark.parametrize(
    'target, pairs', [('openvino', 4), ('tensorrt', 4), ('tidl', 6)]
)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_file_computes_what_the_model_does(x, target, pairs, spelling):
    net = smooth_net(SPELLINGS[spelling][1])
    exported = export(net, x, target, target=target)
    ops = [node.op_type for node in exported.model.graph.node]
    if (target, spelling) == ('tidl', 'x * hardsigmoid'):
        pairs += 2  # TI's documents do not name it
    assert ops.count('QuantizeLinear') == pairs
    assert not splits(exported.model, target)
    expected, found = results(net, exported, x)
    # The last bits of GELU are others: a tie in ten thousands.
    assert (expected == found).float().mean() > 0.9998
    if 'gelu' not in spelling:
        assert torch.equal(expected, found)
    step = exported_step(net)
    assert (expected - found).abs().max() <= 1.01 * step


@pytest.mark.parametrize('target', ['openvino', 'tensorrt'])
@pytest.mark.parametrize('off', ['stem', 'depth', 'last'])
@pytest.mark.parametrize('spelling', ['silu', 'x * sigmoid'])
def test_what_is_in_float_reads_and_gives_no_steps(x, target, off, spelling):
    net = smooth_net(SPELLINGS[spelling][1])
    overrides = {name: False for name in (off, 'norm') if off == 'stem' or name == off}
    exported = export(net, x, target, target=target, overrides=overrides)
    ops = [node.op_type for node in exported.model.graph.node]
    # Of four pairs the one in front of the layer is gone, and at the end that behind.
    assert ops.count('QuantizeLinear') == (2 if off == 'last' else 3)
    expected, found = results(net, exported, x)
    # Sums of real numbers have another order, and are seldom at a tie.
    near = (expected - found).abs() < 1e-4 * expected.abs().max()
    assert near.float().mean() > 0.99


def test_sums_of_a_twin_are_exact(x):
    target = 'tensorrt'
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.last(F.silu(net.wide(F.silu(net.first(x))))),
        first=nn.Conv2d(3, 512, 1),
        wide=nn.Conv2d(512, 64, 3, padding=1, bias=False),
        last=nn.Conv2d(64, 4, 1),
    ).eval()
    exported = export(net, x, target, target=target)
    names = dict((p.key, p.value) for p in exported.model.metadata_props)
    assert len(json.loads(names['exact_sums'])) == 2
    twin = exact_twin(unsigned_twin(exported.model))
    ops = [node.op_type for node in twin.graph.node]
    assert (ops.count('ConvInteger'), ops.count('Conv')) == (2, 1)
    # The file itself is written in float between its pairs.
    kept = [node.op_type for node in exported.model.graph.node]
    assert kept.count('Conv') == 3
    expected, found = results(net, exported, x)
    assert torch.equal(expected, found)


def test_a_file_without_open_results_has_no_twin(x):
    model = export(smooth_net(F.silu), x, 'onnxruntime').model
    assert exact_twin(model) is model


def exported_step(net):
    (quantization,) = [m for m in net.modules() if type(m).__name__ == 'Quantization']
    return quantization.activations.host_grid('last/conv2d').scale


def test_file_for_tda4vm_has_no_range_inside_of_silu(x):
    net = smooth_net(lambda x: x * torch.sigmoid(x))
    calibrated(net, x, target='jacinto')
    nodes = export_onnx(net, x, 'tidl').model.graph.node
    gates = [node.output[0] for node in nodes if node.op_type == 'Sigmoid']
    readers = [n.op_type for n in nodes if set(gates).intersection(n.input)]
    assert len(gates) == 2
    assert readers == ['Mul', 'Mul']


@pytest.mark.parametrize('source, target', [('onnxruntime', 'openvino')])
def test_checker_tells_the_pairs_that_part_them(x, source, target):
    net = smooth_net(lambda x: x * torch.sigmoid(x))
    found = splits(export(net, x, source, target=source).model, target)
    # Of each function: the pair inside.
    assert [finding.operator for finding in found] == ['Sigmoid', 'Sigmoid']
    single = export(smooth_net(F.silu), x, source, target=source).model
    assert [finding.operator for finding in splits(single, target)] == ['Conv', 'Conv']


@pytest.mark.parametrize('spelling', ['silu', 'x * sigmoid', 'hardswish', 'gelu'])
def test_openvino_computes_it_in_one_node(x, spelling):
    pytest.importorskip('openvino')
    import openvino

    net = smooth_net(SPELLINGS[spelling][1])
    exported = export(net, x, 'openvino', target='openvino')
    core = openvino.Core()
    model = core.read_model(exported.model.SerializeToString())
    hints = {'INFERENCE_PRECISION_HINT': 'f32'}
    runtime = core.compile_model(model, 'CPU', hints).get_runtime_model()
    kinds = [op.get_rt_info()['layerType'].astype(str) for op in runtime.get_ops()]
    assert kinds.count('Convolution') == 3
    assert not {'Math', 'Eltwise'}.intersection(kinds)
    assert kinds.count('Subgraph') == 2  # the grids of input and output
    report = verify(exported, net, [x], 'openvino')
    assert report.signal_to_noise > 35
