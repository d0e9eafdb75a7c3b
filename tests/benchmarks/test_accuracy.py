"""The command of the results table: what it selects, resumes and reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import accuracy
import accuracy_runs
import pytest
from accuracy_row import Row
from accuracy_rows import ROWS
from accuracy_runs import ROOT, Run, RunError, Setup
from run_tools import python_path

from mmquant_jacinto.config.quantize_config import QuantizeConfig


@pytest.fixture(autouse=True)
def size(monkeypatch):
    monkeypatch.setenv('INPUT_SIZE', '64')


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path / 'bccd', {}, float_epochs=3, qat_epochs=2)


@pytest.fixture
def called(monkeypatch):
    """The commands that were run, by a stand-in that leaves what they would."""
    commands = []

    def call(command, log, lock, *more):
        command = [*command, *more]
        commands.append(command)
        if command[0] == 'benchmarks/hostile_twin.py':
            (ROOT / command[3]).touch()
            return
        config = Path(ROOT / command[1]).read_text()
        scope = {}
        plain = [x for x in config.splitlines() if '_base_.' not in x]
        exec('\n'.join(plain).replace('val_evaluator', '0'), scope)
        folder = ROOT / scope['work_dir']
        if command[0] == 'tools/test.py':
            leave_test(folder / 'test')
        else:
            epochs = scope.get('train_cfg', {}).get('max_epochs', 1)
            leave_training(folder, epochs)

    monkeypatch.setattr(accuracy_runs, 'call', call)
    return commands


SCORES = {'pascal_voc/mAP': 0.8, 'coco_style/mAP': 0.4}


def leave_training(folder, epochs, step=None):
    (folder / '2026' / 'vis_data').mkdir(parents=True, exist_ok=True)
    (folder / f'epoch_{epochs}.pth').touch()
    (folder / 'last_checkpoint').write_text(f'/elsewhere/epoch_{epochs}.pth')
    lines = [dict(loss=1.0, step=1), dict(SCORES, step=step or epochs)]
    text = '\n'.join(map(json.dumps, lines)) + '\n{"loss": 0.'
    (folder / '2026' / 'vis_data' / 'scalars.json').write_text(text)


def leave_test(folder):
    (folder / '2026').mkdir(parents=True, exist_ok=True)
    (folder / '2026' / '2026.json').write_text(json.dumps(SCORES))
    (folder / '2026' / 'report.json').write_text('{"verdict": {}}')


def row(name):
    return next(row for row in ROWS if row.name == name)


def test_names_and_configs_of_rows(setup):
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        if row.kind in ('ptq', 'qat', 'distill'):
            assert row.mode == ('ptq' if row.kind == 'ptq' else 'qat')
            assert QuantizeConfig.parse(dict(row.quantize, mode=row.mode))
        else:
            assert not row.quantize
    for arch in accuracy_runs.TITLES:
        for row in ROWS:
            run = Run(setup, arch, row, 0)
            compile(run.write_config().read_text(), row.name, 'exec')


@pytest.mark.parametrize('name', ['w4a4_ptq', 'int8_jacinto_qat', 'float_longer'])
def test_config_says_what_the_row_says(setup, name):
    pytest.importorskip('mmdet')
    from mmengine.config import Config

    from mmquant_jacinto.runners.starting.inherited_rates import scale_rates

    run = Run(setup, 'mobilenet', row(name), 5)
    cfg = Config.fromfile(run.write_config())
    assert cfg.randomness.seed == 5
    assert cfg.val_evaluator[-1].type == 'DumpDetResults'
    assert [metric.type for metric in cfg.val_evaluator[:2]] == ['VOCMetric'] * 2
    assert (ROOT / cfg.load_from).resolve() == setup.float_checkpoint('mobilenet')
    config = QuantizeConfig.parse(cfg.quantize)
    if name == 'float_longer':
        assert config is None
        qat = Run(setup, 'mobilenet', row('int8_jacinto_qat'), 5)
        schedule = Config.fromfile(qat.write_config())
        scale_rates(schedule, from_checkpoint=True)
        for key in ('train_cfg', 'optim_wrapper', 'param_scheduler'):
            assert cfg[key] == schedule[key]
        return
    assert config.mode == run.row.kind
    assert config.bits == row(name).quantize['bits']
    if name == 'int8_jacinto_qat':
        assert cfg.train_cfg.max_epochs == cfg.param_scheduler[0].T_max == 2
        assert 'Learning rate 1.5e-05: 0.01 times' in scale_rates(cfg, True)
    else:
        assert config.overrides == row(name).quantize['overrides']
        assert config.calibration.num_images == 128


def test_options_reach_the_config_with_paths_filled_in(setup):
    pytest.importorskip('mmdet')
    from mmengine.config import Config

    options = dict(teacher='{float}', default_hooks=dict(logger=dict(interval=3)))
    taught = Row('taught', 'taught', 'qat', dict(bits=4), 7, 1e-3, options)
    cfg = Config.fromfile(Run(setup, 'mobilenet', taught, 0).write_config())
    assert cfg.teacher.endswith('mobilenet/float/epoch_3.pth')
    assert cfg.default_hooks.logger.interval == 3
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 2
    assert cfg.train_cfg.max_epochs == 7
    assert cfg.optim_wrapper.optimizer.lr == 1e-3


def test_other_data(tmp_path):
    pytest.importorskip('mmdet')
    from mmengine.config import Config
    from voc_folder import VOCFolder

    data = VOCFolder('mine', tmp_path / 'mine', 'trainval', 'test', ('a', 'b'), 9)
    setup = Setup(tmp_path / 'out', accuracy.data_options(data), 3, 2)
    cfg = Config.fromfile(Run(setup, 'regnet', row('w4a8_ptq'), 0).write_config())
    assert cfg.model.bbox_head.num_classes == 2
    for loader, split in (
        (cfg.train_dataloader, 'trainval'),
        (cfg.val_dataloader, 'test'),
    ):
        assert loader.dataset.data_root == str(tmp_path / 'mine')
        assert loader.dataset.ann_file == f'ImageSets/Main/{split}.txt'
        assert loader.dataset.metainfo.classes == ('a', 'b')
    assert cfg.train_dataloader.dataset.pipeline[2].type == 'Resize'


def test_a_second_command_makes_only_what_is_left(setup, called):
    names = ['float', 'int8_jacinto_ptq', 'int8_jacinto_qat', 'twin']
    runs = accuracy.select_runs(setup, ['mobilenet'], [row(n) for n in names], [0, 1])
    assert [(run.row.name, run.seed) for run in runs] == [
        *((name, 0) for name in names),
        ('int8_jacinto_ptq', 1),
        ('int8_jacinto_qat', 1),
    ]
    assert accuracy.execute(setup, runs) == []
    kinds = [command[0] for command in called]
    assert kinds == [
        'tools/train.py',
        'benchmarks/hostile_twin.py',
        'tools/test.py',
        *['tools/train.py'] * 2,
        'tools/test.py',
        *['tools/train.py'] * 2,
    ]
    assert ['--resume' in command for command in called[3:5]] == [False, True]
    results = accuracy.collect(setup)
    assert len(results) == len(runs)
    assert all(result['scores'] == dict(mAP50=0.8, mAP=0.4) for result in results)
    # the first seed's checkpoint is for plots
    assert runs[2].checkpoint.exists() and not runs[5].checkpoint.exists()
    called.clear()
    assert accuracy.execute(setup, runs) == []
    assert called == []


def test_row_that_starts_from_another_rows_checkpoint(setup, called):
    names = ['w4a4_finetune', 'w4a4_finetune_lsq']
    runs = accuracy.select_runs(setup, ['mobilenet'], [row(n) for n in names], [0, 1])
    assert accuracy.execute(setup, runs) == []
    trained = [command[1] for command in called]
    # The second seed's calibration was removed when it was finished.
    assert [Path(path).parts[-2:] for path in trained[1:]] == [
        ('w4a4_finetune', 'seed_0.py'),
        ('w4a4_finetune_lsq', 'seed_0.py'),
        ('w4a4_finetune', 'seed_1.py'),
        ('w4a4_finetune', 'seed_1.py'),
        ('w4a4_finetune_lsq', 'seed_1.py'),
    ]
    start = accuracy_runs.relative(runs[0].checkpoint)
    assert f'load_from = {start!r}' in (ROOT / trained[2]).read_text()
    assert runs[1].settings()['before'] == runs[0].settings()
    assert len(accuracy.collect(setup)) == 4
    left = [run.checkpoint.exists() for run in runs]
    assert left == [True, True, False, False]


def test_killed_between_the_last_checkpoint_and_its_scores(setup, called):
    run = Run(setup, 'mobilenet', row('int8_jacinto_qat'), 0)
    leave_training(run.folder, epochs=2, step=1)
    leave_training(setup.float_checkpoint('mobilenet').parent, epochs=3)
    run.write()
    assert run.read() is None
    assert accuracy.execute(setup, [run]) == []
    assert [command[0] for command in called] == ['tools/test.py']
    assert run.read()['scores'] == dict(mAP50=0.8, mAP=0.4)


def test_checkpoint_that_was_being_written_is_not_taken(setup, called):
    run = Run(setup, 'mobilenet', row('float_longer'), 0)
    leave_training(setup.float_checkpoint('mobilenet').parent, epochs=3)
    leave_training(run.folder, epochs=1)
    (run.folder / 'epoch_2.pth').touch()
    assert accuracy.execute(setup, [run]) == []
    assert [command[0] for command in called] == ['tools/train.py']


def test_row_that_was_changed_is_refused(setup, called, monkeypatch):
    old = Row('mine', 'mine', 'ptq', dict(bits=8))
    assert accuracy.execute(setup, [Run(setup, 'mobilenet', old, 0)]) == []
    new = Row('mine', 'mine', 'ptq', dict(bits=4))
    (failure,) = accuracy.execute(setup, [Run(setup, 'mobilenet', new, 0)])
    assert 'other settings' in failure
    monkeypatch.setattr(accuracy, 'ROWS', (new, row('float')))
    assert accuracy.execute(setup, [Run(setup, 'mobilenet', row('float'), 0)]) == []
    # the table of the rest is written all the same
    assert [result['row'] for result in accuracy.collect(setup)] == ['float']
    assert 'other settings' in accuracy.state_of(Run(setup, 'mobilenet', new, 0))


def test_a_failure_does_not_end_the_others(setup, called, monkeypatch):
    good = accuracy_runs.call

    def call(command, *args):
        if 'int8_jacinto_ptq' in command[1]:
            raise RunError('tools/train.py ended with exit code 1')
        good(command, *args)

    monkeypatch.setattr(accuracy_runs, 'call', call)
    rows = [row('int8_jacinto_ptq'), row('float')]
    failures = accuracy.execute(
        setup, accuracy.select_runs(setup, ['regnet'], rows, [0])
    )
    assert len(failures) == 1 and 'regnet int8_jacinto_ptq seed 0' in failures[0]
    assert [result['row'] for result in accuracy.collect(setup)] == ['float']


def test_folder_in_use_is_left_alone(setup, called):
    with accuracy_runs.locked(setup.folder / 'resnet'):
        (failure,) = accuracy.execute(setup, [Run(setup, 'resnet', row('float'), 0)])
    assert 'another process' in failure and called == []


def test_lock_is_kept_by_what_it_was_handed_to(tmp_path):
    code = 'import sys, time; print(flush=True); sys.stdin.read()'
    with accuracy_runs.locked(tmp_path) as lock:
        child = subprocess.Popen(
            [sys.executable, '-c', code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(lock,),
        )
        child.stdout.readline()
    with (
        pytest.raises(RunError, match='another process'),
        accuracy_runs.locked(tmp_path),
    ):
        pass
    child.communicate(b'')
    with accuracy_runs.locked(tmp_path):
        pass


def test_command_that_fails_names_its_last_line(tmp_path):
    log = tmp_path / 'x.log'
    with pytest.raises(RunError, match='exit code 1 .*no_such_config'):
        with accuracy_runs.locked(tmp_path) as lock:
            accuracy_runs.call(
                ['-c', 'import sys; sys.exit("no_such_config")'], log, lock
            )


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, 'benchmarks/accuracy.py', *arguments],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': python_path(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--archs', 'vgg'], 'no architecture is called'),
        (['--rows', 'int7*'], 'no row is called'),
        (['--data', '/nowhere'], 'not in VOC layout'),
        ([], 'BCCD_ROOT'),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, arguments, message):
    done = run_command(
        *arguments, '--out', str(tmp_path / 'out'), BCCD_ROOT=str(tmp_path / 'none')
    )
    assert done.returncode == 1
    assert done.stdout.startswith('error: ') and message in done.stdout
    assert not (tmp_path / 'out').exists()


def voc_folder(root):
    (root / 'ImageSets' / 'Main').mkdir(parents=True)
    (root / 'Annotations').mkdir()
    for split in ('train', 'val'):
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text(f'{split}0\n')
        annotation = '<annotation><object><name>cell</name></object></annotation>'
        (root / 'Annotations' / f'{split}0.xml').write_text(annotation)
    return root


def test_list_and_settings_that_differ(tmp_path):
    data = [
        '--data',
        str(voc_folder(tmp_path / 'mine')),
        '--out',
        str(tmp_path / 'out'),
    ]
    done = run_command(*data, '--list', '--rows', 'twin*', '--seeds', '4')
    assert done.returncode == 0, done.stdout
    twins = [(row.name, 0 if row.kind == 'test' else 4) for row in ROWS if row.twin]
    assert done.stdout.splitlines() == [
        f'{arch} {name} seed {seed}'
        for arch in accuracy_runs.ARCHS
        for name, seed in twins
    ]
    assert run_command(*data, '--report-only').returncode == 0
    assert (tmp_path / 'out' / 'mine' / 'results_table.md').exists()
    done = run_command(*data, '--report-only', '--input-size', '320')
    assert done.returncode == 1 and 'input_size=256, not 320' in done.stdout
