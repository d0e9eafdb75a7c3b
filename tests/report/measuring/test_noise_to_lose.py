"""What has to be in float for the noise of a tensor to go."""

import pytest
import torch
import torch.nn.functional as F
from smooth_functions import smooth_net
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto.report.measuring.noise_to_lose import noise_to_lose

INPUT, WEIGHT, ACTIVATION = '/input', 'weight', 'activation'


def noise_of(net, x, target, level=False):
    quantization = calibrated(net.eval(), x, mode='ptq', target=target)

    def run(behaviour, batch):
        quantization.executor.behaviour = behaviour
        return net(batch)

    return noise_to_lose(quantization, run, [x], level)


@pytest.mark.parametrize('target', ['openvino', 'tensorrt'])
def test_a_layer_in_float_takes_away_what_it_reads_and_its_weight(target):
    x = torch.randn(1, 3, 24, 24)
    found = noise_of(smooth_net(F.silu), x, target)
    # Weights of layers whose results are on no grid are measured too.
    assert found['depth/conv2d'].keys() == {WEIGHT, ACTIVATION}
    assert found['stem/conv2d'].keys() == {WEIGHT}
    # What it reads, and what it gives, which nobody reads.
    assert found['last/conv2d'].keys() == {WEIGHT, ACTIVATION}
    assert not any('silu' in name for name in found)


def test_what_several_read_goes_with_none_of_them():
    net = Forward(
        lambda net, x: net.two(y := F.relu(net.one(x))) + net.three(y),
        one=nn.Conv2d(3, 8, 3),
        two=nn.Conv2d(8, 8, 1),
        three=nn.Conv2d(8, 8, 1),
    )
    found = noise_of(net, torch.randn(1, 3, 24, 24), 'openvino')
    assert found['two/conv2d'].keys() == {WEIGHT}
    assert all('relu' not in name for name in found)


def test_where_layers_give_integers_a_tensor_goes_with_its_maker():
    x = torch.randn(1, 3, 24, 24)
    net = smooth_net(F.silu)
    found = noise_of(net, x, 'jacinto')
    assert found.keys() == noise_of(net, x, 'jacinto', 16).keys() - {INPUT}
    assert any('silu' in name for name in found)
