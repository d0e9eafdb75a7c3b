"""Print what a config quantizes, call by call, without training anything.

python tools/print_plan.py CONFIG                     the plan it would make
python tools/print_plan.py CONFIG --shape 320 320     on images of that size
python tools/print_plan.py CHECKPOINT.pth             the plan it was made with
"""

import argparse
import logging
from pathlib import Path

from command_line import (
    check_shape,
    exit_on_quantize_error,
    merge_options,
    read_config,
    wrapped_model,
)
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from mmquant_jacinto import QuantizeConfig, QuantizeError
from mmquant_jacinto.execute.stored_plan import find_plan
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.plan.summary import describe
from mmquant_jacinto.runners.checkpoint_files import read_checkpoint
from mmquant_jacinto.wrappers.random_image import random_image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='config file, or quantized checkpoint (.pth)')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        default=(512, 512),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the image that the model is recorded on',
    )
    parser.add_argument('--json', type=Path, help='also write the plan to this file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args()


def plan_of_config(args: argparse.Namespace) -> Plan:
    """Plan a config's model on a random image."""
    check_shape(args.shape)
    cfg = read_config(args.source)
    merge_options(cfg, args.cfg_options)
    config = QuantizeConfig.parse(cfg.get('quantize'))
    if config is None:
        raise QuantizeError(
            f'{args.source} has no quantize key, or a falsy one; set '
            "quantize=dict(mode='qat')"
        )
    wrapper = wrapped_model(cfg, 'test', config)
    return wrapper.prepare(random_image(wrapper, args.shape))


def plan_of_checkpoint(path: str) -> Plan:
    """Read the plan that a checkpoint carries."""
    checkpoint = read_checkpoint(path)
    plan = find_plan(checkpoint.get('state_dict', checkpoint))
    if plan is None:
        raise QuantizeError(f'{path} is a float checkpoint: there is no plan in it')
    return plan


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    if args.source.endswith('.pth'):
        plan = plan_of_checkpoint(args.source)
    else:
        plan = plan_of_config(args)
    print(describe(plan))
    if args.json:
        try:
            args.json.write_text(plan.to_json() + '\n')
        except OSError as error:
            raise QuantizeError(
                f'--json {args.json} cannot be written ({error.strerror}); choose '
                'another file'
            ) from error


if __name__ == '__main__':
    exit_on_quantize_error(main)
