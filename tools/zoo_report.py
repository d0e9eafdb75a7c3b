"""The sweep's table."""

import functools
import hashlib
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / 'mmquant_jacinto'


@functools.lru_cache
def engine_version() -> str:
    """A number for the package's sources; results of two do not mix."""
    digest = hashlib.sha1()
    for path in sorted(PACKAGE.rglob('*.py')):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def write_table(reports: list[dict[str, Any]], path: Path) -> None:
    raise NotImplementedError
