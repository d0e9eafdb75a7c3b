"""Runs of a module that do the same work are one run, however many there are."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn
from toy_models import Forward, ToyBackbone, ToyHead

from mmquant_jacinto import QuantizeConfig, plan_model
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.prepare import is_region


class Parts(BaseModel):
    """A model of MMEngine: modules by name, and a forward function."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args):
        return self.function(self, *args)


def recorded(model, *passes):
    """Graph of a model that is called once with each of the arguments."""
    return record(model, [lambda args=args: model(*args) for args in passes], is_region)


def planned(model, *args):
    return plan_model(model, [lambda: model(*args)], QuantizeConfig())


def conv(inputs=3, outputs=8):
    return nn.Conv2d(inputs, outputs, 1)


def windows(net, x, size=8):
    parts = x.split(size, -1)
    return [net.head(F.relu(net.backbone(part))) for part in parts]


def each_window_first(net, x):
    features = [net.backbone(part) for part in x.split(8, -1)]
    return [net.head(F.relu(feature)) for feature in features]


def step(net, x, count):
    """A cell that reads its own last output."""
    state = torch.zeros(len(x), 4)
    for index in range(count):
        state = torch.tanh(net.cell(torch.cat([x[:, index], state], 1)))
    return net.out(state)


def add_up(net, x, count):
    """A cell whose state is a sum of all that it has given."""
    state = torch.zeros(len(x), 4)
    for index in range(count):
        state = state + torch.tanh(net.cell(torch.cat([x[:, index], state], 1)))
    return net.out(state)


def grow(net, x, count):
    """A decoder that reads all that it has given so far."""
    for _ in range(count):
        x = torch.cat([x, F.relu(net.layer(x))[:, -1:]], 1)
    return net.out(x)


@pytest.mark.parametrize('model', [Forward, Parts])
@pytest.mark.parametrize('function', [windows, each_window_first])
def test_a_graph_does_not_grow_with_the_number_of_windows(model, function):
    net = model(function, backbone=conv(), head=conv(8))
    few, some, many = (planned(net, torch.randn(1, 3, 8, 8 * n)) for n in (2, 3, 20))
    assert few == some == many
    layers = [name for name in few.steps if 'conv2d' in name]
    assert layers == ['backbone/conv2d', 'head/conv2d']
    assert planned(net, torch.randn(1, 3, 8, 8)).weights == few.weights


CELL = dict(cell=nn.Linear(9, 4), out=nn.Linear(4, 2))
LAYER = dict(layer=nn.Linear(5, 5), out=nn.Linear(5, 2))


@pytest.mark.parametrize(
    'function, modules, runs',
    [
        (step, CELL, ['cell', 'cell#1']),
        (add_up, CELL, ['cell', 'cell#1', 'cell#2', 'cell#3']),
        (grow, LAYER, ['layer', 'layer#1']),
    ],
)
def test_a_graph_does_not_grow_with_the_steps_of_a_recurrence(function, modules, runs):
    net = Forward(function, **modules)
    few, many = (planned(net, torch.randn(2, 30, 5), n) for n in (5, 25))
    assert few == many
    layers = [f'{run}/linear' for run in (*runs, 'out')]
    assert [name for name in few.steps if 'linear' in name] == layers
    assert few.repeats.keys() == {f'{runs[0]}#{len(runs)}'}


def test_a_flipped_image_is_the_same_work():
    def flips(net, x):
        return net.one(x), net.one(x.flip(-1)).flip(-1)

    image = torch.randn(1, 3, 8, 8)
    outside = recorded(Parts(flips, one=conv()), (image,))
    assert list(outside.sites) == ['one/conv2d']
    assert outside.repeats == {'one#1': ('one', ())}
    inside = recorded(Forward(flips, one=conv()), (image,))
    # One of them turns the image, the other the result.
    assert list(inside.sites) == ['one/conv2d', '/flip', '/flip#1']
    assert inside.repeats == {'one#1': ('one', ('/flip',))}


def test_images_of_two_sizes_are_the_same_work():
    net = Parts(
        lambda net, z, x: net.head(net.backbone(z)).mean() * net.head(net.backbone(x)),
        backbone=conv(),
        head=conv(8),
    )
    graph = recorded(net, (torch.randn(1, 3, 7, 7), torch.randn(1, 3, 15, 15)))
    assert list(graph.sites) == ['backbone/conv2d', 'head/conv2d']


def test_a_pass_may_run_a_module_more_often_than_another():
    net = Parts(
        lambda net, *views: [net.head(net.backbone(view)) for view in views],
        backbone=conv(),
        head=conv(8),
    )
    one, other = torch.randn(2, 1, 3, 8, 8)
    graphs = [recorded(net, (one,), (one, other)), recorded(net, (one, other), (one,))]
    assert graphs[0] == graphs[1]
    assert list(graphs[0].sites) == ['backbone/conv2d', 'head/conv2d']


@pytest.mark.parametrize('model', [Forward, Parts])
def test_levels_of_a_pyramid_are_told_apart(model):
    net = model(
        lambda net, x: [net.head([level]) for level in net.backbone(x)],
        backbone=ToyBackbone(),
        head=ToyHead(),
    )
    graph = recorded(net, (torch.randn(1, 3, 8, 8),))
    assert {'head.cls/conv2d', 'head#1.cls/conv2d'} <= graph.sites.keys()
    assert not graph.repeats


def test_levels_that_are_made_outside_of_regions_are_told_apart():
    def forward(net, x):
        x = net.backbone(x)
        return [net.head(level) for level in (x * 1, F.max_pool2d(x, 2))]

    net = Parts(forward, backbone=conv(), head=conv(8))
    graph = recorded(net, (torch.randn(1, 3, 8, 8),))
    assert list(graph.sites) == ['backbone/conv2d', 'head/conv2d', 'head#1/conv2d']


def test_levels_are_told_apart_in_each_window():
    net = Parts(
        lambda net, x: [
            [net.head([level]) for level in net.backbone(part)]
            for part in x.split(8, -1)
        ],
        backbone=ToyBackbone(),
        head=ToyHead(),
    )
    graphs = [recorded(net, (torch.randn(1, 3, 8, 8 * n),)) for n in (1, 2, 5)]
    assert graphs[0].sites == graphs[1].sites
    assert graphs[1] == graphs[2]
    assert graphs[1].repeats == {'backbone#1': ('backbone', ())}


def test_layers_of_a_decoder_are_told_apart():
    net = Forward(
        lambda net, x: [net.head(x[index]) for index in range(3)], head=nn.Linear(4, 2)
    )
    graph = recorded(net, (torch.randn(3, 2, 4),))
    assert 'head#2/linear' in graph.sites


def test_steps_through_other_layers_are_told_apart():
    def forward(net, x):
        for layer in net.layers:
            x = layer(x + net.position(x))
        return x

    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
    net = Forward(forward, layers=layers, position=nn.Linear(4, 4))
    graph = recorded(net, (torch.randn(3, 2, 4),))
    assert 'position#3/linear' in graph.sites and not graph.repeats


def test_runs_with_other_followers_are_told_apart():
    net = Forward(
        lambda net, x: net.first(net.one(x)) + net.second(net.one(x)),
        one=conv(),
        first=nn.BatchNorm2d(8),
        second=nn.BatchNorm2d(8),
    )
    graph = recorded(net, (torch.randn(1, 3, 8, 8),))
    assert {'one/conv2d', 'one#1/conv2d'} <= graph.sites.keys()


def test_what_one_pass_tells_apart_is_told_apart_in_all():
    def forward(net, x, again):
        y = net.one(x)
        return net.one(x if again else F.relu(net.two(y)))

    net = Parts(forward, one=nn.Conv2d(3, 3, 1), two=nn.Conv2d(3, 3, 1))
    image = torch.randn(1, 3, 8, 8)
    for order in ([True, False], [False, True]):
        graph = recorded(net, *((image, again) for again in order))
        # Alike both times: an image of the same size, for all that is known.
        assert graph.repeats == {'one#1': ('one', ())}
    net = Forward(forward, one=nn.Conv2d(3, 3, 1), two=nn.Conv2d(3, 3, 1))
    for order in ([True, False], [False, True]):
        graph = recorded(net, *((image, again) for again in order))
        assert 'one#1/conv2d' in graph.sites and not graph.repeats
