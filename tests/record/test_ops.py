import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_models import Forward, calibrated

from mmquant_jacinto.record import ops
from mmquant_jacinto.record.ops import OPS, WRITTEN_OUT


def test_no_function_is_in_two_tables():
    assert not OPS.keys() & WRITTEN_OUT.keys()
    assert F.scaled_dot_product_attention in WRITTEN_OUT


@pytest.mark.parametrize('function', [F.relu, F.scaled_dot_product_attention])
def test_function_cannot_be_put_into_a_second_table(function):
    with pytest.raises(ValueError, match='already'):
        ops.register(function, 'again', ops.COMPUTE)
    with pytest.raises(ValueError, match='already'):
        ops.write_out(function, function)


def test_spellings_of_a_function_are_one():
    names = {
        'add': (torch.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__),
        'rdiv': (Tensor.__rtruediv__, Tensor.__rdiv__),
        'rsub': (torch.rsub, Tensor.__rsub__),
        'mT': (Tensor.mT.__get__,),
        'detach': (torch.detach, Tensor.data.__get__),
    }
    assert {OPS[f].name: name for name, fs in names.items() for f in fs} == {
        name: name for name in names
    }


X, Y = torch.randn(3), torch.randn(3)


@pytest.mark.parametrize(
    'function, args, kwargs',
    [
        (torch.div, (X, Y), {}),
        (torch.div, (X,), dict(other=Y)),
        (torch.div, (), dict(input=X, other=Y)),
        (torch.div, (), dict(other=Y, input=X)),
        (torch.div, (X, Y), dict(out=torch.empty(3))),
        (Tensor.div, (), dict(self=X, other=Y)),
    ],
)
def test_operands_of_all_forms_of_a_call(function, args, kwargs):
    op = OPS[function]
    found = ops.tensor_inputs(op, args, kwargs)
    assert [id(x) for x in found] == [id(X), id(Y)]
    args, kwargs = ops.replace_inputs(op, args, kwargs, [X + 1, Y + 1])
    if 'self' not in kwargs:
        assert torch.equal(function(*args, **kwargs), (X + 1) / (Y + 1))


@pytest.mark.parametrize(
    'args, name',
    [
        ((X, 2), 'pow'),
        ((X, 0.5), 'root'),
        ((X, -1), 'root'),
        ((X, Y), 'root'),
        ((2, X), 'rpow'),
    ],
)
def test_powers_are_named_by_what_they_make_of_small_numbers(args, name):
    assert ops.name_of(OPS[torch.pow], args, {}) == name


class Attention(nn.Module):
    """As in a ViT, whose heads are viewed as one axis."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).view(n, length, c))


def test_attention_is_written_out_in_the_model():
    net, x = Attention().eval(), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = net(x)
    quantization = calibrated(net, x, bits=16, observer='minmax')
    names = [name.rpartition('/')[2] for name in quantization.plan.steps]
    assert {'matmul', 'masked_softmax', 'matmul#1'} <= set(names)
    assert 'scaled_dot_product_attention' not in names
    with torch.no_grad():
        noise = (net(x) - expected).square().mean() / expected.square().mean()
    assert noise < 1e-5


def test_plan_of_an_earlier_version_has_attention_as_a_whole(monkeypatch):
    function = F.scaled_dot_product_attention
    x = torch.randn(2, 5, 16)
    net = Attention().eval()
    version = WRITTEN_OUT.pop(function)
    try:
        with monkeypatch.context() as patch:
            name = 'scaled_dot_product_attention'
            patch.setitem(OPS, function, ops.Op(name, ops.COMPUTE, name))
            quantization = calibrated(net, x)
            with torch.no_grad():
                expected = net(x)
    finally:
        WRITTEN_OUT[function] = version
    assert f'/{name}' in quantization.plan.steps
    with torch.no_grad():
        assert torch.equal(net(x), expected)


def test_sites_keep_the_names_that_checkpoints_hold():
    net = Forward(
        lambda net, x: 2 ** (1 / (net.one(x).exp() + 1)),
        one=nn.Linear(3, 3),
    )
    names = set(calibrated(net, torch.randn(2, 3)).plan.steps)
    assert {'/exp', '/add', '/truediv', '/pow'} <= names
