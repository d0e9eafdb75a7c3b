"""How a ``quantize`` key alone brings our runner in.

MMEngine has no hook between a config and ``Runner.from_cfg``, which is what
every ``tools/train.py`` calls. Importing this package makes that call hand
a config with a truthy ``quantize`` over to :class:`QuantRunner`.
``runner_type='QuantRunner'`` in a config gives the same without it. The only other
part of MMEngine that is changed is the loading of quantized checkpoints
(:mod:`mmquant_jacinto.wrappers.library_apis`).
"""

import functools
from typing import Any

from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..errors import QuantizeError
from .quant_runner import QuantRunner


def redirect_runner() -> None:
    """Installs the redirect; a second call changes nothing."""
    _install(Runner)
    flexible = RUNNERS.get('FlexibleRunner')
    if flexible is not None:
        _install(flexible)


def _install(runner: Any) -> None:
    original = runner.__dict__['from_cfg'].__func__
    if getattr(original, 'redirects_to_quant_runner', False):
        return

    @functools.wraps(original)
    def from_cfg(cls: type, cfg: dict) -> object:
        if not cfg.get('quantize') or issubclass(cls, QuantRunner):
            return original(cls, cfg)
        if cls is not Runner:
            raise QuantizeError(
                f'runner_type={cls.__name__!r} cannot quantize; remove it '
                "or use runner_type='QuantRunner'"
            )
        return QuantRunner.from_cfg(cfg)

    from_cfg.redirects_to_quant_runner = True  # type: ignore[attr-defined]
    runner.from_cfg = classmethod(from_cfg)
