"""Plans as text, which is how a checkpoint carries them."""

from dataclasses import replace

import pytest
from toy_models import make_plan

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.plan.plan import Plan


@pytest.mark.parametrize(
    'target, wide', [('jacinto', 16), ('onnxruntime', 16), ('tidl', 8), ('tensorrt', 6)]
)
def test_plan_survives_json(toy_net, images, target, wide):
    plan = make_plan(
        toy_net,
        images,
        target=target,
        bits=dict(weight=4, output=wide),
        overrides={'expand': False, 'fc': wide},
        constrain_bias=False,
    )
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_plan_of_a_later_version_is_refused(toy_net, images):
    text = make_plan(toy_net, images).to_json()
    later = text.replace('{"version":', '{"version":99,"was":')
    assert later != text
    with pytest.raises(QuantizeError, match='version 99.*update'):
        Plan.from_json(later)


def test_a_bias_is_as_wide_as_its_operands(toy_net, images):
    for weight, activation in ((8, 8), (8, 16), (4, 8)):
        bits = dict(weight=weight, activation=activation)
        plan = make_plan(toy_net, images, bits=bits, edge_bits=weight)
        widths = {
            name: plan.bias_width(name) - weight == plan.input_bits[name]
            for name in plan.weights
        }
        assert all(widths.values()), widths
        assert activation in plan.input_bits.values()
    # As plans of earlier versions say it.
    old = replace(plan, config={**plan.config, 'bias_bits': None})
    assert {old.bias_width(name) for name in old.weights} == {8}
    fixed = make_plan(toy_net, images, target='onnxruntime')
    assert {fixed.bias_width(name) for name in fixed.weights} == {31}
