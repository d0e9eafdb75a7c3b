"""Check an ONNX file, ours or another, against the rules of a target's engine.

python tools/check_onnx.py model.onnx --target tidl
python tools/check_onnx.py --rules --target tidl

Each node that breaks a rule is named, with what was found, what would be right and
where that is written. Exit code 1 if the engine would refuse the file or compute
otherwise; nodes that run elsewhere, or slower, are told and are no such thing.
"""

import argparse
import importlib
import sys
from pathlib import Path

from command_line import exit_on_quantize_error

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.targets.target import ruled_target, ruled_targets


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', nargs='?', type=Path, help='the .onnx file')
    parser.add_argument(
        '--target', required=True, help='one of ' + ', '.join(ruled_targets())
    )
    parser.add_argument(
        '--rules', action='store_true', help="print the target's rules, and no file"
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument(
        '--import',
        dest='modules',
        nargs='+',
        default=[],
        metavar='MODULE',
        help='Python modules that register targets of their own',
    )
    return parser.parse_args()


def read(path: Path):
    """The model in a file.

    Raises:
        QuantizeError: If it is none.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise QuantizeError(
            f'{path} cannot be read: {error.strerror or error}; give an .onnx file'
        ) from error
    except Exception as error:  # noqa: B902 - protobuf's own, of several modules
        raise QuantizeError(f'{path} is no ONNX model; give an .onnx file') from error
    if not model.graph.node or not model.opset_import:
        raise QuantizeError(f'{path} is no ONNX model; give an .onnx file')
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # noqa: B902 - several kinds, by its version
        raise QuantizeError(
            f'{path} keeps its weights in another file, which cannot be read: '
            f'{error}; put it beside the .onnx file'
        ) from error
    return model


def import_modules(names: list[str]) -> None:
    """Import what registers targets.

    Raises:
        QuantizeError: If one is not there.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise QuantizeError(
                f'--import {name} cannot be imported: {error}; set PYTHONPATH'
            ) from error


def main() -> None:
    args = parse_args()
    import_modules(args.modules)
    target = ruled_target(args.target)
    from mmquant_jacinto.export.packages import require

    require('onnx')
    from mmquant_jacinto.export.rules import report
    from mmquant_jacinto.export.rules.check import check

    if args.rules:
        print(report.to_markdown(target.name, target.rules), end='')
        return
    if args.file is None:
        raise QuantizeError('no file was given; give an .onnx file, or --rules')
    findings = check(read(args.file), target.rules)
    if args.json:
        print(report.to_json(findings))
    else:
        print(report.to_text(findings, target.rules))
    if report.violations(findings):
        sys.exit(1)


if __name__ == '__main__':
    exit_on_quantize_error(main)
