"""What TI's importer reads beside a file."""

import re

import pytest
import torch
from toy_models import ToyNet, calibrated, randomize_norms

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')
yaml = pytest.importorskip('yaml')

from dense_heads import SmallSSD  # noqa: E402

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402


def exported(target, **quantize):
    torch.manual_seed(0)
    net, x = randomize_norms(ToyNet()).eval(), torch.randn(1, 3, 32, 48)
    calibrated(net, x, target=target, **quantize)
    return export_onnx(net, x, 'tidl', {'mean': [1.0, 2.0, 3.0], 'std': [2.0] * 3})


def artifacts(file, preset, is_whole=True):
    return file.target.artifacts(
        file.model, 'net', preset, file.meta_arch, file.options, is_whole
    )


def test_integers_are_said_to_be_quantized_already():
    files = artifacts(exported('tidl'), 'tidl')
    assert list(files) == ['net.yaml']
    session = yaml.safe_load(files['net.yaml'])['session']
    assert session['runtime_options'] == {'advanced_options:prequantized_model': 1}
    assert session['input_mean'] == [1.0, 2.0, 3.0]
    assert session['input_scale'] == [0.5, 0.5, 0.5]
    assert session['model_path'] == 'net.onnx'
    content = yaml.safe_load(files['net.yaml'])
    assert content['preprocess']['resize'] == [32, 48]


def test_wide_tensors_are_named_as_the_file_names_them():
    file = exported('jacinto', overrides={'conv': 16, 'expand': dict(weight=16)})
    files = artifacts(file, 'jacinto')
    options = yaml.safe_load(files['net.yaml'])['session']['runtime_options']
    start = 'advanced_options'
    # Of what TIDL merges, as a layer and its clip, the last has the name.
    wide = options[f'{start}:output_feature_16bit_names_list']
    weights = options[f'{start}:params_16bit_names_list']
    made = {name: node for node in file.model.graph.node for name in node.output}
    assert made[wide].op_type == made[weights].op_type == 'Clip'
    assert made[wide].input[0] == 'conv/conv2d'
    # Where activations have 16 bits TIDL gives the weights 16 too.
    assert made[weights].input[0].startswith('expand/')
    assert {key: options[key] for key in file.options} == file.options
    assert options[f'{start}:quant_params_proto_path'] == 'net_ranges.prototxt'
    assert f'{start}:prequantized_model' not in options


def test_ranges_are_those_of_the_clips_and_biases_those_of_the_file():
    file = exported('jacinto')
    text = artifacts(file, 'jacinto')['net_ranges.prototxt']
    count = int(re.search(r'num_layers: (\d+)', text)[1])
    names = re.findall(r'layer_name: "(.*)"', text)
    assert len(names) == count == len(set(names))
    kinds = [node.op_type for node in file.model.graph.node]
    assert count == 1 + sum(kind != 'Clip' for kind in kinds)
    stored = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in file.model.graph.initializer
    }
    clip = next(n for n in file.model.graph.node if n.input[0] == 'stem/conv2d')
    layer = text.partition('layer_name: "stem/conv2d"')[2].partition('layers {')[0]
    low, high = (float(stored[name]) for name in clip.input[1:])
    assert f'min: {low}\n' in layer and f'max: {high}\n' in layer
    values = [float(value) for value in re.findall(r'value: (.*)', layer)]
    assert values == stored['stem.bias'].tolist()


def test_there_are_no_ranges_where_a_part_runs_on_the_arm_core():
    files = artifacts(exported('jacinto'), 'jacinto', is_whole=False)
    assert list(files) == ['net.yaml']
    assert 'quant_params' not in files['net.yaml']


def test_decoder_has_its_number_and_its_description():
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    file = SmallSSD('tidl').export('tidl')
    files = artifacts(file, 'tidl')
    options = yaml.safe_load(files['net.yaml'])['session']['runtime_options']
    assert options['object_detection:meta_arch_type'] == 3
    name = options['object_detection:meta_layers_names_list']
    assert files[name] == file.meta_arch


def test_every_tensor_has_a_shape():
    model = exported('tidl').model
    known = {item.name for item in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= known
