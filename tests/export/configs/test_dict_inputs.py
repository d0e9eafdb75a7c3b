"""Models whose inputs are a dict, as MMDetection3D's are."""

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from refusals import refused
from torch import nn

from mmquant_jacinto import QuantCalibrateModule

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.configs.file_input import (  # noqa: E402
    FileInput,
    images_of,
)
from mmquant_jacinto.export.configs.test_images import network_size  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402


class Stack(BaseDataPreprocessor):
    """Gives a dict of inputs, of which some may be points."""

    def forward(self, data, training=False):
        data = self.cast_data(data)
        inputs = dict(imgs=torch.stack(data['inputs']['img']))
        if 'points' in data['inputs']:
            inputs['points'] = data['inputs']['points']
        return dict(inputs=inputs, data_samples=data['data_samples'])


class Monocular(BaseModel):
    def __init__(self):
        super().__init__(data_preprocessor=Stack())
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.head(self.backbone(inputs['imgs']))
        return dict(loss=out.mean()) if mode == 'loss' else list(out)


def batch(size=(16, 24), **more):
    sample = BaseDataElement(metainfo=dict(img_shape=size, batch_input_shape=size))
    return dict(inputs=dict(img=[torch.rand(3, *size)], **more), data_samples=[sample])


def test_images_of_a_dict_are_exported():
    torch.manual_seed(0)
    model = Monocular()
    wrapper = QuantCalibrateModule(model, batch(), target='onnxruntime').train()
    wrapper(**model.data_preprocessor(batch(), False), mode='predict')
    wrapper.eval()
    exported = export_onnx(model, batch())
    assert [value.name for value in exported.model.graph.input] == ['imgs']
    report = verify(exported, model, [batch(), batch()], 'onnxruntime')
    assert report.share == 1.0


def test_images_of_a_dict_are_padded():
    model = Monocular()
    assert network_size(model, batch()) == (16, 24)
    with FileInput((20, 32), padded=True).applied(model):
        data = model.data_preprocessor(batch(), False)
    assert images_of(data).shape == (1, 3, 20, 32)
    assert data['data_samples'][0].batch_input_shape == (20, 32)


def test_points_are_refused():
    points = batch(points=[torch.rand(5, 4)])
    refused(
        lambda: network_size(Monocular(), points), 'imgs and points', 'images alone'
    )
