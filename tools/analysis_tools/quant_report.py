"""Write the report page of a quantized checkpoint, and of its file.

python tools/analysis_tools/quant_report.py CONFIG CHECKPOINT
python tools/analysis_tools/quant_report.py CONFIG CHECKPOINT model.onnx

It writes report.html and report.json, measured on images of the config's test set.
Runs write one by themselves; this one takes the time that all of it needs.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from command_line import (  # noqa: E402
    check_file,
    exit_on_quantize_error,
    merge_options,
    read_config,
    report_folder,
)
from image_set import images_of_test  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.configs.checkpoint import load_quantized  # noqa: E402
from mmquant_jacinto.report.build import (  # noqa: E402
    build_report,
    write_report,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='quantized checkpoint (QAT or PTQ)')
    parser.add_argument('file', nargs='?', help='the .onnx file made of it')
    parser.add_argument(
        '--out',
        type=Path,
        help='folder to write to; by default report/ beside the checkpoint',
    )
    parser.add_argument(
        '--images',
        type=int,
        default=8,
        metavar='N',
        help='images of the test set that layers are measured on (default 8)',
    )
    parser.add_argument(
        '--score',
        type=int,
        default=50,
        metavar='N',
        help='images that float and quantized detections are compared on (default 50)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE'
    )
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Raise QuantizeError before anything long is done."""
    for name, least in (('images', 1), ('score', 0)):
        if getattr(args, name) < least:
            raise QuantizeError(
                f'--{name} {getattr(args, name)} is not a number of images; use '
                f'{least} or more'
            )
    check_file(args.checkpoint)
    if args.file is not None:
        check_file(args.file)
    args.out = report_folder(args.out, args.checkpoint)


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    cfg = read_config(args.config)
    check_arguments(args)
    merge_options(cfg, args.cfg_options)
    wrapper = load_quantized(cfg, args.checkpoint)
    scored = images_of_test(cfg, args.score)
    if args.file is not None and args.score:
        from mmquant_jacinto.export.configs.file_page import seen_by_file

        scored = seen_by_file(
            cfg, args.file, lambda given: images_of_test(given, args.score)
        )
    report, pictures = build_report(
        wrapper,
        Path(args.config).stem,
        'report',
        images_of_test(cfg, args.images),
        scored,
    )
    if args.file is not None:
        from mmquant_jacinto.export.file_report import report_of_file

        root = wrapper.quantization.root
        images = images_of_test(cfg, args.images)
        report.file = report_of_file(args.file, root, images)
    path = write_report(report, str(args.out), pictures)
    for layer in report.costliest():
        share = '' if layer.share is None else f'{layer.share:6.1%} of the noise  '
        print(f'{share}{layer.module or layer.name}')
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    exit_on_quantize_error(main)
