"""Files that we did not write: those of ONNX Runtime's quantizer."""

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

from hand_made_files import HandMade  # noqa: E402
from onnxruntime.quantization import (  # noqa: E402
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from mmquant_jacinto.export.rules.check import check  # noqa: E402
from mmquant_jacinto.export.rules.report import violations  # noqa: E402
from mmquant_jacinto.targets.rules import TENSORRT_RULES, TIDL_RULES  # noqa: E402

SHAPE = (1, 3, 16, 16)


class Images(CalibrationDataReader):
    def __init__(self):
        generator = np.random.default_rng(0)
        self.images = iter(generator.normal(0.3, 1, (2, *SHAPE)).astype('f4'))

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {'images': image}


def float_net():
    """Convolution, pooling and a sum behind a convolution."""
    generator = np.random.default_rng(1)
    made = HandMade()

    def weight(*shape):
        return made.constant(generator.normal(size=shape), 'f4')

    x = made.input(*SHAPE)
    x = made.node('Conv', x, weight(4, 3, 3, 3), weight(4), name='first')
    pooled = made.node('MaxPool', x, name='pool', kernel_shape=[2, 2], strides=[2, 2])
    y = made.node('Conv', pooled, weight(4, 4, 1, 1), weight(4), name='second')
    made.output(made.node('Add', y, pooled, name='sum'), 1, 4, 7, 7)
    return made.model()


@pytest.fixture
def quantized(tmp_path):
    def quantize(form=QuantFormat.QDQ, **options):
        source, result = tmp_path / 'float.onnx', tmp_path / 'quantized.onnx'
        onnx.save(float_net(), source)
        quantize_static(
            *(source, result, Images()),
            quant_format=form,
            weight_type=QuantType.QInt8,
            **options,
        )
        return onnx.load(result)

    return quantize


def rules_broken(model, rules):
    return {(item.node, item.rule) for item in violations(check(model, rules))}


@pytest.mark.parametrize('form', [QuantFormat.QDQ, QuantFormat.QOperator])
def test_quantize_static_breaks_what_tidl_asks_of_pooling(quantized, form):
    broken = rules_broken(quantized(form), TIDL_RULES)
    assert ('pool', 'activations') in broken or ('pool_quant', 'activations') in broken
    assert not {name for name, rule in broken if rule == 'bias'}


def test_symmetric_quantize_static_obeys_tidl(quantized):
    model = quantized(
        activation_type=QuantType.QInt8,
        per_channel=True,
        extra_options=dict(ActivationSymmetric=True),
    )
    assert rules_broken(model, TIDL_RULES) == set()


def test_quantize_static_has_the_biases_that_tensorrt_refuses(quantized):
    model = quantized(
        activation_type=QuantType.QInt8, extra_options=dict(ActivationSymmetric=True)
    )
    assert rules_broken(model, TENSORRT_RULES) == {
        ('first', 'bias'),
        ('second', 'bias'),
    }
    (split,) = [i for i in check(model, TENSORRT_RULES) if i.rule == 'fusion']
    assert (split.node, 'sum' in split.found) == ('second', True)


def test_operators_with_grids_of_their_own_are_none_of_tensorrts(quantized):
    broken = rules_broken(quantized(QuantFormat.QOperator), TENSORRT_RULES)
    kinds = {rule for _, rule in broken}
    assert {'operator', 'activations'} <= kinds


def test_weights_that_the_file_quantizes_have_grids(quantized):
    model = quantized(
        activation_type=QuantType.QInt8,
        extra_options=dict(ActivationSymmetric=True, AddQDQPairToWeight=True),
    )
    stored = {item.name for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    first = next(node for node in model.graph.node if node.name == 'first')
    pair = makers[makers[first.input[1]].input[0]]
    assert pair.op_type == 'QuantizeLinear' and pair.input[0] in stored
    assert rules_broken(model, TIDL_RULES) == set()
    for item in model.graph.initializer:
        if item.name == pair.input[2]:
            item.CopyFrom(onnx.numpy_helper.from_array(np.int8(1), item.name))
    assert ('first', 'weights') in rules_broken(model, TIDL_RULES)
