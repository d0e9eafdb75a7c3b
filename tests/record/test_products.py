"""Products under other names are matrix products of integers."""

import pytest
import torch
from exactness import assert_exact, random_inputs
from exporting import export_onnx, results
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto.record import products

EQUATIONS = {
    'bqc,bchw->bqhw': ((2, 3, 4), (2, 4, 5, 6)),
    'nchw, nkhw -> nck': ((2, 3, 4, 5), (2, 6, 4, 5)),
    'ij,jk': ((3, 4), (4, 5)),
    'ji,jk': ((4, 3), (4, 5)),
    'i,j->ij': ((3,), (4,)),
    'i,i->': ((3,), (3,)),
    'bi,bi->bi': ((2, 3), (2, 3)),
    'bi,bj->jbi': ((2, 3), (2, 4)),
    'bhid,bhjd->bhij': ((2, 3, 4, 5), (2, 3, 6, 5)),
}
OTHERS = {
    '...i,...j->...ij': ((2, 3), (2, 4)),
    'ii,ij->j': ((3, 3), (3, 4)),
    'ij,k->ik': ((3, 4), (5,)),
    'bi,bi->b': ((1, 3), (2, 3)),
}


def drawn(shapes):
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize('equation', EQUATIONS)
def test_einsum_is_that_of_torch(equation):
    operands = drawn(EQUATIONS[equation])
    expected = torch.einsum(equation, *operands)
    torch.testing.assert_close(products.einsum(equation, *operands), expected)
    torch.testing.assert_close(products.einsum(equation, operands), expected)


@pytest.mark.parametrize('equation', OTHERS)
def test_other_equations_are_not_written_out(equation):
    operands = drawn(OTHERS[equation])
    assert products.einsum(equation, *operands) is NotImplemented
    torch.einsum(equation, *operands)  # torch knows it


def test_more_or_fewer_operands_are_not_written_out():
    x = torch.randn(3, 3)
    assert products.einsum('ij->ji', x) is NotImplemented
    assert products.einsum('ij,jk,kl->il', x, x, x) is NotImplemented
    assert products.einsum(x, [0, 1], x, [1, 2]) is NotImplemented


@pytest.mark.parametrize('options', [{}, dict(beta=0.5), dict(alpha=2.0), dict(beta=0)])
def test_added_products_are_those_of_torch(options):
    x, a, b = drawn([(2, 3, 5), (2, 3, 4), (2, 4, 5)])
    for function, part in ((torch.baddbmm, slice(None)), (torch.addmm, 0)):
        operands = x[part], a[part], b[part]
        expected = function(*operands, **options)
        found = products.add_product(*operands, **options)
        torch.testing.assert_close(found, expected)
        written = x[part].clone()
        result = products.add_product_(written, *operands[1:], **options)
        assert result is written
        torch.testing.assert_close(written, expected)
    out = torch.empty_like(x)
    assert products.add_product(x, a, b, out=out) is NotImplemented


def masks(function):
    """As in Mask2Former: queries and features, and masks by their product."""
    return Forward(
        lambda net, x: function(net.query(x).flatten(2).mT, net.features(x)),
        query=nn.Conv2d(64, 64, 1),
        features=nn.Conv2d(64, 64, 1),
    ).eval()


NETS = {
    'einsum': lambda q, f: torch.einsum('bqc,bchw->bqhw', q, f),
    'baddbmm': lambda q, f: torch.baddbmm(f.flatten(2), q[:, :64], f.flatten(2)),
    'addmm': lambda q, f: torch.addmm(f[0, 0, 0], q[0, :, :32], f[0, 0]),
    'addmm_': lambda q, f: (q[0, :, :32] * 2).addmm_(q[0], f[0, :, 0]),
}


@pytest.mark.parametrize('name', NETS)
def test_file_has_the_integers_of_a_long_product(name):
    # In float, one of a hundred thousand sums of 64 is a tie that engines part on.
    exported, _ = assert_exact(masks(NETS[name]), random_inputs(1, 64, 32, 32))
    kinds = {node.op_type for node in exported.model.graph.node}
    assert 'MatMul' in kinds and 'Einsum' not in kinds


def test_einsum_of_another_kind_is_one_call():
    net = Forward(
        lambda net, x: net.last(torch.einsum('ij,k->ik', net.first(x), x[0])),
        first=nn.Linear(6, 6),
        last=nn.Linear(6, 6),
    ).eval()
    x = torch.randn(4, 6)
    with torch.no_grad():
        expected = net(x)
    plan = calibrated(net, x, bits=16, observer='minmax').plan
    assert '/whole_einsum' in plan.steps
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize('name', ['einsum', 'addmm'])
def test_plan_of_an_earlier_version_has_one_step(name, monkeypatch):
    functions = {
        'einsum': lambda net, x: torch.einsum('ij,kj->ik', net.first(x), x),
        'addmm': lambda net, x: torch.addmm(x, net.first(x), x),
    }
    net = Forward(functions[name], first=nn.Linear(4, 4)).eval()
    x = torch.randn(4, 4)
    function = getattr(torch, name)
    version = products.ops.WRITTEN_OUT.pop(function)
    try:
        with monkeypatch.context() as patch:
            patch.setitem(products.ops.OPS, function, products.ops.EARLIER[function])
            plan = calibrated(net, x).plan
            expected, found = results(net, export_onnx(net, x), x)
    finally:
        products.ops.WRITTEN_OUT[function] = version
    torch.testing.assert_close(found, expected)
    assert [site.rpartition('/')[2] for site in plan.steps] == ['linear', name]
    with torch.no_grad():
        assert torch.equal(net(x), expected)
