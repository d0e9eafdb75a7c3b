"""Files that cannot be written are refused, and nothing is left of them."""

import errno
import os

import pytest
from refusals import refused

pytest.importorskip('onnx')

from mmquant_jacinto.export.configs.output_file import write_atomically  # noqa: E402


@pytest.mark.parametrize('failing', ['fdopen', 'replace'])
def test_full_disk_is_one_sentence(failing, tmp_path, monkeypatch):
    path = tmp_path / 'model.onnx'
    path.write_bytes(b'former')

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, fail)
    words = f'{path} cannot be written (No space left on device); 5 bytes'
    refused(lambda: write_atomically(path, b'model'), words)
    assert [item.name for item in tmp_path.iterdir()] == ['model.onnx']
    assert path.read_bytes() == b'former'
