"""Files in an engine: sizes, batches, and which engine."""

import pytest
import torch
from exporting import export, results
from refusals import refused
from toy_models import ToyNet

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.in_place import in_place_of_modules  # noqa: E402
from mmquant_jacinto.export.session import (  # noqa: E402
    Session,
    proof_backend,
    saturates,
)
from mmquant_jacinto.targets.target import get_target  # noqa: E402

GRAPH = onnx.helper.make_graph([], 'empty', [], [])


def test_saturation_is_asked_of_the_processor():
    assert saturates() in (True, False)


def test_session_refuses_another_size(toy_net, images):
    session = Session(export(toy_net, images).model)
    with pytest.raises(QuantizeError, match='--shape'):
        session(torch.randn(2, 3, 24, 16))


@pytest.mark.parametrize('content', [b'', onnx.helper.make_model(GRAPH)], ids=repr)
def test_session_refuses_what_is_no_model(content):
    model = onnx.load_from_string(content) if content == b'' else content
    refused(lambda: Session(model), 'no ONNX model', 'tools/export.py')


def test_session_refuses_what_no_engine_runs(toy_net, images):
    model = export(toy_net, images).model
    model.graph.node[0].op_type = 'Unheard'
    refused(lambda: Session(model), 'onnxruntime cannot run the file', 'Unheard')


def test_file_of_another_config_is_refused(toy_net, images):
    session = Session(export(toy_net, images).model)
    other = ToyNet()
    session.check_fits(other)
    name, parameter = list(other.named_parameters())[-1]
    parameter.data = torch.zeros(3, *parameter.shape)
    refused(lambda: session.check_fits(other), name, 'made from another config')
    gone = in_place_of_modules(torch.nn.ReLU(), session)
    refused(gone.__enter__, 'missing here')


def test_batches_are_split_for_a_file_of_single_images(toy_net):
    x = torch.randn(1, 3, 16, 16)
    session = Session(export(toy_net, x).model)
    batch = torch.randn(3, 3, 16, 16)
    (found,) = session(batch).values()
    with torch.no_grad():
        assert torch.equal(found, toy_net(batch))


def test_openvino_runs_the_file_too(toy_net, images):
    pytest.importorskip('openvino')
    exported = export(toy_net, images)
    expected, _ = results(toy_net, exported, images)
    (found,) = Session(exported.model, 'openvino')(images).values()
    (scale,) = exported.scales.values()
    # An arithmetic of its own, a few steps apart.
    assert (expected - found).abs().max() <= 4.01 * scale


@pytest.mark.parametrize(
    'target, backend',
    [('onnxruntime', 'onnxruntime'), ('tensorrt', None), ('tidl', None)],
)
def test_proof_runs_in_the_engine_that_is_here(target, backend):
    assert proof_backend(get_target(target)) == backend


def test_engine_that_is_not_installed_proves_nothing(monkeypatch):
    target = get_target('openvino')
    monkeypatch.setattr(type(target), 'backend', 'no_such_engine')
    assert proof_backend(target) is None
