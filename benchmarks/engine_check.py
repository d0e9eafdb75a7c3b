"""Runs exported files in the ONNX Runtime of this interpreter; NumPy and nothing else.

    PYTHON benchmarks/engine_check.py FOLDER

FOLDER is what engine_versions.py wrote: files with inputs and expected outputs. Prints
JSON: for each level of optimization, with and without ``session.x64quantprecision``,
how many elements of which file differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

LEVELS = {
    'none': ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    'basic': ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    'extended': ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    'all': ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def differing(path: Path, level: str, precise: bool) -> dict[str, Any]:
    """How many elements of a file's outputs differ, or why it does not run."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    if precise:
        options.add_session_config_entry('session.x64quantprecision', '1')
    arrays = np.load(path.with_suffix('.npz'))
    try:
        session = ort.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )
        inputs = {item.name: arrays[f'in:{item.name}'] for item in session.get_inputs()}
        found = session.run(None, inputs)
    except Exception as error:  # noqa: B902 - its errors have no base of their own
        return dict(error=str(error).splitlines()[0][:300])
    names = [item.name for item in session.get_outputs()]
    expected = [arrays[f'out:{name}'] for name in names]
    return dict(
        elements=sum(array.size for array in expected),
        differ=sum(int((a != b).sum()) for a, b in zip(found, expected)),
    )


def main() -> None:
    folder = Path(sys.argv[1])
    found = [
        dict(
            level=level,
            precise=precise,
            files={
                path.stem: differing(path, level, precise)
                for path in sorted(folder.glob('*.onnx'))
            },
        )
        for precise in (False, True)
        for level in LEVELS
    ]
    print(json.dumps(dict(version=ort.__version__, runs=found)))


if __name__ == '__main__':
    main()
