"""What OpenVINO can have in a file."""

import pytest
from toy_models import calibrated, make_plan

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402
from mmquant_jacinto.targets.openvino import OpenVino  # noqa: E402
from mmquant_jacinto.targets.rewrites.wide_grids import has_wide_grids  # noqa: E402

WIDE = dict(weight=8, activation=16)


def test_4_bits_are_stored_as_what_has_integer_kernels(toy_net, images):
    # OpenVINO computes convolutions with INT4 weights in float.
    calibrated(toy_net, images, target='openvino', bits=dict(weight=4), edge_bits=4)
    exported = export_onnx(toy_net, images, 'openvino')
    stored = [
        item
        for item in exported.model.graph.initializer
        if item.name.endswith('weight:int')
    ]
    assert {item.data_type for item in stored} == {onnx.TensorProto.INT8}
    values = [onnx.numpy_helper.to_array(item) for item in stored]
    assert max(abs(int(array.min())) for array in values) <= 8


def precisions(model):
    """What OpenVINO computes the convolutions of a file in."""
    openvino = pytest.importorskip('openvino')
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()),
        'CPU',
        {'INFERENCE_PRECISION_HINT': 'f32'},
    )
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return {
        info['runtimePrecision']
        for info in infos
        if info['layerType'] in ('Convolution', 'GroupConvolution')
    }


def test_saved_in_its_own_format_a_file_computes_the_same(toy_net, images, tmp_path):
    # As docs/en/targets/openvino.md says; its converter's files compute something else.
    openvino = pytest.importorskip('openvino')
    calibrated(toy_net, images, target='openvino')
    model = export_onnx(toy_net, images, 'openvino').model.SerializeToString()
    core = openvino.Core()
    openvino.save_model(core.read_model(model), tmp_path / 'model.xml')
    hint = {'INFERENCE_PRECISION_HINT': 'f32'}
    ours, saved = (
        core.compile_model(read, 'CPU', hint)(images.numpy())
        for read in (core.read_model(model), tmp_path / 'model.xml')
    )
    assert [array.tolist() for array in ours.values()] == [
        array.tolist() for array in saved.values()
    ]


@pytest.mark.parametrize('packs, computed', [(False, {'u8'}), (True, {'f32'})])
def test_openvino_computes_int4_convolutions_in_float(
    toy_net, images, monkeypatch, packs, computed
):
    # Why 4 bits are stored as INT8. A version that fails here may have them as INT4.
    monkeypatch.setattr(OpenVino, 'packs_4_bits', packs)
    calibrated(toy_net, images, target='openvino', bits=dict(weight=4), edge_bits=4)
    model = export_onnx(toy_net, images, 'openvino', allow_violations=True).model
    assert precisions(model) == computed


@pytest.mark.parametrize(
    'target, bits',
    [
        ('openvino', 8),
        ('openvino', dict(weight=4, activation=8)),
        ('onnxruntime', 16),
        ('onnxruntime', WIDE),
    ],
)
def test_openvino_computes_its_files(toy_net, images, target, bits):
    pytest.importorskip('openvino')
    calibrated(toy_net, images, target=target, bits=bits)
    exported = export_onnx(toy_net, images, 'openvino')
    report = verify(exported, toy_net, [images], exported.target.backend)
    assert not report.rounds  # it is measured by its distance, not by equality
    assert report.signal_to_noise > (20 if target == 'openvino' else 80)
    assert report.holds()


@pytest.mark.parametrize('bits, kind', [(16, 'activations'), (WIDE, 'activations')])
def test_16_bits_are_refused_before_training(toy_net, images, bits, kind):
    with pytest.raises(QuantizeError, match=f'stem/conv2d.*{kind} of up to 8'):
        make_plan(toy_net, images, target='openvino', bits=bits)


def test_wide_weights_are_refused_by_their_names(toy_net, images):
    bits = dict(weight=16, activation=8)
    with pytest.raises(QuantizeError, match='in stem, conv, expand and 2 more'):
        make_plan(toy_net, images, target='openvino', bits=bits)


def test_openvino_is_not_given_what_it_computes_otherwise(toy_net, images):
    pytest.importorskip('openvino')
    calibrated(toy_net, images, target='onnxruntime', bits=16)
    exported = export_onnx(toy_net, images, 'onnxruntime')
    with pytest.raises(QuantizeError, match='export it with --target openvino'):
        Session(exported.model, 'openvino')


def test_grids_of_16_bits_are_written_out(toy_net, images):
    calibrated(toy_net, images, target='onnxruntime', bits=16)
    exported = export_onnx(toy_net, images, 'openvino')
    assert not has_wide_grids(exported.model)
    # In ONNX Runtime the same file computes the same.
    assert verify(exported, toy_net, [images]).signal_to_noise > 80


def test_where_openvino_is_not_there_a_file_is_measured_by_its_distance(
    toy_net, images
):
    calibrated(toy_net, images, target='openvino')
    exported = export_onnx(toy_net, images, 'openvino')
    report = verify(exported, toy_net, [images], 'onnxruntime')
    assert not report.rounds
    assert report.holds()
