import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyDetector, ToyHead

from mmquant_jacinto.record.call_tree import CallTracker
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.prepare import is_region


def conv(inputs=3, outputs=8):
    return nn.Conv2d(inputs, outputs, 1)


def sites(model, *inputs):
    return list(record(model, [lambda: model(*inputs)], is_region).sites)


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8)


def test_each_run_of_a_reused_module_is_a_site(image):
    model = Forward(
        lambda net, x: net.relu(net.two(net.relu(net.one(x)))),
        one=conv(),
        two=conv(8),
        relu=nn.ReLU(),
    )
    assert sites(model, image) == [
        'one/conv2d',
        'relu/relu',
        'two/conv2d',
        'relu#1/relu',
    ]


def test_functions_are_counted_by_name_within_their_caller(image):
    model = Forward(
        lambda net, x: F.relu(net.block(x) + 1) + F.relu(x),
        block=Forward(lambda net, x: F.relu(net.one(x)) + 1, one=conv(3, 3)),
    )
    assert sites(model, image) == [
        'block.one/conv2d',
        'block/relu',
        'block/add',
        '/add',
        '/relu',
        '/relu#1',
        '/add#1',
    ]


def test_spellings_of_a_function_share_its_name(image):
    def forward(net, x):
        x = net.one(x)
        x += 1
        x = torch.add(x, 1)
        x = 1 + x
        return torch.relu(x).relu_()

    assert sites(Forward(forward, one=conv()), image) == [
        'one/conv2d',
        '/add',
        '/add#1',
        '/add#2',
        '/relu',
        '/relu#1',
    ]


def test_function_and_module_of_one_name_are_counted_apart(image):
    model = Forward(
        lambda net, x: F.relu(net.relu(net.one(x)) - 1), one=conv(), relu=nn.ReLU()
    )
    assert sites(model, image) == ['one/conv2d', 'relu/relu', '/sub', '/relu']


def test_shared_head_is_a_site_at_each_level():
    levels = [torch.randn(1, 8, size, size) for size in (8, 4, 2)]
    assert sites(ToyHead(), levels) == [
        'tower/conv2d',
        '/relu',
        'cls/conv2d',
        'tower#1/conv2d',
        '/relu#1',
        'cls#1/conv2d',
        'tower#2/conv2d',
        '/relu#2',
        'cls#2/conv2d',
    ]


def test_module_that_another_one_borrows_is_named_by_both(image):
    decoder = Forward(lambda net, x, branch: branch(x), own=conv())
    model = Forward(
        lambda net, x: net.decoder(x, net.head.branch),
        head=Forward(None, branch=conv()),
        decoder=decoder,
    )
    assert sites(model, image) == ['decoder>head.branch/conv2d']


def test_names_do_not_depend_on_what_ran_before(image):
    def forward(net, x, extra):
        if extra:
            net.other(x)
        return net.block(x)

    block = Forward(lambda net, x: F.relu(net.one(x)), one=conv())
    model = Forward(forward, other=conv(), block=block)
    alone = sites(model, image, False)
    assert alone == ['block.one/conv2d', 'block/relu']
    assert sites(model, image, True) == ['other/conv2d', *alone]


def test_each_pass_counts_from_the_start(image):
    model = Forward(lambda net, x: net.one(x), one=conv())
    graph = record(model, [lambda: model(image)] * 3, is_region)
    assert list(graph.sites) == ['one/conv2d']


def test_regions_are_named_from_the_root():
    graph = record(
        model := ToyDetector(), [lambda: model(torch.randn(1, 3, 8, 8))], is_region
    )
    assert graph.regions == ['backbone', 'head']
    assert 'head.tower#1/conv2d' in graph.sites


def test_stack_is_whole_again_after_an_exception(image):
    def fail(net, x):
        raise RuntimeError

    model = Forward(
        lambda net, x: net.outer(x),
        outer=Forward(lambda net, x: net.inner(x), inner=Forward(fail)),
    )
    tracker = CallTracker(model)
    tracker.install()
    with pytest.raises(RuntimeError):
        model(image)
    assert len(tracker.here.stack) == 1
    tracker.remove()
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
