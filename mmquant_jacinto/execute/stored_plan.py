"""Plans as the tensors that a checkpoint stores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import QuantizeError
from ..plan.plan import Plan

NAME = 'quantization'  # of the module that has it


def encode_plan(plan: Plan) -> Tensor:
    """A plan as bytes (uint8), as a checkpoint stores it."""
    text = bytearray(plan.to_json().encode())
    return torch.frombuffer(text, dtype=torch.uint8).clone()


def read_plan(tensor: Tensor) -> Plan:
    """Decodes the plan that a checkpoint stores as bytes (uint8)."""
    try:
        return Plan.from_json(bytes(tensor.cpu().tolist()).decode())
    except QuantizeError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise QuantizeError(
            'the plan in the checkpoint is no JSON of this package '
            f'({type(error).__name__}: {error}); give a checkpoint as it was saved'
        ) from error


def find_plan(state_dict: Mapping[str, Tensor]) -> Plan | None:
    """The plan in a state dict; None in a float one."""
    for key, value in state_dict.items():
        if f'.{key}'.endswith(f'.{NAME}.plan'):
            return read_plan(value)
    return None
