"""``quantize.max_drop``: what a calibration may cost, and what keeping that raised."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional, Union

from mmengine.fileio import get_text

from ..errors import QuantizeError
from ..registry import BIAS_CORRECTIONS, look_up
from .mixed_precision import MixedPrecision
from .sections import check_choice, check_count, is_number
from .widths import check_override

KEY = 'quantize.max_drop'
FILE = 'max_drop.json'
RULES = ('greater', 'less')
# In names of metrics of MMEngine's libraries of which less is better.
ERRORS = frozenset(
    'loss error err mae mse rmse nme epe wer cer fid mpjpe absrel sqrel rmselog '
    'silog perplexity mate mase maoe mave maae'.split()
)


@dataclass(frozen=True)
class MaxDrop:
    """``quantize.max_drop``: points that the calibrated network may lose against float.

    See :mod:`~mmquant_jacinto.methods.budgets.accuracy_budget`.

    Args:
        points (float): Hundredths of the metric; where an evaluator gives percent,
            its own unit.
        metric (str, optional): As the validation's evaluator names it, such as
            ``'coco/bbox_mAP'``. Defaults to the first that it gives.
        scorings (int): Quantized networks that are calibrated and scored at most.
            Defaults to 20.
        num_images (int): Images of the calibration set, over all processes, that
            layers are ranked on; each costs some three passes. Defaults to 16.
        rule (str): ``'greater'`` or ``'less'`` is better, as MMEngine's checkpoint hook
            has it. Defaults to ``'greater'``; a metric whose name says that it is an
            error is refused then.
    """

    points: float
    metric: Optional[str] = None
    scorings: int = 20
    num_images: int = 16
    rule: str = 'greater'

    def __post_init__(self) -> None:
        if not is_number(self.points) or not 0 <= self.points < math.inf:
            raise QuantizeError(
                f'{KEY}.points={self.points!r} is not a budget; use a number of '
                'hundredths of the metric from 0 on, such as 0.5'
            )
        given = self.metric
        if given is not None and (not isinstance(given, str) or not given):
            raise QuantizeError(
                f'{KEY}.metric={given!r} is no name of a metric; use one that '
                "val_evaluator gives, such as 'coco/bbox_mAP'"
            )
        check_count('max_drop.scorings', self.scorings, 1)
        check_count('max_drop.num_images', self.num_images, 1)
        check_choice('max_drop.rule', self.rule, RULES)
        if given is not None:
            self.check_rule(given)

    @property
    def sign(self) -> int:
        """int: Of the metric, so that more is better: 1 or -1."""
        return 1 if self.rule == 'greater' else -1

    def check_rule(self, metric: str) -> None:
        """Refuses a metric of which less is better, where that was not said.

        Raises:
            QuantizeError: If its name has a word for an error in it.
        """
        words = set(re.split(r'[^a-z]+', metric.lower())) & ERRORS
        if words and self.rule == 'greater':
            raise QuantizeError(
                f'{KEY}.metric={metric!r} is an error by its name ({words.pop()}), of '
                f"which less is better; add rule='less', as in {KEY}=dict(metric="
                f"{metric!r}, points={self.points!r}, rule='less'), or name another"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; without a rule as earlier versions wrote it."""
        found = asdict(self)
        if self.rule == 'greater':
            del found['rule']
        return found


@dataclass(frozen=True)
class Raised:
    """What keeps a budget, as a search has found it.

    Args:
        settings (MaxDrop | MixedPrecision): The budget.
        layers (Mapping[str, Any]): Call site, or quantizer of an input, to what an
            override would give its module: a width, a dict of widths, or False.
        remedies (Mapping[str, Any]): Other settings that it takes, and that cost no
            speed: ``per_channel``, ``bias_correction``.
        path (str, optional): The file that it is from.
    """

    settings: Union[MaxDrop, MixedPrecision]
    layers: Mapping[str, Any] = field(default_factory=dict)
    remedies: Mapping[str, Any] = field(default_factory=dict)
    path: Optional[str] = None

    @property
    def section(self) -> str:
        """str: The key of ``quantize`` whose budget it is."""
        return 'max_drop' if isinstance(self.settings, MaxDrop) else 'mixed_precision'

    @classmethod
    def read(cls, path: str, section: str) -> Optional['Raised']:
        """Reads ``max_drop.json``, or ``mixed_precision.json``.

        Args:
            path (str): The file.
            section (str): The key of ``quantize`` that names it.

        Returns:
            Raised, optional: None where the file has widths of weights alone, which
            :func:`~mmquant_jacinto.methods.mixed_precision.with_found_bits` reads.

        Raises:
            QuantizeError: If it cannot be read, or the search did not end.
        """
        try:
            found = json.loads(get_text(path))
            if section != 'max_drop' and found['settings'].get('latency') is None:
                return None
            finished, raised = found['finished'], cls._of(found, section, path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            give = f'a number of points, such as 0.5, or the {FILE}'
            give = give if section == 'max_drop' else 'the mixed_precision.json'
            raise QuantizeError(
                f'quantize.{section}={path!r} cannot be read ({type(error).__name__}: '
                f"{error}); give {give} that a calibration (mode='ptq') with {section} "
                'has left in its work_dir'
            ) from error
        if not finished:
            raise QuantizeError(
                f'quantize.{section}={path!r} is of a search that has not ended; '
                'resume that calibration first (--resume)'
            )
        return raised

    @classmethod
    def _of(cls, found: Any, section: str, path: str) -> 'Raised':
        kind = MaxDrop if section == 'max_drop' else MixedPrecision
        layers, remedies = dict(found['layers']), dict(found['remedies'])
        for name, value in layers.items():
            check_override(f'layers[{name!r}]', value)
        if remedies.keys() - {'per_channel', 'bias_correction'}:
            raise ValueError(f'remedies={remedies!r}')
        way = remedies.get('bias_correction', False)
        if way is not False:
            look_up(BIAS_CORRECTIONS, 'bias_correction', way)
        return cls(kind(**found['settings']), layers, remedies, path)


def parse_max_drop(value: Any) -> Any:
    """What a config gives as ``max_drop``, but for a dict.

    Args:
        value (Any): A number of points, a path, None or False.

    Returns:
        MaxDrop | Raised | str, optional: A path as it is: a test needs no file. None
        where it is off.

    Raises:
        QuantizeError: If it is nothing of these.
    """
    if value is None or value is False or isinstance(value, (MaxDrop, Raised)):
        return value or None
    if isinstance(value, str) and value:
        return value
    if not is_number(value):
        raise QuantizeError(
            f'{KEY}={value!r} is not a budget; use a number of hundredths of the '
            "metric, such as 0.5, dict(metric='coco/bbox_mAP', points=0.5), or the "
            f'path of a {FILE}'
        )
    return MaxDrop(value)


def check_max_drop(value: Any, mode: str, mixed_precision: Any) -> None:
    """Checks that what a budget asks for can be done in a run.

    Args:
        value (MaxDrop | Raised | str, optional): Of the config.
        mode (str): ``quantize.mode``.
        mixed_precision (Any): ``quantize.mixed_precision``.

    Raises:
        QuantizeError: If the run does not calibrate, or chooses widths otherwise.
    """
    if isinstance(value, MaxDrop) and mode != 'ptq':
        raise QuantizeError(
            f'{KEY} is kept by a calibration, and quantize.mode={mode!r} trains; '
            "calibrate with mode='ptq' first, and train with "
            f"max_drop='WORK_DIR/{FILE}', which that leaves"
        )
    if value is not None and mixed_precision is not None:
        raise QuantizeError(
            f'{KEY} and quantize.mixed_precision both choose widths; leave one away'
        )
