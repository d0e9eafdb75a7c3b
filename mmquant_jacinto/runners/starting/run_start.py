"""Where a training or a calibration starts, or goes on."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from mmengine.config import Config
from mmengine.logging import print_log

from ...config.sections import Calibration
from ...errors import QuantizeError
from ...record.side_effects import preserved_random_state
from ..calibration_batches import Batches, calibration_dataloader, count_batches
from ..calibration_loop import check_measured
from ..checkpoint_files import latest_checkpoint, read_start

# Images that say what a training from a float checkpoint starts from.
START_IMAGES = 64


@dataclass
class RunStart:
    """What a run starts from.

    Args:
        load_from (str, optional): The checkpoint; None: the initial weights.
        resume (bool): Whether the run goes on where that was saved.
        seed (int, optional): Of the run that is started again.
    """

    load_from: Optional[str]
    resume: bool
    seed: Optional[int] = None


def find_start(
    load_from: Optional[str], resume: bool, work_dir: str, in_file: Optional[str]
) -> RunStart:
    """Finds what a run that says ``resume`` without a checkpoint starts from.

    ``--resume`` of the usual tools removes ``load_from``. So a run that was killed
    before it had saved anything starts again from what it noted; one that was killed
    even earlier, or never began, from the ``load_from`` of the config file.

    Args:
        load_from (str, optional): Of the runner.
        resume (bool): Of the runner.
        work_dir (str): Where the run was.
        in_file (str, optional): Of :func:`load_from_in_file`.

    Returns:
        RunStart: The two as they are to be.

    Raises:
        QuantizeError: If there is nothing to resume, and no other start is known:
            the initial weights are not what was meant.
    """
    if not resume or load_from is not None:
        return RunStart(load_from, resume)
    latest = latest_checkpoint(work_dir)
    if latest is not None:
        print_log(f'Resuming from {latest}.', 'current')
        return RunStart(latest, True)
    noted = read_start(work_dir)
    if noted is None:
        noted = dict(load_from=in_file, seed=None)
        if in_file is None:
            raise QuantizeError(
                f'resume=True, but {work_dir} has nothing to resume; start with '
                'resume=False (without --resume), and with load_from=CHECKPOINT to '
                'start from one'
            )
    print_log(
        f'{work_dir} has no checkpoint yet; starting again from '
        f'{noted["load_from"] or "the initial weights"}.',
        'current',
    )
    return RunStart(noted['load_from'], False, noted['seed'])


def load_from_in_file(cfg: Mapping[str, Any]) -> Optional[str]:
    """``load_from`` as a config's file has it, where ``--resume`` has removed it.

    To be called before a runner is made: that writes the config into the work
    directory, where the file may be.

    Args:
        cfg (Mapping): Of the runner.

    Returns:
        str, optional: None also where the command line names one: it is not known
        which is meant.
    """
    filename = getattr(cfg, 'filename', None)
    is_there = filename is not None and os.path.isfile(filename)
    if not cfg.get('resume') or cfg.get('load_from') is not None or not is_there:
        return None
    if any('load_from=' in word for word in sys.argv):
        return None
    return Config.fromfile(filename).get('load_from')


def measure_start(runner: Any) -> None:
    """Measures what a training starts from, where that is not known yet.

    A training from scratch, and one without a pipeline for such images, starts with
    its first step; learned scales have to start somewhere.

    Args:
        runner (QuantRunner): Its model is prepared, and has its weights.

    Raises:
        QuantizeError: If an image cannot be read, or what learned scales start from
            is never finite.
    """
    config, model = runner.quantize_config, runner.model
    learned, needed = config.learning, config.learns_scales
    given = config.calibration.dataloader
    if model.quantization.has_scales or not (needed or runner._has_loaded):
        return
    has_pipeline = runner._val_dataloader or runner._test_dataloader
    if not (needed or given or has_pipeline):
        return
    if config.fake_quants:
        start = Calibration(iterations=1, dataloader=given)
    else:
        images = START_IMAGES if learned is None else learned.num_images
        start = Calibration(num_images=images, dataloader=given)
    with preserved_random_state():
        loader = calibration_dataloader(runner, start)
        batches = count_batches(loader, start)
        runner.logger.info(f'Ranges that training starts from: {batches} batches.')
        model.measure_start(Batches(loader, batches))
    if learned is not None:
        check_measured(model.quantization.activations, runner.logger)
