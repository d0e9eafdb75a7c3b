"""The networks that others trained, and the photographs to look at with them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accuracy_configs import ROOT

VARIABLE = 'MMQUANT_PRETRAINED'
BESIDE = ROOT.parent / 'shared' / 'pretrained'


@dataclass(frozen=True)
class Network:
    """A detector with its weights.

    Args:
        name: Its config in ``configs/pretrained``, and what ``--networks`` selects.
        title: What the table calls it.
        checkpoint: Its file in the folder of :func:`find_folder`.
    """

    name: str
    title: str
    checkpoint: str

    @property
    def config(self) -> Path:
        """Its float config."""
        return ROOT / 'configs' / 'pretrained' / f'{self.name}.py'


NETWORKS = {
    network.name: network
    for network in (
        Network('yolox_nano', 'YOLOX-Nano', 'yolox_nano_coco.pth'),
        Network(
            'ssd_mobilenetv2', 'SSD-MobileNetV2', 'tf_ssd_mobilenet_v2_coco_fp16.pth'
        ),
    )
}
# What a package ships beside these is drawn, written or computed: logos, charts,
# text, test patterns. What it downloads is not there (all of SciPy's).
PHOTOGRAPHS: Mapping[str, tuple[str, str]] = {
    'skimage': (
        'data',
        'astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png '
        'coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png '
        'microaneurysms.png moon.png motorcycle_left.png motorcycle_right.png '
        'page.png retina.jpg rocket.jpg',
    ),
    'sklearn': ('datasets/images', 'china.jpg flower.jpg'),
    'matplotlib': ('mpl-data/sample_data', 'grace_hopper.jpg'),
    'scipy': ('misc', 'face.png ascent.png'),
}


def find_folder(*wanted: str) -> Path:
    """Return the folder with weights and photographs, and let the configs find it.

    Args:
        *wanted: The files that are needed.

    Raises:
        SystemExit: If it is not there.
    """
    given = os.environ.get(VARIABLE)
    path = Path(given) if given else BESIDE
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        state = f'{given} has no {missing[0]}' if given else 'it is not set'
        raise SystemExit(
            f'error: {VARIABLE} must name the folder with {", ".join(wanted)}; {state}'
        )
    os.environ[VARIABLE] = str(path.resolve())
    return path.resolve()


def photographs() -> dict[str, Path]:
    """Return the photographs of the installed packages: name to path."""
    found = {}
    for package, (folder, names) in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for name in names.split():
            path = Path(spec.origin).parent / folder / name
            if path.is_file():
                found[f'{package}/{name}'] = path
    return found
