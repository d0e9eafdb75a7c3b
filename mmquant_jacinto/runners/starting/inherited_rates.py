"""Learning rates of a quantized training, where its config names none of its own.

A float detector is trained at rates that undo what it has learned. Quantized, it is
trained at a hundredth of them. Whether a config has rates of its own tells a look at
the files that it inherits from: the nearest that does not quantize is the float config.
"""

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.utils import get_installed_path

from ...config.quantize_config import QuantizeConfig
from ...config.sections import is_number

# What schedules name in units of the rate itself, and not as a share of it.
ENDS = ('eta_min', 'eta_max', 'min_value')
# Of the float rates: by what the field trains quantized detectors at, and what
# benchmarks/accuracy.py measures with few bits.
SHARE, SHARE_OF_FEW_BITS = 0.01, 0.1


def scale_rates(cfg: Any, from_checkpoint: bool) -> Optional[str]:
    """Scales the learning rates of a config as ``quantize.lr_mult`` says.

    Args:
        cfg (Config): Of a runner; changed in place: ``lr`` of optimizers, and the
            rates that schedules end with.
        from_checkpoint (bool): Whether the training starts from a checkpoint.

    Returns:
        str, optional: What was done, for the log; None where nothing was.
    """
    config = QuantizeConfig.parse(cfg.get('quantize'))
    if config is None or config.mode != 'qat':
        return None
    rates = list(_rates(cfg.get('optim_wrapper')))
    if not rates:
        return None
    factor, why = config.lr_mult, 'quantize.lr_mult'
    if factor is None:
        float_config = nearest_float_config(cfg) if from_checkpoint else None
        if float_config is None:
            return None
        inherited = [rate['lr'] for rate in _rates(float_config.get('optim_wrapper'))]
        if inherited != [rate['lr'] for rate in rates]:
            return None
        factor = SHARE_OF_FEW_BITS if config.has_few_bits else SHARE
        why = (
            f'of {os.path.basename(float_config.filename)}, whose rates they were '
            '(quantize.lr_mult, or an lr in this config, sets others)'
        )
    if factor == 1:
        return None
    for rate in rates:
        rate['lr'] *= factor
    for schedule in _schedules(cfg.get('param_scheduler')):
        for key in ENDS:
            if is_number(schedule.get(key)):
                schedule[key] *= factor
    found = ', '.join(f'{rate["lr"]:g}' for rate in rates)
    return f'Learning rate {found}: {factor:g} times that {why}.'


def nearest_float_config(cfg: Any) -> Optional[Config]:
    """The nearest config that one inherits from, or is, and that does not quantize.

    Args:
        cfg (Config): With the name of its file.

    Returns:
        Config, optional: None where there is none, or no file to look at.
    """
    filename = getattr(cfg, 'filename', None)
    if filename is None or not os.path.isfile(filename):
        return None
    waiting, seen = [str(filename)], set()
    while waiting:
        path = waiting.pop(0)
        if path in seen or not os.path.isfile(path):
            continue
        seen.add(path)
        found = Config.fromfile(path, import_custom_modules=False)
        if not found.get('quantize') and found.get('optim_wrapper'):
            return found
        waiting.extend(bases(path))
    return None


def bases(filename: str) -> Iterator[str]:
    """Files that a config names as its bases, by ``_base_`` or in ``read_base()``."""
    imports = []
    if filename.endswith('.py'):
        tree = ast.parse(Path(filename).read_text(encoding='utf-8'))
        blocks = [node.body for node in tree.body if isinstance(node, ast.With)]
        imports = [item for body in blocks for item in body]
    for item in imports:
        if isinstance(item, ast.ImportFrom):
            yield _file_of(item, filename)
    if not imports:
        # As MMEngine reads them; there is no public way.
        for base in Config._get_base_files(filename):
            yield Config._get_cfg_path(base, filename)[0]


def _file_of(item: ast.ImportFrom, filename: str) -> str:
    """Where MMEngine looks for the module of an import in ``read_base()``."""
    package, *inner = (item.module or '').split('.')
    if item.level:
        return (
            str(Path(filename).parents[item.level - 1] / package / Path(*inner)) + '.py'
        )
    return os.path.join(get_installed_path(package), *inner) + '.py'


def _rates(optim_wrapper: Any) -> Iterator[Any]:
    """The optimizers' dicts that have a learning rate, of one wrapper or of several."""
    if not isinstance(optim_wrapper, Mapping):
        return
    optimizer = optim_wrapper.get('optimizer')
    if isinstance(optimizer, Mapping):
        if is_number(optimizer.get('lr')):
            yield optimizer
        return
    for part in optim_wrapper.values():
        yield from _rates(part)


def _schedules(schedules: Any) -> Iterator[Any]:
    """The dicts of schedules of learning rates, one, several, or by optimizer."""
    if isinstance(schedules, Mapping) and 'type' in schedules:
        # Of momentum there are some, too.
        if 'Momentum' not in str(schedules['type']):
            yield schedules
    elif isinstance(schedules, Mapping):
        for part in schedules.values():
            yield from _schedules(part)
    elif isinstance(schedules, (list, tuple)):
        for part in schedules:
            yield from _schedules(part)
