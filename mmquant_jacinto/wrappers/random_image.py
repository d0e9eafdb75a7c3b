"""An image that a model takes, where there is no other: a random one."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QuantizeError
from ..execute import quantization as phases
from .quant_module import QuantModule

# Colour images first, as nearly all models take them.
CHANNELS = (3, 1, 4, 2)


def random_image(wrapper: QuantModule, shape: tuple[int, int]) -> Any:
    """A batch of one random image, as a dataloader yields it.

    The preprocessor's mean says how many channels it has; without one, what the model
    runs on.

    Args:
        wrapper (QuantModule): Of the model.
        shape (Tuple[int, int]): Height and width.

    Raises:
        QuantizeError: If the model runs on none.
    """
    preprocessor = getattr(wrapper.module, 'data_preprocessor', None)
    mean = getattr(preprocessor, 'mean', None)
    if isinstance(mean, Tensor) and mean.numel() in CHANNELS:
        return _batch(wrapper, mean.numel(), shape)
    firsts = (
        module.in_channels
        for module in wrapper.modules()
        if isinstance(module, nn.Conv2d)
    )
    reasons = []
    for channels in dict.fromkeys((*CHANNELS, next(firsts, 3))):
        batch = _batch(wrapper, channels, shape)
        reason = _reason_against(wrapper, batch)
        if reason is None:
            return batch
        reasons.append(reason)
    raise QuantizeError(
        f'{type(wrapper.module).__name__} does not run on an image of {shape[0]} x '
        f'{shape[1]} ({reasons[0]}); give --shape, and images in place of a random one'
    )


def _batch(wrapper: QuantModule, channels: int, shape: tuple[int, int]) -> Any:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *shape, generator=generator, device='cpu') * 255
    # Where the model is: not all have a preprocessor that takes it there.
    place = next((parameter.device for parameter in wrapper.parameters()), None)
    return wrapper.as_batch(image.to(place))


@torch.no_grad()
def _reason_against(wrapper: QuantModule, batch: Any) -> Any:
    """Why a model does not run on a batch, in one line; None where it does."""
    training = wrapper.training
    quantization = wrapper.quantization
    try:
        wrapper.eval()
        if wrapper.plan is not None:
            quantization.set_phase(phases.FLOAT)
        args, kwargs = wrapper.arguments(batch)
        wrapper.module(*args, **kwargs)
        return None
    except (RuntimeError, ValueError, AssertionError, LookupError) as error:
        return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    finally:
        wrapper.train(training)
