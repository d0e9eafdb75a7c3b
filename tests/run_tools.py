"""Runs command lines one after the other in one process.

Importing MMDetection takes longer than what the tests run with it.

Usage: run_tools.py '[["tools/train.py", "config.py"], ["tools/test.py", ...]]'
"""

import json
import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    path = sys.path.copy()
    for line in json.loads(sys.argv[1]):
        sys.argv = line
        sys.path = [str(Path(line[0]).parent), *path]
        runpy.run_path(line[0], run_name='__main__')
