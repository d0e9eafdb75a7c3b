"""What a run's log says of the package, beside MMEngine's own environment."""

from dataclasses import fields
from typing import Any, Optional

from ..config.quantize_config import QuantizeConfig
from ..quantizers.kernels import native

ALWAYS = ('mode', 'bits', 'target')


def described(config: Optional[QuantizeConfig]) -> dict[str, str]:
    """Lines for the log: version, kernels, and the settings that are not the default.

    Args:
        config (QuantizeConfig, optional): None in float.

    Returns:
        Dict[str, str]: By what the line is about.
    """
    # The package is imported by the time that something runs.
    from .. import __version__

    kernels = 'compiled' if native.is_built() else 'none, by torch'
    lines = {'mmquant_jacinto': f'{__version__} (kernels in C: {kernels})'}
    if config is not None:
        default = QuantizeConfig()
        given: dict[str, Any] = {
            item.name: getattr(config, item.name) for item in fields(config)
        }
        lines['quantize'] = ', '.join(
            f'{name}={value!r}'
            for name, value in given.items()
            if name in ALWAYS or value != getattr(default, name)
        )
    return lines
