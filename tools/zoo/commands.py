"""Types the two commands for one model of the zoo: export it, test file and checkpoint.

Both ends are those of a user: a config, a checkpoint and a test set on a disk. A file
that lacks a part of its model, as those of two stages do, is not tested alone: it
takes the place of what it holds in the checkpoint, as at the end of the export.
"""

import contextlib
import io
import json
import os
import pickle
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.export.configs.checkpoint import load_quantized
from mmquant_jacinto.export.configs.end_to_end import digest, score_both
from mmquant_jacinto.export.configs.file_run import FileRun
from mmquant_jacinto.export.configs.pipelines import kind, pipelines
from mmquant_jacinto.export.configs.test_images import TestImages

from .batches import NUM_PROPOSALS, TRACKERS, VIDEO, _num_classes, smooth_noise, walk
from .configs import CONFIGS
from .export import FIRST_SEED, FORMAT, quantized, without_folders

TOOLS = Path(__file__).resolve().parents[1]
IMAGES = 2
META = (
    *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    *('text', 'custom_entities', 'border'),
)
# Steps of a config's own test pipeline that its model cannot do without.
NEEDED = ('RandomCenterCropPad',)


def examine_commands(name: str) -> dict[str, Any]:
    """Exports a model and tests file and checkpoint by ``tools/``.

    Args:
        name (str): Path of its config.

    Returns:
        Dict[str, Any]: ``'config'`` and ``'commands'``: of how many ``'images'`` the
        predictions are ``'equal'``, what is ``'missing'`` in the file, or the
        ``'reason'`` why that is not known.
    """
    start = time.perf_counter()
    folder = os.getcwd()
    try:
        with tempfile.TemporaryDirectory() as work_dir:
            os.chdir(work_dir)
            found = _type(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is in the report
        found = dict(reason=without_folders(error))
    finally:
        os.chdir(folder)
    found['seconds'] = round(time.perf_counter() - start, 1)
    return dict(config=name, commands=found)


def _type(name: str) -> dict[str, Any]:
    model, batch, cfg = quantized(name)
    needed = [step for step in _test_pipeline(name) if kind(step) in NEEDED]
    _write_files(model, cfg, needed, batch['inputs'][0].shape[-2:])
    _run('export.py', 'config.py', 'model.pth', '-o', 'model.onnx', '--verify', IMAGES)
    config = Config.fromfile('config.py')
    run = FileRun(config, onnx.load('model.onnx'), in_part=True)
    if run.session.skipped:
        return _type_in_part(config, run)
    predictions = []
    for tested in ('model.pth', 'model.onnx'):
        _run('test.py', 'config.py', tested, '--work-dir', '.', '--out', 'out.pkl')
        predictions.append(pickle.loads(Path('out.pkl').read_bytes()))
    pairs = [tuple(map(digest, pair)) for pair in zip(*predictions)]
    return dict(images=len(pairs), equal=sum(a == b for a, b in pairs))


def _type_in_part(config: Config, run: FileRun) -> dict[str, Any]:
    wrapper = load_quantized(config, 'model.pth')
    root = wrapper.quantization.root
    both = score_both(config, wrapper, run, TestImages(config, root, count=IMAGES))
    return dict(
        images=len(both.file.predictions),
        equal=both.same.equal(both.file),
        missing=run.session.skipped,
    )


def _run(tool: str, *arguments: Any) -> None:
    """Runs a tool in this process: importing MMDetection takes longer than it does."""
    path, argv = sys.path.copy(), sys.argv
    sys.argv = [tool, *map(str, arguments)]
    sys.path.insert(0, str(TOOLS))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
    except SystemExit as error:
        if error.code:
            # One sentence, see `exit_on_quantize_error`.
            text = said.getvalue().rpartition('error: ')[2].strip()
            raise QuantizeError(f'tools/{tool}: {text}') from error
    finally:
        sys.path[:], sys.argv = path, argv


def _test_pipeline(name: str) -> list[dict]:
    cfg = Config.fromfile(CONFIGS / name, import_custom_modules=False)
    found = pipelines(cfg.get('test_dataloader', {}).get('dataset'))
    return found[-1] if found else []


def _write_files(
    model: nn.Module, cfg: ConfigDict, needed: list, size: Sequence[int]
) -> None:
    """A config, a checkpoint, and a COCO of a few images of one size."""
    for part in walk(cfg):
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'
    classes = tuple(f'class {i}' for i in range(_num_classes(cfg)))
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), 'model.pth')
    Path('images').mkdir()
    height, width = size[0] * 3 // 4, size[1]
    infos, proposals = [], {}
    for index in range(IMAGES):
        image = smooth_noise((3, height, width), FIRST_SEED + index)
        cv2.imwrite(f'images/{index}.png', image.permute(1, 2, 0).numpy())
        info = dict(id=index, file_name=f'{index}.png', height=height, width=width)
        # Each is a video of its own: a tracker gets one frame at a time.
        infos.append({**info, 'video_id': index, 'frame_id': 0})
        proposals[f'images/{index}.png'] = _proposals(height, width, index)
    categories = [dict(id=i, name=name) for i, name in enumerate(classes)]
    content = dict(images=infos, annotations=[], categories=categories)
    Path('coco.json').write_text(json.dumps(content))
    Path('proposals.pkl').write_bytes(pickle.dumps(proposals))
    _config(cfg, classes, needed, size).dump('config.py')


def _proposals(height: int, width: int, seed: int) -> dict[str, np.ndarray]:
    corners = np.random.default_rng(seed).random((2, NUM_PROPOSALS, 2)) * (
        width,
        height,
    )
    corners.sort(0)
    scores = np.linspace(1, 0, NUM_PROPOSALS, dtype=np.float32)
    return dict(bboxes=np.concatenate(corners, 1).astype(np.float32), scores=scores)


def _dataset(cfg: ConfigDict, needed: list, size: Sequence[int]) -> dict[str, Any]:
    """What a model is tested on: images, with proposals where it has none; videos."""
    # As a file's images are, mostly square: and so the scale factors are no ones.
    resize = dict(type='Resize', scale=(size[1], size[0]), keep_ratio=False)
    # CenterNet's gives floats.
    load = dict(type='LoadImageFromFile', to_float32=bool(needed))
    if cfg.type.rpartition('.')[2] in TRACKERS + VIDEO:
        frames = dict(type='TransformBroadcaster', transforms=[load, resize])
        pipeline = [frames, dict(type='PackTrackInputs')]
        prefix = dict(img_path='images/')
        return dict(type='MOTChallengeDataset', data_prefix=prefix, pipeline=pipeline)
    found: dict[str, Any] = dict(type='CocoDataset', return_classes=True)
    pipeline = [load, resize]
    if cfg.get('roi_head') is not None and cfg.get('rpn_head') is None:
        found['proposal_file'] = str(Path('proposals.pkl').absolute())
        both = dict(type='ProposalBroadcaster', transforms=[resize])
        pipeline = [load, dict(type='LoadProposals'), both]
    pack = dict(type='PackDetInputs', meta_keys=META)
    prefix = dict(img='images/')
    return dict(found, data_prefix=prefix, pipeline=[*pipeline, *needed, pack])


def _config(
    cfg: ConfigDict, classes: tuple[str, ...], needed: list, size: Sequence[int]
) -> Config:
    dataset = dict(
        _dataset(cfg, needed, size),
        ann_file='coco.json',
        metainfo=dict(classes=classes),
        test_mode=True,
    )
    loader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    return Config(
        dict(
            default_scope='mmdet',
            custom_imports=dict(imports=['mmquant_jacinto']),
            model=cfg.to_dict(),
            quantize=dict(mode='ptq', **FORMAT),
            test_dataloader=loader,
            test_evaluator=dict(type='DumpDetResults', out_file_path='metric.pkl'),
            test_cfg=dict(type='TestLoop'),
        )
    )
