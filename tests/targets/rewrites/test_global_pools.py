"""Means next to zero, beside values that are not."""

import pytest
import torch
import torch.nn.functional as F
from exactness import assert_exact, random_inputs
from torch import nn
from toy_models import Forward

POOLS = {
    'adaptive': lambda x: F.adaptive_avg_pool2d(x, 1),
    'mean': lambda x: x.mean((2, 3)),
    'of all': lambda x: F.avg_pool2d(x, x.shape[2:]),
}


def centered(x):
    """Maps whose means are nothing but rounding."""
    return x - x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize('pool', POOLS)
def test_engine_runs_pools_of_next_to_nothing(pool):
    net = Forward(
        lambda net, x: POOLS[pool](centered(net.first(x))),
        first=nn.Conv2d(3, 8, 1),
    ).eval()
    _, found = assert_exact(net, random_inputs(2, 3, 16, 16))
    assert found.isfinite().all()


def test_other_pools_stay_in_the_integer_kernel():
    net = Forward(
        lambda net, x: net.last(F.adaptive_avg_pool2d(net.first(x), 1).flatten(1)),
        first=nn.Conv2d(3, 8, 1),
        last=nn.Linear(8, 4),
    ).eval()
    exported, _ = assert_exact(net, random_inputs(2, 3, 16, 16))
    kinds = [node.op_type for node in exported.model.graph.node]
    place = kinds.index('GlobalAveragePool')
    assert kinds[place + 1] == 'QuantizeLinear'


def test_means_too_small_for_the_kernel_are_zero():
    # In calibration one image is a million times as bright as what is run.
    net = Forward(
        lambda net, x: net.last(F.adaptive_avg_pool2d(net.first(x) ** 2, 1)),
        first=nn.Conv2d(3, 8, 1),
        last=nn.Conv2d(8, 2, 1),
    ).eval()
    inputs = random_inputs(2, 3, 4, 4)
    _, found = assert_exact(net, inputs._replace(run=inputs.run * 1e-6))
    assert torch.equal(found[0], found[1])
