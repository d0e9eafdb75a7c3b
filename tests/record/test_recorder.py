import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode
from toy_models import Forward, ToyDetector

from mmquant_jacinto.record import ops
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.prepare import is_region


def record_once(model, *inputs):
    return record(model, [lambda: model(*inputs)], is_region)


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8)


def test_graph_of_the_toy_net(toy_net, images):
    graph = record_once(toy_net, images)
    assert {name: site.kind for name, site in graph.sites.items()} == {
        'stem/conv2d': ops.CONV,
        'stem_norm/batch_norm': ops.NORM,
        'act/relu': ops.CLIP,
        'conv/conv2d': ops.CONV,
        'norm/batch_norm': ops.NORM,
        'act#1/relu': ops.CLIP,
        'expand/conv2d': ops.CONV,
        '/add': ops.ADD,
        '/relu': ops.CLIP,
        '/max_pool2d': ops.PASS,
        'lateral/conv2d': ops.CONV,
        '/interpolate': ops.PASS,
        '/cat': ops.CAT,
        '/adaptive_avg_pool2d': ops.AVERAGE,
        '/flatten': ops.PASS,
        'fc/linear': ops.LINEAR,
    }
    readers = {
        site.name: {
            reader.name
            for value in site.outputs
            for reader in graph.consumers().get(value, [])
        }
        for site in graph.sites.values()
    }
    assert readers['act/relu'] == {'conv/conv2d', '/add'}
    assert readers['/relu'] == {'/max_pool2d', '/cat'}
    assert readers['fc/linear'] == set()
    assert graph.region_outputs == set(graph.sites['fc/linear'].outputs)
    assert list(graph.region_inputs.values()) == [[('', 0)]]


def test_site_describes_its_call(toy_net, images):
    sites = record_once(toy_net, images).sites
    stem, conv = sites['stem/conv2d'], sites['conv/conv2d']
    assert (stem.weight, stem.bias, stem.module) == ('stem.weight', None, 'stem')
    assert (conv.weight, conv.bias) == ('conv.weight', 'conv.bias')
    assert stem.shape == (2, 8, 16, 16)
    assert sites['/relu'].clip == (0.0, None)


@pytest.mark.parametrize(
    'function, clip',
    [
        (F.relu6, (0.0, 6.0)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, -2, 3), (-2.0, 3.0)),
        (lambda x: x.clamp(min=0.5), (0.5, None)),
        (lambda x: x.clamp(-1, 4), (-1.0, 4.0)),
        (lambda x: torch.clamp_max(x, 2), (None, 2.0)),
        (lambda x: x.clamp_min_(0), (0.0, None)),
    ],
)
def test_bounds_of_clamping_functions(image, function, clip):
    graph = record_once(
        Forward(lambda net, x: function(net.conv(x)), conv=nn.Conv2d(3, 4, 1)), image
    )
    assert list(graph.sites.values())[-1].clip == clip


def test_clamp_to_a_tensor_is_no_fused_clip(image):
    graph = record_once(
        Forward(lambda net, x: net.conv(x).clamp(x.mean()), conv=nn.Conv2d(3, 4, 1)),
        image,
    )
    assert graph.sites['/clamp'].kind == ops.COMPUTE


def test_weight_computed_from_a_parameter_is_a_constant(image):
    graph = record_once(
        Forward(
            lambda net, x: F.conv2d(x, net.conv.weight * 2), conv=nn.Conv2d(3, 4, 1)
        ),
        image,
    )
    site = graph.sites['/conv2d']
    assert (site.kind, site.weight, site.computed_weight) == (ops.CONV, None, True)


def test_only_regions_are_seen(image):
    model = ToyDetector()
    graph = record_once(model, image)
    assert not any('sigmoid' in name for name in graph.sites)
    # The head reads what the backbone made, not a new input.
    assert list(graph.region_inputs.values()) == [[('backbone', 0)]]


def test_second_pass_merges(image):
    model = Forward(
        lambda net, x, name: net.last(getattr(net, name)(x)),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 1),
        last=nn.Conv2d(4, 4, 1),
    )
    graph = record(
        model,
        [
            lambda: model(image, 'one'),
            lambda: model(image, 'two'),
            lambda: model(image, 'one'),
        ],
        is_region,
    )
    sites = graph.sites
    assert list(sites) == ['one/conv2d', 'last/conv2d', 'two/conv2d']
    assert sites['last/conv2d'].inputs == sites['one/conv2d'].outputs
    assert sites['last/conv2d'].further_inputs == sites['two/conv2d'].outputs
    assert graph.consumers()[sites['two/conv2d'].outputs[0]] == [sites['last/conv2d']]
    assert len(graph.region_inputs) == 1


def random_state():
    return torch.get_rng_state().clone()


@pytest.mark.parametrize('fails', [False, True])
def test_model_stays_as_it_was(toy_net, images, fails):
    net = Forward(
        lambda net, x: net.broken(net.toy(x), fails),
        toy=toy_net,
        broken=Forward(lambda net, x, fails: 1 / (1 - fails), drop=nn.Linear(1, 1)),
    )
    net.train()
    net.toy.norm.eval()
    state = copy.deepcopy(net.state_dict())
    flags = [module.training for module in net.modules()]
    random = random_state()

    def run():
        torch.rand(3)
        net(images)

    before = _get_current_function_mode()
    if fails:
        with pytest.raises(ZeroDivisionError):
            record(net, [run], is_region)
    else:
        record(net, [run], is_region)
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(random_state(), random)
    after = net.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert all(parameter.grad is None for parameter in net.parameters())
    for module in net.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert _get_current_function_mode() is before


def test_input_stays_as_it_was(toy_net, images):
    before = images.clone()
    record_once(toy_net, images)
    assert torch.equal(images, before)
    # Nothing that would keep the recorder, and with it the model, alive.
    assert not vars(images)
