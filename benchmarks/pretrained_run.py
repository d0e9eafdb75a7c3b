"""One row of one network: calibrated, tested, compared with float; a process.

    python benchmarks/pretrained_run.py CONFIG FOLDER FLOAT_FOLDER

CONFIG is what pretrained.py wrote. What is measured goes to FOLDER/measured.json;
FLOAT_FOLDER is where the float detector left its detections and outputs.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import write_whole
from mmengine.config import Config
from mmengine.fileio import dump, load
from mmengine.runner import Runner
from pretrained_networks import photographs
from pretrained_scores import (
    KINDS,
    coco_matches,
    lost_intervals,
    output_noise,
    own_truths,
    score,
    score_error,
)
from pretrained_views import VIEWS_OF_EACH, write_views
from torch import Tensor, nn

PREDICTIONS = 'predictions.pkl'  # on the test images
LOOKED_AT = 'photographs.pkl'  # on those of the packages
VIEWS = 'views'
SEEN_VIEWS = 'views.pkl'
OUTPUTS = 'outputs.pth'
MEASURED = 'measured.json'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('folder', type=Path)
    parser.add_argument('float_folder', type=Path)
    parser.add_argument('--quick', action='store_true', help='the test images alone')
    return parser.parse_args()


def calibrate(cfg: Config) -> dict[str, Any]:
    """Calibrate, or train, by the runner; let the config test what came out.

    Returns:
        dict: Its ``seconds``.
    """
    start = time.monotonic()
    Runner.from_cfg(copy.deepcopy(cfg)).train()
    seconds = time.monotonic() - start
    # The checkpoint that the run ended with.
    cfg.load_from = Path(cfg.work_dir, 'last_checkpoint').read_text()
    return dict(seconds=round(seconds, 1))


@contextmanager
def recorded_outputs(head: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what a head returns meanwhile, by name, a tensor for each batch."""
    kept: dict[str, list[Tensor]] = {}

    def keep(module: nn.Module, inputs: Any, lists: Any) -> None:
        for kind, levels in zip(KINDS[len(lists)], lists):
            for level, output in enumerate(levels):
                kept.setdefault(f'{kind}.{level}', []).append(output.float().clone())

    handle = head.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def detector_of(model: nn.Module) -> nn.Module:
    """The detector, whether it is wrapped to test integers or not."""
    return model.module if hasattr(model, 'quantization') else model


def widths(model: nn.Module) -> dict[str, dict[int, int]]:
    """How many elements of weights, and how many activations, have how many bits.

    Empty in float.
    """
    if not hasattr(model, 'plan'):
        return {}
    elements: Counter[int] = Counter()
    for layer in model.quantization.layers.values():
        elements[layer.spec.format.bits] += layer.weight.numel()
    activations = Counter(spec.format.bits for spec in model.plan.activations)
    return dict(weight=dict(elements), activation=dict(activations))


def test(runner: Runner) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Test by the runner.

    Returns:
        The metrics of its log, and all outputs of the head by name.
    """
    if hasattr(runner, 'wrap_for_test'):
        runner.wrap_for_test()
    with recorded_outputs(detector_of(runner.model).bbox_head) as kept:
        metrics = runner.test()
    return metrics, {name: torch.cat(parts) for name, parts in kept.items()}


def detect(
    runner: Runner, listed: Path, images: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the detections on other images, as of a test.

    Args:
        runner: Has tested.
        listed: The images in a file as COCO's.
        images: The dataset's keys that say where they are.
    """
    loader = copy.deepcopy(runner.cfg.test_dataloader)
    loader.dataset.update(ann_file=str(listed.resolve()), **images)
    # Where images keep their proportions, a batch would pad them to each other's.
    loader.batch_size = 1
    samples = []
    for batch in runner.build_dataloader(loader):
        for sample in runner.model.test_step(batch):
            predicted = sample.pred_instances
            samples.append(
                dict(
                    img_id=sample.img_id,
                    pred_instances={
                        key: predicted[key].cpu()
                        for key in ('bboxes', 'scores', 'labels')
                    },
                )
            )
    return samples


def look(runner: Runner, folder: Path) -> list[dict[str, Any]]:
    """Return the detections on the photographs of packages, as of a test.

    Args:
        runner: Has tested.
        folder: Where their list goes.
    """
    found = photographs()
    images = [
        dict(id=number, file_name=str(path), width=0, height=0)
        for number, path in enumerate(found.values(), 1)
    ]
    truths = Path(runner.test_dataloader.dataset.ann_file)
    categories = json.loads(truths.read_text())['categories']
    listed = folder / 'photographs.json'
    content = dict(images=images, annotations=[], categories=categories)
    listed.write_text(json.dumps(content))
    return detect(runner, listed, dict(data_root='', data_prefix=dict(img='')))


def compare(
    runner: Runner, outputs: Mapping[str, Tensor], start: Path, folder: Path
) -> dict[str, Any]:
    """Return scores on the test images, and how near to float they and outputs are.

    Args:
        runner: Has tested.
        outputs: What :func:`test` returned.
        start: The folder of float.
        folder: That of the row.
    """
    dataset = runner.test_dataloader.dataset
    truths, categories = json.loads(Path(dataset.ann_file).read_text()), dataset.cat_ids
    matches, before = (
        coco_matches(truths, load(str(path / PREDICTIONS)), categories)
        for path in (folder, start)
    )
    reference = torch.load(start / OUTPUTS, weights_only=True)
    return dict(
        scores=score(matches),
        intervals=lost_intervals(before, matches),
        noise=output_noise(reference, outputs),
    )


def agreement(runner: Runner, start: Path, folder: Path) -> dict[str, Any]:
    """Return scores against float's confident detections on the photographs.

    With how far scores are from float's there and on the test images.
    """
    samples = look(runner, folder)
    dump(samples, str(folder / LOOKED_AT))
    categories = runner.test_dataloader.dataset.cat_ids
    before = load(str(start / LOOKED_AT))
    truths = own_truths(before, categories)
    tested = [load(str(path / PREDICTIONS)) for path in (start, folder)]
    return dict(
        score(coco_matches(truths, samples, categories)),
        score_error=score_error(before + tested[0], samples + tested[1]),
        images=len(samples),
        boxes=len(truths['annotations']),
    )


def viewed(runner: Runner, start: Path, folder: Path) -> dict[str, Any]:
    """Return scores on views of the test images, and what is lost against float there.

    Intervals are of draws of photographs, each with all its views.
    """
    dataset = runner.test_dataloader.dataset
    place = start / VIEWS
    if folder == start:
        shutil.rmtree(place, ignore_errors=True)
        write_views(Path(dataset.ann_file), Path(dataset.data_prefix['img']), place)
    listed = place / 'annotations.json'
    keys = dict(data_root=str(place.resolve()), data_prefix=dict(img='images/'))
    samples = detect(runner, listed, keys)
    dump(samples, str(folder / SEEN_VIEWS))
    truths = json.loads(listed.read_text())
    before, matches = (
        coco_matches(truths, load(str(path / SEEN_VIEWS)), dataset.cat_ids)
        for path in (start, folder)
    )
    return dict(
        scores=score(matches),
        intervals=lost_intervals(before, matches, VIEWS_OF_EACH),
        images=len(samples),
    )


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    result: dict[str, Any] = {}
    if cfg.get('quantize'):
        result.update(calibrate(cfg))
    runner = Runner.from_cfg(cfg)
    with torch.no_grad():
        metrics, outputs = test(runner)
        if args.folder == args.float_folder:
            torch.save(outputs, args.folder / OUTPUTS)
        result['widths'] = widths(runner.model)
        result['log'] = {key: float(value) for key, value in metrics.items()}
        result.update(compare(runner, outputs, args.float_folder, args.folder))
        if not args.quick:
            result['agreement'] = agreement(runner, args.float_folder, args.folder)
            result['views'] = viewed(runner, args.float_folder, args.folder)
    write_whole(args.folder / MEASURED, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
