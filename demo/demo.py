"""The main job in small: train a detector, quantize it both ways, compare.

Every step is a command that a user would type, and is printed. A second run takes
over what an earlier one finished, and resumes the training that it interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from digits import compose_digits
from process_settings import set_process_defaults
from report import draw_detections, write_table
from scores import choose_images, find_interval, read_detections, read_truths
from voc_folder import VOCFolder, read_voc_folder

ROOT = Path(__file__).resolve().parent.parent
BCCD = ROOT.parent / 'shared' / 'data' / 'bccd'
CONFIG = 'configs/demo/ssd_mobilenet_fpn'
NUM_PICTURES = 3
METRIC = 'pascal_voc/mAP'
# The training images that float training sees, and QAT, in all epochs together.
IMAGES = dict(full=(3700, 820), short=(205, 205))


@dataclass(frozen=True)
class Stage:
    """One of the three models of the demo.

    Args:
        title: What the user calls it.
        config: Its config file.
        epochs: The number of epochs that it is trained for.
        folder: Where its checkpoints and results go.
    """

    title: str
    config: str
    epochs: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that the finished training leaves."""
        return self.folder / f'epoch_{self.epochs}.pth'

    @property
    def predictions(self) -> Path:
        """The file with its detections on the test set."""
        return self.folder / 'predictions.pkl'

    @property
    def is_interrupted(self) -> bool:
        """Whether an earlier run began the training and did not finish it."""
        return (self.folder / 'last_checkpoint').exists()

    def read_accuracy(self) -> float | None:
        """Return the accuracy of the last test, None if there was none."""
        found = (self.folder / 'test').glob('*/*.json')
        # MMEngine names the scores after their folder; the report lies beside them.
        logs = sorted(path for path in found if path.stem == path.parent.name)
        if not logs or logs[-1].stat().st_mtime < self.checkpoint.stat().st_mtime:
            return None
        return json.loads(logs[-1].read_text())[METRIC]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--data',
        type=Path,
        default=os.environ.get('DATA') or None,
        help='data in VOC layout; by default $DATA, else BCCD where it is at hand, '
        "else handwritten digits on photographs, both scikit-learn's",
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'work_dirs' / 'demo',
        help='where everything goes (default: work_dirs/demo)',
    )
    parser.add_argument(
        '--short',
        action='store_true',
        help='a few epochs only: every step runs, but the detector is poor',
    )
    return parser.parse_args()


def find_data(given: Path | None, out: Path) -> VOCFolder:
    """Return the data to use, composed here if there is nothing else."""
    if given is not None:
        return read_voc_folder(given.resolve())
    if BCCD.is_dir():
        return read_voc_folder(BCCD)
    return compose_digits(out / 'digits')


def set_environment(data: VOCFolder, epochs: int, qat_epochs: int) -> dict[str, str]:
    """Set what the demo's configs read, and return it."""
    settings = dict(
        INPUT_SIZE='192',
        DEMO_DATA=str(data.root),
        DEMO_CLASSES=','.join(data.classes),
        DEMO_TRAIN_SPLIT=data.train_split,
        DEMO_TEST_SPLIT=data.test_split,
        DEMO_EPOCHS=str(epochs),
        DEMO_QAT_EPOCHS=str(qat_epochs),
    )
    os.environ.update(settings)
    set_process_defaults()
    print('The configs of the demo read these settings from the environment:')
    for name, value in settings.items():
        print(f'  export {name}={shlex.quote(value)}')
    return settings


def check_settings(folder: Path, settings: dict[str, str]) -> None:
    """Refuse to mix the results of this run with those of a different one."""
    path = folder / 'settings.json'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + '\n')
    elif json.loads(path.read_text()) != settings:
        raise SystemExit(
            f'error: {folder} has results on other data of the same name or with '
            'other settings; remove it, or choose another folder with --out'
        )


def run(*command: str | Path) -> None:
    """Run a script of this repository, its output shown as it comes.

    Raises:
        SystemExit: If the script fails.
    """
    arguments = [
        os.path.relpath(part) if isinstance(part, Path) else part for part in command
    ]
    print(f'\n$ python {shlex.join(arguments)}', flush=True)
    code = subprocess.run([sys.executable, *arguments]).returncode
    if code != 0:
        raise SystemExit(f'error: {arguments[0]} failed with exit code {code}')


def train(stage: Stage, load_from: Path | None = None) -> None:
    """Train or calibrate a model, unless that is done already."""
    if stage.checkpoint.exists():
        print(f'\n{stage.title}: found {os.path.relpath(stage.checkpoint)}')
        return
    command = ['tools/train.py', stage.config, '--work-dir', stage.folder]
    if stage.is_interrupted:
        command.append('--resume')
    elif load_from is not None:
        command += ['--cfg-options', f'load_from={os.path.relpath(load_from)}']
    run(*command)


def test(stage: Stage) -> float:
    """Test a model, unless that is done already, and return its accuracy."""
    if stage.read_accuracy() is None or not stage.predictions.exists():
        run(
            *('tools/test.py', stage.config, stage.checkpoint),
            *('--work-dir', stage.folder / 'test', '--out', stage.predictions),
        )
    return stage.read_accuracy()


def find_page(folder: Path) -> Path | None:
    """Return the newest report page that the runs of a folder left."""
    pages = sorted(folder.glob('**/report.html'), key=lambda page: page.stat().st_mtime)
    return pages[-1] if pages else None


def main() -> None:
    start = time.monotonic()
    args = parse_args()
    out = args.out.resolve()
    data = find_data(args.data, out)
    os.chdir(ROOT)

    epochs, qat_epochs = (
        max(1, round(images / data.num_train))
        for images in IMAGES['short' if args.short else 'full']
    )
    settings = set_environment(data, epochs, qat_epochs)
    folder = out / f'{data.name}_{epochs}+{qat_epochs}_epochs'
    check_settings(folder, settings)
    stages = dict(
        float=Stage('float', f'{CONFIG}.py', epochs, folder / 'float'),
        ptq=Stage('8 bits, calibrated', f'{CONFIG}_ptq.py', 1, folder / 'ptq'),
        qat=Stage('8 bits, QAT', f'{CONFIG}_qat.py', qat_epochs, folder / 'qat'),
    )
    train(stages['float'])
    train(stages['ptq'], load_from=stages['float'].checkpoint)
    train(stages['qat'], load_from=stages['float'].checkpoint)
    accuracies = {name: test(stage) for name, stage in stages.items()}

    truths = read_truths(stages['float'].config)
    found = {
        name: read_detections(stage.predictions, truths)
        for name, stage in stages.items()
    }
    known = list(truths.values())
    size = settings['INPUT_SIZE']
    results = dict(
        dataset=data.name,
        model='SSD-FPN MobileNetV2',
        resolution=f'{size}x{size}',
        **accuracies,
        intervals={name: find_interval(found[name], known) for name in found},
        epochs=epochs,
        qat_epochs=qat_epochs,
    )
    print()
    write_table(results, out)
    picture = out / 'detections.png'
    chosen, threshold = choose_images(list(found.values()), known, NUM_PICTURES)
    draw_detections(
        {stages[name].title: [item[i] for i in chosen] for name, item in found.items()},
        [Path(known[i].path) for i in chosen],
        threshold,
        data.classes,
        picture,
    )
    print(f'{time.monotonic() - start:.0f} s in all. The table and the picture are in')
    print(f'{os.path.relpath(out)}: results.json, results.md, {picture.name}')
    page = find_page(stages['ptq'].folder)
    if page is not None:
        print(f'What quantization did, layer by layer: {os.path.relpath(page)}')


if __name__ == '__main__':
    main()
