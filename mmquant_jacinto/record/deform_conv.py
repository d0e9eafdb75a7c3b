"""mmcv's deformable convolutions, made visible to torch function modes.

They are applications of an ``autograd.Function``, which no mode sees. So the
name that mmcv gives each of them is bound to a function that dispatches as torch's
own do, and computes what it always did where no mode is active.
"""

import sys
from types import MethodType
from typing import Any, Callable, Optional

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import ops

# Stride, padding, dilation, groups, deformable groups, where a call leaves them out.
_GEOMETRY = (1, 0, 1, 1, 1)
_APPLY: dict[str, Callable] = {}  # 'v1', 'v2': what mmcv computes


def deform_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    offset: Tensor,
    mask: Optional[Tensor],
    *geometry: Any,
) -> Tensor:
    """A deformable convolution (arXiv 1703.06211, 1811.11168).

    Args:
        x (Tensor): (N, C, H, W).
        weight (Tensor): (out, C / groups, kh, kw).
        bias (Tensor, optional): (out,).
        offset (Tensor): Where to sample: (N, 2 * groups * kh * kw, H', W').
        mask (Tensor, optional): Factors of the samples: (N, groups * kh * kw,
            H', W'). None: the first version, without.
        *geometry: Stride, padding, dilation, groups, deformable groups, as
            mmcv takes them.

    Returns:
        Tensor: (N, out, H', W').
    """
    geometry = (*geometry, *_GEOMETRY[len(geometry) :])
    if has_torch_function((x,)):
        return handle_torch_function(
            deform_conv2d, (x,), x, weight, bias, offset, mask, *geometry
        )
    if mask is not None:
        # mmcv computes in the type of the offsets.
        offset, mask = offset.type_as(x), mask.type_as(x)
        return _APPLY['v2'](x, offset, mask, weight, bias, *geometry)
    out = _APPLY['v1'](x, offset.type_as(x), weight, *geometry)
    return out if bias is None else out + bias.view(1, -1, 1, 1)


ops.register(deform_conv2d, 'deform_conv2d', ops.DEFORM_CONV)


def _visible_v1(*args: Any) -> Tensor:
    if not has_torch_function(args[:1]):
        return _APPLY['v1'](*args)
    x, offset, weight, *geometry = args
    return deform_conv2d(x, weight, None, offset, None, *geometry)


def _visible_v2(*args: Any) -> Tensor:
    if not has_torch_function(args[:1]):
        return _APPLY['v2'](*args)
    x, offset, mask, weight, *rest = args
    bias = rest[0] if rest else None
    return deform_conv2d(x, weight, bias, offset, mask, *rest[1:])


def make_visible() -> None:
    """Binds mmcv's names anew, wherever they were imported; once.

    Does nothing while mmcv's operators are not imported.
    """
    if _APPLY or 'mmcv.ops' not in sys.modules:
        return
    from mmcv.ops.deform_conv import DeformConv2dFunction
    from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction

    _APPLY['v1'] = DeformConv2dFunction.apply
    _APPLY['v2'] = ModulatedDeformConv2dFunction.apply
    visible = {'v1': _visible_v1, 'v2': _visible_v2}
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, '__dict__', {}).items()):
            if type(value) is not MethodType:
                continue
            for version, apply in _APPLY.items():
                if value == apply:
                    setattr(module, name, visible[version])
