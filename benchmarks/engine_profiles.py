"""Where the time of a file goes, by the engines' own profilers."""

import collections
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

RUNS, WARM_UP = 10, 2


def _image(size: int) -> np.ndarray:
    return np.random.rand(1, 3, size, size).astype(np.float32)


def onnxruntime_profile(
    model: onnx.ModelProto, size: int, threads: int
) -> dict[str, int]:
    """Microseconds by kind of node in ONNX Runtime; the longest first.

    Args:
        model (onnx.ModelProto): With one image as its input.
        size (int): Sides of the image.
        threads (int): Of the engine; 0: all cores.
    """
    totals: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / 'profile')
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(
            model.SerializeToString(), options, ['CPUExecutionProvider']
        )
        name = session.get_inputs()[0].name
        for _ in range(RUNS + WARM_UP):
            session.run(None, {name: _image(size)})
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        if event['cat'] == 'Node' and event['name'].endswith('_kernel_time'):
            totals[event['args']['op_name']] += event['dur'] / (RUNS + WARM_UP)
    return {kind: round(time) for kind, time in totals.most_common() if time >= 1}


def openvino_profile(compiled: Any, size: int) -> dict[str, int]:
    """Microseconds by kind of node and kernel in OpenVINO; the longest first.

    Args:
        compiled (openvino.CompiledModel): With ``PERF_COUNT``.
        size (int): Sides of its image.
    """
    request = compiled.create_infer_request()
    totals: collections.Counter = collections.Counter()
    for index in range(RUNS + WARM_UP):
        request.infer([_image(size)])
        for node in request.get_profiling_info() if index >= WARM_UP else ():
            kind = f'{node.node_type} {node.exec_type}'
            totals[kind] += node.real_time.total_seconds() * 1e6 / RUNS
    return {kind: round(time) for kind, time in totals.most_common() if time >= 1}
