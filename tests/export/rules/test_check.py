"""Each kind of rule on two files made by hand: one that breaks it, one that obeys."""

import functools

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')

from hand_made_files import HandMade  # noqa: E402

from mmquant_jacinto.export.rules.check import check  # noqa: E402
from mmquant_jacinto.targets.rules import (  # noqa: E402
    ONNXRUNTIME_RULES,
    OPENVINO_RULES,
    TDA4VM_RULES,
    TENSORRT_RULES,
    TIDL_RULES,
)
from mmquant_jacinto.targets.rules.table import HOST, SLOWER, VIOLATION  # noqa: E402


def layer(
    op='Conv',
    *,
    given=('int8', 0),
    gives=('int8', 0),
    stored='int8',
    axis=0,
    bias='float32',
    zero=0,
    paired=True,
    kernel=(3, 3),
    shape=(1, 4, 16, 16),
    opset=17,
    ir=8,
    **attributes,
):
    """A layer between pairs of Q/DQ."""
    made = HandMade()
    x = made.pair(made.input(*shape), *given)
    sizes = (4, 4 // attributes.get('group', 1), *kernel)
    weight = made.weight(*sizes, dtype=stored, axis=axis, zero=zero)
    y = made.conv(x, weight, made.bias(4, bias), op=op, name='layer', **attributes)
    made.output(made.pair(y, *gives) if paired else y)
    return made.model(opset, ir)


def between(op, *more, given=('int8', 0), gives=('int8', 0), shape=(1, 4, 8, 8), **kw):
    """Any operator between pairs of Q/DQ; ``more`` are constants."""
    made = HandMade()
    x = made.pair(made.input(*shape), 'int8')
    if given != ('int8', 0):
        weight = made.weight(4, 4, 1, 1, axis=0)
        x = made.pair(made.conv(x, weight, name='before'), *given)
    constants = [made.constant(value) for value in more]
    made.output(made.pair(made.node(op, x, *constants, name='layer', **kw), *gives))
    return made.model()


def fused(op, split):
    """A convolution and what is fused with it, with a pair between, or without."""
    made = HandMade()
    x = made.pair(made.input(1, 4, 8, 8), 'int8')
    y = made.conv(x, made.weight(4, 4, 1, 1, axis=0), name='layer')
    y = made.pair(y, 'int8') if split else y
    if op == 'SiLU':
        y = made.node('Mul', y, made.node('Sigmoid', y))
    else:
        y = made.node(op, y, *([x] if op == 'Add' else []))
    made.output(made.pair(y, 'int8'))
    return made.model()


def summed_with_constant(infer):
    made = HandMade()
    x = made.pair(made.input(1, 4, 8, 8), 'int8')
    y = made.pair(made.conv(x, made.weight(4, 4, 1, 1, axis=0)), 'uint8', 7)
    y = made.node('Add', y, made.constant(np.ones((1, 4, 1, 1), 'f4')), name='layer')
    made.output(made.pair(y, 'uint8', 7))
    return made.model(infer=infer)


def operators(op, domain=''):
    made = HandMade()
    x = made.pair(made.input(1, 4, 8, 8), 'int8')
    made.output(made.pair(made.node(op, x, name='layer', domain=domain), 'int8'))
    return made.model()


pool = functools.partial(between, 'MaxPool', kernel_shape=[3, 3], strides=[2, 2])
resize = functools.partial(
    between,
    'Resize',
    np.zeros(0, 'f4'),
    mode='nearest',
    coordinate_transformation_mode='asymmetric',
    nearest_mode='floor',
)
TWICE, THRICE = (np.array([1, 1, n, n], 'f4') for n in (2, 3))
EIGHTH = ('uint8', 113)
SHIFTED = {'given': EIGHTH, 'gives': EIGHTH}

# Name: rules, what the finding is of, its severity, a file that breaks, one that obeys.
CASES = {
    'tidl input': (
        *(TIDL_RULES, 'network input', VIOLATION),
        *(lambda: layer(given=EIGHTH), lambda: layer(gives=EIGHTH)),
    ),
    'tidl output': (
        *(TIDL_RULES, 'network output', HOST),
        *(lambda: layer(gives=EIGHTH), layer),
    ),
    'tidl pooling': (
        *(TIDL_RULES, 'activations', VIOLATION),
        *(
            lambda: pool(**SHIFTED),
            lambda: pool(given=('uint8', 0), gives=('uint8', 0)),
        ),
    ),
    'tda4vm everywhere': (
        *(TDA4VM_RULES, 'activations', VIOLATION),
        *(lambda: layer(gives=EIGHTH), lambda: layer(gives=('uint8', 0))),
    ),
    'tidl types': (
        *(TIDL_RULES, 'activations', VIOLATION),
        *(lambda: layer(gives=('int16', 0), opset=21, ir=10), layer),
    ),
    'tensorrt types': (
        *(TENSORRT_RULES, 'activations', VIOLATION),
        *(lambda: layer(gives=('uint8', 0)), layer),
    ),
    'tensorrt zero point': (
        *(TENSORRT_RULES, 'activations', VIOLATION),
        *(lambda: layer(gives=('int8', 3)), layer),
    ),
    'openvino 16 bits': (
        *(OPENVINO_RULES, 'activations', VIOLATION),
        *(lambda: layer(gives=('uint16', 9), opset=21, ir=10), layer),
    ),
    'onnxruntime signed': (
        *(ONNXRUNTIME_RULES, 'activations', SLOWER),
        *(layer, lambda: layer(given=EIGHTH, gives=EIGHTH)),
    ),
    'tidl deconvolution': (
        *(TIDL_RULES, 'weights', VIOLATION),
        lambda: layer('ConvTranspose', axis=1, kernel=(4, 4), strides=[2, 2]),
        lambda: layer('ConvTranspose', axis=None, kernel=(4, 4), strides=[2, 2]),
    ),
    'tensorrt deconvolution': (
        *(TENSORRT_RULES, 'weights', VIOLATION),
        lambda: layer('ConvTranspose', axis=1),
        lambda: layer('ConvTranspose', axis=0),
    ),
    'axis of weights': (
        *(TIDL_RULES, 'weights', VIOLATION),
        *(lambda: layer(axis=1), lambda: layer(axis=0)),
    ),
    'zero points of weights': (
        *(TIDL_RULES, 'weights', VIOLATION),
        *(lambda: layer(zero=1), layer),
    ),
    'types of weights': (
        *(TIDL_RULES, 'weights', VIOLATION),
        *(lambda: layer(stored='uint8', zero=0), layer),
    ),
    'tensorrt bias': (
        *(TENSORRT_RULES, 'bias', VIOLATION),
        *(lambda: layer(bias='int32'), layer),
    ),
    'tidl needs a pair': (
        *(TIDL_RULES, 'pair', VIOLATION),
        *(lambda: layer(paired=False), layer),
    ),
    'tidl opset': (
        *(TIDL_RULES, 'opset', VIOLATION),
        *(lambda: layer(opset=20), lambda: layer(opset=19)),
    ),
    'tidl ir': (
        *(TIDL_RULES, 'IR', VIOLATION),
        *(lambda: layer(ir=9), lambda: layer(ir=8)),
    ),
    'tidl operator': (
        *(TIDL_RULES, 'operator', HOST),
        *(lambda: operators('Softplus'), lambda: operators('Sigmoid')),
    ),
    'tensorrt operator': (
        *(TENSORRT_RULES, 'operator', VIOLATION),
        *(lambda: operators('Gelu', 'com.microsoft'), lambda: operators('Sigmoid')),
    ),
    'openvino operator': (
        *(OPENVINO_RULES, 'operator', HOST),
        *(lambda: operators('Softplus'), lambda: operators('Relu')),
    ),
    'tidl strides': (
        *(TIDL_RULES, 'limit', HOST),
        *(lambda: layer(strides=[1, 2]), lambda: layer(strides=[2, 2])),
    ),
    'tidl depthwise': (
        *(TIDL_RULES, 'limit', HOST),
        lambda: layer(group=4, kernel=(7, 3)),
        lambda: layer(group=4, kernel=(5, 5), strides=[2, 2]),
    ),
    'tidl pool window': (
        *(TIDL_RULES, 'limit', HOST),
        *(lambda: pool(kernel_shape=[5, 5], strides=[1, 1]), pool),
    ),
    'tidl large plane': (
        *(TIDL_RULES, 'limit', HOST),
        lambda: between('GlobalAveragePool', shape=(1, 4, 33, 32)),
        lambda: between('GlobalAveragePool', shape=(1, 4, 32, 32)),
    ),
    'tidl resize factor': (
        *(TIDL_RULES, 'limit', HOST),
        *(lambda: resize(THRICE), lambda: resize(TWICE)),
    ),
    'tidl resize mode': (
        *(TIDL_RULES, 'limit', HOST),
        *(lambda: resize(TWICE, nearest_mode='ceil'), lambda: resize(TWICE)),
    ),
    'tidl deconvolution kernel': (
        *(TIDL_RULES, 'limit', HOST),
        lambda: layer('ConvTranspose', axis=None, kernel=(5, 5), strides=[2, 2]),
        lambda: layer('ConvTranspose', axis=None, kernel=(3, 3), strides=[2, 2]),
    ),
    'tidl clip': (
        *(TIDL_RULES, 'limit', HOST),
        lambda: between('Clip', np.float32(1), np.float32(6)),
        lambda: between('Clip', np.float32(0), np.float32(6)),
    ),
    'tidl pad': (
        *(TIDL_RULES, 'limit', HOST),
        lambda: between('Pad', np.array([0, 1, 0, 0, 0, 0, 0, 0])),
        lambda: between('Pad', np.array([0, 0, 1, 1, 0, 0, 1, 1])),
    ),
    'tidl constants beside': (
        *(TIDL_RULES, 'limit', HOST),
        *(lambda: summed_with_constant(False), lambda: summed_with_constant(True)),
    ),
    'tidl softmax': (
        *(TIDL_RULES, 'limit', HOST),
        *(lambda: between('Softmax', axis=1), lambda: between('Softmax', axis=-1)),
    ),
    'tensorrt groups': (
        *(TENSORRT_RULES, 'limit', VIOLATION),
        *(lambda: layer('ConvTranspose', axis=None, group=2),),
        *(lambda: layer('ConvTranspose', axis=None),),
    ),
    **{
        f'tensorrt {op} behind a layer': (
            *(TENSORRT_RULES, 'fusion', SLOWER),
            functools.partial(fused, op, True),
            functools.partial(fused, op, False),
        )
        for op in ('Relu', 'SiLU', 'Add')
    },
    'tidl relu behind a layer': (
        *(TIDL_RULES, 'fusion', SLOWER),
        *(lambda: fused('Relu', True), lambda: fused('Relu', False)),
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_what_breaks_a_rule_is_found(name):
    rules, rule, severity, broken, _ = CASES[name]
    found = [item for item in check(broken(), rules) if item.rule == rule]
    assert found, 'nothing was found'
    assert {item.severity for item in found} == {severity}
    for item in found:
        assert item.found and item.right and item.source


@pytest.mark.parametrize('name', CASES)
def test_what_obeys_a_rule_is_not(name):
    rules, rule, _, _, right = CASES[name]
    assert [item for item in check(right(), rules) if item.rule == rule] == []


def test_finding_names_the_node_and_both_values():
    (finding,) = [
        item
        for item in check(layer(bias='int32'), TENSORRT_RULES)
        if item.rule == 'bias'
    ]
    assert finding.node == 'layer'
    assert finding.operator == 'Conv'
    assert finding.found.endswith('int32')
    assert finding.right == 'float32'
    assert '850' in finding.source


def test_node_without_a_name_is_called_by_its_result():
    model = layer(gives=EIGHTH, given=EIGHTH)
    for node in model.graph.node:
        node.name = ''
    names = {item.node for item in check(model, TENSORRT_RULES)}
    assert 'layer' in names and '' not in names


def test_float_file_has_no_grid_to_break():
    made = HandMade()
    x = made.input(1, 4, 8, 8)
    weight = made.constant(np.ones((4, 4, 3, 3)), 'f4')
    y = made.node('MaxPool', made.conv(x, weight), kernel_shape=[2, 2], strides=[2, 2])
    made.output(y)
    for rules in (TIDL_RULES, TENSORRT_RULES, OPENVINO_RULES, ONNXRUNTIME_RULES):
        assert check(made.model(), rules) == []


def test_file_of_somebody_elses_operators_has_no_opset_of_onnx():
    made = HandMade()
    made.output(made.node('Conv', made.input(1, 4, 8, 8), name='y', domain='acme'))
    model = made.model(infer=False)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid('acme', 1))
    (finding,) = check(model, TIDL_RULES)
    assert (finding.rule, finding.found) == ('operator', 'acme:Conv')


def test_shape_of_a_tensor_has_no_grid_to_break():
    made = HandMade()
    x = made.pair(made.node('Softmax', made.input(1, 4, 8, 8)), 'uint8', 3)
    made.output(made.node('Shape', x))
    found = check(made.model(), TIDL_RULES)
    assert {item.severity for item in found} == {HOST}


def test_local_functions_are_looked_into():
    made = HandMade()
    made.output(made.node('Outer', made.input(1, 4, 8, 8), domain='local'))
    model = made.model(infer=False)
    del model.opset_import[:]
    opsets = [onnx.helper.make_opsetid('', 17), onnx.helper.make_opsetid('local', 1)]
    model.opset_import.extend(opsets)
    inner = onnx.helper.make_node('Softplus', ['x'], ['y'], name='inner')
    model.functions.append(
        onnx.helper.make_function('local', 'Outer', ['x'], ['y'], [inner], opsets[:1])
    )
    (finding,) = check(model, TIDL_RULES)
    assert finding.operator == 'Softplus'
