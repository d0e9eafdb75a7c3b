"""A test refuses a layer without ranges; nothing is in float in silence."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from outputs import run, snr
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto.errors import QuantizeError


def forward(net, x):
    outputs = [net.head(x)]
    if net.finds:
        outputs.append(net.mask(x[: net.found]))
    return outputs


def two_heads(**quantize):
    """A net whose second head is planned, and never reached in calibration."""
    net = Forward(forward, head=nn.Conv2d(3, 4, 1), mask=nn.Conv2d(3, 4, 1))
    net.finds, net.found = True, 1
    quantization = calibrated(
        net, torch.randn(2, 3, 8, 8), target='onnxruntime', **quantize
    )
    activations = quantization.activations
    for name, index in activations.index.items():
        if name.startswith('mask'):
            activations.count[index] = 0
    activations.refresh()
    quantization.set_phase('test')
    return net


def test_a_layer_that_nothing_measured_is_named():
    net, x = two_heads(), torch.randn(2, 3, 8, 8)
    with pytest.raises(
        QuantizeError,
        match=r'^mask/conv2d has no range: .*'
        r"or set quantize\.overrides=\{'mask': False\}$",
    ):
        run(net, x)
    net.finds = False
    assert run(net, x)[0][0].isfinite().all()


def test_a_layer_that_gets_nothing_needs_no_range():
    net = two_heads()
    net.found = 0
    assert run(net, torch.randn(2, 3, 8, 8))[0][1].shape == (0, 4, 8, 8)


def test_a_layer_that_overrides_switch_off_needs_no_range():
    net = two_heads(overrides={'mask': False})
    x = torch.randn(2, 3, 8, 8)
    assert snr(net.mask(x[:1]), run(net, x)[0][1]) > 20


@pytest.mark.parametrize('name, layers', [('/sigmoid', 'one'), ('/mul', 'two')])
def test_what_only_evaluation_computes_is_named_once(name, layers, caplog):
    def forward(net, x):
        x = net.one(x)
        return x.sigmoid() if layers == 'one' else net.two(x * 2)

    net = Forward(forward, one=nn.Conv2d(3, 4, 1), two=nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    (reference,) = run(net, x)
    quantization = calibrated(net, x, target='onnxruntime')
    quantization.activations.count[quantization.activations.index[name]] = 0
    quantization.activations.refresh()
    quantization.set_phase('test')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            first, second = run(net, x)[0], run(net, x)[0]
    finally:
        logger.removeHandler(caplog.handler)
    assert torch.equal(first, second)
    assert snr(reference, first) > 20
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith(f'they stay in float: {name}')
