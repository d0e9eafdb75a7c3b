"""Export a quantized checkpoint to an ONNX file, and prove that it is the same.

python tools/export.py CONFIG CHECKPOINT -o model.onnx

The file is written only if it computes what the checkpoint's integer model
computes, on images of the test set.
"""

import argparse
import json
import logging
import math
import time
from pathlib import Path

from command_line import (
    check_file,
    check_shape,
    exit_on_quantize_error,
    merge_options,
    read_config,
)
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.execute.quantization import Quantization


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='quantized checkpoint (QAT or PTQ)')
    parser.add_argument(
        '-o', '--output', type=Path, required=True, help='the .onnx file to write'
    )
    parser.add_argument(
        '--target',
        default='onnxruntime',
        help='onnxruntime (default), openvino, tensorrt or tidl',
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the input; by default what the test pipeline gives',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='leave batch and size free, for multiples of the stride',
    )
    parser.add_argument(
        '--postprocess',
        action='store_true',
        help='add decoding and NMS: outputs boxes, scores and labels',
    )
    parser.add_argument(
        '--verify',
        type=int,
        default=16,
        metavar='N',
        help='compare file and checkpoint on N images of the test set; 0 for no proof',
    )
    parser.add_argument(
        '--min-equal',
        type=float,
        default=None,
        metavar='SHARE',
        help='share of equal elements below which nothing is written (default 0.999)',
    )
    parser.add_argument(
        '--allow-violations',
        action='store_true',
        help='write a file that breaks rules of its target too; its metadata say so',
    )
    parser.add_argument(
        '--artifacts',
        type=Path,
        metavar='FOLDER',
        help="also write what the engine's importer reads, of --target tidl",
    )
    parser.add_argument(
        '--images', help='folder of images to verify on, in place of the test set'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE'
    )
    return parser.parse_args()


def print_report(report, engine: str, console: Console) -> None:
    """Print how the file compares with the checkpoint, output by output."""
    table = Table(
        'Output',
        'Elements',
        'Equal',
        'Largest difference',
        title=f'{engine} and QuantTestModule, {report.images} images',
    )
    for item in report.outputs:
        unit = 'steps' if item.on_grid else 'of its range'
        difference = f'{item.largest:.3g} {unit}'
        table.add_row(item.name, str(item.elements), f'{item.share:.4%}', difference)
    console.print(table)
    if not report.rounds or (report.is_float and report.share < 1):
        console.print(f'signal to noise: {report.signal_to_noise:.1f} dB')


def prove(exported, model, examples, args, console):
    """Compare file and model; raise QuantizeError where they differ too much."""
    from mmquant_jacinto.export.session import ENGINES, proof_backend, saturates
    from mmquant_jacinto.export.verify import MIN_EQUAL, verify

    backend = proof_backend(exported.target) or 'onnxruntime'
    report = verify(exported, model, examples, backend)
    print_report(report, ENGINES[backend], console)
    if report.is_float:
        console.print(
            'a float model: compared with the rounding that its ranges stand for, '
            'which its importer adds'
        )
    if backend == 'onnxruntime' and saturates():
        console.print(
            "This processor's U8S8 kernels saturate (no VNNI); the file was run with "
            'session.x64quantprecision=1. On such a processor set that option, or '
            'train with quantize.bits=dict(weight=7, activation=8).'
        )
    least = MIN_EQUAL if args.min_equal is None else args.min_equal
    if report.holds(least):
        return report
    if not report.rounds or report.is_float:
        raise QuantizeError(
            f'{args.output} was not written: its outputs are only '
            f'{report.signal_to_noise:.1f} dB above their difference to the '
            f'checkpoint, less than {report.least_signal_to_noise:.1f} dB'
        )
    raise QuantizeError(
        f'{report.share:.4%} of the elements are equal, less than {least:.4%}: '
        f'{args.output} was not written; {report.where}'
    )


def print_input(images, console: Console) -> None:
    """Print what the file sees, where that is not what the checkpoint's test sees."""
    given, (height, width) = images.input, images.input.shape
    if given.fitted:
        console.print(
            f'--shape {height} {width}: the test pipeline resizes to it, for the file '
            "and for tools/test.py with it; the checkpoint's own test does not"
        )
    if given.padded:
        console.print(
            f'the test pipeline gives images of several sizes, and the file sees them '
            f'padded to {height} x {width}: its scores may differ by the padding; '
            '--dynamic leaves the size free, --shape HEIGHT WIDTH sets another'
        )
    if given.whole:
        console.print(
            'this model masks what an image was padded by, which a file is not told: '
            'for the file the padding is a part of the image'
        )


def score(cfg, exported, wrapper, images, report, args, console):
    """Score checkpoint and file, and return both.

    Raises QuantizeError where they disagree.
    """
    from mmquant_jacinto.export.configs.end_to_end import score_both
    from mmquant_jacinto.export.configs.file_run import FileRun
    from mmquant_jacinto.export.session import proof_backend

    backend = proof_backend(exported.target) or 'onnxruntime'
    run = FileRun(cfg, exported.model, backend, in_part=True)
    both = score_both(cfg, wrapper, run, images)
    count = len(both.file.predictions)
    table = Table('Metric', *(row.name for row in both.rows), title=f'{count} images')
    for key in both.own.scores:
        table.add_row(key, *(f'{row.scores[key]:.4f}' for row in both.rows))
    equal = both.same.equal(both.file)
    cells = [''] * (len(both.rows) - 2)
    table.add_row('equal predictions', '', *cells, f'{equal} of {count}')
    console.print(table)
    problem = both.problem(report.rounds and report.same_bits)
    if problem and args.min_equal is None:
        raise QuantizeError(f'{args.output} was not written: {problem}')
    if problem:
        console.print(f'[bold]--min-equal {args.min_equal:g}[/]: {problem}')
    return both


def print_findings(exported, preset: str, args, console: Console) -> None:
    """Print which nodes the target's engine takes otherwise, by kind."""
    from mmquant_jacinto.export.rules.report import by_kind

    name = exported.target.name
    if exported.target.rules_for(preset).rows:
        console.print(f'rules of {name}: {by_kind(exported.findings)}')
    if exported.findings:
        console.print(f'each node: tools/check_onnx.py {args.output} --target {name}')


def check_packages() -> None:
    """Raise QuantizeError where the `export` extra is missing."""
    from mmquant_jacinto.export.packages import require

    for package in ('onnx', 'onnx_ir', 'onnxruntime'):
        require(package)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise QuantizeError before anything long is done."""
    from mmquant_jacinto.export.configs.output_file import check_output
    from mmquant_jacinto.targets.target import Target, get_file_target

    if args.verify < 0:
        raise QuantizeError(
            f'--verify {args.verify} is not a number of images; use 0 or more'
        )
    if args.min_equal is not None and not 0 <= args.min_equal < math.inf:
        raise QuantizeError(
            f'--min-equal {args.min_equal} is not a share; use a number from 0 to 1'
        )
    if args.shape is not None:
        check_shape(args.shape)
    check_file(args.checkpoint)
    target = get_file_target(args.target)
    if args.artifacts is not None and type(target).artifacts is Target.artifacts:
        raise QuantizeError(
            f'--artifacts {args.artifacts}: the importer of --target {args.target} '
            'reads the file alone; leave it out, or use --target tidl'
        )
    check_output(args.output)


def export(wrapper, images, args):
    """The file, and the examples to prove it on."""
    from mmquant_jacinto.export.configs.file_input import METADATA_KEY
    from mmquant_jacinto.export.configs.test_images import random_batch
    from mmquant_jacinto.export.exporter import export_onnx

    root = wrapper.quantization.root
    if args.verify:
        examples = list(images.batches())
    else:
        examples = [random_batch(wrapper, images.input.shape)]
    metadata = {
        'classes': list(root.dataset_meta.get('classes', [])),
        METADATA_KEY: images.input.to_metadata(),
    }
    with images.input.applied(root):
        exported = export_onnx(
            wrapper,
            examples[0],
            args.target,
            metadata,
            args.postprocess,
            args.dynamic,
            allow_violations=args.allow_violations,
        )
    return exported, examples


def prove_all(cfg, exported, wrapper, images, examples, args, console):
    """Compare file and model on all images, and on another size if that is free.

    Returns the comparison and the scores, None where there was none.
    """
    from mmquant_jacinto.export.configs.file_input import FileInput
    from mmquant_jacinto.export.configs.proof import record_proof
    from mmquant_jacinto.export.session import proof_backend

    if not args.verify:
        console.print('[bold]not verified[/]: --verify 0')
        return None, None
    root = wrapper.quantization.root
    with images.input.applied(root):
        report = prove(exported, root, examples, args, console)
    backend = proof_backend(exported.target)
    record_proof(exported.model, backend or 'onnxruntime', report)
    if args.dynamic:
        larger = tuple(n + more for n, more in zip(images.input.shape, (64, 128)))
        console.print(f'the same file on images of {larger[0]} x {larger[1]}:')
        with FileInput(larger, padded=True).applied(root):
            prove(exported, root, examples[:2], args, console)
    both = score(cfg, exported, wrapper, images, report, args, console)
    if backend is None:
        console.print(
            f'[bold]written, not run in its engine[/]: that of --target {args.target} '
            'is not here; file and checkpoint were compared in ONNX Runtime'
        )
    return report, both


def write(exported, args, console) -> None:
    """Write the file, and what goes beside it."""
    from mmquant_jacinto.export.configs.output_file import save, write_atomically

    save(exported.model, args.output)
    if exported.meta_arch is not None:
        prototxt = args.output.with_suffix('.prototxt')
        write_atomically(prototxt, exported.meta_arch.encode())
        console.print(f'{prototxt}: the detection head, for the importer of TIDL')
    if exported.options:
        options = args.output.with_suffix('.options.json')
        text = json.dumps(exported.options, indent=1) + '\n'
        write_atomically(options, text.encode())
        console.print(f'{options}: layers of 16 bits and in float, for the importer')
    size = args.output.stat().st_size / 2**20
    console.print(
        f'{args.output}: {size:.1f} MiB, {len(exported.model.graph.node)} nodes'
    )


def write_artifacts(exported, preset: str, args, console: Console) -> None:
    """Write what the engine's importer reads, and a copy of the file beside it."""
    from mmquant_jacinto.export.configs.output_file import save, write_atomically
    from mmquant_jacinto.targets.rules.table import HOST

    is_whole = all(item.severity != HOST for item in exported.findings)
    given = exported.model, args.output.stem, preset, exported.meta_arch
    args.artifacts.mkdir(parents=True, exist_ok=True)
    save(exported.model, args.artifacts / args.output.name)
    files = exported.target.artifacts(*given, exported.options, is_whole)
    for name, text in files.items():
        write_atomically(args.artifacts / name, text.encode())
    console.print(f'{args.artifacts}: {", ".join([args.output.name, *files])}')


def write_page(exported, wrapper, images, examples, proof, seconds, args, console):
    """Write the page of checkpoint and file; that it fails is told, and no more."""
    from mmquant_jacinto.export.file_report import write_export_page

    folder = args.output.with_name(f'{args.output.stem}_report')
    try:
        with images.input.applied(wrapper.quantization.root):
            page = write_export_page(
                exported, wrapper, examples, proof, args.output, folder, seconds
            )
        console.print(f'{page}: what was quantized, and what the file is')
    except Exception as error:  # noqa: B902 - the file is written, and stays
        console.print(
            f'no report in {folder}, the file itself is complete '
            f'({type(error).__name__}: {error}); quantize.report=False switches it off'
        )


def main() -> None:
    start = time.monotonic()
    args = parse_args()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    check_packages()
    from mmquant_jacinto.export.choose_target import choose_target
    from mmquant_jacinto.export.configs.checkpoint import load_quantized
    from mmquant_jacinto.export.configs.test_images import TestImages
    from mmquant_jacinto.targets.target import QDQ

    console = Console(width=100)
    # A target of somebody else is registered by the config's custom_imports.
    cfg = read_config(args.config)
    check_arguments(args)
    merge_options(cfg, args.cfg_options)
    wrapper = load_quantized(cfg, args.checkpoint)
    root = wrapper.quantization.root
    choose_target(args.target, wrapper.quantization.plan)
    shape = args.shape and tuple(args.shape)
    images = TestImages(cfg, root, shape, args.images, args.verify, args.dynamic)
    print_input(images, console)
    exported, examples = export(wrapper, images, args)
    preset = Quantization.of(root).plan.config['target']
    if preset == 'jacinto' and exported.form == QDQ:
        console.print(
            f'{args.target} rounds ties to even, and quantize.target=jacinto up: '
            'scores may differ from those in the log in the last digit, and are those '
            f'of tools/test.py CONFIG CHECKPOINT --target {args.target}'
        )
    if exported.skipped:
        console.print('not in the file: ' + ', '.join(exported.skipped))
    print_findings(exported, preset, args, console)
    proof = prove_all(cfg, exported, wrapper, images, examples, args, console)
    write(exported, args, console)
    if args.artifacts is not None:
        write_artifacts(exported, preset, args, console)
    if wrapper.config.report:
        seconds = time.monotonic() - start
        given = exported, wrapper, images, examples, proof, seconds
        write_page(*given, args, console)


if __name__ == '__main__':
    exit_on_quantize_error(main)
