"""Zero points of weights, in a file for ONNX Runtime."""

import pytest
import torch
from exactness import assert_exact, random_inputs
from torch import nn
from toy_models import Forward

from mmquant_jacinto.export.session import Session


def test_each_weight_has_its_own_and_processors_without_vnni_load_the_file():
    ort = pytest.importorskip('onnxruntime')
    net = Forward(
        lambda net, x: net.two(net.one(x)) + net.three(x),
        one=nn.Conv2d(3, 8, 1),
        two=nn.Conv2d(8, 8, 1),
        three=nn.Conv2d(3, 8, 1),
    ).eval()
    inputs = random_inputs(2, 3, 16, 16)
    exported, expected = assert_exact(net, inputs)
    stored = {item.name for item in exported.model.graph.initializer}
    zero_points = [
        node.input[2]
        for node in exported.model.graph.node
        if node.op_type == 'DequantizeLinear' and node.input[0] in stored
    ]
    assert len(zero_points) == len(set(zero_points)) == 6  # weights and biases
    options = ort.SessionOptions()
    options.add_session_config_entry('session.x64quantprecision', '1')
    session = ort.InferenceSession(
        exported.model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    (found,) = session.run(None, {'images': inputs.run.numpy()})
    assert torch.equal(torch.from_numpy(found), expected)
    assert torch.equal(*Session(exported.model)(inputs.run).values(), expected)
