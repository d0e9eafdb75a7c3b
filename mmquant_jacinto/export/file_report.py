"""What a report page says of an exported file."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from ..execute.quantization import Quantization
from ..report.build import add_scores, build_report, write_report
from ..report.content import FileReport
from ..report.detections import Seen
from ..targets.target import get_file_target
from ..wrappers.quant_module import QuantModule
from .configs.end_to_end import EndToEnd
from .configs.file_input import METADATA_KEY, FileInput
from .configs.file_run import read_file
from .example import Example, RegionOutputs, named_tensors
from .exporter import Exported, set_engine
from .graph.unsigned_twin import unsigned_twin
from .packages import require
from .rules.check import Finding, check
from .rules.report import violations
from .session import ENGINES, Session
from .verify import OutputReport, Report

SLOWEST = 12
RUNS = 5  # that a profile averages, behind one to warm up
MOST_VIOLATIONS = 100
MEASURED = 4  # images of an export's page
SHARE = 0.1  # of the export's time that its page takes


def report_of_file(path: str, model: nn.Module, batches: Iterable[Any]) -> FileReport:
    """Holds a file against its checkpoint and its target's rules, and profiles it.

    Args:
        path (str): Of a file that tools/export.py wrote.
        model (nn.Module): The quantized model, in its test phase.
        batches (Iterable): Of one image each, to compare outputs on.

    Returns:
        FileReport: What a page shows of it.

    Raises:
        QuantizeError: If the file cannot be run, or is of another model.
    """
    proto = read_file(path)
    session = Session(proto)
    session.check_fits(model)
    target = get_file_target(session.metadata['target'])
    quantization = Quantization.of(model)
    preset = quantization.plan.config['target']
    given: dict[str, np.ndarray] = {}
    reports = {name: OutputReport(name) for name in session.output_names}
    seen = FileInput.from_metadata(json.loads(session.metadata[METADATA_KEY]))
    engine = quantization.engine
    # What a checkpoint computes follows its target, which need not be the file's.
    set_engine(model, target)
    try:
        with seen.applied(model):
            for batch in batches:
                given = _compare(session, model, batch, reports)
    finally:
        quantization.engine = engine
        quantization.set_phase(quantization.phase)
    return FileReport(
        path=str(path),
        target=target.name,
        bytes=Path(path).stat().st_size,
        outputs=outputs_of(reports.values()),
        violations=sentences(check(proto, target.rules_for(preset))),
        slowest=slowest_nodes(proto, given, target.backend) if given else [],
    )


def write_export_page(
    exported: Exported,
    wrapper: QuantModule,
    examples: Sequence[Any],
    proof: tuple[Report | None, EndToEnd | None],
    path: Path,
    folder: Path,
    seconds: float,
) -> Path:
    """Writes the page of a checkpoint and of the file that was made of it.

    Args:
        exported (Exported): The file.
        wrapper (QuantModule): What it was made of.
        examples (Sequence): Batches of one image each.
        proof (tuple): How the outputs of the two compare, and what both score; None
            where it was not looked at.
        path (Path): Of the file.
        folder (Path): Where the page goes.
        seconds (float): That the export took; a page takes a tenth of it.

    Returns:
        Path: Of the page.
    """
    compared, both = proof
    limit = SHARE * seconds
    start = time.monotonic()
    scored = () if both is None else _seen(examples, both)
    page, pictures = build_report(
        wrapper, path.stem, 'export', examples[:MEASURED], scored, limit=0.7 * limit
    )
    page.file = FileReport(
        path=str(path),
        target=exported.target.name,
        bytes=path.stat().st_size,
        outputs=[] if compared is None else outputs_of(compared.outputs),
        violations=sentences(exported.findings),
    )
    if both is not None:
        add_scores(page, 'quantized', both.own.scores)
        add_scores(page, 'file', both.file.scores)
    if time.monotonic() - start < limit:
        given = Example.of(wrapper.quantization.root, examples[0]).inputs
        page.file.slowest = slowest_nodes(
            exported.model,
            _arrays(Session(exported.model), given),
            exported.target.backend,
        )
    else:
        page.skipped.append("the file's slowest nodes")
    return write_report(page, str(folder), pictures)


def _seen(examples: Sequence[Any], both: EndToEnd) -> list[Seen]:
    """Images with what checkpoint and file made of them."""
    return [
        Seen(batch, dict(quantized=own, file=file))
        for batch, own, file in zip(examples, both.same.seen, both.file.seen)
    ]


def outputs_of(reports: Iterable[OutputReport]) -> list[dict[str, Any]]:
    """How each output differs from the checkpoint's, as data."""
    return [
        dict(
            name=item.name,
            elements=item.elements,
            equal=item.share,
            largest=item.largest,
            unit='steps' if item.on_grid else 'of its range',
        )
        for item in reports
        if item.elements
    ]


def sentences(findings: Iterable[Finding]) -> list[str]:
    """Rules that nodes break, a sentence each."""
    found = [
        f'{item.operator} {item.node}, {item.rule}: {item.found}; right: {item.right}'
        for item in violations(list(findings))
    ]
    more = len(found) - MOST_VIOLATIONS
    return found[:MOST_VIOLATIONS] + ([f'and {more} more'] if more > 0 else [])


def _compare(
    session: Session, model: nn.Module, batch: Any, reports: dict[str, OutputReport]
) -> dict[str, np.ndarray]:
    """Compares an image's outputs; returns what the file was given."""
    given = Example.of(model, batch)
    regions = RegionOutputs(model, session.layout)
    with regions.collecting() as outputs:
        given.run()
    scales = json.loads(session.metadata.get('scales', '{}'))
    found = session(given.inputs)
    for name, expected in named_tensors(session.layout, outputs).items():
        if name in found and found[name].shape == expected.shape:
            reports[name].add(expected, found[name], scales.get(name))
    return _arrays(session, given.inputs)


def _arrays(session: Session, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What the file is given."""
    if tensors.keys() != session.inputs.keys():
        # A file for plain images names them its own way.
        tensors = dict(zip(session.inputs, tensors.values()))
    return {name: session.inputs[name].array(x) for name, x in tensors.items()}


def slowest_nodes(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], backend: str | None = None
) -> list[dict[str, Any]]:
    """The nodes that engines are longest in, by their own profilers.

    Args:
        model (onnx.ModelProto): The file.
        feeds (Dict[str, ndarray]): Its inputs.
        backend (str, optional): The target's engine. ONNX Runtime is asked too.

    Returns:
        List[Dict]: ``engine``, ``node``, ``kind`` and ``milliseconds``, of each engine
        the slowest first.
    """
    found = _ranked(ENGINES['onnxruntime'], _profile_onnxruntime(model, feeds))
    if backend == 'openvino' and importlib.util.find_spec('openvino'):
        found += _ranked(ENGINES['openvino'], _profile_openvino(model, feeds))
    return found


def _ranked(
    engine: str, times: Mapping[tuple[str, str], Sequence[float]]
) -> list[dict[str, Any]]:
    """Means of the runs behind the first, which sets up; the largest of them."""
    means = {key: sum(x[1:]) / max(len(x) - 1, 1) for key, x in times.items()}
    ranked = sorted(means, key=lambda key: -means[key])[:SLOWEST]
    return [
        dict(engine=engine, node=node, kind=kind, milliseconds=means[node, kind])
        for node, kind in ranked
    ]


def _profile_onnxruntime(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of each run, by node and kernel."""
    ort = require('onnxruntime')
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, 'profile'))
        twin = unsigned_twin(model).SerializeToString()
        session = ort.InferenceSession(twin, options, ['CPUExecutionProvider'])
        for _ in range(1 + RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = event.get('name', '')
        if event.get('cat') == 'Node' and name.endswith('_kernel_time'):
            node = name[: -len('_kernel_time')]
            kind = event.get('args', {}).get('op_name', '')
            times.setdefault((node, kind), []).append(event['dur'] / 1000)
    return times


def _profile_openvino(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> dict[tuple[str, str], list[float]]:
    """The same in OpenVINO; the kind has the type that it is computed in."""
    openvino = require('openvino')
    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERF_COUNT': True}
    read = core.read_model(model.SerializeToString())
    request = core.compile_model(read, 'CPU', settings).create_infer_request()
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(1 + RUNS):
        request.infer(feeds)
        for item in request.profiling_info:
            # What is fused into another node takes no time of its own.
            if item.real_time.total_seconds() > 0:
                key = item.node_name, f'{item.node_type}, {item.exec_type}'
                milliseconds = 1000 * item.real_time.total_seconds()
                times.setdefault(key, []).append(milliseconds)
    return times
