"""A quantized network computes what the float one does, however that is written."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from outputs import run, snr
from torch import nn
from torch.overrides import _get_current_function_mode
from toy_models import Forward, calibrated, randomize_norms


def write_in_place(net, x):
    x = net.one(x)
    x[:, :2] = 0.5
    return net.two(x)


def drop_result_of_in_place_relu(net, x):
    x = net.one(x)
    net.act(x)
    return net.two(x)


def drop_result_of_in_place_add(net, x):
    x = net.one(x)
    x.add_(1.0)
    return net.two(x)


def fill_in_place(net, x):
    x = net.one(x)
    x.masked_fill_(torch.eye(x.shape[-1]) > 0, 0.5)
    return net.two(x)


def read_what_an_in_place_activation_changed(net, x):
    x = net.one(x)
    return net.two(net.act(x)).mean() + x


def activate_a_view_in_place(net, x):
    x = net.one(x)
    x[:, :2].relu_()
    return net.two(x)


# What is easily computed otherwise than the float model does.
ODD = {
    'lone normalization with an activation': (
        lambda net, x: net.two(F.relu(net.norm(F.max_pool2d(net.one(x), 2)))),
        {},
    ),
    'float layer with an activation': (
        lambda net, x: net.two(F.relu(net.one(x))),
        {'one': False},
    ),
    'float normalized layer with an activation': (
        lambda net, x: net.two(F.relu(net.norm(net.one(x)))),
        {'one': False},
    ),
    'float tail with an activation': (
        lambda net, x: F.relu(net.two(net.one(x))),
        {'two': False},
    ),
    'float tail with a normalization': (
        lambda net, x: F.relu(net.norm(net.two(net.one(x)))),
        {'two': False},
    ),
    'written in place': (write_in_place, {}),
    'filled in place': (fill_in_place, {}),
    'in-place activation of a view': (activate_a_view_in_place, {}),
    'alias of an in-place activation': (read_what_an_in_place_activation_changed, {}),
    'constant in a concatenation': (
        lambda net, x: net.two(
            torch.cat([net.one(x)[:, :2], torch.full_like(x[:, :2, 2:, 2:], 3.0)], 1)
        ),
        {},
    ),
    'in-place activation without a name': (drop_result_of_in_place_relu, {}),
    'in-place addition without a name': (drop_result_of_in_place_add, {}),
    'scaled addition': (
        lambda net, x: torch.add(net.one(x), net.one(x) * 2, alpha=2),
        {},
    ),
    'constant': (lambda net, x: net.two(2 - (3 + net.one(x) * 2)), {}),
    'gate': (
        lambda net, x: net.one(x) * net.one(x).mean((2, 3), keepdim=True).sigmoid(),
        {},
    ),
    'scalar': (lambda net, x: net.one(x) * net.one(x).abs().mean(), {}),
    'one image': (lambda net, x: net.two(net.one(x[0])), {}),
    'attention': (
        lambda net, x: F.scaled_dot_product_attention(
            *[net.one(x).flatten(2).transpose(1, 2)] * 3
        ),
        {},
    ),
    'same tensor twice': (lambda net, x: (y := net.one(x)) + y, {}),
    'stack and split': (
        lambda net, x: net.two(
            torch.cat(torch.stack(net.one(x).split(2, 1)).unbind()[::-1], 1)
        ),
        {},
    ),
}


@pytest.mark.parametrize('phase', ['test', 'train'])
@pytest.mark.parametrize('case', ODD)
def test_quantized_net_computes_what_the_float_one_does(case, phase):
    function, overrides = ODD[case]
    net = randomize_norms(
        Forward(
            function,
            one=nn.Conv2d(3, 4, 3),
            two=nn.Conv2d(4, 4, 3),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(inplace=True),
        )
    ).eval()
    x = torch.randn(2, 3, 12, 12)
    (reference,) = run(net, x)
    calibrated(net, x, phase, bits=16, observer='minmax', overrides=overrides)
    # Training keeps what the backward pass needs, and so computes otherwise.
    with torch.set_grad_enabled(phase == 'train'):
        assert snr(reference, net(x)) > 50


@pytest.mark.parametrize('phase', [None, 'float', 'test'])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_is_broken_off_leaves_no_mode_behind(error, phase):
    def forward(net, x):
        x = net.conv(x)
        if net.fails:
            raise error
        return x

    net = Forward(forward, conv=nn.Conv2d(3, 4, 1))
    net.fails = False
    x = torch.randn(1, 3, 4, 4)
    calibrated(net, x, target='onnxruntime')
    # A default device is a mode too.
    before = _get_current_function_mode()
    expected = net(x)
    assert _get_current_function_mode() is before
    net.fails = True
    with pytest.raises(error):
        net(x)
    net.fails = False
    # A keyboard interrupt runs no hooks; the next pass sets right what it left.
    if phase is not None:
        net.quantization.set_phase(phase)
    assert torch.equal(net(x), expected) or phase == 'float'
    assert _get_current_function_mode() is before


def test_threads_may_share_a_model():
    net = Forward(
        lambda net, x: net.two(F.relu(net.norm(net.one(x)))).softmax(1),
        one=nn.Conv2d(3, 8, 3),
        two=nn.Conv2d(8, 4, 1),
        norm=nn.BatchNorm2d(8),
    )
    images = [torch.randn(1, 3, 32, 32) for _ in range(24)]
    calibrated(net, images[0], target='onnxruntime')
    expected = [run(net, image)[0] for image in images]
    # What is computed once is computed while they run.
    net.quantization.set_phase('test')
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda image: run(net, image)[0], images * 2))
    assert all(map(torch.equal, outputs, expected * 2))


def test_a_copy_of_a_model_runs_passes_of_its_own():
    net = Forward(lambda net, x: net.conv(x), conv=nn.Conv2d(3, 4, 1))
    x = torch.randn(1, 3, 4, 4)
    calibrated(net, x, target='onnxruntime')
    other = copy.deepcopy(net)
    (expected,) = run(net, x)
    net.quantization.detach()
    (real,) = run(net, x)
    (result,) = run(other, x)
    assert torch.equal(result, expected)
    assert not torch.equal(result, real)
