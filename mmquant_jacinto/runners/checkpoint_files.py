"""Checkpoint files that survive a kill: what is complete, and what to start from."""

import json
import os
import re
from pathlib import Path
from typing import Any, Optional

from mmengine.runner import find_latest_checkpoint

from ..errors import QuantizeError

START = 'quantization_start.json'


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


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """The last complete checkpoint of a training in a folder.

    As a rule the one that ``last_checkpoint`` names. MMEngine does not write that
    file in one piece, so where it names nothing that is there, the checkpoint with
    the highest number.

    Args:
        work_dir (str): Where the training ran.

    Returns:
        str, optional: None where there is no checkpoint at all.

    Raises:
        QuantizeError: If ``last_checkpoint`` names one that is not there, and no
            other is in the folder.
    """
    named = find_latest_checkpoint(work_dir)
    if named and ('://' in named or os.path.exists(named)):
        return named
    numbered = [
        (int(match[1]), path)
        for path in Path(work_dir).glob('*.pth')
        if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name))
    ]
    if numbered:
        return str(max(numbered)[1])
    if named:
        raise QuantizeError(
            f'{os.path.join(work_dir, "last_checkpoint")} names {named}, which is '
            'not there; set load_from to the checkpoint to resume'
        )
    return None


def write_whole(path: str, text: str) -> None:
    """Writes a text file that is never seen in part."""
    with open(path + '.part', 'w') as file:
        file.write(text)
    os.replace(path + '.part', path)


def note_start(work_dir: str, load_from: Optional[str], seed: int) -> None:
    """Notes what a run starts from, for when it is killed before its first save."""
    start = dict(load_from=load_from, seed=seed)
    write_whole(os.path.join(work_dir, START), json.dumps(start))


def read_start(work_dir: str) -> Optional[dict[str, Any]]:
    """What :func:`note_start` noted; None where nothing ever started."""
    path = Path(work_dir, START)
    return json.loads(path.read_text()) if path.is_file() else None
