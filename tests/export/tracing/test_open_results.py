"""Files of layers that are one with a function: no pair in between."""

import pytest
import torch
import torch.nn.functional as F
from exporting import export, results
from smooth_functions import SPELLINGS, smooth_net
from toy_models import calibrated

from mmquant_jacinto.export.exporter import export_onnx
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
    # In float the file adds up in an order of its own: a tie in thousands.
    assert (expected == found).float().mean() > 0.998
    step = exported_step(net)
    assert (expected - found).abs().max() <= 1.01 * step


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
