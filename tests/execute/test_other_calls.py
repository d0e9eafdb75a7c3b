"""Training and prediction may give one number to different calls."""

import torch
from mmengine.model import BaseModel
from torch import nn

from mmquant_jacinto import QuantCalibrateModule


class Decoder(nn.Module):
    """Joins queries in training, and masks in prediction."""

    def __init__(self):
        super().__init__()
        self.fc, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, is_training):
        if is_training:
            x = torch.cat([self.fc(x), 2 * self.fc(x)], 1)
            return self.last(x)
        mask = torch.cat([x[:, :1] > 0, x[:, 1:] > 1], 1)
        return self.last(self.fc(x).masked_fill(mask, 0.0))


class Queries(BaseModel):
    def __init__(self):
        super().__init__()
        self.decoder = Decoder()

    def forward(self, inputs, mode='predict'):
        out = self.decoder(inputs, mode == 'loss')
        return dict(loss=out.mean()) if mode == 'loss' else out


def test_call_without_floats_is_none_that_training_quantizes():
    x = torch.randn(2, 6, 4)
    wrapper = QuantCalibrateModule(Queries(), dict(inputs=x), target='onnxruntime')
    assert wrapper.plan.steps['decoder/cat'].output is not None
    wrapper.train()
    with torch.no_grad():
        for _ in range(2):
            wrapper.module(x)
    wrapper.eval()
    with torch.no_grad():
        assert wrapper.module(x).isfinite().all()
