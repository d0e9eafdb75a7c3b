"""Which layers' weights a calibration corrects by default, and what it brings."""

import copy

import pytest
import torch
from outputs import snr
from torch import nn

from mmquant_jacinto import QuantCalibrateModule
from mmquant_jacinto.execute.corrections.weight_correction import corrected_weights


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        nn.Conv2d(16, 4, 1),
    ).eval()


@pytest.fixture
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def calibrated(model, images, **options):
    calib = QuantCalibrateModule(
        copy.deepcopy(model), dummy_input=images[:1], **options
    )
    calib.train()
    calib(images)
    return calib.eval()


@pytest.mark.parametrize(
    'options, expected',
    [
        (dict(target='onnxruntime'), {'0', '2', '4'}),
        # Deconvolutions have one scale there.
        (dict(target='tidl'), {'0', '4'}),
        (dict(target='jacinto'), set()),
        (dict(target='jacinto', per_channel=True), set()),
        (dict(target='onnxruntime', per_channel=False), set()),
        (dict(target='onnxruntime', calibration=dict(weights=False)), set()),
        (
            dict(target='onnxruntime', calibration=dict(bias_correction='iterative')),
            set(),
        ),
        (
            dict(target='onnxruntime', calibration=dict(bias_correction=False)),
            set(),
        ),
        (
            dict(target='jacinto', calibration=dict(weights=True)),
            {'0', '2', '4', '6'},
        ),
    ],
)
def test_layers_with_scales_of_their_own_but_for_the_last(
    model, images, options, expected
):
    calib = calibrated(model, images, **options)
    assert corrected_weights(calib.quantization) == expected
    layers = calib.quantization.layers
    changed = {
        name
        for name, part in zip(
            layers,
            calib.quantization.weight_correction.split(
                [spec.channels for spec in calib.plan.weights.values()]
            ),
        )
        if (part != 1).any()
    }
    assert changed == expected


def test_outputs_are_nearer_to_float_with_it(model, images):
    others = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        reference = model(others)
        found = {
            weights: snr(
                reference,
                calibrated(
                    model,
                    images,
                    target='onnxruntime',
                    bits=dict(weight=3, activation=8),
                    edge_bits=3,
                    light_share=0,
                    finetune=False,
                    calibration=dict(weights=weights),
                )(others),
            )
            for weights in (None, False)
        }
    assert found[None] > found[False] + 0.5


class Ends(nn.Module):
    """Scores behind a function, boxes behind a factor; a layer that both read."""

    def __init__(self, end):
        super().__init__()
        self.end = end
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.scores, self.boxes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        x = self.first(x).relu()
        return self.end(self.scores(x)), self.boxes(x) * self.factor


@pytest.mark.parametrize('target', ['onnxruntime', 'openvino', 'tensorrt', 'tidl'])
@pytest.mark.parametrize(
    'end',
    [
        torch.sigmoid,
        lambda x: x.softmax(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.exp(),
        lambda x: nn.functional.interpolate(x, scale_factor=2.0),
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda x: torch.cat([x, x.relu()], 1),
        lambda x: nn.functional.silu(x),
    ],
)
def test_layer_behind_which_a_function_ends_the_network_is_a_last_one(
    images, target, end
):
    torch.manual_seed(0)
    calib = calibrated(Ends(end).eval(), images, target=target)
    assert corrected_weights(calib.quantization) == {'first'}


def test_weights_on_steps_of_their_own_stay(model, images):
    """A factor moves no integer there, and biases would follow what did not happen."""
    options = dict(target='onnxruntime', bits=dict(weight=4, activation=8))
    found = calibrated(model, images, weight_observer='mse', **options)
    assert (found.quantization.weight_correction == 1).all()
    rounded = QuantCalibrateModule(
        copy.deepcopy(model),
        dummy_input=images[:1],
        rounding='coordinate_descent',
        **options,
    ).train()
    rounded.observe(images)
    assert corrected_weights(rounded.quantization)
    rounded.round_weights([images])
    assert not corrected_weights(rounded.quantization)


def test_layer_that_runs_twice_and_ends_the_network_stays(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(x), self.last(nn.functional.max_pool2d(x, 2))

    calib = calibrated(Shared().eval(), images, target='openvino')
    assert corrected_weights(calib.quantization) == {'first'}
