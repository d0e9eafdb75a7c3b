"""Who teaches a quantized training: the float checkpoint that it starts from."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any, Union

import torch
from torch import Tensor, nn

from ...config.sections import Distill
from ...errors import QuantizeError
from ...execute.quantization import NAME
from ...execute.stored_plan import find_plan
from ...wrappers.distillation import is_algorithm
from ..checkpoint_files import plain_names, read_checkpoint

TEACHER = 'quantize_teacher'  # in a checkpoint's meta: path and digest
# More labels than these teach as well as the float model does.
FEW_IMAGES = 10_000
_OWN = f'{NAME}.'


def refuse_second_teacher(model: Any, distill: Any) -> None:
    """Refuses ``quantize.distill`` where the model has a teacher already.

    Raises:
        QuantizeError: If both are asked for.
    """
    if isinstance(distill, Distill) and is_algorithm(model):
        raise QuantizeError(
            f'quantize.distill is on, and model.type={type(model).__name__!r} has a '
            'teacher of its own; leave one of them away'
        )


def start_teaching(runner: Any) -> None:
    """Gives a training its teacher, where it is to have one.

    Args:
        runner (QuantRunner): Its model has the weights that it starts, or goes on,
            with.

    Raises:
        QuantizeError: If a teacher is asked for, or was there when the training
            began, and there is no float checkpoint of this model.
    """
    distill, known = runner.quantize_config.distill, runner.known_teacher
    asked = distill if isinstance(distill, Distill) else None
    if distill is False or is_algorithm(runner.model.module):
        return
    if runner.is_resuming:
        path = None if known is None else known['path']
        if path is None and asked is not None:
            raise QuantizeError(
                'quantize.distill is on, and the training that is resumed had no '
                'teacher; resume with distill=False, or start anew with resume=False'
            )
    else:
        path = runner.start_from if asked is None else asked.checkpoint
        path = path or runner.start_from
    if path is None:
        if asked is not None:
            raise QuantizeError(
                'quantize.distill is on, and there is no float checkpoint to teach; '
                'set load_from, or quantize.distill.checkpoint'
            )
        return
    images = len(getattr(runner.train_dataloader, 'dataset', ()))
    if asked is None and known is None and images > FEW_IMAGES:
        runner.logger.info(
            f'No self-distillation: {images} training images are enough '
            '(quantize.distill=True has it all the same).'
        )
        return
    found = float_weights(path, runner.model.quantization.root)
    if isinstance(found, str):
        if asked is not None or known is not None:
            raise QuantizeError(
                f'{path} cannot teach: {found}; set quantize.distill.checkpoint to the '
                'float checkpoint of this model, or distill=False'
            )
        runner.logger.info(f'No self-distillation: {path} cannot teach, {found}.')
        return
    note = dict(path=path, digest=digest(found))
    if runner.is_resuming and known is not None and known['digest'] != note['digest']:
        raise QuantizeError(
            f'{path} is not the float checkpoint that taught this training before it '
            'was interrupted; bring that one back, or start anew with resume=False'
        )
    runner.known_teacher = note
    runner.model.teach(found)
    runner.logger.info(
        f'Self-distillation: {path} teaches, in float; normalization has its '
        'statistics (quantize.distill=False switches it off).'
    )


def float_weights(path: str, root: nn.Module) -> Union[dict[str, Tensor], str]:
    """Parameters and buffers of a model, as a float checkpoint has them.

    Args:
        path (str): Of the checkpoint.
        root (nn.Module): The quantized model; stays as it is.

    Returns:
        Dict[str, Tensor] | str: By name, on the model's device; or why not, as the
        end of a sentence.

    Raises:
        QuantizeError: If the checkpoint cannot be read.
    """
    checkpoint = read_checkpoint(path)
    stored = plain_names(checkpoint.get('state_dict', checkpoint))
    if find_plan(stored) is not None:
        return 'it is quantized'
    # Modules may load what earlier versions called differently.
    twin = copy.deepcopy(root)
    try:
        result = twin.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        return f'it is of another model ({str(error).splitlines()[-1].strip()})'
    counted = ('num_batches_tracked',)
    missing = [
        key
        for key in result.missing_keys
        if not key.startswith(_OWN) and not key.endswith(counted)
    ]
    if missing:
        return f'it has no {missing[0]}'
    return {
        name: tensor.detach()
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers())
        if not name.startswith(_OWN)
    }


def digest(weights: Mapping[str, Tensor]) -> str:
    """What tells one set of weights from another: SHA-256, hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        values = weights[name].cpu().contiguous().flatten()
        found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()
