import pytest
import torch
import torch.nn.functional as F
from exporting import export, results
from torch import nn
from toy_models import Forward

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402

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
