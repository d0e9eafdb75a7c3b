"""A network has one set of ranges, however often it is called in a pass."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from outputs import run, snr
from torch import nn
from toy_models import Forward, ToyBackbone, ToyHead, calibrated

from mmquant_jacinto import (
    QuantizeConfig,
    QuantTestModule,
    QuantTrainModule,
    plan_model,
    quantize_model,
)
from mmquant_jacinto.record.same_work import SameWork


class Views(BaseModel):
    """Predicts on as many views of an image as it is told, and trains on others."""

    def __init__(self, training_views=1, views=2):
        super().__init__()
        self.training_views, self.views = training_views, views
        self.backbone = ToyBackbone()
        self.head = ToyHead()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        count = self.training_views if mode == 'loss' else self.views
        outputs = [self.head(self.backbone(inputs.roll(i, -1))) for i in range(count)]
        if mode == 'loss':
            return dict(loss=sum(out[0].square().mean() for out in outputs))
        return [out[0].roll(-i, -1) for i, out in enumerate(outputs)]


def trained(model, steps=3):
    wrapper = QuantTrainModule(
        model, dummy_input=dict(inputs=torch.randn(2, 3, 8, 8)), target='onnxruntime'
    )
    wrapper.train()
    for _ in range(steps):
        loss = wrapper(inputs=torch.randn(2, 3, 8, 8), mode='loss')['loss']
        loss.backward()
    return wrapper.eval()


@pytest.mark.parametrize('views', [(1, 2), (1, 5), (3, 1), (2, 3)])
def test_training_and_prediction_share_ranges(views):
    wrapper = trained(Views(*views))
    assert wrapper.quantization.activations.missing() == []
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        outputs = wrapper(inputs=x, mode='predict')
        alone = [
            wrapper(inputs=x.roll(i, -1), mode='predict')[0].roll(-i, -1)
            for i in range(len(outputs))
        ]
    assert all(map(torch.equal, outputs, alone))


def test_views_that_no_pass_has_recorded_have_ranges_too():
    wrapper = trained(Views(1, 1))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        (first,) = wrapper(inputs=x.roll(2, -1), mode='predict')
        wrapper.module.views = 4
        outputs = wrapper(inputs=x, mode='predict')
    assert torch.equal(outputs[2], first.roll(-2, -1))


@pytest.mark.parametrize('recorded', [1, 3])
@pytest.mark.parametrize('count', [1, 2, 7])
def test_windows_in_one_region_are_computed_alike(recorded, count):
    net = Forward(
        lambda net, x: [
            net.head(F.relu(net.backbone(part) * 2)) for part in x.split(8, -1)
        ],
        backbone=nn.Conv2d(3, 8, 1),
        head=nn.Conv2d(8, 4, 1),
    )
    calibrated(net, torch.randn(1, 3, 8, 8 * recorded), target='onnxruntime')
    x = torch.randn(1, 3, 8, 8 * count)
    (outputs,) = run(net, x)
    assert len(outputs) == count
    for part, out in zip(x.split(8, -1), outputs):
        assert torch.equal(run(net, part)[0][0], out)


def test_further_steps_of_a_recurrence_are_quantized():
    def forward(net, x):
        state = torch.zeros(len(x), 4)
        for item in x.unbind(1):
            state = torch.tanh(net.cell(torch.cat([item, state], 1)) * 2)
        return net.out(state)

    net = Forward(forward, cell=nn.Linear(9, 4), out=nn.Linear(4, 2)).eval()
    x = torch.randn(4, 40, 5)
    (reference,) = run(net, x)
    config = QuantizeConfig(bits=16, observer='minmax', target='onnxruntime')
    plan = plan_model(net, [lambda: net(x[:, :3])], config)
    quantization = quantize_model(net, plan)
    quantization.set_phase('observe')
    run(net, x)
    quantization.set_phase('test')
    (out,) = run(net, x)
    assert snr(reference, out) > 50
    # In integers to the end: no step is in float.
    quantization.set_phase('train')
    calls = []
    observe = quantization.activations.observe
    quantization.activations.observe = lambda name, *args: calls.append(name)
    run(net, x)
    quantization.activations.observe = observe
    steps = [name for name in calls if 'cell' in name and name.endswith('linear')]
    assert len(steps) == 40


def test_bias_fits_the_grids_of_all_steps():
    # It is counted in steps of what a layer reads, which a later run has finer.
    def forward(net, x):
        x = net.layer(x)
        for _ in range(2):
            x = net.layer(F.relu(x))
        return x

    net = Forward(forward, layer=nn.Conv2d(3, 3, 1)).eval()
    with torch.no_grad():
        net.layer.weight.mul_(0.01)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    quantization = calibrated(net, x, target='onnxruntime', bits=16)
    assert quantization.plan.repeats
    with torch.no_grad():
        assert snr(expected, net(x)) > 60


def test_a_number_that_comes_again_fuses_nothing():
    # The second clamp is a layer's own; by its number a later one clamps another's.
    def forward(net, x):
        first = net.first(x)
        second = net.layer(F.relu(first))
        third = net.layer(F.relu(second))
        net.layer(F.relu(first))
        net.layer(F.relu6(third))
        return net.layer(F.relu(third))

    torch.manual_seed(0)
    layers = dict(first=nn.Conv2d(3, 4, 3, padding=1), layer=nn.Conv2d(4, 4, 1))
    net, x = Forward(forward, **layers).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    quantization = calibrated(net, x, target='onnxruntime', bits=16)
    assert quantization.plan.repeats
    with torch.no_grad():
        assert snr(expected, net(x)) > 60


def test_a_plan_that_numbers_its_calls_is_executed_as_it_was(monkeypatch):
    x = torch.randn(1, 3, 8, 8)
    net = Views(views=2)
    other = copy.deepcopy(net)
    with monkeypatch.context() as patch:
        patch.setattr(SameWork, 'former_run', lambda *args: None)
        quantization = calibrated(net, x, target='onnxruntime')
    names = quantization.activations.index
    assert {'backbone#1/input', 'head#1.tower/conv2d'} <= names.keys()
    with torch.no_grad():
        quantization.activations.high[names['backbone#1/input']] *= 4
    quantization.activations.refresh()
    quantization.set_phase('test')
    expected = run(net, x)[0]
    wrapper = QuantTestModule(other)
    wrapper.load_state_dict({f'module.{k}': v for k, v in net.state_dict().items()})
    assert all(map(torch.equal, run(wrapper, x)[0], expected))
    one, two = (run(wrapper, x.roll(i, -1))[0] for i in (1, 0))
    assert not torch.equal(one[0].roll(-1, -1), two[1])
