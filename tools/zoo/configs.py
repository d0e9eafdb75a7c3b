"""Which of MMDetection's installed configs the sweep takes, and their models."""

import importlib
import importlib.util
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config, ConfigDict

from .absent import stand_ins
from .batches import walk

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
# What stands for a part of an architecture.
PARTS = ('backbone', 'neck', 'head', 'type', 'layer', 'plugins', 'conv_cfg', 'dcn')
NOT_PARTS = ('loss', 'cfg', 'assigner', 'coder', 'data_preprocessor', 'tracker')
# In names of models that have smaller siblings of the same parts.
LARGE = (
    *('swin-l', 'swin-b', 'swin-s', 'x101', 'r101', 's101', 'res2net-101', 'hg104'),
    *('_b7', '-l_', '_l_', '_x_', '-x_'),
)


# The smallest one of the folder is an RPN alone, which MMDetection 3.3 cannot build.
MORE = ('cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',)


def import_mmpretrain() -> None:
    """Imports mmpretrain where it is installed, also without torchvision.

    It imports torchvision for data transforms and metrics, which building a
    model does not need.
    """
    if importlib.util.find_spec('mmpretrain') is None:
        return
    try:
        with stand_ins(['torchvision']):
            importlib.import_module('mmpretrain.models')
    except ImportError as error:
        print(f'mmpretrain cannot be imported: {error}')


def all_configs() -> list[str]:
    """All installed configs of models, by their path below :data:`CONFIGS`."""
    paths = sorted(CONFIGS.glob('*/*.py'))
    names = [path.relative_to(CONFIGS).as_posix() for path in paths]
    return [
        name
        for name in names
        if not name.startswith('_base_') and not name.startswith('common/')
    ]


def load_model_config(name: str) -> ConfigDict:
    """The ``model`` of a config; None in one that has none.

    Args:
        name (str): Path below :data:`CONFIGS`.
    """
    # Not as a module: several processes would write the same files.
    cfg = Config.fromfile(CONFIGS / name, import_custom_modules=False)
    return cfg.get('model')


def parts_of(model: ConfigDict) -> set[str]:
    """Names of the types that a model is built from, losses and the like aside."""
    found: set[str] = set()

    def visit(cfg: Any, key: str) -> None:
        if isinstance(cfg, (list, tuple)):
            for item in cfg:
                visit(item, key)
        elif isinstance(cfg, dict):
            if isinstance(cfg.get('type'), str) and cfg['type'] != 'Pretrained':
                found.add(cfg['type'])
            for name, item in cfg.items():
                is_conv = name in ('conv_cfg', 'norm_cfg', 'act_cfg')
                if is_conv or not any(word in name for word in NOT_PARTS):
                    visit(item, name)

    visit(model, '')
    return found


def select(
    patterns: Iterable[str] = (), everything: bool = False
) -> list[tuple[str, str]]:
    """Picks configs.

    Args:
        patterns (Iterable[str]): Folders or ``fnmatch`` patterns of paths; all
            configs that match are taken.
        everything (bool): Whether to take all. Otherwise, and without
            patterns: the smallest config of each folder, and more until all
            backbones, necks, heads and other parts are among them.

    Returns:
        List[Tuple[str, str]]: Path of each config, and why it was taken.
    """
    names = all_configs()
    patterns = list(patterns)
    if patterns:
        return [
            (name, 'asked for')
            for name in names
            if any(
                fnmatch(name, pattern) or name.partition('/')[0] == pattern.rstrip('/')
                for pattern in patterns
            )
        ]
    if everything:
        return [(name, 'all') for name in names]
    return _cover(names)


def _cover(names: list[str]) -> list[tuple[str, str]]:
    parts: dict[str, set[str]] = {}
    for name in names:
        try:
            model = load_model_config(name)
        except Exception as error:  # noqa: BLE001 - a config that cannot be read
            parts[name] = set()
            print(f'{name}: {type(error).__name__}: {error}'[:200])
            continue
        if model is not None:
            parts[name] = parts_of(model)
    chosen: dict[str, str] = {}
    folders: dict[str, list[str]] = {}
    for name in parts:
        folders.setdefault(name.partition('/')[0], []).append(name)
    for members in folders.values():
        best = min(members, key=lambda name: (not parts[name], _weight(name)))
        chosen[best] = 'folder'
    chosen.update((name, 'in place of another') for name in MORE if name in parts)
    covered = set().union(*(parts[name] for name in chosen))
    for name in sorted(parts, key=_weight):
        new = parts[name] - covered
        if new and name not in chosen:
            chosen[name] = ', '.join(sorted(new))
            covered |= new
    return sorted(chosen.items())


def _weight(name: str) -> tuple:
    return sum(word in name for word in LARGE), len(name), name


def strip_pretrained(model: ConfigDict) -> ConfigDict:
    """Takes out of a config what would load a checkpoint, or torchvision."""
    for part in walk(model):
        for key in ('pretrained', 'teacher_ckpt'):
            if part.get(key):
                part[key] = False if part[key] is True else None
        if 'use_torchvision' in part:
            # mmcv's own operator computes the same.
            part['use_torchvision'] = False
        init = part.get('init_cfg')
        items = init if isinstance(init, (list, tuple)) else [init]
        if any(
            isinstance(item, dict)
            and (item.get('type') == 'Pretrained' or 'checkpoint' in item)
            for item in items
        ):
            part['init_cfg'] = None
        path = part.get('teacher_config')
        if isinstance(path, str):
            part['teacher_config'] = dict(
                model=strip_pretrained(load_model_config(path.partition('/')[2]))
            )
    return model
