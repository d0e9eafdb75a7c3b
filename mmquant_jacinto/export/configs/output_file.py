"""The file that comes out: checked before the work, written whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx

from ...errors import QuantizeError


def check_output(path: Path) -> None:
    """Makes sure that a file can be written, before anything long is done.

    Raises:
        QuantizeError: If it cannot.
    """
    if path.suffix != '.onnx':
        raise QuantizeError(f'-o {path} does not end in .onnx')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise QuantizeError(
            f'-o {path} cannot be written ({error.strerror}); choose another folder'
        ) from None
    if path.is_dir():
        raise QuantizeError(f'-o {path} is a folder; name a file')


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under its name only when all of it is there.

    Raises:
        QuantizeError: If it cannot be written, for a full disk as a rule.
    """
    name = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        with os.fdopen(descriptor, 'wb') as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise QuantizeError(
            f'{path} cannot be written ({error.strerror}); {len(content)} bytes of '
            'room are needed there'
        ) from error


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes an ONNX model, whole or not at all."""
    write_atomically(path, model.SerializeToString())
