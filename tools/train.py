"""Train a model of any OpenMMLab 2.x library, in float or quantized."""

import argparse

from command_line import (
    add_common_arguments,
    build_runner,
    exit_on_quantize_error,
    load_config,
)
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from mmquant_jacinto.runners.checkpoint_files import (
    latest_checkpoint,
    read_checkpoint,
    read_start,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp', action='store_true', help='train with automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate to the batch size, from the config's "
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint, by default the last one in the work directory',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def enable_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise SystemExit(
            'error: --auto-scale-lr needs auto_scale_lr.base_batch_size in the config'
        )
    cfg.auto_scale_lr.enable = True


def resume_latest(cfg: Config) -> None:
    """Resume the last run, or start from the config's load_from if there is none."""
    if not cfg.get('quantize'):
        cfg.resume = find_latest_checkpoint(cfg.work_dir) is not None
        cfg.load_from = None if cfg.resume else cfg.get('load_from')
        return
    latest = latest_checkpoint(cfg.work_dir)
    # Where it has a start only, the runner starts again from that.
    cfg.resume = latest is not None or read_start(cfg.work_dir) is not None
    cfg.load_from = latest if cfg.resume else cfg.get('load_from')


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.resume == 'auto':
        resume_latest(cfg)
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if cfg.get('load_from') and not cfg.get('quantize'):
        # The quantized runner looks into it, with the model at hand.
        read_checkpoint(cfg.load_from)
    build_runner(cfg).train()


if __name__ == '__main__':
    exit_on_quantize_error(main)
