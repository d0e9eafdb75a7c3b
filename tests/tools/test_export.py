"""tools/export.py and tools/test.py on an upstream detector, as a user types them."""

import json
import re
import subprocess
import sys

import pytest

pytest.importorskip('mmdet')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from paths import TOOLS  # noqa: E402
from upstream_detectors import DETECTORS, MIM, OLD_STYLE, SHORT, Workspace  # noqa: E402

BASE, OPTIONS = DETECTORS['ssdlite']
OPTIONS = {
    **SHORT,
    **OPTIONS,
    'quantize.mode': 'ptq',
    'quantize.target': 'onnxruntime',
}
CHECKPOINT = 'work_dirs/config/epoch_1.pth'


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A folder with an SSDLite, calibrated on a few images."""
    workspace = Workspace(tmp_path_factory.mktemp('export'))
    config = OLD_STYLE.format(base=str(MIM / 'configs' / BASE))
    (workspace.root / 'config.py').write_text(config)
    workspace.run((TOOLS / 'train.py', ['config.py'], OPTIONS))
    return workspace


def export(workspace, *arguments, checkpoint=CHECKPOINT, options=OPTIONS):
    """Exit code and output of a line that may fail."""
    line = [sys.executable, str(TOOLS / 'export.py'), 'config.py', checkpoint]
    line += [*arguments, '--cfg-options']
    line += [f'{key}={value}' for key, value in options.items()]
    done = subprocess.run(
        line,
        cwd=workspace.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout


def test_file_that_breaks_rules_is_written_on_demand_alone(workspace):
    line = ['-o', 'rules.onnx', '--target', 'tidl', '--verify', '0']
    code, out = export(workspace, *line)
    assert code == 2
    assert 'tidl does not take' in out and '--allow-violations' in out
    assert not (workspace.root / 'rules.onnx').exists()
    code, out = export(workspace, *line, '--allow-violations')
    assert code == 0, out
    assert re.search(r'rules of tidl: \d+ violation', out)
    model = onnx.load(workspace.root / 'rules.onnx')
    told = {item.key: item.value for item in model.metadata_props}['violations']
    assert {item['severity'] for item in json.loads(told)} == {'violation'}


def test_the_importers_options_go_beside_a_file_with_wide_layers(workspace):
    raised = {'bbox_head.cls_convs.0': 16, 'bbox_head.reg_convs.0': False}
    options = {
        **OPTIONS,
        'quantize.target': 'jacinto',
        'work_dir': 'work_dirs/wide',
        'quantize.report': False,
    }
    config = (workspace.root / 'config.py').read_text()
    (workspace.root / 'wide.py').write_text(
        f'{config}\nquantize = dict(overrides={raised!r})\n'
    )
    workspace.run((TOOLS / 'train.py', ['wide.py'], options))
    line = [str(TOOLS / 'export.py'), 'wide.py', 'work_dirs/wide/epoch_1.pth']
    line += ['-o', 'wide.onnx', '--target', 'tidl', '--verify', '0']
    out = workspace.run((line[0], line[1:], options))
    assert 'wide.options.json: layers of 16 bits and in float' in ' '.join(out.split())
    told = json.loads((workspace.root / 'wide.options.json').read_text())
    made = {
        name
        for node in onnx.load(workspace.root / 'wide.onnx').graph.node
        for name in (node.name, *node.output)
    }
    assert len(told) == 2
    for names in told.values():
        assert set(names.split(', ')) <= made


def test_file_is_verified_and_scores_as_the_checkpoint(workspace):
    out = workspace.run(
        (
            TOOLS / 'export.py',
            ['config.py', CHECKPOINT, '-o', 'out/model.onnx', '--verify', '2'],
            OPTIONS,
        ),
        (TOOLS / 'test.py', ['config.py', CHECKPOINT], OPTIONS),
    )
    assert out.count('100.0000%') == 12
    assert re.search(r'equal predictions .* 2 of 2', out)
    from_checkpoint = workspace.detections('test')
    out = workspace.run((TOOLS / 'test.py', ['config.py', 'out/model.onnx'], OPTIONS))
    assert re.search(r'images, [\d.]+ images per second', out)
    assert_pages_tell_of_the_file(workspace)
    assert workspace.detections('test') == from_checkpoint != []
    model = onnx.load(workspace.root / 'out' / 'model.onnx')
    metadata = {item.key: item.value for item in model.metadata_props}
    assert len(json.loads(metadata['mean'])) == 3
    found = {item.name for item in (workspace.root / 'out').iterdir()}
    assert found == {'model.onnx', 'model_report'}


def assert_pages_tell_of_the_file(workspace):
    """That of the export has all three networks, that of the file's test its own."""
    exported = workspace.root / 'out' / 'model_report' / 'report.json'
    found = json.loads(exported.read_text())
    with_interval = {s['network'] for s in found['scores'] if s['low'] is not None}
    # In float too, if there was time for a pass.
    assert {'quantized', 'file'} <= with_interval or found['skipped']
    tested = max(workspace.root.glob('work_dirs/config/*/report.json'))
    found = json.loads(tested.read_text())
    assert found['kind'] == 'test' and found['layers'] == []
    assert {item['network'] for item in found['scores']} == {'file'}
    assert found['file']['path'] == 'out/model.onnx'
    assert 'id="file"' in tested.with_suffix('.html').read_text()


# Letterboxed images; and modules between which code reads what they return.
DETR = """
model = dict(
    backbone=dict(init_cfg=None), encoder=dict(num_layers=1), decoder=dict(num_layers=2)
)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
small = [
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=keys),
]
train_dataloader = dict(dataset=dict(pipeline=load + small))
val_dataloader = dict(dataset=dict(pipeline=load + small))
test_dataloader = dict(dataset=dict(pipeline=load + small))
"""
FAMILIES = {
    'yolox': (*DETECTORS['yolox_tiny'], ''),
    'detr': ('detr/detr_r18_8xb2-500e_coco.py', {}, DETR),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_file_is_tested_on_the_images_of_the_checkpoint(family, tmp_path):
    base, options, more = FAMILIES[family]
    quantize = {'quantize.mode': 'ptq', 'quantize.target': 'onnxruntime'}
    options = {**SHORT, **options, **quantize}
    workspace = Workspace(tmp_path)
    config = OLD_STYLE.format(base=str(MIM / 'configs' / base))
    (tmp_path / 'config.py').write_text(config + more)
    tested = (TOOLS / 'test.py', ['config.py', CHECKPOINT], options)
    arguments = ['config.py', CHECKPOINT, '-o', 'model.onnx', '--verify', '2']
    out = workspace.run(
        (TOOLS / 'train.py', ['config.py'], options),
        (TOOLS / 'export.py', arguments, options),
        tested,
    )
    assert re.search(r'equal predictions .* 2 of 2', out)
    assert len(workspace.reports()['calibration']['layers']) > 30
    from_checkpoint = workspace.detections('test')
    workspace.run((TOOLS / 'test.py', ['config.py', 'model.onnx'], options))
    assert workspace.detections('test') == from_checkpoint != []


def test_nothing_is_written_below_the_bound(workspace):
    code, out = export(
        workspace, '-o', 'bad.onnx', '--verify', '1', '--min-equal', '1.1'
    )
    assert code == 2
    assert 'bad.onnx was not written' in out.replace('\n', ' ')
    assert not list(workspace.root.glob('*bad*'))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['-o', 'model.pt'], 'does not end in .onnx'),
        (['-o', '/proc/none/model.onnx'], 'cannot be written'),
        (['-o', 'a.onnx', '--target', 'tensort'], 'tensorrt'),
        (['-o', 'a.onnx', '--images', 'nowhere'], 'no images in it'),
    ],
)
def test_bad_input_is_one_sentence(workspace, arguments, message):
    code, out = export(workspace, *arguments)
    assert code == 2
    errors = [line for line in out.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert message in errors[0]
    assert 'Traceback' not in out
    assert not (workspace.root / 'a.onnx').exists()


def test_config_of_another_target_is_refused(workspace):
    options = {**OPTIONS, 'quantize.target': 'jacinto'}
    code, out = export(workspace, '-o', 'a.onnx', options=options)
    assert code == 2
    assert "'jacinto'" in out
    assert 'Traceback' not in out


def test_checkpoint_is_tested_with_the_arithmetic_of_a_target(workspace):
    line = (TOOLS / 'test.py', ['config.py', CHECKPOINT], OPTIONS)
    workspace.run(line)
    detections = workspace.detections('test')
    tool, arguments, options = line
    workspace.run((tool, [*arguments, '--target', 'onnxruntime'], options))
    assert workspace.detections('test') == detections != []


@pytest.mark.parametrize(
    'config, target, message',
    [
        ('config.py', 'tensort', 'tensorrt'),
        ('float.py', 'onnxruntime', 'no `quantize`'),
    ],
)
def test_target_that_does_not_fit_is_refused(workspace, config, target, message):
    content = (workspace.root / 'config.py').read_text()
    lines = [line for line in content.splitlines() if 'quantize =' not in line]
    (workspace.root / 'float.py').write_text('\n'.join(lines))
    options = [f'{k}={v}' for k, v in OPTIONS.items() if 'quantize' not in k]
    line = [sys.executable, str(TOOLS / 'test.py'), config, CHECKPOINT]
    done = subprocess.run(
        [*line, '--target', target, '--cfg-options', *options],
        cwd=workspace.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stdout[-2000:]
    assert message in done.stdout
    assert 'Traceback' not in done.stdout


def test_an_export_leaves_a_page_on_the_file(workspace):
    code, out = export(workspace, '-o', 'paged.onnx', '--verify', '2')
    assert code == 0, out
    folder = workspace.root / 'paged_report'
    assert (folder / 'report.html').exists() and 'report.html' in out
    report = json.loads((folder / 'report.json').read_text())
    assert report['kind'] == 'export' and report['layers']
    assert report['file']['target'] == 'onnxruntime'
    assert {item['equal'] for item in report['file']['outputs']} == {1.0}
    scores = {
        network: [
            item['value'] for item in report['scores'] if item['network'] == network
        ]
        for network in ('quantized', 'file')
    }
    assert scores['file'] == scores['quantized'] != []
    # The tool says the same of it, from the checkpoint and the file.
    tool = TOOLS / 'analysis_tools' / 'quant_report.py'
    line = ['config.py', CHECKPOINT, 'paged.onnx', '--images', '1', '--score', '0']
    workspace.run((tool, [*line, '--out', 'page'], OPTIONS))
    again = json.loads((workspace.root / 'page' / 'report.json').read_text())['file']
    assert {item['equal'] for item in again['outputs']} == {1.0}
    assert again['violations'] == report['file']['violations'] and again['slowest']
    options = {**OPTIONS, 'quantize.report': False}
    code, out = export(workspace, '-o', 'bare.onnx', '--verify', '0', options=options)
    assert code == 0 and not (workspace.root / 'bare_report').exists(), out
