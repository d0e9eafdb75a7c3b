"""Graphs drawn from the table of functions: what holds for all of them.

``RANDOM_GRAPHS=10000 pytest tests/execute/test_random_graphs.py`` tries more, and
``RANDOM_GRAPHS=2500 RANDOM_GRAPHS_SEED=1`` a part, others than with another seed.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from random_graphs import CALLS, SIZE, RandomGraph, decibels, is_well_conditioned
from toy_models import calibrated

from mmquant_jacinto import QuantizeError

GRAPHS = st.lists(
    st.tuples(st.integers(0, len(CALLS) - 1), st.integers(0, 2), st.integers(0, 5)),
    min_size=1,
    max_size=5,
)
SEED = os.environ.get('RANDOM_GRAPHS_SEED')


def often(test):
    """As often as is asked for; the same graphs each time."""
    repeated = settings(
        max_examples=int(os.environ.get('RANDOM_GRAPHS', 60)),
        derandomize=SEED is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(test)
    return repeated if SEED is None else seed(int(SEED))(repeated)


def drawn(calls):
    """A network that runs in float, and what it gets."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, SIZE, SIZE)
    try:
        net = RandomGraph(calls).eval()
        with torch.no_grad():
            out = net(x)
    except (RuntimeError, IndexError, ValueError):
        assume(False)
    assume(out.isfinite().all())
    return net, x


@often
@given(GRAPHS)
def test_sixteen_bits_are_as_in_float(calls):
    net, x = drawn(calls)
    assume(is_well_conditioned(net, x))
    with torch.no_grad():
        expected = net(x)
    calibrated(net, x, target='onnxruntime', bits=16, observer='minmax')
    with torch.no_grad():
        assert decibels(expected, net(x)) >= 50


@often
@given(GRAPHS)
def test_gradients_are_finite_where_those_in_float_are(calls):
    net, x = drawn(calls)

    def gradients():
        net.zero_grad()
        net(x).square().mean().backward()
        found = [p.grad for p in net.parameters() if p.grad is not None]
        return all(gradient.isfinite().all() for gradient in found)

    try:
        assume(gradients())
    except RuntimeError:
        assume(False)
    calibrated(net, x, 'train', target='onnxruntime')
    assert gradients()


@often
@given(GRAPHS)
def test_file_equals_the_integer_model(calls):
    pytest.importorskip('onnx_ir')
    from exporting import export_onnx, results

    net, x = drawn(calls)
    calibrated(net, x, target='onnxruntime')
    with torch.no_grad(), torch.inference_mode():
        inferred = net(x)
    try:
        # Of another image: no number of it may be in the file.
        exported = export_onnx(net, x.flip(-1), 'onnxruntime')
    except QuantizeError:
        # What ONNX lacks is said.
        assume(False)
    expected, found = results(net, exported, x)
    assert torch.equal(expected, inferred)
    assert expected.shape == found.shape
    if net.is_exact:
        assert torch.equal(expected, found)
    else:
        assert (expected == found).float().mean() > 0.9
