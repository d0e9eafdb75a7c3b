"""Tell, before any training, what a target's engine will not take of a config's model.

python tools/analysis_tools/check_target.py CONFIG --target tidl

The model is planned for the target and written on a random image, with random ranges;
the graph is held against the target's rules. Exit code 1 if the engine would refuse it.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import (  # noqa: E402
    check_shape,
    exit_on_quantize_error,
    merge_options,
    read_config,
    wrapped_model,
)
from mmengine.config import DictAction  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402

from mmquant_jacinto import QuantizeConfig  # noqa: E402
from mmquant_jacinto.targets.target import get_file_target  # noqa: E402
from mmquant_jacinto.wrappers.random_image import random_image  # noqa: E402
from mmquant_jacinto.wrappers.surgery import replacements, summary  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, with or without a quantize key')
    parser.add_argument('--target', required=True, help='such as tidl or tensorrt')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        default=(320, 320),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the image that the model is run on',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args()


def written(args: argparse.Namespace):
    """The config's model as a file of the target, and what could be replaced in it."""
    from mmquant_jacinto.export.exporter import export_onnx

    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    get_file_target(args.target)
    given = cfg.get('quantize')
    bits = QuantizeConfig.parse(given).bits if given else None
    asked = dict(mode='ptq', target=args.target, calibration=dict(epochs=0))
    asked['surgery'] = QuantizeConfig.parse(given).surgery if given else False
    config = QuantizeConfig.parse({**asked, **({'bits': bits} if bits else {})})
    for part in ('backbone', 'neck'):
        # Weights of a file, which need not be there, change no rule.
        if 'init_cfg' in (cfg.model.get(part) or {}):
            cfg.model[part].init_cfg = None
    wrapper = wrapped_model(cfg, 'calibrate', config)
    offers = summary(replacements(wrapper.module))
    batch = random_image(wrapper, tuple(args.shape))
    wrapper.prepare(batch)
    wrapper.train()
    positional, named = wrapper.arguments(batch)
    wrapper(*positional, **named)
    wrapper.eval()
    exported = export_onnx(wrapper, batch, args.target, allow_violations=True)
    return exported, offers


def main() -> None:
    args = parse_args()
    check_shape(args.shape)
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    from mmquant_jacinto.export.packages import require

    for package in ('onnx', 'onnx_ir'):
        require(package)
    from mmquant_jacinto.export.rules import report

    exported, offers = written(args)
    findings = exported.findings
    if args.json:
        print(report.to_json(findings))
    else:
        if offers and exported.target.gains_by_surgery:
            print('quantize=dict(surgery=True) would replace, before any training:')
            print('\n'.join(f'  {line}' for line in offers), end='\n\n')
        print(report.grouped(findings, exported.target.rules))
        if exported.skipped:
            print('not looked at: ' + ', '.join(exported.skipped))
    if report.violations(findings):
        sys.exit(1)


if __name__ == '__main__':
    exit_on_quantize_error(main)
