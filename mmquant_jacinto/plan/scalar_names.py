"""Names of ranges for visualizers, of which each backend refuses other characters.

MLflow takes letters, digits and ``_-./ ``, in paths without empty parts; others make
folders of what is between slashes.
"""

import re
from collections.abc import Iterable

MAX_LENGTH = 200  # MLflow takes 250, with what is put before and behind


def scalar_names(names: Iterable[str]) -> list[str]:
    """Names of quantizers as every visualizer backend takes them, each once.

    Args:
        names (Iterable[str]): Of quantizers, see
            :mod:`~mmquant_jacinto.record.call_tree`.
    """
    found: dict[str, None] = {}
    for name in names:
        plain = re.sub(r'[^A-Za-z0-9_./-]', '_', name.replace('>', '.'))
        parts = [part.strip('.') for part in plain[-MAX_LENGTH:].split('/')]
        plain = '/'.join(part for part in parts if part) or '_'
        candidate, number = plain, 2
        while candidate in found:
            candidate, number = f'{plain}_{number}', number + 1
        found[candidate] = None
    return list(found)
