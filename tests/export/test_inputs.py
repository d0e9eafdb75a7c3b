"""Files take what the model takes: dtypes, channels, and inputs by their names."""

import copy

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from refusals import refused
from torch import nn

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantCalibrateModule  # noqa: E402
from mmquant_jacinto.export.example import Example  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.in_place import in_place_of_modules  # noqa: E402
from mmquant_jacinto.export.session import (  # noqa: E402
    Session,
)
from mmquant_jacinto.export.verify import verify  # noqa: E402


class Normalized(nn.Module):
    """Images as they are read, made numbers in one of several ways."""

    def __init__(self, channels, convert):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)
        )
        self.convert = convert

    def forward(self, images):
        return self.body(self.convert(images))


class Pair(nn.Module):
    """Several inputs, in one of several forms."""

    def __init__(self, form):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.forward = getattr(self, form)

    def combine(self, left, right):
        left = self.body(left)
        return self.head(left * self.body(right) - left)

    def two(self, left, right, scale=1.0):
        return self.combine(left, right) * scale

    def one_dict(self, batch):
        return self.combine(batch['left'], batch['right'])

    def one_list(self, images):
        return self.combine(*images)

    def masked(self, image, mask):
        return self.head(self.body(image) * mask)

    def free(self, **images):
        return self.combine(images['left'], images['right'])


def image(channels=3, dtype=torch.float32):
    x = torch.rand(2, channels, 16, 16) * 255
    return x.to(dtype) if dtype == torch.uint8 else x / 100 - 1


def pair():
    return image(), image()


CONVERSIONS = {
    'float': lambda x: x.float() / 255,
    'to': lambda x: x.to(torch.float32) * 0.01 - 1,
    'divided': lambda x: x / 255,
    'centred': lambda x: (x - 128.0) / 64,
}
INPUTS = {
    'tuple': ('two', lambda: pair(), ['left', 'right']),
    'twice the same': ('two', lambda: (image(),) * 2, ['left', 'right']),
    'with a number': ('two', lambda: (*pair(), 2.0), ['left', 'right']),
    'names': ('two', lambda: dict(zip(('right', 'left'), pair())), ['left', 'right']),
    'unnamed dict': (
        'one_dict',
        lambda: dict(zip(('left', 'right'), pair())),
        ['batch.left', 'batch.right'],
    ),
    'list': ('one_list', lambda: list(pair()), ['images.0', 'images.1']),
    'any names': (
        'free',
        lambda: dict(zip(('left', 'right'), pair())),
        ['left', 'right'],
    ),
    'mask': ('masked', lambda: (image(), torch.rand(2, 1, 14, 14) > 0.5), None),
    'one of a tuple': ('one_list', lambda: ([image(), image()],), None),
}


def exported(net, given):
    """A calibrated net, its file, and the arguments of a call."""
    net.eval()
    wrapper = QuantCalibrateModule(net, dummy_input=given, target='onnxruntime')
    args, kwargs = wrapper.arguments(given)
    wrapper.train()
    wrapper(*args, **kwargs)
    return wrapper.eval(), export_onnx(wrapper, given), (args, kwargs)


def check(net, given, names):
    float_net = copy.deepcopy(net)
    wrapper, file, (args, kwargs) = exported(net, given)
    assert verify(file, wrapper.quantization.root, [given]).share == 1
    session = Session(file.model)
    if names is not None:
        assert list(session.inputs) == names
    # The file in the place of the float model takes the same call.
    with torch.no_grad(), in_place_of_modules(float_net, session):
        assert torch.equal(float_net(*args, **kwargs), wrapper(*args, **kwargs))
    return session


@pytest.mark.parametrize('conversion', CONVERSIONS)
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_bytes_stay_bytes(conversion, channels):
    net = Normalized(channels, CONVERSIONS[conversion])
    given = image(channels, torch.uint8)
    session = check(net, given, ['images'])
    assert session.inputs['images'].dtype == 'uint8'
    refused(lambda: session(given.float()), 'takes images as uint8', 'got float32')


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_images_of_any_number_of_channels(channels):
    session = check(Normalized(channels, nn.Identity()), image(channels), ['images'])
    assert session.input_shape == (2, channels, 16, 16)


@pytest.mark.parametrize('kind', INPUTS)
def test_inputs_have_the_names_of_the_parameters(kind):
    form, make, names = INPUTS[kind]
    check(Pair(form), make(), names)


def test_inputs_are_given_by_name_or_in_order():
    left, right = pair()
    wrapper, file, _ = exported(Pair('two'), (left, right))
    session = Session(file.model)
    with torch.no_grad():
        expected = wrapper(left, right)
    for given in ((left, right), [left, right], dict(right=right, left=left)):
        (found,) = session(given).values()
        assert torch.equal(found, expected)
    (swapped,) = session((right, left)).values()
    assert not torch.equal(swapped, expected)
    words = "the inputs ['left', 'right']"
    refused(lambda: session(left), words, 'got 1')
    refused(lambda: session(dict(left=left, other=right)), words, "'other'")
    refused(lambda: session((left, right[..., :8])), 'takes right of shape (3, 16, 16)')
    refused(lambda: session((left[:1], right)), 'batches of 2')
    refused(lambda: session((left, right[0])), 'takes right of shape')


def test_batches_of_several_inputs_are_split_together():
    one = image()[:1], image()[:1]
    wrapper, file, _ = exported(Pair('two'), one)
    left, right = pair()
    (found,) = Session(file.model)((left, right)).values()
    with torch.no_grad():
        parts = [wrapper(left[i : i + 1], right[i : i + 1]) for i in range(2)]
    assert torch.equal(found, torch.cat(parts))


def test_sizes_of_several_inputs_may_be_free():
    wrapper, _, _ = exported(Pair('two'), pair())
    file = export_onnx(wrapper, pair(), dynamic=True)
    dims = [
        [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in file.model.graph.input
    ]
    assert dims[0] == ['batch', 3, 'left:height', 'left:width']
    assert dims[1] == ['batch', 3, 'right:height', 'right:width']
    larger = torch.rand(3, 3, 24, 20), torch.rand(3, 3, 24, 20)
    (found,) = Session(file.model)(larger).values()
    with torch.no_grad():
        assert torch.equal(found, wrapper(*larger))


def test_example_without_a_tensor_is_refused():
    wrapper, _, _ = exported(Pair('two'), pair())
    for given in ('image.jpg', (), dict(left=1)):
        refused(lambda item=given: export_onnx(wrapper, item), 'without a tensor')


def test_points_are_refused_by_their_sizes():
    class Points(BaseModel):
        def forward(self, inputs, mode='predict'):
            return inputs

    model = Points(BaseDataPreprocessor())
    clouds = dict(inputs=dict(points=[torch.rand(5, 4)], voxels=torch.rand(9, 32, 4)))
    refused(lambda: Example.of(model, clouds), 'Points reads points', 'each sample')
