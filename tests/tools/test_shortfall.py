"""What the sweep says of the noise of an output that is below its bound."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn

from mmquant_jacinto import QuantizeConfig
from mmquant_jacinto.plan.planner import make_plan
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.prepare import is_region, probe_passes

pytest.importorskip('mmdet')
from zoo.models import calibrate, run  # noqa: E402
from zoo.outputs import RegionTap  # noqa: E402
from zoo.report import shortfalls  # noqa: E402
from zoo.shortfall import NO_ROOM, examine_shortfall  # noqa: E402

WIDE = {**NO_ROOM, 'observer': 'minmax'}


class Directions(nn.Module):
    """Directions of vectors, one of which is shorter than its grid is fine."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return F.normalize(self.conv(x), dim=1)


class TwoRegions(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = Directions()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(torch.stack(list(inputs))))


@pytest.fixture
def tapped():
    torch.manual_seed(0)
    model, batch = TwoRegions().eval(), dict(inputs=[torch.randn(3, 32, 32)])
    with torch.no_grad():
        features = model.backbone(batch['inputs'][0][None])
        # The vector of one pixel is nearly zero.
        model.head.conv.bias.sub_(model.head.conv(features)[0, :, 5, 9] + 1e-4)
    graph = record(model, probe_passes(model, batch), is_region)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def plan_of(quantize):
        return make_plan(graph, QuantizeConfig.parse(quantize), shapes)

    def tap(**options):
        found = RegionTap(model, graph.regions, **options)
        with found.attached(), torch.no_grad():
            run(model, batch, 'predict')
        return found

    reference = tap()
    calibrate(model, plan_of(WIDE), batch)
    return model, batch, tap(reference=reference), plan_of


def test_noise_of_a_direction_is_found_in_one_vector_and_in_float_too(tapped):
    model, batch, tap, plan_of = tapped
    found = examine_shortfall(model, batch, tap, plan_of, 'head')
    signal, noisy = tap.reference.outputs['head'], tap.outputs['head']
    all_of_it = -10 * torch.log10((signal - noisy).square().sum() / signal.numel() * 2)
    assert found['output'] == 'head'
    assert all_of_it < 55 and found['without'] > all_of_it + 10
    assert found['share'] > 0.9
    # The backbone's noise alone turns the short vector, whoever computes its direction.
    assert found['in_float'] < 70
    text = '; '.join(
        shortfalls(
            dict(
                sqnr={
                    '16': dict(heads=dict(head=40.0), missing=[], strayed=[]),
                },
                below=found,
            )
        )
    )
    assert f'% of the noise, the others have {found["without"]} dB' in text
    assert f'it has {found["in_float"]} dB' in text


def test_a_region_without_noise_in_front_of_it_has_its_own(tapped):
    model, batch, tap, plan_of = tapped
    found = examine_shortfall(model, batch, tap, plan_of, 'backbone')
    assert found['in_float'] == 999.0
    # Half the range has twice the steps: 6 dB.
    signal, noisy = tap.reference.outputs['backbone'], tap.outputs['backbone']
    before = 10 * torch.log10(signal.square().sum() / (signal - noisy).square().sum())
    assert 4 < found['no_room'] - before < 8
