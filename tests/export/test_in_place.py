"""A file takes the place of what it holds."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantCalibrateModule  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.in_place import in_place_of_modules  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402


def exported_from(model, images):
    wrapper = QuantCalibrateModule(model, images, target='onnxruntime')
    wrapper.train()
    wrapper(images)
    wrapper.eval()
    return export_onnx(wrapper, images)


def test_its_former_place_has_it_too():
    from mmquant_jacinto.export import session

    assert session.in_place_of_modules is in_place_of_modules
    with pytest.raises(AttributeError, match='no_such'):
        _ = session.no_such


class TwoStages(BaseModel):
    """The second is called on what the first has found, as many as there are."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.rpn_head = nn.Conv2d(4, 1, 1)
        self.roi_head = nn.Linear(4, 2)

    def forward(self, inputs, mode='predict'):
        feature = self.backbone(inputs)
        score = self.rpn_head(feature)
        image, _, row, column = (score > score.mean()).nonzero().T
        return self.roi_head(feature.permute(0, 2, 3, 1)[image, row, column]).sigmoid()


def test_the_checkpoint_computes_what_the_file_lacks():
    model, images = TwoStages().eval(), torch.randn(1, 3, 8, 8)
    exported = exported_from(model, images)
    assert exported.skipped == ['roi_head']
    others = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = model(others)
        with in_place_of_modules(model, Session(exported.model)):
            found = model(others)
        assert torch.equal(found, expected)
        # It is the file that computes the rest.
        model.backbone.weight.zero_()
        with in_place_of_modules(model, Session(exported.model)):
            assert torch.equal(model(others), expected)


class Video(BaseModel):
    """Gets a video and looks at its frames, as a tracker."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, inputs, mode='predict'):
        return self.backbone(inputs[:, 0].contiguous()).sigmoid()


def test_frame_is_what_the_file_has_of_a_video():
    model, plain = Video().eval(), Video()
    exported = exported_from(model, torch.randn(1, 1, 3, 8, 8))
    session = Session(exported.model)
    assert session.input_shape == (1, 1, 3, 8, 8)
    others = torch.randn(1, 1, 3, 8, 8)
    with torch.no_grad(), in_place_of_modules(plain, session):
        found = plain(others)
    with torch.no_grad():
        assert torch.equal(found, model(others))
    # Another size is no frame of it.
    frame = torch.randn(1, 3, 4, 8)
    assert session.of_region({'x': frame})['x'] is frame


class Stage(nn.Module):
    """Of a cascade: what it returns for the next, and what it has found."""

    def __init__(self, channels, refines):
        super().__init__()
        self.refines = refines
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.score = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        refined = self.conv(x)
        return (refined if self.refines else x), None, self.score(refined)


class Cascade(BaseModel):
    """Decoding reads a tensor that two stages return."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Stage(3, True), Stage(4, False)

    def forward(self, inputs, mode='predict'):
        x, _, score = self.first(inputs)
        same, _, finer = self.second(x)
        return (score + finer) * x.mean() * same.amax()


def test_tensor_that_two_modules_return_is_two_outputs():
    model, plain, images = Cascade().eval(), Cascade(), torch.randn(1, 3, 8, 8)
    exported = exported_from(model, images)
    assert verify(exported, model, [torch.randn(1, 3, 8, 8)]).share == 1
    others = torch.randn(1, 3, 8, 8)
    with torch.no_grad(), in_place_of_modules(plain, Session(exported.model)):
        found = plain(others)
    with torch.no_grad():
        assert torch.equal(found, model(others))


class Masks(BaseModel):
    """The second module convolves what the file has, and what else it cannot have."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.rpn_head = nn.Conv2d(4, 1, 1)
        self.mask_head = MaskHead()

    def forward(self, inputs, mode='predict'):
        feature = self.backbone(inputs)
        score = self.rpn_head(feature)
        return self.mask_head(feature, score[score > score.mean()])


class MaskHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, feature, scores):
        return self.convs(feature).sigmoid() + scores.mean()


def test_what_reads_the_file_has_its_integers():
    images = torch.randn(1, 3, 64, 64)
    model = Masks().eval()
    exported = exported_from(model, images)
    assert exported.skipped == ['mask_head']
    others = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(others)
        with in_place_of_modules(model, Session(exported.model)):
            found = model(others)
    assert torch.equal(found, expected)
