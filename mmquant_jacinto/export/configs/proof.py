"""Proof: where a file was found equal to its checkpoint, kept in its metadata.

Equality is that of one version of an engine on one processor's instructions. A later
version may round ties otherwise, and kernels of other instructions too.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import onnx

from ..packages import require
from ..session import ENGINES
from ..verify import Report

METADATA_KEY = 'proof'
# Flags of /proc/cpuinfo, of the widest kernels first, and what they are called.
_KERNELS = (
    ('amx_int8', 'AMX'),
    ('avx512_vnni', 'AVX512-VNNI'),
    ('avx_vnni', 'AVX-VNNI'),
    ('avx512bw', 'AVX512'),
    ('avx2', 'AVX2'),
    ('asimddp', 'NEON-DOT'),
)


@functools.lru_cache(maxsize=4)
def instruction_set(cpuinfo: str = '/proc/cpuinfo') -> str:
    """Machine and its widest instructions for integers: ``'x86_64 AVX512-VNNI'``.

    Args:
        cpuinfo (str): Where Linux tells; elsewhere the machine is all that is known.
    """
    path = Path(cpuinfo)
    words = set(path.read_text().split()) if path.is_file() else set()
    name = next((name for flag, name in _KERNELS if flag in words), '')
    return f'{platform.machine()} {name}'.strip()


def here(backend: str) -> dict[str, str]:
    """Engine, version and instructions that a file runs by here."""
    version = require(backend).__version__.partition('-')[0]
    return dict(engine=backend, version=version, instructions=instruction_set())


def record_proof(model: onnx.ModelProto, backend: str, report: Report) -> None:
    """Writes into a file's metadata where it was compared, in place.

    Args:
        model (onnx.ModelProto): The file.
        backend (str): What it was run in.
        report (Report): What was found.
    """
    found = dict(here(backend), images=report.images, equal=round(report.share, 6))
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = json.dumps(found)
            return
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(found))


def elsewhere(metadata: Mapping[str, str], backend: str) -> str | None:
    """What to say where a file runs in another place than it was compared in.

    Args:
        metadata (Mapping[str, str]): Of the file.
        backend (str): What it runs in now.

    Returns:
        str, optional: None where it is the same place, or the file does not say.
    """
    if METADATA_KEY not in metadata:
        return None
    proof = json.loads(metadata[METADATA_KEY])
    now = here(backend)
    if all(proof[key] == value for key, value in now.items()):
        return None
    return (
        f'the file was compared with its checkpoint in {_place(proof)}, on '
        f'{proof["images"]} images ({proof["equal"]:.4%} of the elements equal); here '
        f'it runs in {_place(now)}, which may round ties otherwise'
    )


def _place(found: Mapping[str, str]) -> str:
    name = ENGINES.get(found['engine'], found['engine'])
    return f'{name} {found["version"]} on {found["instructions"]}'
