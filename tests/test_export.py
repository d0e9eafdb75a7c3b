"""Exported files against the integer model, in ONNX Runtime."""

import collections

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyDetector, ToyNet, calibrated, randomize_norms

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.example import (  # noqa: E402
    RegionOutputs,
    named_tensors,
)
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import (  # noqa: E402
    Session,
    kernels,
    saturates,
)
from mmquant_jacinto.export.verify import first_difference, verify  # noqa: E402

INTEGER_KERNELS = {
    'Conv': 'QLinearConv',
    'Gemm': 'QGemm',
    'MatMul': 'QLinearMatMul',
}


def export(net, x, to='onnxruntime', **quantize):
    """The net calibrated on ``x``, and its file."""
    calibrated(net, x, **{'target': 'onnxruntime', **quantize})
    return export_onnx(net, x, to)


def results(net, exported, x):
    """What the net in PyTorch and the file in ONNX Runtime return."""
    with torch.no_grad():
        expected = net(x)
    found = Session(exported.model)(x)
    assert len(found) == 1
    return expected, next(iter(found.values()))


@pytest.mark.parametrize('bits', [8, 7, 4, dict(weight=4, activation=8)])
@pytest.mark.parametrize('preset', ['onnxruntime', 'tensorrt', 'jacinto', 'tidl'])
def test_file_computes_what_the_integer_model_does(preset, bits, toy_net, images):
    exported = export(toy_net, images, target=preset, bits=bits)
    expected, found = results(toy_net, exported, torch.randn(2, 3, 16, 16))
    assert torch.equal(expected, found)
    assert expected.unique().numel() > 3


@pytest.mark.parametrize(
    'preset, to, per_channel',
    [
        ('jacinto', 'onnxruntime', True),
        ('onnxruntime', 'onnxruntime', False),
        ('tidl', 'tidl', False),
    ],
)
def test_other_scales_than_the_presets(preset, to, per_channel, toy_net, images):
    exported = export(toy_net, images, to, target=preset, per_channel=per_channel)
    expected, found = results(toy_net, exported, torch.randn(2, 3, 16, 16))
    assert torch.equal(expected, found)
    assert expected.unique().numel() > 3


def test_16_bits(toy_net, images):
    exported = export(toy_net, images, bits=16)
    assert exported.model.opset_import[0].version == 21
    expected, found = results(toy_net, exported, torch.randn(2, 3, 16, 16))
    (scale,) = exported.scales.values()
    # No integer kernels: the float ones add in an order of their own.
    assert (expected - found).abs().max() <= 1.01 * scale
    report = verify(exported, toy_net, [images])
    assert not report.rounds
    assert report.signal_to_noise > report.least_signal_to_noise > 60
    assert report.holds()
    # Further from the model than the model from the float one.
    report.outputs[0].noise = 1.1 * report.outputs[0].quantization
    assert not report.holds()


def test_every_layer_is_an_integer_kernel(toy_net, images):
    exported = export(toy_net, images)
    written = collections.Counter(node.op_type for node in exported.model.graph.node)
    run = kernels(exported.model)
    for operator, kernel in INTEGER_KERNELS.items():
        assert run[kernel] == written[operator]
        assert run[operator] == 0
    assert run['QLinearAdd'] == run['QLinearConcat'] == 1
    assert run['QuantizeLinear'] == run['DequantizeLinear'] == 1


def test_weights_are_stored_once_as_integers():
    net = ToyDetector().eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x)
    stored = {item.name: item for item in exported.model.graph.initializer}
    weights = [name for name in stored if name.endswith('.weight:int')]
    # Two levels share the head.
    assert sorted(weights) == [
        'backbone.conv.weight:int',
        'head.cls.weight:int',
        'head.tower.weight:int',
    ]
    for name in weights:
        assert stored[name].data_type == onnx.TensorProto.INT8
    biases = [name for name in stored if name.startswith('head.cls.bias:int')]
    for name in biases:
        assert stored[name].data_type == onnx.TensorProto.INT32
    floats = [
        item.name
        for item in stored.values()
        if item.data_type == onnx.TensorProto.FLOAT and 'scale' not in item.name
    ]
    assert floats == []


def test_names_are_those_of_the_modules_and_outputs_of_the_head():
    net = ToyDetector().eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x)
    nodes = [node.name for node in exported.model.graph.node]
    assert 'head.tower#1/conv2d' in nodes
    assert [item.name for item in exported.model.graph.output] == ['head.0', 'head.1']
    assert list(exported.scales) == ['head.0', 'head.1']


def test_metadata_says_how_to_run_the_file(toy_net, images):
    calibrated(toy_net, images, target='onnxruntime')
    exported = export_onnx(toy_net, images, metadata={'classes': ['a', 'b']})
    metadata = {item.key: item.value for item in exported.model.metadata_props}
    assert metadata['preset'] == metadata['target'] == 'onnxruntime'
    assert metadata['input_layout'] == 'NCHW'
    assert metadata['classes'] == '["a", "b"]'


# --- each operator, between two convolutions

UNARY = {
    'sigmoid': torch.sigmoid,
    'silu': F.silu,
    'swish': lambda x: x * torch.sigmoid(x),
    'hardswish': F.hardswish,
    'hardsigmoid': F.hardsigmoid,
    'leaky_relu': lambda x: F.leaky_relu(x, 0.1),
    'tanh': torch.tanh,
    'relu6': F.relu6,
    'clamp': lambda x: x.clamp(-0.4, 0.9),
    'relu_in_place': lambda x: F.relu(x, inplace=True),
    'scaled': lambda x: x * 1.7,
    'shifted': lambda x: 1.0 - x,
    'max_pool': lambda x: F.max_pool2d(x, 3, 2, 1),
    'avg_pool': lambda x: F.avg_pool2d(x, 2),
    'nearest': lambda x: F.interpolate(x, scale_factor=2),
    'nearest_odd': lambda x: F.interpolate(x, size=(13, 11)),
    'bilinear': lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
    'bilinear_odd': lambda x: F.interpolate(x, (13, 11), mode='bilinear'),
    'bilinear_corners': lambda x: F.interpolate(
        x, (13, 11), mode='bilinear', align_corners=True
    ),
    'bilinear_to_one': lambda x: F.interpolate(x, (1, 7), mode='bilinear'),
    'bilinear_part': lambda x: F.interpolate(
        x[..., 1:], scale_factor=0.5, mode='bilinear'
    ),
    'nearest_part': lambda x: F.interpolate(x[..., 1:], scale_factor=0.5),
    'avg_pool_odd': lambda x: F.avg_pool2d(x, (3, 5), 2, 1),
    'avg_pool_edges': lambda x: F.avg_pool2d(x, 2, 2, 1, count_include_pad=False),
    'grid_sample': lambda x: F.grid_sample(
        x, x.permute(0, 2, 3, 1)[..., :2], align_corners=False
    ),
    'grid_sample_corners': lambda x: F.grid_sample(
        x, x.permute(0, 2, 3, 1)[..., :2] * 0.7, align_corners=True
    ),
    'global_pool': lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    'mean': lambda x: x + x.mean((2, 3), keepdim=True),
    'std': lambda x: x * x.std((2, 3), keepdim=True),
    'var': lambda x: x + x.var(1, unbiased=False).unsqueeze(1) + x.var(True),
    'max': lambda x: x - x.max(1, keepdim=True)[0] + torch.max(x, x.max()),
    'min': lambda x: x - x.min(dim=-1, keepdim=True).values + torch.min(x, x.flip(3)),
    'group_norm': lambda x: F.group_norm(x, 2),
    'chunk': lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    'stack': lambda x: torch.stack([x, x], 2).flatten(1, 2)[:, :8],
    'slices': lambda x: torch.cat([x[..., ::2, 1:9], x[:, :, 1::2, :8]], 1)[:, 1:9],
    'permute': lambda x: (
        x.permute(0, 2, 3, 1).reshape(1, -1, 8).transpose(1, 2)[..., None]
    ),
    'shuffle': lambda x: F.channel_shuffle(x, 2),
    'pixel_shuffle': lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
    'pad': lambda x: F.pad(x, (1, 2, 0, 1)),
    'roll': lambda x: torch.roll(x, (1, 2), (2, 3)),
    'difference': lambda x: x - x.flip(3),
    'written_in_place': lambda x: x.add_(x.flip(2)),
    'written_slice': lambda x: written(x, (Ellipsis, slice(2, 5)), x[..., :3] + 1),
    'written_block': lambda x: written(x, (slice(None), slice(1, 3), -2), x[0, 0, 0]),
    'written_whole': lambda x: written(x, slice(None), x.flip(1)),
    'written_number': lambda x: written(x, (0, 1), 2.5),
    'written_mask': lambda x: written(x, x > 1, torch.tensor(1)),
    'written_nothing': lambda x: written(x, (slice(None), slice(5, 2)), 3.0),
    'topk': lambda x: (
        x.flatten(2).gather(2, x.round().flatten(2).topk(50, 2)[1]).unsqueeze(3)
    ),
    'cummax': lambda x: x.cummax(2)[0] + x.flip(3).cummax(3)[0],
}


def part_written(whole, x):
    whole[0][1:] = x[0][1:]
    return whole


def written(x, index, value):
    x = x * 1.5
    x[index] = value
    return x


def between_layers(function):
    return Forward(
        lambda net, x: net.two(function(net.one(x))),
        one=nn.Conv2d(3, 8, 1),
        two=nn.Conv2d(8, 4, 1),
    )


@pytest.mark.parametrize('name', UNARY)
def test_operators(name):
    net = between_layers(UNARY[name])
    x = torch.randn(1, 3, 10, 10) * 3
    exported = export(net, x)
    expected, found = results(net, exported, torch.randn(1, 3, 10, 10) * 3)
    if name in ('tanh', 'std', 'var', 'max', 'min'):
        # Float kernels, whose last bit differs.
        (scale,) = exported.scales.values()
        assert (expected - found).abs().max() <= 1.01 * scale
    else:
        assert torch.equal(expected, found)


def test_random_additions_equal_the_kernel_bit_by_bit():
    # Ties are rare: many pairs of scales.
    for seed in range(8):
        torch.manual_seed(seed)
        net = Forward(
            lambda net, x: net.one(x) + net.two(x),
            one=nn.Conv2d(3, 16, 1),
            two=nn.Conv2d(3, 16, 1),
        )
        x = torch.randn(1, 3, 64, 64)
        expected, found = results(net, export(net, x), x)
        assert torch.equal(expected, found)


@pytest.mark.parametrize('transposed', [False, True])
def test_linear_of_any_rank(transposed):
    net = Forward(
        lambda net, x: net.fc(x.flatten(2).transpose(1, 2) if transposed else x),
        fc=nn.Linear(6, 5),
    )
    x = torch.randn(2, 6, 3, 4) if transposed else torch.randn(2, 7, 6)
    expected, found = results(net, export(net, x), x)
    assert torch.equal(expected, found)


def test_narrow_groups_are_merged():
    net = Forward(
        lambda net, x: net.grouped(net.one(x)),
        one=nn.Conv2d(3, 96, 1),
        grouped=nn.Conv2d(96, 96, 3, groups=6, padding=1),
    )
    x = torch.randn(1, 3, 10, 10)
    exported = export(net, x)
    groups = [
        attribute.i
        for node in exported.model.graph.node
        for attribute in node.attribute
        if attribute.name == 'group'
    ]
    assert groups == [1, 2]
    expected, found = results(net, exported, torch.randn(1, 3, 10, 10))
    assert torch.equal(expected, found)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias, padding=1)


@pytest.mark.parametrize('preset', ['onnxruntime', 'jacinto'])
@pytest.mark.parametrize('normalized', [False, True])
def test_weight_that_the_model_computes(preset, normalized):
    norm = nn.BatchNorm2d(8) if normalized else nn.Identity()
    if normalized:
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.weight)
        nn.init.zeros_(norm.weight[:1])
    net = Forward(
        lambda net, x: net.two(F.relu(net.norm(net.one(x)))),
        one=Standardized(3, 8, 3),
        norm=norm,
        two=nn.Conv2d(8, 4, 1),
    )
    x = torch.randn(1, 3, 10, 10)
    exported = export(net, x, target=preset)
    stored = {item.name: item for item in exported.model.graph.initializer}
    assert stored['one/conv2d:weight:int'].data_type == onnx.TensorProto.INT8
    expected, found = results(net, exported, torch.randn(1, 3, 10, 10))
    kinds = {node.op_type for node in exported.model.graph.node}
    # One scale for all channels is not the normalized weight's.
    in_float = normalized and preset == 'jacinto'
    assert ('BatchNormalization' in kinds) == in_float
    if in_float:
        (scale,) = exported.scales.values()
        assert (expected - found).abs().max() <= 1.01 * scale
    else:
        assert torch.equal(expected, found)


FROM_THE_IMAGE = {
    'affine_grid': lambda x: F.grid_sample(
        x,
        F.affine_grid(x.mean((2, 3))[:, :6].view(1, 2, 3), x.shape, False),
        align_corners=False,
    ),
    'weight': lambda x: F.group_norm(x, 2, x.mean((0, 2, 3))),
    'bias': lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1), x.mean((0, 2, 3))),
    'full': lambda x: x * torch.full((1, 8, 1, 1), x.mean()),
    'part': lambda x: x + part_written(x.new_zeros(x.shape), x),
    'slice': lambda x: written(x, (0, slice(None, x.mean((0, 2, 3)).argmax())), 0.0),
}


@pytest.mark.parametrize('name', FROM_THE_IMAGE)
def test_what_follows_from_the_image_is_no_constant(name):
    net = between_layers(FROM_THE_IMAGE[name])
    with pytest.raises(QuantizeError):
        export(net, torch.randn(1, 3, 10, 10))


def test_constant_that_is_sampled_where_the_image_says():
    ramp = torch.linspace(-2, 2, 10).expand(1, 8, 10, 10)

    def forward(net, x):
        places = net.one(x).permute(0, 2, 3, 1)[..., :2]
        return net.two(F.grid_sample(ramp * 1.0, places, align_corners=False))

    net = Forward(forward, one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1))
    exported = export(net, torch.randn(1, 3, 10, 10))
    expected, found = results(net, exported, torch.randn(1, 3, 10, 10))
    (scale,) = exported.scales.values()
    assert (expected - found).abs().max() <= 1.01 * scale


@pytest.mark.parametrize('sizes', [(35, 40), (30, 16), (15, 4), (1, 3)])
def test_resizing_between_any_sizes(sizes):
    source, target = sizes
    net = Forward(
        lambda net, x: F.interpolate(net.one(x), (target, target), mode='bilinear'),
        one=nn.Conv2d(3, 8, 1),
    )
    x = torch.randn(1, 3, source, source)
    exported = export(net, x, target='jacinto')
    expected, found = results(net, exported, torch.randn(1, 3, source, source))
    assert torch.equal(expected, found)


# --- other targets


def test_tensorrt_has_no_zero_points(toy_net, images):
    calibrated(toy_net, images, target='tensorrt')
    exported = export_onnx(toy_net, images, 'tensorrt')
    zeros = [
        onnx.numpy_helper.to_array(item)
        for item in exported.model.graph.initializer
        if item.name.startswith('zero_point')
    ]
    assert zeros
    assert all(item.dtype in (np.int8, np.int32) and not item.any() for item in zeros)


def test_4_bits_are_packed_where_the_target_has_them(toy_net, images):
    calibrated(toy_net, images, target='openvino', bits=dict(weight=4))
    exported = export_onnx(toy_net, images, 'openvino')
    stored = [
        item
        for item in exported.model.graph.initializer
        if item.name.endswith('weight:int')
    ]
    assert {item.data_type for item in stored} == {onnx.TensorProto.INT4}


def test_tda4vm_gets_clips_and_weights_on_their_grid(toy_net, images):
    calibrated(toy_net, images, target='jacinto')
    exported = export_onnx(toy_net, images, 'tidl')
    operators = collections.Counter(node.op_type for node in exported.model.graph.node)
    assert operators['Clip'] >= 6
    assert operators['QuantizeLinear'] == operators['DequantizeLinear'] == 0
    for item in exported.model.graph.initializer:
        if item.name.endswith('.weight'):
            weight = onnx.numpy_helper.to_array(item)
            step = 2.0 ** np.ceil(np.log2(np.abs(weight).max())) / 128
            assert not (weight / step % 1).any()
    report = verify(exported, toy_net, [images])
    assert report.holds()
    assert report.share < 1


# --- verification


def test_verification_counts_and_names_what_parts(toy_net, images):
    exported = export(toy_net, images)
    report = verify(exported, toy_net, [images, torch.randn(2, 3, 16, 16)])
    assert report.share == 1
    assert report.images == 4
    assert report.first is None
    assert report.holds(1.0)
    # Another weight than the file's.
    with torch.no_grad():
        toy_net.conv.weight.mul_(-1)
    toy_net.quantization.set_phase('test')
    report = verify(exported, toy_net, [images])
    assert report.share < 0.9
    assert not report.holds()


@pytest.mark.parametrize('at_a_time', [2**26, 1000])
def test_bisection_names_the_first_tensor(toy_net, images, monkeypatch, at_a_time):
    from mmquant_jacinto.export import verify
    from mmquant_jacinto.targets import onnxruntime

    monkeypatch.setattr(verify, 'MAX_COMPARED', at_a_time)
    exported = export(toy_net, images)
    assert first_difference(exported, toy_net, images) is None
    monkeypatch.setattr(
        onnxruntime.OnnxRuntimeArithmetic,
        'add',
        lambda self, x, y, first, second, grid: (x + y + 4) * 0.9,
    )
    assert first_difference(exported, toy_net, images) == '/add:out'


def test_saturation_is_asked_of_the_processor():
    assert saturates() in (True, False)


# --- what cannot be exported


def test_float_model_is_refused(toy_net, images):
    with pytest.raises(QuantizeError, match='float model'):
        export_onnx(toy_net, images)


def test_model_without_ranges_is_refused(toy_net, images):
    from toy_models import make_plan

    from mmquant_jacinto import quantize_model

    quantize_model(toy_net, make_plan(toy_net, images))
    with pytest.raises(QuantizeError, match='no quantization ranges'):
        export_onnx(toy_net, images)


@pytest.mark.parametrize(
    'target, quantize, message',
    [
        ('onnxrt', {}, "did you mean 'onnxruntime'"),
        ('tensorrt', {}, "quantize.target='onnxruntime'"),
        ('tensorrt', dict(target='tensorrt', bits=16), '16 bits'),
        ('tidl', dict(target='jacinto', per_channel=True), 'per_channel=True'),
    ],
)
def test_unfit_target_is_refused(target, quantize, message, toy_net, images):
    with pytest.raises(QuantizeError, match=message):
        export(toy_net, images, target, **quantize)


def test_missing_operator_is_named_with_its_line():
    net = Forward(lambda net, x: torch.cumsum(net.conv(x), 1), conv=nn.Conv2d(3, 4, 1))
    x = torch.randn(1, 3, 8, 8)
    calibrated(net, x, target='onnxruntime')
    with pytest.raises(QuantizeError, match=r"'cumsum'.*test_export\.py:\d+"):
        export_onnx(net, x)


def test_session_refuses_another_size(toy_net, images):
    session = Session(export(toy_net, images).model)
    with pytest.raises(QuantizeError, match='--shape'):
        session(torch.randn(2, 3, 24, 16))


def test_batches_are_split_for_a_file_of_single_images(toy_net):
    x = torch.randn(1, 3, 16, 16)
    session = Session(export(toy_net, x).model)
    batch = torch.randn(3, 3, 16, 16)
    (found,) = session(batch).values()
    with torch.no_grad():
        assert torch.equal(found, toy_net(batch))


def test_normalization_statistics_survive(images):
    net = randomize_norms(ToyNet()).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    export(net, images)
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value)


def test_free_batch_and_size():
    net = ToyDetector().eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x, dynamic=True)
    session = Session(exported.model)
    assert session.input_shape == (0, 3, 0, 0)
    for shape in ((2, 3, 16, 16), (1, 3, 32, 24)):
        x = torch.randn(shape)
        regions = RegionOutputs(net, exported.layout)
        with regions.collecting() as outputs:
            net(x)
        expected = named_tensors(exported.layout, outputs)
        for name, found in session(x).items():
            assert torch.equal(found, expected[name])


def test_what_depends_on_the_size_is_named(toy_net, images):
    calibrated(toy_net, images, target='onnxruntime')
    with pytest.raises(QuantizeError, match='flatten.*--shape'):
        export_onnx(toy_net, images, dynamic=True)


def test_openvino_runs_the_file_too(toy_net, images):
    pytest.importorskip('openvino')
    exported = export(toy_net, images)
    expected, _ = results(toy_net, exported, images)
    (found,) = Session(exported.model, 'openvino')(images).values()
    (scale,) = exported.scales.values()
    # An arithmetic of its own, a few steps apart.
    assert (expected - found).abs().max() <= 4.01 * scale


def test_size_that_the_stride_does_not_divide_is_refused():
    from mmengine.config import Config

    from mmquant_jacinto.export.configs.test_images import TestImages

    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[resize]))))
    # By default the pipeline's size, as the model pads it.
    images = TestImages(cfg, divisor=32)
    assert images.shape == (800, 1344)
    assert images.dataset_cfg.pipeline[0].scale == (1344, 800)
    assert not images.dataset_cfg.pipeline[0].keep_ratio
    with pytest.raises(QuantizeError, match='use --shape 320 320'):
        TestImages(cfg, shape=(300, 320), divisor=32)
