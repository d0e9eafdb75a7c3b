"""Imports MMYOLO 0.6.0, which asserts an MMCV older than 2.1.0, and runs on that."""

from unittest import mock

import mmcv

with mock.patch.object(mmcv, '__version__', '2.0.1'):
    import mmyolo  # noqa: F401
    import mmyolo.engine  # noqa: F401
    import mmyolo.models  # noqa: F401
