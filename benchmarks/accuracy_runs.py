"""One run of the results table: its config, its commands, what it leaves.

OUT/DATA/ARCH/float/                 the float training, epoch_N.pth
OUT/DATA/ARCH/twin/twin.pth          its hostile twin
OUT/DATA/ARCH/rows/ROW/seed_N.py     a run's config, to be run by hand too
OUT/DATA/ARCH/rows/ROW/seed_N.log    what its commands printed
OUT/DATA/ARCH/rows/ROW/seed_N/       its work directory, with run.json
"""

from __future__ import annotations

import fcntl
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy_configs import ROOT, fill, merged, relative, write_config, write_whole
from accuracy_row import KINDS, Row
from accuracy_rows import ROWS_BY_NAME

TITLES = dict(
    mobilenet='MobileNetV2',
    regnet='RegNetX-800MF',
    resnet='ResNet-50',
    mobilenet_imagenet='MobileNetV2 from ImageNet',
)
# Trained from scratch; the other needs a checkpoint that not everybody has.
ARCHS = ('mobilenet', 'regnet', 'resnet')
# The keys of the log, and what the results call them.
METRICS = {'mAP50': 'pascal_voc/mAP', 'mAP': 'coco_style/mAP'}


class RunError(Exception):
    """A run could not be finished; the message says why."""


@dataclass(frozen=True)
class Setup:
    """What all runs have in common.

    Args:
        folder: Where everything of this data set goes.
        data_options: Keys of the configs that make them read the data set; none
            where they do so already.
        float_epochs: Epochs of the float training.
        qat_epochs: Epochs of QAT, and of the float training as long as it.
        keep: Whether checkpoints of finished runs stay.
    """

    folder: Path
    data_options: Mapping[str, Any]
    float_epochs: int
    qat_epochs: int
    keep: bool = False

    def float_checkpoint(self, arch: str) -> Path:
        """What the float training of an architecture leaves."""
        return self.folder / arch / 'float' / f'epoch_{self.float_epochs}.pth'

    def float_config(self, arch: str) -> Path:
        """The config of that training."""
        return self.folder / arch / 'float.py'

    def twin_checkpoint(self, arch: str) -> Path:
        """The hostile twin of that checkpoint."""
        return self.folder / arch / 'twin' / 'twin.pth'


@dataclass(frozen=True)
class Run:
    """A row on an architecture with a seed."""

    setup: Setup
    arch: str
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """What the progress calls it."""
        return f'{self.arch} {self.row.name} seed {self.seed}'

    @property
    def folder(self) -> Path:
        """Its work directory."""
        rows = self.setup.folder / self.arch / 'rows'
        return rows / self.row.name / f'seed_{self.seed}'

    @property
    def epochs(self) -> int:
        """The step that its last scores are logged under."""
        return (self.row.epochs or self.setup.qat_epochs) if self.row.is_trained else 1

    @property
    def before(self) -> Run | None:
        """The run whose checkpoint it starts from."""
        if self.row.after is None:
            return None
        return Run(self.setup, self.arch, ROWS_BY_NAME[self.row.after], self.seed)

    @property
    def start(self) -> Path:
        """The checkpoint it starts from."""
        if self.before is not None:
            return self.before.checkpoint
        if self.row.twin:
            return self.setup.twin_checkpoint(self.arch)
        return self.setup.float_checkpoint(self.arch)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that is tested."""
        if self.row.kind == 'test':
            return self.start
        return self.folder / f'epoch_{self.epochs}.pth'

    def own_options(self) -> dict[str, Any]:
        """What its row and its seed make of the config."""
        row = self.row
        options: dict[str, Any] = dict(randomness=dict(seed=self.seed))
        if row.mode is not None:
            # A row says itself what is fine-tuned.
            own = dict(finetune=False) if row.mode == 'ptq' else {}
            # an int may not become a dict where dicts are merged
            options['quantize'] = dict(
                dict(own, _delete_=True, mode=row.mode, report=False), **row.quantize
            )
        elif row.kind == 'train':
            options['quantize'] = False
        if row.is_trained:
            options['train_cfg'] = dict(
                max_epochs=self.epochs, val_interval=self.epochs
            )
            options['param_scheduler'] = [
                dict(type='CosineAnnealingLR', T_max=self.epochs)
            ]
            if row.lr is not None:
                options['optim_wrapper'] = dict(optimizer=dict(lr=row.lr))
        return merged(options, row.options)

    def settings(self) -> dict[str, Any]:
        """What its result depends on, beside the float checkpoint and the data."""
        settings = dict(kind=self.row.kind, twin=self.row.twin, **self.own_options())
        if self.before is not None:
            settings['before'] = self.before.settings()
        # as it is once it was written and read
        return json.loads(json.dumps(settings))

    def options(self) -> dict[str, Any]:
        """The keys of its config, beside those of the one it starts from."""
        places = dict(
            float=relative(self.setup.float_checkpoint(self.arch)),
            config=relative(self.setup.float_config(self.arch)),
        )
        paths = dict(load_from=relative(self.start), work_dir=relative(self.folder))
        own = fill(self.own_options(), places)
        data = dict(self.setup.data_options)
        if self.row.kind == 'distill' and 'model' in data:
            # the algorithm's model is two detectors
            data['model'] = dict.fromkeys(('architecture', 'teacher'), data['model'])
        return merged(merged(data, paths), own)

    def write_config(self) -> Path:
        """Write the config of this run and return where."""
        path = self.folder.with_suffix('.py')
        base = ROOT / f'configs/bccd/ssd_{self.arch}_fpn{KINDS[self.row.kind]}.py'
        # each run's detections, for intervals over images
        lines = [
            f'predictions = {relative(self.predictions)!r}',
            "detections = dict(type='DumpDetResults', out_file_path=predictions)",
            'val_evaluator = [*_base_.val_evaluator, detections]',
            'test_evaluator = val_evaluator',
        ]
        write_config(path, base, self.options(), lines)
        return path

    @property
    def predictions(self) -> Path:
        """The file with its detections on the test images."""
        return self.folder / 'predictions.pkl'

    def read(self) -> dict[str, Any] | None:
        """Its result; None while it is not finished.

        Raises:
            RunError: If the folder has a run of this name with other settings.
        """
        path = self.folder / 'run.json'
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        if record['settings'] != self.settings():
            raise RunError(
                f'{relative(self.folder)} has a run with other settings than row '
                f'{self.row.name!r} now has; remove it, or name the row differently'
            )
        return record if 'scores' in record else None

    def write(self, **more: Any) -> None:
        """Write ``run.json``; it is never seen in part."""
        record = dict(
            arch=self.arch,
            row=self.row.name,
            seed=self.seed,
            settings=self.settings(),
            **more,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / 'run.json', json.dumps(record, indent=1) + '\n')

    def execute(self, lock: int) -> dict[str, Any]:
        """Do what is left of it, and return its result.

        Args:
            lock: The file descriptor that its processes keep open.

        Raises:
            RunError: If one of its commands fails.
        """
        start = time.monotonic()
        if not (self.folder / 'run.json').is_file():
            self.write()
        if self.before is not None and not is_saved(self.checkpoint):
            self.before.read()  # of the settings that the row now has, or an error
            # Removed, where that run is finished; it is made again as it was.
            self.before.make_checkpoint(lock)
        scores = self.make_checkpoint(lock)
        config, log = self.folder.with_suffix('.py'), self.folder.with_suffix('.log')
        if scores is None:
            # either a float checkpoint, or one whose validation was interrupted
            test = self.folder / 'test'
            call(
                *(['tools/test.py', relative(config), relative(self.checkpoint)],),
                *(log, lock),
                '--work-dir',
                relative(test),
            )
            scores = read_test(test)
        seconds = round(time.monotonic() - start)
        self.write(scores=scores, seconds=seconds)
        if not self.setup.keep:
            self.remove_checkpoints()
            if self.before is not None:
                self.before.remove_checkpoints()
        return self.read()

    def make_checkpoint(self, lock: int) -> dict[str, float] | None:
        """Write its config and train or calibrate, unless that is done.

        Returns:
            The scores that the training ended with, if it did so just now.

        Raises:
            RunError: If the training fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.write_config()
        if self.row.kind == 'test' or is_saved(self.checkpoint):
            return None
        command = ['tools/train.py', relative(config)]
        if self.row.is_trained:
            command.append('--resume')
        call(command, self.folder.with_suffix('.log'), lock)
        return read_validation(self.folder, self.epochs)

    def remove_checkpoints(self) -> None:
        """Remove what nothing needs any more; logs and predictions stay.

        The first seed's last checkpoint stays, for plots and for export.
        """
        for path in self.folder.glob('*.pth'):
            if self.seed != 0 or path != self.checkpoint:
                path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other processes off a folder; yield what the lock is held by.

    A process that inherits the file keeps the lock, so a training whose parent
    was killed is not started a second time beside itself.

    Raises:
        RunError: If another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f'another process works in {relative(folder)}; wait for it, or end it'
            ) from None
        yield file.fileno()


def call(command: Sequence[str], log: Path, lock: int, *more: str) -> None:
    """Run a script of this repository, its output appended to a log.

    Raises:
        RunError: If it fails; the message has the last line it printed.
    """
    command = [*command, *more]
    with open(log, 'a') as file:
        print(f'$ python {shlex.join(command)}', file=file, flush=True)
        code = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
        ).returncode
    if code != 0:
        *_, last = log.read_text().split('\n')[:-1]
        raise RunError(
            f'{command[0]} ended with exit code {code} ({last.strip()}); '
            f'see {relative(log)}'
        )


def is_saved(checkpoint: Path) -> bool:
    """Whether a training saved this checkpoint last, and completely."""
    last = checkpoint.parent / 'last_checkpoint'
    named = last.read_text().strip() if last.is_file() else ''
    return checkpoint.exists() and Path(named).name == checkpoint.name


def read_validation(folder: Path, step: int) -> dict[str, float] | None:
    """The scores of the validation after the last epoch; None if there was none."""
    found = None
    for entry in read_log(folder):
        if METRICS['mAP'] in entry and entry['step'] == step:
            found = {name: entry[key] for name, key in METRICS.items()}
    return found


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """What a training wrote to its JSON logs, that of a resumed one last."""
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            # a killed run may leave a line in part
            if line.endswith('}'):
                yield json.loads(line)


def read_test(folder: Path) -> dict[str, float]:
    """The scores of the last test in a folder.

    Raises:
        RunError: If there is none.
    """
    found = folder.glob('*/*.json')
    # MMEngine names the scores after their folder; the report lies beside them.
    paths = sorted(path for path in found if path.stem == path.parent.name)
    if not paths:
        raise RunError(f'{relative(folder)} has no scores')
    scores = json.loads(paths[-1].read_text())
    return {name: scores[key] for name, key in METRICS.items()}


def train_float(setup: Setup, arch: str, lock: int) -> None:
    """Train the float detector, unless that is done; go on with what was begun.

    Raises:
        RunError: If the training fails.
    """
    epochs = setup.float_epochs
    folder = setup.float_checkpoint(arch).parent
    options = dict(
        setup.data_options,
        work_dir=relative(folder),
        randomness=dict(seed=0),
        train_cfg=dict(max_epochs=epochs, val_interval=min(10, epochs)),
    )
    cosine = f'dict(_base_.param_scheduler[1], end={epochs}, T_max={epochs})'
    write_config(
        setup.float_config(arch),
        ROOT / f'configs/bccd/ssd_{arch}_fpn.py',
        options,
        [f'param_scheduler = [_base_.param_scheduler[0], {cosine}]'],
    )
    if not is_saved(setup.float_checkpoint(arch)):
        command = ['tools/train.py', relative(setup.float_config(arch)), '--resume']
        call(command, folder.with_suffix('.log'), lock)


def make_twin(setup: Setup, arch: str, lock: int) -> None:
    """Write the hostile twin of the float checkpoint, unless it is there.

    Raises:
        RunError: If that fails.
    """
    twin = setup.twin_checkpoint(arch)
    if not twin.exists():
        twin.parent.mkdir(parents=True, exist_ok=True)
        paths = (setup.float_config(arch), setup.float_checkpoint(arch), twin)
        command = ['benchmarks/hostile_twin.py', *map(relative, paths)]
        call(command, twin.with_suffix('.log'), lock)
