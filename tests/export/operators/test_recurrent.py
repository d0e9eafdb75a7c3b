"""Recurrent layers in a file: they stay in float, in the model and there."""

import pytest
import torch
from exactness import Inputs, assert_exact, without_entry
from refusals import refused
from torch import nn
from toy_models import Forward

from mmquant_jacinto.export.operators import recurrent
from mmquant_jacinto.export.operators.table import TRANSLATIONS


def sequence(layer, batch_first=True):
    """A recurrent layer over the columns of a layer's maps, and a layer behind it."""

    def forward(net, image):
        x = net.first(image).flatten(1, 2)  # image, row of a channel, column
        x = x.transpose(1, 2) if batch_first else x.permute(2, 0, 1)
        out, _ = net.layer(x)
        return net.last(out)

    width = layer.hidden_size * (2 if layer.bidirectional else 1)
    return Forward(
        forward, first=nn.Conv2d(4, 4, 1), layer=layer, last=nn.Linear(width, 3)
    )


def cell(net, image):
    """A cell that runs over the columns of maps, by its own last output."""
    x = net.first(image).flatten(1, 2)
    hidden = state = x.new_zeros(len(x), 5)
    for column in range(3):
        hidden, state = net.cell(x[..., column], (hidden, state))
    return net.last(hidden)


OPERATORS = {
    'lstm': lambda: sequence(nn.LSTM(32, 5, batch_first=True)),
    'lstm of columns': lambda: sequence(nn.LSTM(32, 5), batch_first=False),
    'lstm both ways': lambda: sequence(
        nn.LSTM(32, 5, 2, bidirectional=True, batch_first=True)
    ),
    'lstm without biases': lambda: sequence(
        nn.LSTM(32, 5, bias=False, batch_first=True)
    ),
    'gru': lambda: sequence(nn.GRU(32, 5, batch_first=True)),
    'gru both ways': lambda: sequence(
        nn.GRU(32, 5, 2, bidirectional=True, batch_first=True)
    ),
    'lstm_cell': lambda: Forward(
        cell, first=nn.Conv2d(4, 4, 1), cell=nn.LSTMCell(32, 5), last=nn.Linear(5, 3)
    ),
}


@pytest.mark.parametrize('name', OPERATORS)
def test_file_has_the_integers_of_the_model(name):
    torch.manual_seed(0)
    images = [torch.randn(3, 4, 8, 8) for _ in range(2)]
    _, found = assert_exact(OPERATORS[name](), Inputs(*images))
    assert len(found.unique()) > 8


def test_last_state_is_in_the_file():
    torch.manual_seed(1)

    def forward(net, image):
        x = net.first(image).flatten(1, 2).transpose(1, 2)
        _, (hidden, state) = net.layer(x)
        return net.last(torch.cat([hidden[-1], state[0]], 1))

    net = Forward(
        forward,
        first=nn.Conv2d(4, 4, 1),
        layer=nn.LSTM(32, 5, 2, batch_first=True),
        last=nn.Linear(10, 3),
    )
    assert_exact(net, Inputs(*[torch.randn(2, 4, 8, 8) for _ in range(2)]))


def test_projections_are_refused():
    net = sequence(nn.LSTM(32, 6, proj_size=5, batch_first=True))
    net.last = nn.Linear(5, 3)
    image = torch.randn(1, 4, 8, 8)
    refused(lambda: assert_exact(net, Inputs(image, image)), 'lstm', 'projections')


def test_every_operator_has_an_entry():
    assert without_entry(TRANSLATIONS, recurrent, OPERATORS) == []
