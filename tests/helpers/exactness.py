"""The base of all tests of exactness: a file computes what the integer model does.

An operator's test is its inputs::

    OPERATORS = {'sigmoid': lambda x: x.sigmoid()}

    @each_kind(OPERATORS)
    def test_file_has_the_integers_of_the_model(name, kind):
        assert_operator_exact(OPERATORS[name], kind)

The kinds hit what engines do in ways of their own: ties, the ends of a grid, its zero
point, and tensors without elements.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from toy_models import Forward, calibrated

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402

SHAPE = 2, 4, 8, 8


class Inputs(NamedTuple):
    """
    Args:
        seen (Tensor): What ranges are calibrated on.
        run (Tensor): What model and file compute on.
    """

    seen: Tensor
    run: Tensor


def ties():
    """Multiples of half a step of 1/128, the lowest of which is an odd number of steps.

    The zero point is then odd, and to round with it in is not to round without it. The
    outer channels have one end each: means of any part have the same grid, sums of two
    such tensors one of steps twice as large. Half of all means and sums are ties.
    """
    steps = torch.randint(-254, 257, SHAPE)
    steps[0, [0, -1]], steps[1, [0, -1]] = 256, -254
    return Inputs(steps / 256, steps / 256)


def saturation():
    """Values up to four times as large as those that were seen."""
    return Inputs(between(-1, 1), between(-4, 4))


def zero_points(low, high):
    """A builder of values from one number to another."""
    return lambda: Inputs(*[between(low, high)] * 2)


def empty():
    """A batch without images."""
    seen = between(-1, 2)
    return Inputs(seen, seen[:0])


def between(low, high):
    x = torch.rand(SHAPE) * (high - low) + low
    x.view(-1)[0], x.view(-1)[-1] = low, high
    return x


KINDS = dict(
    ties=ties,
    saturation=saturation,
    asymmetric=zero_points(-0.3, 2.0),
    positive=zero_points(0.5, 3.0),
    negative=zero_points(-3.0, -0.5),
    zero=zero_points(0.0, 0.0),
    empty=empty,
)


def between_layers(operator, ratio=1.0):
    """A net that computes an operator of one or two tensors that layers give.

    Args:
        operator (Callable): Of one tensor of shape :data:`SHAPE`, or of two; a module
            is of one.
        ratio (float): Of the grids of the two.
    """
    inner = operator
    count = 1
    if not isinstance(operator, nn.Module):
        count = operator.__code__.co_argcount
        inner = Forward(lambda _, *operands: operator(*operands))

    def forward(net, image):
        operands = [net.first(image), net.second(image)][:count]
        out = net.inner(*operands)
        # A layer reads it, so that there is a grid that it must be on.
        return net.last(out.reshape(out.numel(), 1))

    channels = SHAPE[1]
    net = Forward(
        forward,
        first=nn.Conv2d(channels, channels, 1),
        second=nn.Conv2d(channels, channels, 1),
        inner=inner,
        last=nn.Linear(1, 1),
    )
    # Of what they read the layers change the order and the scale.
    same = torch.eye(channels)
    with torch.no_grad():
        for layer, weight in ((net.first, same), (net.second, same.flip(0) * ratio)):
            layer.weight.copy_(weight[..., None, None])
            layer.bias.zero_()
        net.last.weight.fill_(1.0)
        net.last.bias.zero_()
    return net


def assert_exact(net, inputs, **quantize):
    """Asserts that the file of a net computes what its integer model does.

    Returns:
        Tuple[Exported, Tensor]: The file, and what both computed.
    """
    settings = {'target': 'onnxruntime', 'observer': 'minmax', **quantize}
    calibrated(net.eval(), inputs.seen, **settings)
    # Made of other values than it runs on: no number of an image may be in it.
    is_alike = inputs.seen.shape == inputs.run.shape
    exported = export_onnx(net, inputs.seen if is_alike else inputs.run)
    with torch.no_grad():
        expected = net(inputs.run)
    (found,) = Session(exported.model)(inputs.run).values()
    assert found.shape == expected.shape
    (scale,) = exported.scales.values()
    apart = ((found - expected) / (scale or 1.0)).abs()
    assert torch.equal(found, expected), (
        f'{(apart > 0).sum()} of {apart.numel()} elements differ, by up to '
        f'{apart.max():.3g} steps'
    )
    return exported, expected


def assert_operator_exact(operator, kind):
    """Asserts it of an operator between layers, for a kind of inputs."""
    # Ties need one grid for both operands; elsewhere the grids have nothing in common.
    net = between_layers(operator, 1.0 if kind == 'ties' else 0.7)
    _, found = assert_exact(net, KINDS[kind]())
    assert kind != 'ties' or len(found.unique()) > 1


def random_inputs(*shape):
    """What an image may be; others are seen than are run."""
    return Inputs(torch.randn(shape), torch.randn(shape))


def each_kind(operators, but=()):
    """Parametrizes a test over operators and kinds of inputs.

    Args:
        operators (Iterable[str]): Their names, with what tells two calls apart behind.
        but (Iterable[Tuple[str, str]]): Names and kinds to leave out.
    """
    cases = [(name, kind) for name in operators for kind in KINDS]
    assert set(but) <= set(cases)
    return pytest.mark.parametrize(
        'name, kind', [case for case in cases if case not in but]
    )


def without_entry(registered, module, operators):
    """Names that a module registers, and that are none of the operators'."""
    tested = {name.split()[0] for name in operators}
    names = {
        name
        for name, write in registered.items()
        if write.__module__ == module.__name__
    }
    return sorted(names - tested)


def pairs(x):
    """Maps of two elements each, whose means are often ties."""
    return x.reshape(len(x), x.shape[1:].numel() // 2, 1, 2)


def sixes(x):
    """Maps of six elements each, of which no power of two is a divisor."""
    return x.flatten(1)[:, :252].reshape(len(x), 42, 2, 3)
