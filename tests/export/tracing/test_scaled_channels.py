"""Files of tensors whose channels have factors."""

import pytest
import torch
from exporting import results
from smooth_functions import SPELLINGS, uneven

from mmquant_jacinto import QuantCalibrateModule
from mmquant_jacinto.export.exporter import export_onnx
from mmquant_jacinto.export.rules.check import check
from mmquant_jacinto.targets.target import get_target

TARGETS = ('onnxruntime', 'openvino', 'tidl', 'tensorrt')
EXACT = [name for name in SPELLINGS if 'gelu' not in name]


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, 3, 24, 24)


def calibrated_net(spelling, x, target, **quantize):
    net = uneven(SPELLINGS[spelling][1])
    calib = QuantCalibrateModule(net, x, target=target, **quantize).train()
    calib(x)
    return net, calib.eval()


def exported_net(spelling, x, target):
    """A net some of whose channels have factors, and its file."""
    net, calib = calibrated_net(spelling, x, target)
    assert (calib.quantization.channel_factor != 1).any()
    return net, export_onnx(net, x, target)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('spelling', EXACT)
def test_file_computes_what_the_model_does(x, target, spelling):
    net, exported = exported_net(spelling, x, target)
    expected, found = results(net, exported, x)
    # OpenVINO computes sigmoids by another polynomial than ONNX Runtime, which runs the
    # file here: a tie falls now and then to the other side.
    ties = 2e-3 if target == 'openvino' else 0.0
    assert (expected != found).float().mean() <= ties


@pytest.mark.parametrize('target', ['openvino', 'tensorrt'])
@pytest.mark.parametrize('spelling', ['silu', 'x * sigmoid', 'gelu'])
def test_open_results_are_divided_as_they_are_quantized(x, target, spelling):
    _, exported = exported_net(spelling, x, target)
    nodes = exported.model.graph.node
    divided = {node.output[0] for node in nodes if node.op_type == 'Div'}
    readers = [node.op_type for node in nodes if divided.intersection(node.input)]
    assert readers.count('QuantizeLinear') == 2
    rules = get_target(target).rules
    assert not [f for f in check(exported.model, rules) if f.rule == 'fusion']


@pytest.mark.parametrize('spelling', ['silu', 'x * sigmoid', 'hardswish'])
def test_openvino_has_no_node_for_the_division(x, spelling):
    openvino = pytest.importorskip('openvino')
    _, exported = exported_net(spelling, x, 'openvino')
    core = openvino.Core()
    model = core.read_model(exported.model.SerializeToString())
    hints = {'INFERENCE_PRECISION_HINT': 'f32'}
    runtime = core.compile_model(model, 'CPU', hints).get_runtime_model()
    kinds = [op.get_rt_info()['layerType'].astype(str) for op in runtime.get_ops()]
    assert kinds.count('Convolution') == 3
    assert not {'Math', 'Eltwise'}.intersection(kinds)
    assert kinds.count('Subgraph') == 2  # the grids of input and output


def test_what_reads_a_tensor_times_its_factors_shares_one_multiplication(x):
    _, exported = exported_net('x * sigmoid', x, 'onnxruntime')
    nodes = exported.model.graph.node
    gates = [node.input[0] for node in nodes if node.op_type == 'Sigmoid']
    makers = {node.output[0]: node.op_type for node in nodes}
    readers = [[n.op_type for n in nodes if name in n.input] for name in gates]
    assert gates and all(makers[name] == 'Mul' for name in gates)
    assert all(sorted(kinds) == ['Mul', 'Sigmoid'] for kinds in readers)


@pytest.mark.parametrize('decibels, is_worth', [(2.5, True), (90.0, False)])
def test_factors_that_are_operations_have_to_be_worth_it(x, decibels, is_worth):
    net, _ = calibrated_net('silu', x, 'onnxruntime', scale_channels=decibels)
    exported = export_onnx(net, x, 'onnxruntime')
    kinds = [node.op_type for node in exported.model.graph.node]
    assert ('Div' in kinds) == is_worth
