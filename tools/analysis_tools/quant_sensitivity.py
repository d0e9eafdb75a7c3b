"""Rank layers by what their weights and activations cost at given widths.

python tools/analysis_tools/quant_sensitivity.py CONFIG CHECKPOINT --bits 4 8

On images of the config's test set, without labels. It prints a table, and writes
sensitivity.json and sensitivity.svg. On several processes (torchrun, --launcher
pytorch) each takes images of its own.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from command_line import (  # noqa: E402
    check_file,
    exit_on_quantize_error,
    merge_options,
    read_config,
    report_folder,
)
from image_set import images_of_test  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.dist import get_rank, get_world_size, init_dist  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.configs.checkpoint import load_quantized  # noqa: E402
from mmquant_jacinto.report.build import Subject  # noqa: E402
from mmquant_jacinto.report.measuring.sensitivity import (  # noqa: E402
    measure_sensitivity,
    to_json,
)
from mmquant_jacinto.report.page.plots import plot_sensitivity  # noqa: E402
from mmquant_jacinto.runners.cpu_distributed import (  # noqa: E402
    init_cpu_process_group,
    leave_process_group,
)
from mmquant_jacinto.targets.formats import check_bits  # noqa: E402

JSON, PLOT = 'sensitivity.json', 'sensitivity.svg'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='quantized checkpoint (QAT or PTQ)')
    parser.add_argument(
        '--bits', nargs='+', type=int, default=[4, 8], help='widths (default 4 8)'
    )
    parser.add_argument(
        '--images', type=int, default=16, metavar='N', help='images (default 16)'
    )
    parser.add_argument(
        '--top', type=int, default=20, metavar='N', help='rows printed (default 20)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='folder to write to; by default report/ beside the checkpoint',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE'
    )
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Raise QuantizeError before anything long is done."""
    for width in args.bits:
        check_bits('--bits', width)
    for name in ('images', 'top'):
        if getattr(args, name) < 1:
            raise QuantizeError(
                f'--{name} {getattr(args, name)} is not a count; use 1 or more'
            )
    check_file(args.checkpoint)
    args.out = report_folder(args.out, args.checkpoint)


def start_processes(launcher: str) -> None:
    """Join the group of processes, if this is one of several."""
    if launcher != 'none':
        os.environ.setdefault('LOCAL_RANK', '0')
        init_cpu_process_group(launcher)
        if not torch.distributed.is_initialized():
            init_dist(launcher)


def show(found, widths, count: int) -> None:
    """Print the worst."""
    table = Table('Layer', 'Tensor', *(f'{width} bits' for width in widths))
    for item in found[:count]:
        noise = (f'{item.noise[width]:.2e}' for width in widths)
        table.add_row(item.module or item.name, item.kind, *noise)
    console = Console(width=110)
    console.print("Noise to signal in the network's outputs, worst first:")
    console.print(table)


def write(found, widths, folder: Path) -> None:
    """Write what was found.

    Raises:
        QuantizeError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON).write_text(to_json(found, widths) + '\n')
        (folder / PLOT).write_text(plot_sensitivity(found, widths))
    except OSError as error:
        raise QuantizeError(
            f'--out {folder} cannot be written ({error.strerror}); choose another'
        ) from error
    print(f'{folder / JSON}, {folder / PLOT}')


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    cfg = read_config(args.config)
    check_arguments(args)
    merge_options(cfg, args.cfg_options)
    start_processes(args.launcher)
    wrapper = load_quantized(cfg, args.checkpoint)
    rank, world = get_rank(), get_world_size()
    images = images_of_test(cfg, args.images)
    images.indices = images.indices[rank::world]
    widths = sorted(set(args.bits))
    found = measure_sensitivity(
        *(wrapper.quantization, Subject(wrapper).run, images, widths),
        seed=rank * args.images,
    )
    if rank == 0:
        show(found, widths, args.top)
        write(found, widths, args.out)
    if args.launcher != 'none':
        leave_processes()


def leave_processes() -> None:
    """End one of several processes, with what it has done.

    On the interpreter's own way out a thread that still waits aborts the process, and
    the launcher then ends the others, which may be writing.
    """
    leave_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == '__main__':
    exit_on_quantize_error(main)
