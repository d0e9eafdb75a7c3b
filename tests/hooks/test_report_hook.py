"""Runs leave a report beside their logs, and are never lost for it."""

import base64
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend
from mmengine.visualization.vis_backend import force_init_env
from PIL import Image
from ptq_runs import CHECKPOINT, ptq_config
from qat_runs import EMA, score_of
from toy_runner import PTQ, QAT, differences, log_of, make_config, state_of, train

from mmquant_jacinto import QuantCalibrateModule, QuantizeError
from mmquant_jacinto.config.quantize_config import QuantizeConfig
from mmquant_jacinto.hooks import report_hook
from mmquant_jacinto.report.build import build_report


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('float')
    train(make_config(work_dir, None))
    return work_dir / 'epoch_6.pth'


def pages(work_dir):
    return sorted(Path(work_dir).glob('*/report.html'))


def data(work_dir):
    (page,) = pages(work_dir)
    return json.loads(page.with_name('report.json').read_text())


def generous(**changes):
    """A report that has all the time that it needs."""
    return dict(custom_hooks=[dict(type='ReportHook', share=1000.0)], **changes)


def test_a_calibration_leaves_a_page(tmp_path, float_checkpoint):
    runner = train(ptq_config(tmp_path, float_checkpoint, **generous()))
    report = data(tmp_path)
    assert report['kind'] == 'calibration' and report['images'] == 8
    assert [layer['module'] for layer in report['layers'] if layer['is_output']]
    scores = {score['metric']: score['value'] for score in report['scores']}
    assert scores['accuracy'] > 0.5
    assert report['skipped'] == [] and report['trials']
    assert 'of the time of the calibration' in log_of(tmp_path)
    assert not runner.model.training


@pytest.mark.parametrize('grows', [True, False])
def test_ranges_that_moved_at_the_end_are_told(
    grows, tmp_path, float_checkpoint, monkeypatch
):
    step, first = QuantCalibrateModule.calibrate_step, []

    def same_images(self, batch, *others):
        # Those of the second half reach twice as far, or are the first once more.
        first.append(first[0] if first else batch['inputs'])
        factor = 2.0 if grows and len(first) > 2 else 1.0
        return step(self, {**batch, 'inputs': first[0] * factor}, *others)

    monkeypatch.setattr(QuantCalibrateModule, 'calibrate_step', same_images)
    runner = train(ptq_config(tmp_path, float_checkpoint))
    assert runner.train_loop.growth is not None
    told = [f for f in data(tmp_path)['findings'] if 'too few images' in f['cause']]
    assert len(told) == grows


def test_it_changes_nothing_of_the_run(tmp_path, float_checkpoint):
    for name, value in (('with', True), ('without', False)):
        quantize = dict(PTQ, report=value)
        folder = tmp_path / name
        train(ptq_config(folder, float_checkpoint, quantize, **generous()))
    ours, theirs = (state_of(tmp_path / n / CHECKPOINT) for n in ('with', 'without'))
    assert differences(ours, theirs) == []


def test_a_training_leaves_curves_and_what_froze(tmp_path):
    train(make_config(tmp_path, QAT, **generous()))
    report = data(tmp_path)
    assert report['kind'] == 'training'
    assert len(report['curves']['scalars']['loss']) == 24
    assert any(name.startswith('range/') for name in report['curves']['scalars'])
    assert len(report['curves']['frozen']) == 2
    page = pages(tmp_path)[0].read_text()
    assert 'ranges that moved most' in page and 'frozen from epoch' in page


def test_averaged_weights_are_those_of_the_page_and_are_put_back(tmp_path):
    hooks = [EMA, dict(type='ReportHook', share=1000.0)]
    runner = train(make_config(tmp_path, QAT, custom_hooks=hooks))
    kept = state_of(tmp_path / 'epoch_6.pth')
    present = runner.model.module.state_dict()
    averages = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    averaged = averages.ema_model.module.state_dict()
    # The checkpoint has the averages in the place of the weights.
    average = averaged['head.weight'].cpu()
    assert torch.equal(kept['head.weight'], average)
    assert not torch.equal(present['head.weight'].cpu(), average)
    assert data(tmp_path)['layers']


def test_a_test_leaves_a_page(tmp_path, qat_dir):
    score = score_of(qat_dir / 'epoch_6.pth', tmp_path, **generous())
    report = data(tmp_path)
    assert report['kind'] == 'test'
    scores = {item['metric']: item['value'] for item in report['scores']}
    assert scores['accuracy'] == pytest.approx(score['accuracy'], rel=1e-4)


def test_a_test_builds_no_training_for_its_page(tmp_path, qat_dir, monkeypatch):
    def refuse(self, loop):
        raise AssertionError('the training set was opened')

    monkeypatch.setattr(Runner, 'build_train_loop', refuse)
    score_of(qat_dir / 'epoch_6.pth', tmp_path, **generous())
    assert data(tmp_path)['scores']


def test_a_test_without_time_has_its_scores_and_says_what_measures_the_rest(
    tmp_path, qat_dir
):
    hooks = [dict(type='ReportHook', share=1e-6)]
    score = score_of(qat_dir / 'epoch_6.pth', tmp_path, custom_hooks=hooks)
    report = data(tmp_path)
    assert report['layers'] == [] and report['images'] == 0
    assert 'all that is measured of layers' in report['skipped']
    scores = {item['metric']: item['value'] for item in report['scores']}
    assert scores['accuracy'] == pytest.approx(score['accuracy'], rel=1e-4)
    assert 'quant_report.py CONFIG CHECKPOINT' in pages(tmp_path)[0].read_text()


def test_a_calibration_without_time_measures_one_image(tmp_path, float_checkpoint):
    hooks = [dict(type='ReportHook', share=1e-6)]
    train(ptq_config(tmp_path, float_checkpoint, custom_hooks=hooks))
    report = data(tmp_path)
    assert report['layers'] and report['images'] == 1 and report['trials'] == []


def test_it_can_be_switched_off(tmp_path, float_checkpoint):
    train(ptq_config(tmp_path, float_checkpoint, dict(PTQ, report=False)))
    assert pages(tmp_path) == []


@pytest.mark.parametrize('value', ['yes', 1, None])
def test_another_value_is_refused(value):
    with pytest.raises(QuantizeError, match=r'quantize\.report=.*is not a switch'):
        QuantizeConfig.parse(dict(mode='ptq', report=value))


def test_without_a_library_the_calibration_is_whole(
    tmp_path, float_checkpoint, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    train(ptq_config(tmp_path, float_checkpoint))
    assert (tmp_path / CHECKPOINT).exists() and pages(tmp_path) == []
    warned = [line for line in log_of(tmp_path).splitlines() if 'No report in' in line]
    assert len(warned) == 1 and 'jinja2' in warned[0] and 'pip install' in warned[0]


def test_a_folder_that_cannot_be_written_is_named_once(
    tmp_path, float_checkpoint, monkeypatch
):
    def refuse(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', refuse)
    runner = train(ptq_config(tmp_path, float_checkpoint))
    monkeypatch.undo()
    assert (tmp_path / CHECKPOINT).exists()
    warned = [line for line in log_of(tmp_path).splitlines() if 'No report in' in line]
    assert len(warned) == 1 and runner.log_dir in warned[0]
    assert 'No space left' in warned[0]


@VISBACKENDS.register_module()
class KeptImages(BaseVisBackend):
    """Stands for a service elsewhere."""

    def _init_env(self):
        self.images = {}

    @property
    @force_init_env
    def experiment(self):
        return self

    @force_init_env
    def add_image(self, name, image, step=0, **kwargs):
        self.images[name] = image


def test_pictures_go_to_services(tmp_path, float_checkpoint, monkeypatch):
    content = io.BytesIO()
    Image.new('RGB', (6, 4), (255, 0, 0)).save(content, format='jpeg', quality=95)
    address = 'data:image/jpeg;base64,' + base64.b64encode(content.getvalue()).decode()

    def with_pictures(*args, **kwargs):
        return build_report(*args, **kwargs)[0], [address, address]

    monkeypatch.setattr(report_hook, 'build_report', with_pictures)
    cfg = ptq_config(tmp_path, float_checkpoint, **generous())
    backends = [dict(type='LocalVisBackend'), dict(type='KeptImages')]
    cfg.visualizer = dict(type='Visualizer', vis_backends=backends)
    runner = train(cfg)
    assert pages(tmp_path)
    kept = runner.visualizer.get_backend('KeptImages').images
    assert list(kept) == ['report_detections_0', 'report_detections_1']
    shown = kept['report_detections_0']
    assert shown.shape == (4, 6, 3)
    assert (shown[..., 0] > 240).all() and (shown[..., 1:] < 15).all()
    # Those on disk are in the page.
    assert not list(tmp_path.glob('*/vis_data/vis_image/*'))
