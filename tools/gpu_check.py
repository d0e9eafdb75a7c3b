"""What shall be known of a GPU: tests, waiting, times, trainings, the zoo.

python tools/gpu_check.py --pack             packs what it needs there
bash tools/gpu_check.sh                      unpacks it and runs this on a GPU
python tools/gpu_check.py --device cpu       tries the stages on a CPU

Each stage is a process of its own with a time limit, and survives the failure of the
one before. All that is found goes to gpu_check.json, what was printed to logs/.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import torch

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
ZOO = ('carafe', 'dcn', 'dcnv2', 'guided_anchoring')
STEP_TIME = 'tools/gpu/step_time.py'
LAST_LINES = 12  # of the log of a stage that failed


class Stage(NamedTuple):
    """A command with a time limit.

    Args:
        command (Callable): Arguments behind ``python``, from those of this script.
        results (Callable): What it found, from the same.
        limit (float): Seconds.
        needs_mmdet (bool): Whether it waits for MMDetection.
    """

    command: Callable[[argparse.Namespace], list[str]]
    results: Callable[[argparse.Namespace], Any]
    limit: float
    needs_mmdet: bool = False


def pytest_stage(name: str, limit: float, *files: str) -> Stage:
    def command(args: argparse.Namespace) -> list[str]:
        processes = []
        if importlib.util.find_spec('xdist') and args.device != 'cpu':
            processes = ['-n', str(max(1, min(14, (os.cpu_count() or 1) - 2)))]
            version = importlib.metadata.version('pytest-xdist').split('.')
            if (int(version[0]), int(version[1])) >= (3, 2):
                processes += ['--dist', 'worksteal']
        xml = f'--junitxml={args.out / "logs" / name}.xml'
        # Each test by name as it ends: what was interrupted writes no summary.
        options = ['-v', '-p', 'no:cacheprovider', '--tb=short', xml]
        return ['-m', 'pytest', *files, *options, *processes]

    def results(args: argparse.Namespace) -> dict[str, Any]:
        logs = args.out / 'logs'
        return read_junit(logs / f'{name}.xml') or read_log(logs / f'{name}.log')

    return Stage(command, results, limit)


def script_stage(
    name: str, script: str, limit: float, *more: str, needs_mmdet: bool = False
) -> Stage:
    def command(args: argparse.Namespace) -> list[str]:
        target = args.out / 'logs' / f'{name}.json'
        device = ['--device', args.device, '--json', str(target)]
        folders = [item.format(out=args.out) for item in more]
        return [str(ROOT / script), *device, *folders]

    def results(args: argparse.Namespace) -> Any:
        path = args.out / 'logs' / f'{name}.json'
        return json.loads(path.read_text()) if path.exists() else None

    return Stage(command, results, limit, needs_mmdet)


def zoo_stage(limit: float) -> Stage:
    def command(args: argparse.Namespace) -> list[str]:
        options = ['--device', args.device, '--amp', '--jobs', '10']
        options += ['--timeout', '120', '--work-dir', str(args.out / 'logs/zoo')]
        return [str(TOOLS / 'sweep.py'), *args.zoo, *options]

    def results(args: argparse.Namespace) -> dict[str, Any]:
        # One file for each model: what is there counts when the time is up.
        paths = sorted((args.out / 'logs/zoo').glob('*.json'))
        return dict(summarize(json.loads(path.read_text())) for path in paths)

    return Stage(command, results, limit, needs_mmdet=True)


def summarize(report: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a row of ``docs/zoo.md`` says, by name of the config."""
    keys = ('status', 'failed', 'error', 'reload', 'no loss', 'wall')
    found = {key: report[key] for key in keys if key in report}
    found['least_db'] = {
        bits: result['least'] for bits, result in report.get('sqnr', {}).items()
    }
    if 'qat' in report:
        qat = report['qat']
        found['qat_finite'] = qat['finite']
        found['lost_gradients'] = len(qat['lost_gradients'])
    return report['config'], found


# By worth.
STAGES = {
    'cuda': pytest_stage('cuda', 90, 'tests/gpu/test_cuda.py'),
    'step_time': script_stage(
        'step_time', STEP_TIME, 100, '--part', 'first', '--profiles', '{out}'
    ),
    'tests': pytest_stage('tests', 150, 'tests', '--deselect=tests/gpu/test_cuda.py'),
    'training': script_stage('training', 'tools/gpu/training.py', 60),
    'detectors': script_stage(
        'detectors', 'tools/gpu/detectors.py', 90, needs_mmdet=True
    ),
    'step_time_more': script_stage('step_time_more', STEP_TIME, 90, '--part', 'more'),
    'sums': script_stage('sums', 'tools/gpu/sums.py', 30),
    'zoo': zoo_stage(200),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--pack',
        nargs='?',
        type=Path,
        const=ROOT / '.gpu_check',
        help='only pack, into this folder (.gpu_check)',
    )
    parser.add_argument('--device', default='cuda', choices=['cpu', 'cuda'])
    parser.add_argument('--stages', nargs='+', default=list(STAGES), choices=STAGES)
    parser.add_argument(
        '--zoo', nargs='+', default=ZOO, help='folders or patterns of configs'
    )
    parser.add_argument('--minutes', type=float, default=7.5, help='for all stages')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'))
    parser.add_argument(
        '--mmdet', type=Path, help='where MMDetection appears while this runs'
    )
    return parser.parse_args()


def read_junit(path: Path) -> Optional[dict[str, Any]]:
    """Counts, and what failed, of a run of pytest."""
    if not path.exists():
        return None
    cases = list(ElementTree.parse(path).iter('testcase'))
    failed = {}
    skipped = 0
    for case in cases:
        skipped += case.find('skipped') is not None
        for kind in ('failure', 'error'):
            found = case.find(kind)
            if found is not None:
                name = f'{case.get("classname")}::{case.get("name")}'
                failed[name] = (found.get('message') or '').strip()[:300]
    passed = len(cases) - skipped - len(failed)
    return dict(passed=passed, skipped=skipped, failed=len(failed), failures=failed)


def read_log(path: Path) -> Optional[dict[str, Any]]:
    """The same of a run that was stopped, from what it said of each test."""
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    found = {
        word: sorted(
            {
                part
                for line in lines
                if word in line
                for part in line.split()
                if '::' in part
            }
        )
        for word in ('PASSED', 'SKIPPED', 'FAILED', 'ERROR')
    }
    failures = found['FAILED'] + found['ERROR']
    return dict(
        passed=len(found['PASSED']),
        skipped=len(found['SKIPPED']),
        failed=len(failures),
        failures=failures,
    )


def machine() -> dict[str, Any]:
    found: dict[str, Any] = dict(
        date=datetime.date.today().isoformat(),
        python=sys.version.split()[0],
        torch=torch.__version__,
        cpus=os.cpu_count(),
    )
    if torch.cuda.is_available():
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        driver = subprocess.run(query, capture_output=True, text=True, check=False)
        found.update(
            gpu=torch.cuda.get_device_name(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            driver=driver.stdout.strip(),
        )
    return found


def wait_for(folder: Path, until: float) -> bool:
    """Whether a folder of packages was complete in time."""
    while not (folder / 'done').exists():
        if time.monotonic() > until:
            return False
        time.sleep(1)
    return True


def stop(process: subprocess.Popen) -> None:
    """Ends a stage and what it started; pytest writes what it has when interrupted."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of it has ended
        pass
    process.wait()


def run_stage(
    name: str, stage: Stage, args: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """Runs a stage; whatever goes wrong is in what it returns."""
    start = time.monotonic()
    environment = dict(os.environ, MMQUANT_TEST_DEVICE=args.device)
    if stage.needs_mmdet and args.mmdet is not None:
        if not wait_for(args.mmdet, deadline - 30):
            return dict(status='MMDetection was not there in time')
        paths = [str(args.mmdet), os.environ.get('PYTHONPATH', '')]
        environment['PYTHONPATH'] = os.pathsep.join(path for path in paths if path)
    waited = time.monotonic() - start
    limit = min(stage.limit, deadline - time.monotonic())
    if limit < 10:
        return dict(status='no time was left')
    log = args.out / 'logs' / f'{name}.log'
    with log.open('w') as file:
        process = subprocess.Popen(
            [sys.executable, *stage.command(args)],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            status = 'ok' if code == 0 else f'ended with {code}'
        except subprocess.TimeoutExpired:
            stop(process)
            status = f'stopped after {limit:.0f} s'
    seconds = time.monotonic() - start - waited
    result = dict(status=status, seconds=round(seconds, 1), waited=round(waited, 1))
    result['found'] = stage.results(args)
    if status != 'ok' and not isinstance(result['found'], dict):
        result['last_lines'] = log.read_text().splitlines()[-LAST_LINES:]
    return result


def main() -> None:
    args = parse_args()
    if args.pack is not None:
        from gpu.pack import pack

        pack(args.pack)
        return
    args.out = args.out.resolve()
    (args.out / 'logs').mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    report: dict[str, Any] = dict(machine=machine(), device=args.device, stages={})
    for name in args.stages:
        try:
            found = run_stage(name, STAGES[name], args, deadline)
        except Exception as error:  # noqa: BLE001 - it is in the report
            found = dict(status=f'{type(error).__name__}: {error}'[:500])
        report['stages'][name] = found
        text = json.dumps(report, indent=1)
        (args.out / 'gpu_check.json').write_text(text + '\n')
        print(f'{name}: {json.dumps(found)[:1500]}', flush=True)


if __name__ == '__main__':
    main()
