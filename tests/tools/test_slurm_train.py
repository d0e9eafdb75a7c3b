"""What Slurm is asked for; a stand-in for it says what it was asked."""

import os
import subprocess

import pytest
from paths import TOOLS

SRUN = '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\necho "path $PYTHONPATH"\n'


@pytest.fixture
def asked(tmp_path):
    """A function of variables and arguments: the words that srun gets."""
    srun = tmp_path / 'srun'
    srun.write_text(SRUN)
    srun.chmod(0o755)

    def ask(*arguments, **variables):
        path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
        done = subprocess.run(
            ['bash', str(TOOLS / 'slurm_train.sh'), *arguments],
            env={**os.environ, 'PATH': path, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    return ask


def test_job_and_its_training_are_asked_for(asked):
    words = asked('gpu', 'qat', 'a config.py', '--amp', GPUS='16', PYTHON='python3')
    assert {
        '--partition=gpu',
        '--job-name=qat',
        '--ntasks=16',
        '--gres=gpu:8',
        '--ntasks-per-node=8',
    } <= set(words)
    start = words.index('python3')
    line = ['-u', str(TOOLS / 'train.py'), 'a config.py', '--amp']
    assert words[start + 1 : start + 7] == [*line, '--launcher', 'slurm']
    assert words[-1].startswith(f'path {TOOLS}/..')


def test_few_gpus_are_on_one_machine(asked):
    words = asked('gpu', 'job', 'c.py', GPUS='2', SRUN_ARGS='--quiet --time=5')
    assert {'--gres=gpu:2', '--ntasks-per-node=2', '--quiet', '--time=5'} <= set(words)
