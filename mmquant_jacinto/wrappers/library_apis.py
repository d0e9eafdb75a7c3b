"""Quantized checkpoints in the libraries' own APIs: ``init_detector`` and its kin.

They build the float model from a config, load the checkpoint and only then say what
the config is. So the quantizer state is kept beside the model, and its first
evaluation finds out: with a truthy ``quantize`` in the config it is quantized as its
test in a runner is; otherwise it runs in float, and says so.
"""

import functools
import threading
from collections.abc import Mapping
from typing import Any, Optional

from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from ..execute.quantization import TEST, Quantization
from ..execute.stored_plan import NAME, find_plan
from .distillation import fit_names

# Threads may share a model from its first pass on.
_DECIDING = threading.Lock()

PREFIX = NAME + '.'
# Where the libraries leave the config: mmdet and mmseg, mmpretrain.
CONFIG_ATTRIBUTES = ('cfg', '_config')


def keep_quantizers_when_loading() -> None:
    """Makes MMEngine's ``load_checkpoint`` keep what a float model has no place for.

    It would warn of unexpected keys and drop them. Only the loading of a quantized
    checkpoint into a float model changes, and of a distillation's into its student
    or the other way round; a second call changes nothing.
    """
    original = mmengine_checkpoint.load_state_dict
    if getattr(original, 'keeps_quantizers', False):
        return

    @functools.wraps(original)
    def load_state_dict(
        module: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if isinstance(module, BaseModel):
            state_dict = fit_names(state_dict, module)
            if not _is_quantized(module):
                state_dict = _keep_quantizers(module, state_dict)
        original(module, state_dict, *args, **kwargs)

    load_state_dict.keeps_quantizers = True  # type: ignore[attr-defined]
    mmengine_checkpoint.load_state_dict = load_state_dict


def _keep_quantizers(
    model: BaseModel, state_dict: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Hands the quantizer state over to the first pass; returns the rest."""
    if find_plan(state_dict) is None:
        return state_dict
    rest: Any = type(state_dict)()
    quantizers = {}
    for key, value in state_dict.items():
        if key.startswith(PREFIX):
            quantizers[key[len(PREFIX) :]] = value
        else:
            rest[key] = value
    if hasattr(state_dict, '_metadata'):
        rest._metadata = state_dict._metadata
    if quantizers:
        _FirstPass(model, quantizers)
    return rest


class _FirstPass:
    """Decides, when a loaded model is evaluated first, what it computes.

    Args:
        model (BaseModel): The float model; gets a hook until then.
        quantizers (Dict[str, Tensor]): The state of its quantization.
    """

    def __init__(self, model: BaseModel, quantizers: dict[str, Tensor]) -> None:
        self.quantizers = quantizers
        self.is_decided = False
        self.quantization: Optional[Quantization] = None
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: BaseModel, args: tuple, kwargs: dict) -> Optional[tuple]:
        if model.training:
            return None
        with _DECIDING:
            try:
                quantization = self._decide(model)
            finally:
                # Not before: a pass that starts meanwhile has to wait here.
                self.handle.remove()
        if quantization is None:
            return None
        # The hooks that this has installed see the next pass first; so it is for
        # all passes that began before. To enter twice does no harm.
        return quantization.executor.tracker.enter_root(model, args, kwargs)

    def _decide(self, model: BaseModel) -> Optional[Quantization]:
        """Quantizes the model if it is to be; several threads may ask."""
        if self.is_decided:
            return self.quantization
        self.is_decided = True
        if Quantization.of(model) is not None:
            return None
        if not _wants_quantization(model):
            print_log(
                f'{type(model).__name__} was loaded from a quantized checkpoint, but '
                'it has no config with a truthy `quantize`: it runs in float.',
                'current',
                30,
            )
            return None
        quantization = Quantization(model)
        quantization.load_state_dict(self.quantizers)
        quantization.set_phase(TEST)
        print_log(
            f'{type(model).__name__} computes on integers, as its checkpoint says.',
            'current',
        )
        self.quantization = quantization
        return quantization


def _is_quantized(model: BaseModel) -> bool:
    # Test-time augmentation has the model one level further down.
    return any(isinstance(module, Quantization) for module in model.modules())


def _wants_quantization(model: BaseModel) -> bool:
    configs = (getattr(model, name, None) for name in CONFIG_ATTRIBUTES)
    return any(config is not None and config.get('quantize') for config in configs)
