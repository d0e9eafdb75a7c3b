"""Distillation: which part of a model is quantized, and what its tensors are called.

An algorithm of MMRazor (``SingleTeacherDistill`` and its kin) is a model around
another one, its ``architecture``. That one, the student, is quantized and deployed.
What else the algorithm has, a teacher and connectors, is in float, outside the plan.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from torch import nn

from ..errors import QuantizeError
from ..plan.plan import Plan, Step, module_of

STUDENT = 'architecture'
PREFIX = f'{STUDENT}.'

Rename = Callable[[str], Optional[str]]  # a name to another, or to none


def is_algorithm(model: nn.Module) -> bool:
    """Whether a model is an algorithm of MMRazor, around the model that it trains."""
    # Asked without an import of MMRazor, which may not be there.
    return any(
        base.__name__ == 'BaseAlgorithm' and base.__module__.startswith('mmrazor.')
        for base in type(model).__mro__
    )


def student_of(model: nn.Module) -> nn.Module:
    """The part of a model that is quantized; most often all of it."""
    # Test-time augmentation wraps the model once more.
    if isinstance(model, BaseTTAModel):
        model = model.module
    return getattr(model, STUDENT) if is_algorithm(model) else model


def fit_names(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Names the tensors of a checkpoint as a model does.

    A distillation's checkpoint has the student's tensors below ``architecture.``;
    the student alone, and its float checkpoint, have them at the top. Each loads
    into the other.

    Args:
        state_dict (Mapping[str, Tensor]): Of a checkpoint.
        model (nn.Module): An algorithm, or a model that may have been a student.

    Returns:
        Mapping[str, Tensor]: ``state_dict`` itself where its names fit.
    """
    distilled = any(key.startswith(PREFIX) for key in state_dict)
    if is_algorithm(model) and not distilled:
        return _renamed(state_dict, lambda key: PREFIX + key)
    if distilled and not hasattr(model, STUDENT):
        return _renamed(
            state_dict,
            lambda key: key[len(PREFIX) :] if key.startswith(PREFIX) else None,
        )
    return state_dict


def _renamed(state_dict: Mapping[str, Any], rename: Rename) -> OrderedDict:
    renamed: Any = OrderedDict(_renamed_items(state_dict, rename))
    # Versions of modules, by their names.
    metadata = getattr(state_dict, '_metadata', None)
    if metadata is not None:
        renamed._metadata = OrderedDict(_renamed_items(metadata, rename))
    return renamed


def _renamed_items(
    items: Mapping[str, Any], rename: Rename
) -> Iterator[tuple[str, Any]]:
    for key, value in items.items():
        name = rename(key)
        if name is not None:
            yield name, value


def check_distillation(model: nn.Module, plan: Plan) -> None:
    """Checks an algorithm's teacher, and what it records of its student.

    The target computes a layer, its normalization and its activation as one; what
    lies between them does not exist there, and is not what the teacher has.

    Args:
        model (nn.Module): Any; nothing is checked if it is no algorithm.
        plan (Plan): Of its student.

    Raises:
        QuantizeError: If a recorder asks for the inside of one operation.
    """
    if not is_algorithm(model):
        return
    teacher = getattr(model, 'teacher', None)
    if teacher is not None and not getattr(teacher, 'is_init', True):
        print_log(
            'model.teacher_ckpt is not set: the teacher has its initial weights, '
            'unless the checkpoint that is loaded brings others.',
            'current',
            30,
        )
    recorders = getattr(getattr(model, 'distiller', None), 'student_recorders', None)
    for name, recorder in getattr(recorders, 'recorders', {}).items():
        if type(recorder).__name__ != 'ModuleOutputsRecorder':
            continue
        site = _last_site(plan, recorder.source)
        if site is not None and not plan.steps[site].last:
            end = module_of(_end_of_chain(plan, plan.steps[site]))
            raise QuantizeError(
                f'model.distiller.student_recorders.{name}.source='
                f'{recorder.source!r} lies inside what a quantized model computes as '
                f'one operation; record its result, the output of {end!r} or of a '
                'module around it, in the teacher too'
            )


def _last_site(plan: Plan, module: str) -> Optional[str]:
    """The last call in a module, or below it."""
    sites = [
        site for site in plan.steps if f'{module_of(site)}.'.startswith(f'{module}.')
    ]
    return sites[-1] if sites else None


def _end_of_chain(plan: Plan, step: Step) -> str:
    ends = (
        site
        for site, other in plan.steps.items()
        if other.chain == step.chain and other.last
    )
    return next(ends)
