import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated, make_plan

from mmquant_jacinto.record import attention

LENGTH, KEYS, BATCH, WIDTH, HEADS = 5, 7, 2, 16, 4


def masks(kind):
    """Arguments that hide some keys; one row of the first hides nothing."""
    hidden = torch.zeros(LENGTH, KEYS, dtype=torch.bool)
    hidden[1:, 2:4] = True
    padded = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padded[1, 5:] = True
    infinite = torch.zeros(LENGTH, KEYS).masked_fill(hidden, -torch.inf)
    per_head = infinite.repeat(BATCH * HEADS, 1, 1)
    return {
        'none': {},
        'bool': dict(attn_mask=hidden),
        'minus infinity': dict(attn_mask=infinite),
        'per head': dict(attn_mask=per_head),
        'padding': dict(key_padding_mask=padded),
        'both': dict(attn_mask=hidden, key_padding_mask=padded),
    }[kind]


def written_out(module, *args, **kwargs):
    """Runs a module with its attention replaced by ours."""
    real = F.multi_head_attention_forward
    F.multi_head_attention_forward = attention.multi_head_attention_forward
    try:
        return module(*args, **kwargs)
    finally:
        F.multi_head_attention_forward = real


@pytest.fixture
def operands():
    return (
        torch.randn(LENGTH, BATCH, WIDTH),
        torch.randn(KEYS, BATCH, WIDTH),
        torch.randn(KEYS, BATCH, WIDTH),
    )


@pytest.mark.parametrize('need_weights', [True, False])
@pytest.mark.parametrize(
    'mask', ['none', 'bool', 'minus infinity', 'per head', 'padding', 'both']
)
@pytest.mark.parametrize(
    'options',
    [{}, dict(bias=False), dict(add_bias_kv=True), dict(add_zero_attn=True)],
    ids=str,
)
def test_multi_head_attention_is_that_of_torch(operands, options, mask, need_weights):
    module = nn.MultiheadAttention(WIDTH, HEADS, **options)
    call = dict(need_weights=need_weights, **masks(mask))
    expected, weights = module(*operands, **call)
    out, shown = written_out(module, *operands, **call)
    torch.testing.assert_close(out, expected)
    if need_weights:
        torch.testing.assert_close(shown, weights)
    else:
        assert shown is None


def test_keys_and_values_may_have_widths_of_their_own():
    module = nn.MultiheadAttention(WIDTH, HEADS, kdim=6, vdim=10, batch_first=True)
    operands = (
        torch.randn(BATCH, LENGTH, WIDTH),
        torch.randn(BATCH, KEYS, 6),
        torch.randn(BATCH, KEYS, 10),
    )
    call = dict(average_attn_weights=False)
    for ours, theirs in zip(
        written_out(module, *operands, **call), module(*operands, **call)
    ):
        torch.testing.assert_close(ours, theirs)


def test_attention_without_a_batch():
    module = nn.MultiheadAttention(WIDTH, HEADS)
    x = torch.randn(LENGTH, WIDTH)
    call = dict(key_padding_mask=torch.tensor([False] * 4 + [True]))
    for ours, theirs in zip(
        written_out(module, x, x, x, **call), module(x, x, x, **call)
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_torch(operands):
    module = nn.MultiheadAttention(WIDTH, HEADS)
    found = []
    for run in (written_out, lambda module, *args, **kw: module(*args, **kw)):
        module.zero_grad()
        run(module, *operands, **masks('both'))[0].square().sum().backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(is_causal=True),
        dict(scale=0.3),
        dict(attn_mask=torch.eye(KEYS, dtype=torch.bool)[:LENGTH]),
        dict(attn_mask=torch.full((LENGTH, KEYS), -torch.inf).triu(1)),
    ],
)
def test_scaled_dot_product_attention_is_that_of_torch(options):
    query = torch.randn(BATCH, HEADS, LENGTH, 4)
    key, value = torch.randn(2, BATCH, HEADS, KEYS, 4)
    torch.testing.assert_close(
        attention.scaled_dot_product_attention(query, key, value, **options),
        F.scaled_dot_product_attention(query, key, value, **options),
    )


def test_row_without_any_key_gives_zeros():
    hidden = torch.zeros(LENGTH, KEYS, dtype=torch.bool)
    query = torch.randn(BATCH, HEADS, LENGTH, 4)
    key, value = torch.randn(2, BATCH, HEADS, KEYS, 4)
    out = attention.scaled_dot_product_attention(query, key, value, hidden)
    assert out.eq(0).all()


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, query, key, value, **masks):
        return self.attn(query, key, value, **masks)[0]


def test_projections_and_products_are_planned(operands):
    net = Attention()
    plan = make_plan(Forward(lambda net, x: net.body(x, x, x), body=net), operands[0])
    names = [
        'body.attn.in_proj_weight' + rows for rows in ('[0:16]', '[16:32]', '[32:48]')
    ]
    assert list(plan.weights) == [*names, 'body.attn.out_proj']
    assert [plan.weights[name].rows for name in names] == [(0, 16), (16, 32), (32, 48)]
    assert plan.in_float == {}
    products = [step for step in plan.steps.values() if step.kind == 'matmul']
    assert len(products) == 2
    assert all(None not in (*step.inputs, step.output) for step in products)


@pytest.mark.parametrize('phase', ['train', 'test'])
@pytest.mark.parametrize('mask', ['none', 'minus infinity', 'both'])
@pytest.mark.parametrize('options', [{}, dict(add_bias_kv=True)], ids=str)
def test_quantized_attention_is_close_and_masks_reach_no_range(
    operands, options, mask, phase
):
    net = Forward(
        lambda net, x: net.body(*operands, **masks(mask)) + x, body=Attention(**options)
    ).eval()
    x = torch.zeros(LENGTH, BATCH, WIDTH)
    expected = net(x)
    quantization = calibrated(net, x, phase, bits=16, observer='minmax')
    out = net(x)
    assert not torch.equal(out, expected)
    noise = (out - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 60
    assert not quantization.activations.take_rejected()


def test_attention_trains(operands):
    net = Attention()
    query = operands[0]
    calibrated(Forward(lambda net, x: net.body(x, x, x), body=net), query, 'train')
    net(query, query, query).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (net.attn.in_proj_weight,))


@pytest.mark.parametrize('mask', [-100.0, -torch.inf])
def test_mask_in_front_of_a_softmax_is_in_no_range(mask):
    hidden = torch.zeros(1, 6).index_fill(1, torch.tensor([0, 3]), mask)

    def forward(net, x):
        scores = net.query(x) @ net.key(x).transpose(-2, -1)
        return (scores + hidden).softmax(-1)

    net = Forward(forward, query=nn.Linear(8, 8), key=nn.Linear(8, 8))
    x = torch.randn(2, 6, 8)
    expected = net(x)
    quantization = calibrated(net, x, target='onnxruntime', observer='minmax')
    assert quantization.activations.low.min() > -20
    torch.testing.assert_close(net(x), expected, atol=0.03, rtol=0)


def test_fast_path_of_evaluation_is_not_taken():
    # In evaluation torch has one kernel for the whole layer.
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True).eval()
    net = Forward(lambda net, x: net.layer(x), layer=layer).eval()
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with torch.no_grad():
        expected = net(x)
        quantization = calibrated(net, x, bits=16, observer='minmax')
        out = net(x)
    assert len(quantization.plan.weights) == 6
    assert quantization.plan.in_float == {}
    noise = (out - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 60
