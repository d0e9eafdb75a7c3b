"""Where a file was compared, in its metadata."""

import json

import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.configs import proof  # noqa: E402
from mmquant_jacinto.export.verify import OutputReport, Report  # noqa: E402


def metadata(**changes):
    """Of a file that was compared here, but for what is changed."""
    report = Report([OutputReport('y', elements=4, equal=4)], images=16)
    model = onnx.ModelProto()
    proof.record_proof(model, 'onnxruntime', report)
    proof.record_proof(model, 'onnxruntime', report)  # once more: no second entry
    (entry,) = model.metadata_props
    return {entry.key: json.dumps({**json.loads(entry.value), **changes})}


def test_nothing_is_said_in_the_same_place():
    assert proof.elsewhere(metadata(), 'onnxruntime') is None
    assert proof.elsewhere({}, 'onnxruntime') is None


@pytest.mark.parametrize(
    'changes',
    [
        dict(version='1.15.0'),
        dict(instructions='x86_64 AVX2'),
        dict(engine='openvino'),
    ],
)
def test_another_place_is_named_with_what_was_proven(changes):
    text = proof.elsewhere(metadata(**changes), 'onnxruntime')
    assert '16 images (100.0000%' in text
    for value in changes.values():
        assert {'openvino': 'OpenVINO'}.get(value, value) in text


@pytest.mark.parametrize(
    'flags, name',
    [
        ('fpu avx2 avx512bw avx512_vnni', 'AVX512-VNNI'),
        ('fpu avx2 avx_vnni', 'AVX-VNNI'),
        ('fpu avx2', 'AVX2'),
        ('fpu', ''),
    ],
)
def test_widest_instructions_are_named(tmp_path, flags, name):
    path = tmp_path / 'cpuinfo'
    path.write_text(f'flags : {flags}\n')
    machine, _, found = proof.instruction_set(str(path)).partition(' ')
    assert machine and found == name
