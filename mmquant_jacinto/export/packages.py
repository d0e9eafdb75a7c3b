"""Packages of the ``export`` extra, which may be missing."""

from __future__ import annotations

from typing import Any

from ..errors import QuantizeError


def require(package: str) -> Any:
    """Imports a package of the ``export`` extra.

    Raises:
        QuantizeError: If it is not installed.
    """
    try:
        return __import__(package)
    except ImportError as error:
        raise QuantizeError(
            f'{package} is not installed ({error}); '
            "pip install 'mmquant_jacinto[export]'"
        ) from None
