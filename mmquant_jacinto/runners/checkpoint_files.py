"""Checkpoint files that survive a kill: what is complete, and what to start from."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..errors import QuantizeError

START = 'quantization_start.json'
PART = '.part'


class RemoveAfterSaving:
    """A file backend that removes a checkpoint when its successor is complete.

    MMEngine's ``CheckpointHook`` removes first, and a kill in between leaves nothing.

    Args:
        backend (BaseStorageBackend): Does everything else.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: Any) -> None:
        """Notes a file to remove."""
        self.outdated.append(str(path))

    def remove_outdated(self, saved: str) -> None:
        """Removes what was noted, but for the file ``saved`` that took its name."""
        outdated, self.outdated = self.outdated, []
        for path in outdated:
            if path != saved and self.backend.isfile(path):
                self.backend.remove(path)


def is_local(path: str) -> bool:
    """Whether a checkpoint is a file here, and not behind an address."""
    return '://' not in path


def what_is_wrong(path: str) -> Optional[str]:
    """Why a local file can be no checkpoint, found without loading it.

    Torch writes zip archives, whose table of contents comes last: what was cut off
    has none.

    Args:
        path (str): The file.

    Returns:
        str, optional: The end of a sentence; None where nothing speaks against it.
    """
    if not os.path.exists(path):
        return 'is not there'
    if os.path.isdir(path):
        return 'is a folder'
    if not os.path.getsize(path):
        return 'is empty'
    try:
        with open(path, 'rb') as file:
            # Before torch 1.6 it was no archive; loading decides.
            if file.read(4) != b'PK\x03\x04':
                return None
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                archive.open(item).close()
    except OSError as error:
        return f'cannot be read ({error.strerror or error})'
    except Exception:  # noqa: B902 - zipfile raises five kinds of errors on one
        return 'is cut off or damaged'
    return None


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint, and makes sure that it is one.

    Args:
        path (str): A file, or an address that MMEngine knows.

    Returns:
        Dict[str, Any]: What is in it; its tensors on the CPU.

    Raises:
        QuantizeError: If it is not there, not whole, or no checkpoint.
    """
    advice = 'give a .pth file that a training or calibration has saved'
    reason = what_is_wrong(path) if is_local(path) else None
    if reason is not None:
        raise QuantizeError(f'{path} {reason}; {advice}')
    try:
        loaded = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except Exception as error:  # noqa: B902 - a pickle may raise anything
        raise QuantizeError(
            f'{path} is no checkpoint that torch can load ({type(error).__name__}); '
            f'{advice}'
        ) from error
    stored = loaded.get('state_dict', loaded) if isinstance(loaded, dict) else None
    if not isinstance(stored, Mapping) or not any(
        isinstance(value, Tensor) for value in stored.values()
    ):
        raise QuantizeError(f'{path} holds no weights of a model by name; {advice}')
    return loaded


def plain_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict by the model's own names, whatever wrapper it was saved in."""
    return {
        key[len('module.') :] if key.startswith('module.') else key: value
        for key, value in stored.items()
    }


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """The last complete checkpoint of a training in a folder.

    As a rule the one that ``last_checkpoint`` names. MMEngine does not write that
    file in one piece, so where it names nothing that is there and whole, the whole
    checkpoint with the highest number; what is skipped is logged.

    Args:
        work_dir (str): Where the training ran.

    Returns:
        str, optional: None where there is no checkpoint at all.

    Raises:
        QuantizeError: If none of those that are there, or are named, is whole.
    """
    named = find_latest_checkpoint(work_dir)
    if named and not is_local(named):
        return named
    numbered = [
        (int(match[1]), str(path))
        for path in Path(work_dir).glob('*.pth')
        if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name))
    ]
    found = [path for _, path in sorted(numbered, reverse=True)]
    if named and os.path.exists(named):
        found.insert(0, named)
    reasons: dict[str, str] = {}
    for path in found:
        file = os.path.realpath(path)
        if file in reasons:
            continue
        reason = what_is_wrong(path)
        if reason is None:
            return path
        reasons[file] = f'{path} {reason}'
        print_log(f'{reasons[file]}; it is skipped.', 'current', 30)
    if reasons:
        raise QuantizeError(
            f'no checkpoint in {work_dir} is whole: {next(iter(reasons.values()))}; '
            'set load_from to the checkpoint to resume'
        )
    if named:
        raise QuantizeError(
            f'{os.path.join(work_dir, "last_checkpoint")} names {named}, which is '
            'not there; set load_from to the checkpoint to resume'
        )
    return None


def write_whole(path: str, text: str) -> None:
    """Writes a text file that is never seen in part."""
    with open(path + PART, 'w') as file:
        file.write(text)
    os.replace(path + PART, path)


def remove_parts(folder: str) -> None:
    """Removes what saves that were interrupted have left of files of a run."""
    for path in Path(folder).glob(f'*{PART}'):
        if path.name.endswith(
            ('.pth' + PART, '.json' + PART, 'last_checkpoint' + PART)
        ):
            path.unlink()


def note_start(work_dir: str, load_from: Optional[str], seed: int) -> None:
    """Notes what a run starts from, for when it is killed before its first save."""
    start = dict(load_from=load_from, seed=seed)
    write_whole(os.path.join(work_dir, START), json.dumps(start))


def read_start(work_dir: str) -> Optional[dict[str, Any]]:
    """What :func:`note_start` noted; None where nothing ever started."""
    path = Path(work_dir, START)
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
