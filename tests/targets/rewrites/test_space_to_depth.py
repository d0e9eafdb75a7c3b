"""Focus and its convolution become one, with the integers that were tested."""

import collections

import pytest
import torch
from torch import nn
from toy_models import Forward, calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402


def parts(x, step=2):
    """As YOLO's stems have them: columns go before rows."""
    return [x[..., i::step, j::step] for j in range(step) for i in range(step)]


def focus(step=2, **options):
    return Forward(
        lambda net, x: net.last(net.stem(torch.cat(parts(x, step), 1)).relu()),
        stem=nn.Conv2d(3 * step * step, 8, 3, **options),
        last=nn.Conv2d(8, 4, 1),
    ).eval()


def exported(net, target, size=24):
    torch.manual_seed(0)
    images = torch.randn(2, 3, size, size)
    calibrated(net, images, target=target)
    to = 'openvino' if target == 'openvino' else 'tidl'
    file = export_onnx(net, images, to)
    # In ONNX Runtime all of them are equal in each element.
    report = verify(file, net, [images, torch.randn(2, 3, size, size)])
    if target != 'openvino':
        assert report.share == 1 and report.holds(1.0)
    else:
        assert report.holds() and report.signal_to_noise > 40
    return file, collections.Counter(n.op_type for n in file.model.graph.node)


@pytest.mark.parametrize('target', ['tidl', 'jacinto', 'openvino'])
@pytest.mark.parametrize(
    'step, options',
    [(2, dict(padding=1)), (2, dict(stride=2)), (3, dict(padding=(1, 2), bias=False))],
)
def test_focus_is_one_convolution(target, step, options):
    file, operators = exported(focus(step, **options), target)
    assert not operators['Slice'] and not operators['Concat']
    conv = next(n for n in file.model.graph.node if n.op_type == 'Conv')
    given = {a.name: list(a.ints) for a in conv.attribute if a.ints}
    assert given['kernel_shape'] == [3 * step, 3 * step]
    assert given['strides'] == [step * options.get('stride', 1)] * 2
    shapes = {item.name: list(item.dims) for item in file.model.graph.initializer}
    assert [8, 3, 3 * step, 3 * step] in shapes.values()
    read = {name for node in file.model.graph.node for name in node.input}
    assert set(shapes) <= read


def test_tidl_runs_yolos_stem_on_its_accelerator():
    file, _ = exported(focus(padding=1), 'tidl')
    assert not file.findings


@pytest.mark.parametrize(
    'function',
    [
        # Not all of the parts, one of them twice, one of another tensor.
        lambda net, x: net.stem(torch.cat([*parts(x)[:3], x[..., :12, :12]], 1)),
        lambda net, x: net.stem(torch.cat([*parts(x)[:3], parts(x)[0]], 1)),
        lambda net, x: net.stem(torch.cat([*parts(x)[:3], parts(net.other(x))[3]], 1)),
        # Somebody else reads what is joined.
        lambda net, x: net.stem(y := torch.cat(parts(x), 1)) + y[:, :8, :10, :10],
    ],
)
def test_other_slices_stay(function):
    net = Forward(function, stem=nn.Conv2d(12, 8, 3), other=nn.Conv2d(3, 3, 1)).eval()
    _, operators = exported(net, 'tidl')
    assert operators['Slice'] >= 3 and operators['Concat'] == 1


def test_grid_between_keeps_them_apart():
    net = Forward(
        lambda net, x: net.stem(torch.cat([p.clamp(-1, 1) for p in parts(x)], 1)),
        stem=nn.Conv2d(12, 8, 3),
    ).eval()
    _, operators = exported(net, 'jacinto')
    assert operators['Slice'] == 4
