"""Imports MMYOLO 0.6.0, which asserts an MMCV older than 2.1.0, and runs on that.

Beside it there may be MMRotate, which it imports then, and which asserts others.
"""

from libraries.imports import import_library

import_library('mmyolo')
