"""What a page says of an exported file."""

import pytest
import torch
from toy_models import ToyNet, calibrated, randomize_norms

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnx_ir')
pytest.importorskip('onnxruntime')

from mmquant_jacinto.export.configs.file_input import (  # noqa: E402
    METADATA_KEY,
    FileInput,
)
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.file_report import (  # noqa: E402
    MOST_VIOLATIONS,
    outputs_of,
    report_of_file,
    sentences,
    slowest_nodes,
)
from mmquant_jacinto.export.rules.check import Finding  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402
from mmquant_jacinto.export.verify import OutputReport  # noqa: E402
from mmquant_jacinto.targets.rules import table  # noqa: E402
from mmquant_jacinto.targets.target import get_file_target  # noqa: E402


@pytest.fixture
def exported():
    net = randomize_norms(ToyNet()).eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, mode='ptq', target='onnxruntime')
    return export_onnx(net, x, 'onnxruntime').model, x


def test_the_slowest_nodes_are_the_engines_own(exported):
    model, x = exported
    session = Session(model)
    feeds = {name: item.array(x) for name, item in session.inputs.items()}
    found = slowest_nodes(model, feeds)
    times = [item['milliseconds'] for item in found]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    # Layers run in integers.
    assert 'QLinearConv' in {item['kind'] for item in found}


def test_a_file_for_openvino_is_timed_there_too():
    pytest.importorskip('openvino')
    net = randomize_norms(ToyNet()).eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, mode='ptq', target='openvino')
    model = export_onnx(net, x, 'openvino').model
    session = Session(model)
    feeds = {name: item.array(x) for name, item in session.inputs.items()}
    found = slowest_nodes(model, feeds, 'openvino')
    engines = [item['engine'] for item in found]
    assert engines == sorted(engines) and set(engines) == {'ONNX Runtime', 'OpenVINO'}
    theirs = [item for item in found if item['engine'] == 'OpenVINO']
    times = [item['milliseconds'] for item in theirs]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    assert any('Convolution' in item['kind'] for item in theirs)


def test_a_file_is_compared_by_the_rounding_of_its_own_target(tmp_path):
    net = randomize_norms(ToyNet()).eval()
    x = torch.randn(1, 3, 16, 16)
    quantization = calibrated(net, x, mode='ptq', target='jacinto')
    seen = {METADATA_KEY: FileInput((16, 16)).to_metadata()}
    file = str(tmp_path / 'model.onnx')
    onnx.save(export_onnx(net, x, 'onnxruntime', seen).model, file)
    # As tests compute a checkpoint for TDA4VM: ties are rounded up.
    quantization.engine = own = get_file_target('tidl').engine('jacinto')
    quantization.set_phase('test')
    batches = torch.randn(4, 1, 3, 16, 16)
    found = report_of_file(file, net, batches)
    assert [item['equal'] for item in found.outputs] == [1.0] * len(found.outputs)
    assert found.outputs and quantization.engine is own


def test_violations_are_sentences_and_not_too_many():
    def finding(severity):
        return Finding('a', 'Conv', 'weights', '16 bits', '8 bits', 'a page', severity)

    notice = next(item for item in table.SEVERITIES if item != table.VIOLATION)
    many = [finding(table.VIOLATION)] * (MOST_VIOLATIONS + 2) + [finding(notice)]
    found = sentences(many)
    assert found[0] == 'Conv a, weights: 16 bits; right: 8 bits'
    assert found[-1] == 'and 2 more' and len(found) == MOST_VIOLATIONS + 1
    assert sentences([finding(notice)]) == []


def test_outputs_that_were_not_compared_are_left_out():
    item = OutputReport('scores')
    item.add(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.5)
    assert outputs_of([item, OutputReport('boxes')]) == [
        dict(name='scores', elements=2, equal=0.5, largest=1.0, unit='steps')
    ]
