"""Models of the zoo with random weights, and what runs them."""

import copy
import re
from typing import Any, Callable, NamedTuple, Optional

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant_jacinto import quantize_model
from mmquant_jacinto.plan.plan import Plan

from .batches import loss_batches, predict_batch, smooth_noise, walk
from .configs import load_model_config

NUM_DETECTIONS = 10
# Size and number of the images: the first that a model takes. Many have a least size,
# masked convolutions take one image.
BATCHES = ((128, 2), (256, 2), (320, 2), (128, 1))


def lighten(cfg: ConfigDict) -> None:
    """Lets a model with random weights find something, but not much.

    And keeps its images as small as they are given.
    """
    # Where proposals are learned, there are as many detections.
    is_sparse = any('num_proposals' in part for part in walk(cfg))
    for part in walk(cfg):
        if 'batch_augments' in part:
            part['batch_augments'] = None
        for key in list(part):
            if key == 'score_thr' and isinstance(part[key], float):
                part[key] = 0.0
            elif key in ('max_per_img', 'max_per_image') and not is_sparse:
                if isinstance(part[key], int):
                    part[key] = min(part[key], NUM_DETECTIONS)


def _build(cfg: ConfigDict) -> nn.Module:
    model = MODELS.build(copy.deepcopy(cfg))
    # Synchronized batch normalization does not run on a CPU.
    return revert_sync_batchnorm(model)


class Source(NamedTuple):
    """Where an examination gets a model and its batches from.

    Attributes:
        load (Callable): The ``model`` of a config by its name; None if it has none.
        scope (str): Of MMEngine, in which models are built.
        predict (Callable): Given that ``model``, a size in pixels and a number of
            images: a batch to predict on, as the dataloader would yield it.
        losses (Callable): Given that ``model`` and a size: batches to compute the
            loss on; the first that works is meant.
        renew (Callable): Given a batch and a seed: one of other images.
        sizes (Tuple[Tuple[int, int], ...]): Size and number of the images to try.
        begin (Callable): Given a model with its first weights: changes them.
    """

    load: Callable[[str], Optional[ConfigDict]]
    scope: str
    predict: Callable[[ConfigDict, int, int], dict]
    losses: Callable[[ConfigDict, int], list[dict]]
    renew: Callable[[dict, int], dict]
    sizes: tuple[tuple[int, int], ...] = BATCHES
    begin: Callable[[nn.Module], None] = lambda model: None


def _renew(batch: dict, seed: int) -> dict:
    images = [
        smooth_noise(tuple(image.shape), seed + i)
        for i, image in enumerate(batch['inputs'])
    ]
    return {**batch, 'inputs': images}


ZOO = Source(load_model_config, 'mmdet', predict_batch, loss_batches, _renew)


def build_and_predict(
    cfg: ConfigDict, device: str, report: dict, source: Source = ZOO
) -> tuple[nn.Module, dict]:
    """Builds a model, and finds a batch that it predicts on.

    Args:
        cfg (ConfigDict): The ``model`` of a config, of :func:`lighten`.
        device (str): Where to.
        report (dict): Gets the number of parameters and the size of the images.
        source (Source): Of its batches.

    Returns:
        Tuple[nn.Module, dict]: In evaluation mode, and the batch as a dataloader
        yields it.
    """
    init_default_scope(source.scope)
    # Some losses ask the runner how far it is.
    for key, value in dict(iter=0, epoch=0, max_iters=100, max_epochs=10).items():
        MessageHub.get_current_instance().update_info(key, value)
    torch.manual_seed(0)
    model = _build(cfg)
    model.init_weights()
    source.begin(model)
    model.to(device)
    report['parameters'] = sum(p.numel() for p in model.parameters())
    model.eval()
    errors = []
    for size, images in source.sizes:
        batch = source.predict(cfg, size, images)
        try:
            with torch.no_grad():
                run(model, batch, 'predict')
            _condition(model, batch)
            report['size'] = size
            return model, batch
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            errors.append(error)
    raise errors[-1]


def _condition(model: nn.Module, batch: dict) -> None:
    """Brings the signals of a model with random weights to the size of one.

    Without, a deep model amplifies its input beyond all bounds, or to nothing, as
    no trained model does. Each batch normalization divides by the root mean square
    of all that it gets, give or take. One for each channel, as measured, would turn
    channels that hold next to nothing into noise: with random weights an image looks
    much the same all over.
    """
    generator = torch.Generator().manual_seed(0)

    def measure(norm: _BatchNorm, args: tuple) -> None:
        if norm in measured or norm.running_var is None:
            return
        measured.add(norm)
        power = args[0].square().mean().clamp(min=norm.eps)
        spread = torch.rand(norm.num_features, generator=generator).to(power.device)
        norm.running_var.copy_(power * 4 ** (spread - 0.5))
        offset = torch.randn(norm.num_features, generator=generator).to(power.device)
        norm.running_mean.copy_(0.3 * power.sqrt() * offset)
        if norm.weight is not None and not norm.weight.any():
            # As residual branches start: there would be nothing to see of them.
            nn.init.constant_(norm.weight, 0.25)

    for name, parameter in model.named_parameters():
        if re.search(r'\b(conv_offset|offset_[sl])\.weight$', name):
            # Of a deformable convolution, in pixels: they start at zero in training;
            # random ones look anywhere.
            with torch.no_grad():
                parameter.mul_(0.05)
    measured: set[nn.Module] = set()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with torch.no_grad():
            run(model, batch, 'predict')
    finally:
        for handle in handles:
            handle.remove()


def run(model: nn.Module, batch: dict, mode: str) -> Any:
    """One pass over a batch in a mode of MMEngine, with the same random numbers."""
    torch.manual_seed(0)
    data = model.data_preprocessor(copy.deepcopy(batch), mode == 'loss')
    return model._run_forward(data, mode=mode)


def calibrate(model: nn.Module, plan: Plan, batch: dict) -> None:
    """Quantizes a model by the ranges of a batch; it computes in integers then."""
    quantization = quantize_model(model, plan)
    quantization.set_phase('observe')
    with torch.no_grad():
        run(model, batch, 'predict')
    quantization.set_phase('test')
