import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn
from toy_models import Forward

from mmquant_jacinto import QuantCalibrateModule


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x, size):
        return torch.cat([self.boxes(x) * size, self.scores(x).sigmoid()], 1)


def warnings(size, monkeypatch):
    found = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'callHandlers', lambda r: found.append(r.getMessage()))
    net = Forward(
        lambda net, x: net.last(net.head(x, size)),
        head=Head(),
        last=nn.Conv2d(6, 4, 1),
    )
    x = torch.randn(2, 3, 8, 8)
    model = QuantCalibrateModule(net, dummy_input=x, target='onnxruntime')
    model.train()
    for _ in range(3):
        model(x)
    model.eval()
    return [text for text in found if 'concatenates' in text]


@pytest.mark.parametrize('size, count', [(1, 0), (1000, 1)])
def test_calibration_names_what_shares_too_coarse_a_grid(size, count, monkeypatch):
    texts = warnings(size, monkeypatch)
    assert len(texts) == count
    for text in texts:
        assert text.startswith('head/cat concatenates')
        assert "quantize.overrides={'head': 16}" in text
