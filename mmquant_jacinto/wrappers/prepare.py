"""Prepare: record a model, plan it, and give it its quantizers."""

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional, cast

import torch
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_map

from ..config.mixed_precision import MixedPrecision
from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError
from ..execute.quantization import Quantization
from ..methods.mixed_precision import check_budget, weight_elements, with_found_bits
from ..plan.plan import Plan
from ..plan.planner import make_plan
from ..record.graph import Graph
from ..record.recorder import record
from ..record.side_effects import untouched
from .call_arguments import arguments_of


def is_region(module: nn.Module) -> bool:
    """Whether a module that is called from outside any region starts one.

    A model of MMEngine is no region: its forward computes losses and
    predictions too; the modules that it calls are.
    """
    return not isinstance(module, BaseModel) and any(True for _ in module.parameters())


def refuse_compiled(model: Any) -> None:
    """Refuses what nothing can be quantized in: its calls cannot be seen.

    Raises:
        QuantizeError: If the model is no module, or a module of it is scripted or
            compiled; it names the first.
    """
    if not isinstance(model, nn.Module):
        raise QuantizeError(
            f'the model to quantize is a {type(model).__name__}; give a torch.nn.Module'
        )
    for name, module in model.named_modules():
        kinds = {base.__name__ for base in type(module).__mro__}
        if isinstance(module, torch.jit.ScriptModule) or 'OptimizedModule' in kinds:
            made_by = 'compile' if 'OptimizedModule' in kinds else 'jit.script or trace'
            raise QuantizeError(
                f'{name or "the model"} was made by torch.{made_by}, which hides what '
                'is to be quantized; give the module that it was made from'
            )


def plan_model(
    model: nn.Module, passes: Iterable[Callable[[], Any]], config: QuantizeConfig
) -> Plan:
    """Records ``passes`` over a model and plans its quantization.

    Args:
        model (nn.Module): The float model; left as it was.
        passes (Iterable[Callable]): Each runs the model once.
        config (QuantizeConfig): Target, widths, overrides.

    Returns:
        Plan: Plain data.

    Raises:
        QuantizeError: If there is nothing to quantize, a pattern of
            ``overrides`` matches nothing, or the budget of ``mixed_precision``
            is out of reach.
    """
    return plan_recorded(record(model, passes, is_region), model, config)


def plan_recorded(graph: Graph, model: nn.Module, config: QuantizeConfig) -> Plan:
    """Plans the quantization of a model that is recorded.

    Args:
        graph (Graph): What was recorded.
        model (nn.Module): The float model.
        config (QuantizeConfig): Target, widths, overrides.

    Returns:
        Plan: Plain data.

    Raises:
        QuantizeError: See :func:`plan_model`.
    """
    config = config.with_found_budget()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = make_plan(graph, config, shapes)
    bits = config.mixed_precision
    if config.searches_bits:
        check_budget(plan, weight_elements(plan, shapes), cast(MixedPrecision, bits))
    elif isinstance(bits, str):
        plan = with_found_bits(plan, bits)
    return plan


def probe_passes(
    model: nn.Module,
    dummy_input: Any,
    training_input: Any = None,
    preprocessor: Optional[nn.Module] = None,
) -> list[Callable[[], Any]]:
    """The passes that show all of a model's call sites.

    Args:
        model (nn.Module): The float model.
        dummy_input (Any): An image tensor (N, C, H, W), a tuple of
            positional or a dict of keyword arguments; for a model of
            MMEngine a batch as its dataloader yields it.
        training_input (Any, optional): A batch to compute the loss on.
            Defaults to ``dummy_input``.
        preprocessor (nn.Module, optional): Makes a batch what a model of MMEngine
            takes. Defaults to its own ``data_preprocessor``.

    Returns:
        List[Callable]: Each runs the model once.

    Raises:
        QuantizeError: If the input is none of these.
    """
    if isinstance(model, BaseModel) and not isinstance(dummy_input, Tensor):
        batch = dummy_input if training_input is None else training_input
        if preprocessor is None:
            preprocessor = model.data_preprocessor
        predict = functools.partial(
            _run_batch, model, preprocessor, dummy_input, 'predict'
        )
        return [predict, *_loss_passes(model, preprocessor, batch)]
    if isinstance(dummy_input, (Tensor, Mapping, tuple, list)):
        return [lambda: _run(model, *arguments_of(model, dummy_input))]
    raise QuantizeError(
        f'dummy_input is a {type(dummy_input).__name__}; give an image '
        'tensor (N, C, H, W), or a batch as the dataloader yields it'
    )


def _run(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Runs a model on what the user gave, which need not be what it takes."""
    device = next((p.device for p in model.parameters()), torch.device('cpu'))
    args, kwargs = tree_map(
        lambda x: x.to(device) if isinstance(x, Tensor) else x, (args, kwargs)
    )
    try:
        model(*args, **kwargs)
    except QuantizeError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        given = ', '.join(
            f'{str(x.dtype).removeprefix("torch.")} {tuple(x.shape)}'
            for x in tree_flatten((args, kwargs))[0]
            if isinstance(x, Tensor)
        )
        raise QuantizeError(
            f'{type(model).__name__} does not run on the dummy_input ({given}): '
            f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        ) from error


def _run_batch(
    model: BaseModel,
    preprocessor: nn.Module,
    batch: Any,
    mode: str,
    trains: tuple[bool, bool] = (False, False),
) -> None:
    """Runs a model of MMEngine on a batch; whether preprocessor and model train."""
    if trains[1]:
        model.train()
        # One image has no statistics, and chance has no say in a plan.
        for module in model.modules():
            if isinstance(module, (_BatchNorm, _DropoutNd)):
                module.eval()
    # A preprocessor may change its batch in place.
    data = preprocessor(copy.deepcopy(batch), trains[0])
    model._run_forward(data, mode=mode)


def _loss_passes(
    model: BaseModel, preprocessor: nn.Module, batch: Any
) -> list[Callable[[], Any]]:
    """The pass that reaches, from the ground truth, heads that found nothing to do.

    As a prediction runs, where the loss can be computed so; else as a training runs:
    batches of a training may have a form of their own (MMYOLO's), and heads may give
    their loss more than their prediction. None on a batch without ground truth.
    """
    # Augmentations of batches look at where a training is, before it has begun.
    hub = MessageHub.get_current_instance()
    for name in ('epoch', 'iter'):
        if hub.get_info(name) is None:
            hub.update_info(name, 0)
    reason: Optional[Exception] = None
    for trains in ((False, False), (True, True), (False, True)):
        run = functools.partial(
            _run_batch, model, preprocessor, batch, 'loss', trains=trains
        )
        try:
            with untouched(model), untouched(preprocessor), torch.no_grad():
                model.eval()
                run()
            return [run]
        except Exception as error:  # noqa: B902 - a batch without ground truth
            reason = reason or error
    print_log(
        'The loss could not be computed on the batch that '
        f'quantization was prepared with ({type(reason).__name__}: '
        f'{reason}); modules that run in training alone are not '
        'seen.',
        'current',
    )
    return []


def quantize_model(model: nn.Module, plan: Plan) -> Quantization:
    """Gives a model the quantizers of ``plan``, without ranges.

    Args:
        model (nn.Module): The float model.
        plan (Plan): From :func:`plan_model` or from a checkpoint.

    Returns:
        Quantization: Child of the model.
    """
    quantization = Quantization.of(model) or Quantization(model)
    with torch.no_grad():
        quantization.build(plan)
    return quantization


def unquantize_model(model: nn.Module) -> nn.Module:
    """Takes everything off that :func:`quantize_model` put on a model."""
    quantization = Quantization.of(model)
    if quantization is not None:
        quantization.detach()
        del model.quantization
    return model
