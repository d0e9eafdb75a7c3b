"""A file in the place of modules whose neighbours read what it does not give."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantCalibrateModule  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.graph.layout import decode, encode  # noqa: E402
from mmquant_jacinto.export.in_place import in_place_of_modules  # noqa: E402
from mmquant_jacinto.export.session import (  # noqa: E402
    Session,
)


class Transformer(BaseModel):
    """As a DETR: code between the modules reads what they return, and its size."""

    def __init__(self, decodes_by=None):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.encoder = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.decodes_by = decodes_by

    def forward(self, inputs, mode='predict'):
        feature = self.backbone(inputs)
        count, channels, height, width = feature.size()
        tokens = feature.view(count, channels, -1).permute(0, 2, 1)
        memory = self.encoder(tokens)
        query = memory.unsqueeze(0)[0] * 2
        scores = self.head(query)
        if self.decodes_by == 'memory':
            scores = scores + memory.mean()
        elif self.decodes_by == 'query':
            scores = scores + query.mean()
        elif self.decodes_by == 'size':
            scores = scores * memory.shape[1]
        return scores.sigmoid()


@pytest.mark.parametrize(
    'decodes_by, outputs',
    [
        (None, {'head'}),
        ('size', {'head'}),
        ('memory', {'encoder', 'head'}),
        ('query', {'encoder', 'head'}),
    ],
)
def test_file_gives_what_decoding_reads_and_no_more(decodes_by, outputs):
    model, plain = Transformer(decodes_by), Transformer(decodes_by)
    images = torch.randn(1, 3, 8, 8)
    wrapper = QuantCalibrateModule(model, images, target='onnxruntime')
    wrapper.train()
    wrapper(images)
    wrapper.eval()
    exported = export_onnx(wrapper, images)
    assert {item.name for item in exported.model.graph.output} == outputs
    others = torch.randn(1, 3, 8, 8)
    with torch.no_grad(), in_place_of_modules(plain, Session(exported.model)):
        found = plain(others)
    with torch.no_grad():
        assert torch.equal(found, model(others))


def test_tensor_that_is_not_there_keeps_its_shape():
    x = torch.ones(2, 3)
    layout = encode([x, x.long()], iter(['a', None]))
    found = decode(layout, {'a': x})
    assert found[0] is x
    assert found[1].shape == (2, 3)
    assert found[1].dtype == torch.int64
    # Files of before had none.
    assert decode({'tensor': None}, {}) is None
