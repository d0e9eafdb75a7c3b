"""What cannot be combined with quantization, said before anything is built or run."""

import math
from collections.abc import Mapping
from typing import Any, Optional

from mmengine.logging import print_log
from torch import Tensor, nn

from ..config.max_drop import KEY, MaxDrop
from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError, nearest
from ..execute.stored_plan import NAME, find_plan
from ..plan.plan import Plan
from ..quantizers.mmrazor.importing import mmrazor_types, require_mmrazor
from ..report.build import numbers_of
from ..wrappers.distillation import fit_names
from .checkpoint_files import plain_names

MODE = 'quantize_mode'  # of the run that saved a checkpoint, in its meta


def refuse_synchronized_norms(model: nn.Module) -> None:
    """Refuses SyncBN, for processes on CPUs.

    Raises:
        QuantizeError: If the model has one; it names the first.
    """
    for name, module in model.named_modules():
        # Torch's and mmcv's.
        if type(module).__name__ == 'SyncBatchNorm':
            raise QuantizeError(
                f'{name} is a SyncBN, which several processes on CPUs cannot train; '
                "use norm_cfg=dict(type='BN'), and no sync_bn"
            )


def refuse_conflicts(cfg: dict) -> None:
    """Refuses settings of a config that cannot be combined with quantization.

    Raises:
        QuantizeError: If one of them is set.
    """
    if cfg.get('efficient_conv_bn_eval'):
        raise QuantizeError(
            f'efficient_conv_bn_eval={cfg["efficient_conv_bn_eval"]!r} '
            'cannot be combined with quantize, which folds batch '
            'normalization itself; remove it'
        )
    if cfg.get('compile'):
        raise QuantizeError(
            f'compile={cfg["compile"]!r} cannot be combined with quantize: '
            "torch.compile does not see the quantizers' hooks; remove it"
        )
    taken = cfg.get('model', {})
    if isinstance(taken, nn.Module) and hasattr(taken, NAME):
        raise QuantizeError(
            'the model is quantized already; give QuantRunner the float model'
        )
    for key in mmrazor_types(taken, 'model'):
        require_mmrazor(key)


def checked_plan(
    filename: str,
    checkpoint: dict[str, Any],
    root: nn.Module,
    mode: str,
    testing: bool,
    resuming: bool,
) -> Optional[Plan]:
    """The plan in a checkpoint; refuses one that a quantized run cannot start from.

    A calibration gets the weights alone.

    Args:
        filename (str): What the user calls it.
        checkpoint (Dict[str, Any]): What is in it.
        root (nn.Module): The quantized model.
        mode (str): ``quantize.mode`` of the run.
        testing (bool): Whether the run only validates or tests.
        resuming (bool): Whether the run goes on where the checkpoint was saved.

    Returns:
        Plan, optional: None of a float checkpoint.

    Raises:
        QuantizeError: If it is of another model; to be resumed or tested, also if
            it is a float one; to be resumed, if it is of a run of the other mode; to
            be calibrated, if it is so already.
    """
    stored = checkpoint.get('state_dict', checkpoint)
    complete = testing or resuming
    check_fits(filename, stored, root, complete)
    plan = find_plan(stored)
    if resuming and not testing:
        _check_mode(filename, checkpoint.get('meta', {}), mode)
    elif mode == 'ptq' and not testing and plan is not None:
        _leave_weights(filename, stored)
    if plan is not None or not complete:
        return plan
    if testing:
        raise QuantizeError(
            f'{filename} is a float checkpoint without quantization '
            'ranges; calibrate it first (tools/train.py CONFIG '
            f'--cfg-options quantize.mode=ptq load_from={filename}) or '
            'train it (quantize.mode=qat), and test the checkpoint '
            'that gives'
        )
    raise QuantizeError(
        f'{filename} is a float checkpoint, which a quantized run '
        'cannot resume; start from its weights with resume=False '
        f'load_from={filename}'
    )


def check_fits(
    filename: str,
    stored: Mapping[str, Tensor],
    root: nn.Module,
    complete: bool = True,
) -> None:
    """Refuses a checkpoint of another model.

    Args:
        filename (str): What the user calls it.
        stored (Mapping[str, Tensor]): Its state dict.
        root (nn.Module): The model.
        complete (bool): Whether all of the model's parameters have to be there, and
            not just one. Defaults to True.

    Raises:
        QuantizeError: If they are not; it names the first.
    """
    shapes: Mapping[str, Any] = {
        key: value.shape
        for key, value in plain_names(stored).items()
        if isinstance(value, Tensor)
    }
    shapes = fit_names(shapes, root)
    # Of quantizers its plan tells.
    quantizers = f'{NAME}.'
    own = {
        name: p.shape
        for name, p in root.named_parameters()
        if not name.startswith(quantizers)
    }
    others = [name for name in own if shapes.get(name) != own[name]]
    if others and (complete or len(others) == len(own)):
        there, here = shapes.get(others[0]), tuple(own[others[0]])
        found = 'missing' if there is None else f'{tuple(there)} in it'
        raise QuantizeError(
            f'{filename} is a checkpoint of another model: '
            f'{len(own) - len(others)} of {len(own)} parameters have the name and '
            f'shape of this one, and {others[0]} is {here} here and {found}; use the '
            'config that it was made with'
        )


def _check_mode(filename: str, meta: Mapping[str, Any], mode: str) -> None:
    """Refuses to go on with a run of the other mode."""
    found = meta.get(MODE, mode)
    if found != mode:
        raise QuantizeError(
            f'{filename} is of a run with quantize.mode={found!r}, which one with '
            f'quantize.mode={mode!r} cannot resume; start from its weights with '
            f'resume=False load_from={filename}, in a work_dir of its own'
        )


def _leave_weights(filename: str, stored: dict[str, Tensor]) -> None:
    """Takes all but the weights out of a checkpoint that a calibration starts from.

    Refuses what is calibrated already: what a calibration makes of weights belongs
    together with its corrections of the biases.
    """
    plan = next(key for key in stored if f'.{key}'.endswith(f'.{NAME}.plan'))
    prefix = plan[: -len('plan')]
    if stored[f'{prefix}bias_correction'].any():
        raise QuantizeError(
            f'load_from={filename} is calibrated already; calibrate the float '
            'checkpoint that it was made from, or train it further with '
            "quantize.mode='qat'"
        )
    for key in [key for key in stored if key.startswith(prefix)]:
        del stored[key]


def note_other_settings(config: QuantizeConfig, stored: Mapping[str, Any]) -> None:
    """Says where a test's ``quantize`` is not what its checkpoint was made with.

    Args:
        config (QuantizeConfig): Of the test.
        stored (Mapping[str, Any]): The settings in the checkpoint's plan.
    """
    for key in ('bits', 'target'):
        if stored[key] != getattr(config, key):
            print_log(
                f'quantize.{key}={getattr(config, key)!r} is not what '
                f'this checkpoint was made with ({stored[key]!r}); it is '
                'tested as it was made.',
                'current',
                30,
            )


def check_validation(runner: Any) -> None:
    """Checks, before anything is built, that a budget has something to score by.

    Raises:
        QuantizeError: If there is no validation.
    """
    if runner.quantize_config.keeps_budget and runner._val_loop is None:
        raise QuantizeError(
            f'{KEY} is kept on the validation set, and the config '
            'has none; set val_dataloader, val_evaluator and val_cfg'
        )


def check_metric(runner: Any) -> None:
    """Checks what the evaluator's prefixes tell of ``max_drop.metric``, if it is set.

    Raises:
        QuantizeError: If no metric of the evaluator begins as it does, or the loop has
            no evaluator.
    """
    if not runner.quantize_config.keeps_budget:
        return
    wanted = runner.quantize_config.max_drop.metric
    evaluator = getattr(runner.val_loop, 'evaluator', None)
    metrics = getattr(evaluator, 'metrics', None)
    if not metrics:
        raise QuantizeError(
            f'{KEY} needs the scores of a validation, and the '
            f'{type(runner.val_loop).__name__} of this config has no evaluator with '
            'metrics; set val_evaluator'
        )
    prefixes = [getattr(metric, 'prefix', None) for metric in metrics]
    if wanted is None or not all(prefixes):
        return
    if not wanted.startswith(tuple(f'{prefix}/' for prefix in prefixes)):
        raise QuantizeError(
            f'{KEY}.metric={wanted!r} is no metric of val_evaluator, whose '
            f'metrics begin with {", ".join(f"{prefix}/" for prefix in prefixes)}'
        )


def pick_metric(metrics: Mapping[str, Any], budget: MaxDrop) -> tuple[str, float]:
    """The score that a budget is of.

    Args:
        metrics (Mapping[str, Any]): Of the float network.
        budget (MaxDrop): ``quantize.max_drop``.

    Returns:
        Tuple[str, float]: Its name and value.

    Raises:
        QuantizeError: If there is no such metric, or no budget of it can be kept.
    """
    wanted = budget.metric
    numbers = numbers_of(metrics)
    if wanted is not None and wanted not in numbers:
        raise QuantizeError(
            f'{KEY}.metric={wanted!r} is not what val_evaluator gives; '
            + nearest(wanted, sorted(numbers))
        )
    if not numbers:
        raise QuantizeError(
            f'val_evaluator gives no number for the float network, so {KEY} has no '
            'score to keep; check load_from, val_dataloader and val_evaluator'
        )
    name = next(iter(numbers)) if wanted is None else wanted
    budget.check_rule(name)
    value = numbers[name]
    if not math.isfinite(value) or value <= 0 < budget.sign:
        raise QuantizeError(
            f'the float network itself has {name}={value:g}, from which nothing can '
            f'drop ({KEY}); check load_from and val_dataloader'
        )
    return name, value
