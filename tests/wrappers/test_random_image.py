"""Random images that a model takes."""

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from refusals import refused
from torch import nn

from mmquant_jacinto import QuantTestModule
from mmquant_jacinto.wrappers.random_image import random_image


class Folded(nn.Module):
    """Its first layer has more channels than the image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(12, 8, 3)

    def forward(self, x):
        return self.stem(nn.functional.pixel_unshuffle(x, 2))


class Model(BaseModel):
    def __init__(self, preprocessor):
        super().__init__(preprocessor)
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, inputs, mode='tensor'):
        return self.conv(inputs)


@pytest.mark.parametrize(
    'net, channels',
    [(nn.Conv2d(c, 4, 3), c) for c in (1, 2, 3, 4, 7)] + [(Folded(), 3)],
)
def test_image_has_the_channels_of_the_model(net, channels):
    wrapper = QuantTestModule(net)
    found = random_image(wrapper, (8, 12))
    assert found.shape == (1, channels, 8, 12)
    assert wrapper.training
    assert torch.equal(found, random_image(wrapper, (8, 12)))


@pytest.mark.parametrize(
    'preprocessor', [BaseDataPreprocessor(), ImgDataPreprocessor([127.0], [60.0])]
)
def test_image_has_the_channels_of_the_preprocessor(preprocessor):
    assert random_image(QuantTestModule(Model(preprocessor)), (8, 8)).shape[1] == 1


def test_model_that_runs_on_no_image_is_refused():
    wrapper = QuantTestModule(nn.Conv2d(3, 4, 9))
    refused(lambda: random_image(wrapper, (4, 4)), 'Conv2d', 'an image of 4 x 4')
