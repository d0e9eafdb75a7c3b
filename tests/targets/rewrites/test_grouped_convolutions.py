"""Groups that are too narrow for an integer kernel."""

from exactness import assert_exact, random_inputs
from torch import nn
from toy_models import Forward


def test_narrow_groups_are_merged():
    net = Forward(
        lambda net, x: net.grouped(net.one(x)),
        one=nn.Conv2d(3, 96, 1),
        grouped=nn.Conv2d(96, 96, 3, groups=6, padding=1),
    )
    exported, _ = assert_exact(net, random_inputs(1, 3, 10, 10))
    groups = [
        attribute.i
        for node in exported.model.graph.node
        for attribute in node.attribute
        if attribute.name == 'group'
    ]
    assert groups == [1, 2]
