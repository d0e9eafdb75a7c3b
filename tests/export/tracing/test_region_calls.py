"""Which regions of a detector an exported file has."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn
from toy_models import ToyBackbone, ToyHead, calibrated

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402


class Detector(BaseModel):
    """A head, and a second module behind what happens to its scores."""

    def __init__(self, between, **modules):
        super().__init__()
        self.between = between
        self.backbone, self.head = ToyBackbone(), ToyHead()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, inputs, mode='tensor'):
        levels = self.backbone(inputs)
        scores = self.head(levels)[1]
        return self.between(self, levels[1], scores)


def compared(net):
    """What the regions of a net give, in PyTorch and in its file."""
    x = torch.randn(1, 3, 8, 8)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
    return exported, expected, Session(exported.model)(x)


class Queries(nn.Module):
    """Reads a parameter of the detector, and nothing that follows from an image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x).sigmoid()


@pytest.mark.parametrize('moves', [False, True])
def test_module_that_reads_parameters_alone_is_a_constant(moves):
    def between(net, feature, scores):
        table = net.table.split(2)[0] if moves else net.table
        table = torch.cat([table, torch.ones(1, 8)])
        queries = net.queries(table)
        return net.last(feature * queries.mean(0).view(1, -1, 1, 1))

    net = Detector(between, queries=Queries(), last=nn.Conv2d(8, 4, 1))
    net.table = nn.Parameter(torch.randn(4, 8))
    exported, expected, found = compared(net)
    assert exported.skipped == []
    assert torch.equal(found['last'], expected)


def test_equal_scores_are_chosen_in_the_files_order():
    def between(net, feature, scores):
        best = (scores * 4).round()[:, 0].flatten(1).topk(10)[1]
        rows = feature.flatten(2).gather(2, best[:, None].expand(-1, 8, -1))
        return net.last(rows.unsqueeze(3))

    net = Detector(between, last=nn.Conv2d(8, 4, 1))
    _, expected, found = compared(net)
    assert torch.equal(found['last'], expected)


class Masks(nn.Module):
    """Reads a feature of the network, and kernels of chosen detections."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, feature, kernels):
        return F.conv2d(self.conv(feature), kernels)


def choose_by_mask(scores):
    return scores.flatten()[scores.flatten() > scores.mean()]


def choose_by_order(scores):
    return scores.flatten().sort()[0]


@pytest.mark.parametrize('choose', [choose_by_mask, choose_by_order])
def test_what_follows_chosen_detections_is_left_out(choose):
    def between(net, feature, scores):
        kernels = choose(scores)[:8].view(1, 8, 1, 1)
        return net.masks(feature, kernels), scores

    net = Detector(between, masks=Masks())
    exported, (masks, scores), found = compared(net)
    assert exported.skipped == ['masks']
    assert torch.equal(found['head.1'], scores)
    # What they read is there too.
    assert found['backbone.1'].shape == masks.shape[:1] + (8, 4, 4)


def test_indices_that_no_image_changes_choose_nothing():
    def between(net, feature, scores):
        rows = torch.arange(4)
        kernels = feature[:, :, rows, rows].mean(2).view(1, 8, 1, 1)
        return net.masks(feature, kernels)

    with pytest.raises(QuantizeError, match='indexing by several tensors'):
        compared(Detector(between, masks=Masks()))


class Extractor(nn.Module):
    """Begins with an extension's function, as an RoI extractor does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(_Doubled.apply(x))


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(2 * x.detach().numpy())


def test_second_stage_of_extensions_is_left_out():
    net = Detector(lambda net, x, scores: (net.roi_head.extractor(x), scores))
    net.roi_head = nn.Module()
    net.roi_head.extractor = nn.Sequential(nn.Conv2d(8, 8, 1), Extractor())
    exported, (_, scores), found = compared(net)
    assert exported.skipped == ['roi_head.extractor']
    assert torch.equal(found['head.1'], scores)


class Filled(torch.autograd.Function):
    """As an extension has it: its own kernel fills what PyTorch has made."""

    @staticmethod
    def forward(ctx, x):
        out = x.new_zeros(x.shape)
        out.numpy()[...] = x.numpy()[::-1, ::-1]
        return out


def test_what_an_extension_fills_is_no_constant():
    def between(net, feature, scores):
        return net.last(Filled.apply(feature))

    net = Detector(between, last=nn.Conv2d(8, 4, 1))
    exported, _, _ = compared(net)
    assert exported.skipped == ['last']
