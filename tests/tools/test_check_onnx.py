"""tools/check_onnx.py, as a user types it."""

import json
import sys

import pytest
from paths import ROOT

onnx = pytest.importorskip('onnx')

import check_onnx  # noqa: E402
from command_line import exit_on_quantize_error  # noqa: E402
from hand_made_files import HandMade  # noqa: E402

from mmquant_jacinto.export.rules.report import to_markdown  # noqa: E402
from mmquant_jacinto.registry import QUANT_TARGETS  # noqa: E402
from mmquant_jacinto.targets.target import ruled_target, ruled_targets  # noqa: E402

CHIP = """
from mmquant_jacinto.registry import QUANT_TARGETS
from mmquant_jacinto.targets.formats import TensorFormat
from mmquant_jacinto.targets.preset import Preset
from mmquant_jacinto.targets.rules.table import Limit, Rules, Source
from mmquant_jacinto.targets.target import Target

MANUAL = Source('manual of the chip, page 7', '2.0')


@QUANT_TARGETS.register_module(name='square_chip')
class SquareChip(Target):
    preset = Preset(TensorFormat(), TensorFormat())
    rules = Rules(
        (
            Limit(
                ('Conv',),
                MANUAL,
                'strides of 1',
                lambda facts: facts.get('strides', [1, 1]) == [1, 1],
                ('strides',),
                'violation',
            ),
        )
    )
"""


@pytest.fixture
def run(file, monkeypatch, capsys):
    """Runs a line in the file's folder: exit code, output, errors."""
    monkeypatch.chdir(file.parent)
    monkeypatch.syspath_prepend(file.parent)
    targets = QUANT_TARGETS._module_dict
    monkeypatch.setattr(QUANT_TARGETS, '_module_dict', dict(targets))

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['check_onnx.py', *map(str, arguments)])
        code = 0
        try:
            exit_on_quantize_error(check_onnx.main)
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def file(tmp_path):
    made = HandMade()
    x = made.pair(made.input(1, 4, 8, 8), 'uint8', 9)
    y = made.conv(x, made.weight(4, 4, 3, 3, axis=0), name='the layer')
    y = made.node('Softplus', made.pair(y, 'int8'), name='the function')
    made.output(made.pair(y, 'int8'))
    onnx.save(made.model(), tmp_path / 'model.onnx')
    return tmp_path / 'model.onnx'


def test_it_names_node_rule_values_and_source(file, run):
    code, out, _ = run(file, '--target', 'tidl')
    assert code == 1
    first, second, *rest = out.splitlines()
    assert first.startswith('violation: QuantizeLinear') and 'zero point 9' in first
    assert second.startswith('runs on the Arm core: Softplus the function')
    assert rest[-1] == '1 violation, 1 notice'
    assert any('quantization.md' in line and 'b3a7c2c' in line for line in rest)


def test_notices_are_no_failure_and_json_is_json(file, run):
    model = onnx.load(file)
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.UINT8:
            zero = onnx.numpy_helper.to_array(item) * 0
            item.CopyFrom(onnx.numpy_helper.from_array(zero, item.name))
    onnx.save(model, file)
    code, out, _ = run(file, '--target', 'tidl', '--json')
    data = json.loads(out)
    assert code == 0
    assert data['counts'] == dict(violation=0, host=1, slower=0)
    assert data['findings'][0]['node'] == 'the function'


def test_table_of_somebody_else_is_used(file, run):
    (file.parent / 'square_chip.py').write_text(CHIP)
    line = [file, '--import', 'square_chip', '--target', 'square_chip']
    code, out, _ = run(*line)
    assert code == 0 and out == '0 violations, 0 notices\n'
    model = onnx.load(file)
    (conv,) = [node for node in model.graph.node if node.op_type == 'Conv']
    conv.attribute.append(onnx.helper.make_attribute('strides', [2, 1]))
    onnx.save(model, file)
    code, out, _ = run(*line)
    assert code == 1
    assert 'the layer, limit: strides [2, 1]; right: strides of 1' in out
    assert 'manual of the chip, page 7 (2.0)' in out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['model.onnx', '--target', 'tydl'], "did you mean 'tidl'"),
        (['none.onnx', '--target', 'tidl'], 'none.onnx cannot be read'),
        (['text.onnx', '--target', 'tidl'], 'text.onnx is no ONNX model'),
        (['empty.onnx', '--target', 'tidl'], 'empty.onnx is no ONNX model'),
        (['lost.onnx', '--target', 'tidl'], 'its weights in another file'),
        (['--target', 'tidl'], 'no file was given'),
        (['--import', 'no_such', '--target', 'tidl'], '--import no_such cannot be'),
    ],
)
def test_bad_input_is_one_sentence(file, run, arguments, message):
    (file.parent / 'text.onnx').write_text('no protobuf')
    (file.parent / 'empty.onnx').touch()
    onnx.save(
        *(onnx.load(file), file.parent / 'lost.onnx'),
        **dict(save_as_external_data=True, location='weights.bin', size_threshold=0),
    )
    (file.parent / 'weights.bin').unlink()
    code, out, error = run(*arguments)
    assert (code, out) == (2, '')
    assert error.startswith('error: ') and error.count('\n') == 1
    assert message in error


@pytest.mark.parametrize('name', ruled_targets())
def test_page_has_the_tables(name):
    page = (ROOT / 'docs' / 'targets.md').read_text()
    assert to_markdown(name, ruled_target(name).rules) in page
