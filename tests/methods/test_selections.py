"""What a float model selects, and a quantized one goes on with beside it."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from toy_models import calibrated, float_state, losses_of, randomize_norms

from mmquant_jacinto import QuantTrainModule
from mmquant_jacinto.methods.network_outputs import Outputs
from mmquant_jacinto.methods.output_error import OutputError
from mmquant_jacinto.methods.selections import NotedSelections, imposed
from mmquant_jacinto.report.measuring.measurement import Measurement, describe

PROPOSALS = 6
COARSE = dict(target='onnxruntime', bits=dict(weight=3, activation=4), edge_bits=3)


class TwoStages(BaseModel):
    """Scores all places, and decodes those that score best, like a DETR."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.scores, self.decode = nn.Linear(8, 1), nn.Linear(8, 4)
        self.selected = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.relu(self.norm(self.stem(inputs))).flatten(2).transpose(1, 2)
        scores = self.scores(x)
        best = torch.topk(scores.squeeze(2), PROPOSALS, dim=1)
        self.selected.append(best.indices)
        queries = x.gather(1, best[1][..., None].expand(-1, -1, x.shape[2]))
        boxes = self.decode(queries)
        if mode != 'loss':
            return boxes
        # As assigners do: selected of the outputs, when all have been given.
        hardest = boxes.abs().sum(2).topk(2, dim=1).values
        return dict(loss_boxes=hardest.mean(), loss_scores=scores.square().mean())


def images(count=2):
    torch.manual_seed(3)
    return torch.randn(count, 3, 12, 12)


def train_module(**quantize):
    torch.manual_seed(0)
    net = randomize_norms(TwoStages())
    before = copy.deepcopy(net)
    model = QuantTrainModule(net, images(), **dict(COARSE, **quantize))
    return model, before


def test_what_is_selected_before_the_last_output_is_noted():
    model, _ = train_module()
    outputs = Outputs(model.plan)
    with NotedSelections(outputs) as noted:
        first = torch.randn(2, 9).topk(3)
        outputs.kept.append(('boxes', first.values))
        torch.topk(torch.randn(4, 5), 2, dim=0)
    assert [x.shape for x in noted.before(2)] == [(2, 3), (2, 5)]
    (found,) = noted.before(1)
    assert found is first.indices
    assert noted.before(0) == []


@pytest.mark.parametrize('largest', [True, False])
def test_another_pass_selects_the_same(largest):
    x, y = torch.randn(2, 3, 9), torch.randn(2, 3, 9, requires_grad=True)
    chosen = x.topk(2, dim=1, largest=largest).indices
    with imposed([chosen]):
        values, indices = torch.topk(y, 2, 1, largest=largest)
        own = y.topk(2, dim=1)  # beyond what was noted
    assert torch.equal(indices, chosen)
    assert torch.equal(values, y.gather(1, chosen))
    values.sum().backward()
    assert y.grad.sum() == values.numel()
    assert torch.equal(own.indices, y.topk(2, dim=1).indices)


def test_one_of_another_shape_selects_by_itself():
    x = torch.randn(2, 9)
    with imposed([torch.zeros(2, 4, dtype=torch.long)]):
        found = x.topk(3, dim=1)
    assert torch.equal(found.indices, x.topk(3, dim=1).indices)


def test_student_and_teacher_decode_the_same_proposals():
    model, before = train_module()
    model.teach(float_state(before))
    model.train()
    net, x = model.module, images()
    for step in range(3):
        net.selected.clear()
        losses = losses_of(model, x)
        teacher, student = net.selected[-2:]  # ranges are measured before
        assert torch.equal(teacher, student), step
        assert losses['loss_teacher'].isfinite()
    # By itself it would have taken others.
    net.selected.clear()
    model(x, mode='tensor')
    assert not torch.equal(net.selected[-1], teacher)


def test_a_pass_that_breaks_off_leaves_nothing_behind():
    model, before = train_module()
    model.teach(float_state(before))
    model.train()
    x = images()
    losses_of(model, x)
    decode = model.module.decode.forward
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) == 2:  # the student
            raise ValueError('broken')
        return decode(*args)

    model.module.decode.forward = broken
    with pytest.raises(ValueError, match='broken'):
        losses_of(model, x)
    del model.module.decode.forward
    y = torch.randn(3, 50)
    values = torch.topk(y, PROPOSALS, dim=1).values
    assert torch.equal(values, y.sort(dim=1, descending=True).values[:, :PROPOSALS])
    again = losses_of(model, x)
    assert again['loss_teacher'].isfinite()


def test_outputs_of_a_calibrated_network_are_those_of_the_same_proposals():
    model, before = train_module()
    model(images())
    net = model.module

    def run(behaviour, batch):
        model.quantization.executor.behaviour = behaviour
        with torch.no_grad():
            net(batch)

    error = OutputError(model.quantization, run)
    net.selected.clear()
    reference = error.reference(images())
    assert torch.equal(reference.selections[0], net.selected[0])
    error.loss(images(), reference)
    assert torch.equal(net.selected[1], net.selected[0])


class Boxes(TwoStages):
    """Its second stage reads boxes of all images in one row, like an R-CNN's."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.relu(self.norm(self.stem(inputs))).flatten(2).transpose(1, 2)
        order = self.scores(x).squeeze(2).sort(dim=1, descending=True).indices
        best = order[:, :PROPOSALS, None].expand(-1, -1, x.shape[2])
        return self.decode(x.gather(1, best).flatten(0, 1))


class BoxesAlone(BaseModel):
    """All that it gives is of boxes."""

    def __init__(self):
        super().__init__()
        self.decode = nn.Linear(3, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.decode(inputs.flatten(2).transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize('named', [True, False])
@pytest.mark.parametrize('kind', [Boxes, BoxesAlone])
def test_proposed_boxes_are_compared_only_where_there_is_nothing_else(kind, named):
    torch.manual_seed(0)
    net = randomize_norms(kind()).eval()
    quantization = calibrated(net, images(), **COARSE)

    def run(behaviour, batch):
        quantization.executor.behaviour = behaviour
        with torch.no_grad():
            net(batch['inputs'] if named else batch[0])

    error = OutputError(quantization, run, features=1.0)
    batch = dict(inputs=images())
    if not named:
        # Four images in a batch of two parts, the second of which are labels.
        batch = (batch['inputs'].repeat(2, 1, 1, 1), torch.zeros(4))
    reference = error.reference(batch)
    names = {name for name, _ in reference.outputs}
    assert ('decode/linear' in names) == (kind is BoxesAlone)
    assert ('scores/linear' in names) == (kind is Boxes)
    assert error.loss(batch, reference).isfinite()


def test_a_report_measures_the_same_proposals():
    torch.manual_seed(0)
    net = randomize_norms(TwoStages()).eval()
    quantization = calibrated(net, images(), **COARSE)

    def run(behaviour, batch):
        quantization.executor.behaviour = behaviour
        return net(batch)

    net.selected = found = []
    Measurement(quantization, run).fill(
        describe(quantization, 'two stages', 'report'), [images()]
    )
    # In float, quantized, for gradients, weighed, and trials of what may help.
    assert len(found) > 4
    assert all(torch.equal(found[0], indices) for indices in found)
    net(images())
    assert not torch.equal(found[-1], found[0])
