"""ModelOpt's AutoQuantize on the same detectors, for the same budget.

    make peers                             # sets .venv-peers up, with the libraries
    MMQUANT_PRETRAINED=/path .venv-peers/bin/python benchmarks/peer_autoquantize.py \
        configs/pretrained/ssd_mobilenetv2.py configs/pretrained/yolox_nano.py \
        --points 1.0 --json benchmarks/results/peer_autoquantize.json --table table.md

It takes a number of effective bits, not a score: it measures each layer once and leaves
those in float that cost most, within so many bits of a weight on average. So its search
is repeated with more bits, from 8 on, until the score of the test images holds, and
then with fewer, by bisection; layers are measured once. Its loss is label-free, the
random projection of outputs that our ranking has. Ours for the same engine:
``benchmarks/budget.py --target tensorrt``. With --train it first trains a config of
``benchmarks/detectors`` in float, unless either command has done so. Scores are of the
detector's own postprocessing and metric, for both.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import measure_rows
from budget import train_float
from detector_scores import DetectorTest, FloatNetwork, in_place, map_scores
from peer_quantizers import singles
from peers import calibration_images, float_detector, read_config, reason
from torch import Tensor, nn

FORMAT = 'INT8_DEFAULT_CFG'
# All at 8 bits, then twice as much above that as before; float is 16 to it.
EFFECTIVE_BITS = (8.0, 8.0625, 8.125, 8.25, 8.5, 9.0, 10.0, 12.0, 16.0)
BISECTIONS = 3


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--points', type=float, default=1.0)
    parser.add_argument('--images', type=int, default=64, help='to calibrate on')
    parser.add_argument('--checkpoint', help='in place of the load_from of the config')
    parser.add_argument(
        '--train',
        action='store_true',
        help='the weights are those of a float training by the config, made first',
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/autoquantize'))
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    return parser.parse_args(arguments)


def projection(outputs: tuple[Tensor, ...], image: Tensor) -> Tensor:
    """Outputs against fixed random signs, each by its root mean square."""
    del image
    generator = torch.Generator().manual_seed(0)
    total = outputs[0].new_zeros(())
    for output in outputs:
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
        total = total + (signs * output).sum() / output.detach().norm()
    return total


class Search:
    """AutoQuantize of a network, and the score of what it gives.

    Args:
        network (nn.Module): In float.
        images (Tensor): To calibrate on, (N, C, H, W).
        checkpoint (Path): Where it keeps what it has measured.
        score (Callable): Points of a quantized network.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        checkpoint: Path,
        score: Callable[[nn.Module], float],
    ) -> None:
        self.network, self.images, self.checkpoint = network, images, checkpoint
        self.score = score
        self.trials: list[dict[str, Any]] = []

    def run(self, bits: float) -> dict[str, Any]:
        """Searches within so many effective bits, and scores."""
        import modelopt.torch.quantization as mtq

        batches = singles(self.images)
        model, state = mtq.auto_quantize(
            copy.deepcopy(self.network),
            constraints=dict(effective_bits=bits),
            quantization_formats=[FORMAT],
            data_loader=batches,
            forward_step=lambda model, image: model(image),
            loss_func=projection,
            num_calib_steps=len(batches),
            num_score_steps=len(batches),
            checkpoint=str(self.checkpoint),
        )
        in_float = [
            name
            for name, recipe in state['best']['recipe'].items()
            if not str(recipe).startswith(FORMAT)
        ]
        with torch.no_grad():
            points = self.score(model)
        self.trials.append(
            dict(bits=bits, in_float=sorted(in_float), score=round(points, 2))
        )
        return self.trials[-1]

    def within(self, least: float) -> dict[str, Any] | None:
        """The fewest layers in float that keep a score, as far as it can tell."""
        low, found = None, None
        for bits in EFFECTIVE_BITS:
            trial = self.run(bits)
            if trial['score'] >= least:
                found = trial
                break
            low = bits
        if found is None or low is None:
            return found
        high = found['bits']
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            trial = self.run(middle)
            if trial['score'] >= least:
                found, high = trial, middle
            else:
                low = middle
        return found


def search(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize a config's detector within the budget; return what that took."""
    import modelopt

    folder = args.work_dir / path.stem
    cfg = read_config(path, args.images, folder)
    trained = train_float(path) if args.train else None
    checkpoint = Path(args.checkpoint or trained or cfg.load_from)
    detector = float_detector(cfg, checkpoint)
    images = calibration_images(cfg, detector)
    test = DetectorTest(cfg, detector)
    metrics, _ = test.score(detector)
    start_points = map_scores(metrics)['mAP']

    def score(network: nn.Module) -> float:
        with in_place(detector, network, test.kinds) as whole:
            return map_scores(test.score(whole)[0])['mAP']

    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / 'measured.pth'
    kept.unlink(missing_ok=True)
    network = FloatNetwork(float_detector(cfg, checkpoint)).eval()
    found = Search(network, images, kept, score)
    row: dict[str, Any] = dict(
        points=args.points,
        float=round(start_points, 2),
        images=len(images),
        threads=torch.get_num_threads(),
        versions=dict(modelopt=modelopt.__version__),
    )
    wall, processor = time.monotonic(), time.process_time()
    try:
        best = found.within(start_points - args.points)
    except Exception as error:  # noqa: B902 - a library raises anything
        return dict(row, trials=found.trials, reason=reason(error))
    return dict(
        row,
        trials=found.trials,
        best=best,
        minutes=round((time.monotonic() - wall) / 60, 1),
        processor_minutes=round((time.process_time() - processor) / 60, 1),
    )


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        '| network | float | 8 bits | kept | layers in float | searches | minutes '
        '| of the processor |',
        '| --- ' * 8 + '|',
    ]
    for name, row in rows.items():
        if 'reason' in row:
            lines.append(f'| {name} | {row["float"]:.1f} | {row["reason"]} | | | | | |')
            continue
        best = row['best'] or row['trials'][-1]
        cells = [
            *(name, f'{row["float"]:.1f}', f'{row["trials"][0]["score"]:.1f}'),
            f'{best["score"]:.1f}' + ('' if row['best'] else ' (not met)'),
            *(str(len(best['in_float'])), str(len(row['trials']))),
            *(str(row['minutes']), str(row['processor_minutes'])),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    measure_rows(parse_args(), search, table)


if __name__ == '__main__':
    main()
