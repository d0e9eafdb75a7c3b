"""How far exported files agree with the integer models they were made of.

Each detector is built with random weights, its statistics and ranges are measured
on a few images, and the file of ``export_onnx`` is compared with the test module in
ONNX Runtime, or with ``--preset openvino`` in OpenVINO, element by element, on other
images. Prints a table in Markdown.

    python benchmarks/export_agreement.py --json benchmarks/results/export.json
    python benchmarks/export_agreement.py --preset openvino --models bccd_mobilenet
    python benchmarks/export_agreement.py --models ssdlite yolox --bits 4
"""

import argparse
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import cv2
import mmdet
import onnxruntime as ort
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant_jacinto import MMDetQuantCalibrateModule, QuantizeError
from mmquant_jacinto.export.exporter import Exported, export_onnx
from mmquant_jacinto.export.session import integer_layers
from mmquant_jacinto.export.verify import first_difference, verify

# Where nothing but last bits differs.
MAX_DECIBELS = 150.0
ROOT = Path(__file__).resolve().parents[1]
UPSTREAM = Path(mmdet.__file__).parent / '.mim' / 'configs'
OURS = ROOT / 'configs' / 'bccd'
PHOTOGRAPHS = (
    Path(os.environ.get('BCCD_ROOT', '../shared/data/bccd')) / 'VOC2007/JPEGImages'
)
MODELS_COMPARED = {
    'bccd_mobilenet': (OURS / 'ssd_mobilenet_fpn.py', (320, 320)),
    'bccd_regnet': (OURS / 'ssd_regnet_fpn.py', (320, 320)),
    'bccd_resnet': (OURS / 'ssd_resnet_fpn.py', (320, 320)),
    'ssdlite': ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', (320, 320)),
    'retinanet': ('retinanet/retinanet_r50_fpn_1x_coco.py', (256, 320)),
    'fcos': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (256, 320)),
    'yolox': ('yolox/yolox_tiny_8xb8-300e_coco.py', (320, 320)),
    'rtmdet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (320, 320)),
    'atss': ('atss/atss_r50_fpn_1x_coco.py', (256, 320)),
    'faster_rcnn': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', (256, 320)),
    'ssd300': ('ssd/ssd300_coco.py', (300, 300)),
    'yolov3': ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', (320, 320)),
    'gfl': ('gfl/gfl_r50_fpn_1x_coco.py', (256, 320)),
    'centernet': ('centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py', (256, 320)),
    'yolof': ('yolof/yolof_r50-c5_8xb8-1x_coco.py', (256, 320)),
    'efficientnet': (
        'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py',
        (256, 256),
    ),
    'nas_fpn': ('nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py', (256, 256)),
    'tood': ('tood/tood_r50_fpn_1x_coco.py', (256, 320)),
    'dcn': ('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', (256, 320)),
    'dyhead': ('dyhead/atss_r50_fpn_dyhead_1x_coco.py', (256, 320)),
    'detr': ('detr/detr_r50_8xb2-150e_coco.py', (256, 320)),
    'dab_detr': ('dab_detr/dab-detr_r50_8xb2-50e_coco.py', (256, 320)),
    'deformable_detr': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        (256, 320),
    ),
    'pvt': ('pvt/retinanet_pvt-t_fpn_1x_coco.py', (256, 256)),
    'swin': ('swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', (256, 256)),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--models', nargs='+', default=list(MODELS_COMPARED), choices=MODELS_COMPARED
    )
    parser.add_argument('--preset', default='onnxruntime')
    parser.add_argument('--bits', type=int, default=8)
    parser.add_argument('--images', type=int, default=3, help='to compare on')
    parser.add_argument(
        '--folder',
        type=Path,
        default=PHOTOGRAPHS,
        help='of images; smooth random ones where it is not there',
    )
    parser.add_argument('--json', type=Path, help='where the result goes')
    return parser.parse_args()


def load_images(folder: Path, count: int, size: tuple[int, int]) -> Tensor:
    """Images (N, 3, H, W), BGR, 0 to 255."""
    paths = sorted(folder.glob('*.jpg'))[:count]
    if len(paths) < count:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, 3, *(n // 16 for n in size), generator=generator)
        return nn.functional.interpolate(coarse, size=size, mode='bilinear') * 255
    height, width = size
    arrays = [cv2.resize(cv2.imread(str(path)), (width, height)) for path in paths]
    return torch.stack([torch.from_numpy(a).permute(2, 0, 1).float() for a in arrays])


def build(config: Any) -> nn.Module:
    """A config's model with random weights and normalizations."""
    path = config if isinstance(config, Path) else UPSTREAM / config
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    """Gives normalizations and biases random numbers, as training would."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            if not module.bias.any():
                # Trained ones are not zero, and engines leave zeros out.
                nn.init.normal_(module.bias, std=0.01)


def set_statistics(model: nn.Module, images: Tensor) -> None:
    """Gives normalizations the statistics of what they see."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]

    def measure(norm: nn.Module, args: tuple) -> None:
        dims = [0, *range(2, args[0].dim())]
        norm.running_mean.copy_(args[0].mean(dims))
        norm.running_var.copy_(args[0].var(dims, unbiased=False) + 1e-3)

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        features = model.extract_feat(images)
        head = getattr(model, 'bbox_head', None)
        if head is not None and not hasattr(model, 'encoder'):
            head(features)
    for handle in handles:
        handle.remove()


def quantize(name: str, args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """A calibrated detector, and batches that it has not seen."""
    config, size = MODELS_COMPARED[name]
    images = load_images(args.folder, 2 + args.images, size)
    model = build(config).eval()
    set_statistics(
        model, model.data_preprocessor({'inputs': list(images[:2])})['inputs']
    )
    wrapper = MMDetQuantCalibrateModule(
        model,
        dummy_input=images[:1],
        target=args.preset,
        bits=args.bits,
        calibration=dict(epochs=0),
    )
    data = model.data_preprocessor(wrapper.as_batch(images[:2]))
    wrapper.train()
    wrapper(**data, mode='predict')
    wrapper.eval()
    return wrapper, [wrapper.as_batch(x[None]) for x in images[2:]]


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    wrapper, batches = quantize(name, args)
    backend = 'openvino' if args.preset == 'openvino' else 'onnxruntime'
    root = wrapper.quantization.root
    try:
        exported: Exported = export_onnx(wrapper, batches[0], backend)
    except QuantizeError as error:
        # Without the folder that the library is installed in.
        return {'reason': re.sub(r'\S*/site-packages/', '', str(error))}
    report = verify(exported, root, batches, backend)
    first = report.first
    if backend == 'openvino' and report.share < 1:
        first = first_difference(exported, root, batches[0], backend)
    integers, layers = integer_layers(exported.model)
    return {
        'equal': report.share,
        'least': min(o.share for o in report.outputs),
        'decibels': min(report.signal_to_noise, MAX_DECIBELS),
        'largest': max((o.largest for o in report.outputs if o.on_grid), default=0.0),
        'first': first,
        'integer layers': integers,
        'layers': layers,
        'nodes': len(exported.model.graph.node),
        'MiB': round(exported.model.ByteSize() / 2**20, 1),
        'left out': exported.skipped,
    }


def row(name: str, result: dict[str, Any]) -> str:
    """A row in Markdown."""
    if 'reason' in result:
        return (
            f'| {name} | not exported: {result["reason"].rpartition(" (")[0]} | | | |'
        )
    left_out = ', '.join(f'`{item}`' for item in result['left out'])
    first = f'first: `{result["first"]}`' if result['first'] else ''
    layers = f'{result["integer layers"]} / {result["layers"]}'
    remarks = '; '.join(filter(None, [first, left_out and f'without {left_out}']))
    return (
        f'| {name} | {result["equal"]:.4%} | {result["largest"]:.3g} | {layers} '
        f'| {remarks} |'
    )


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    init_default_scope('mmdet')
    print('| model | equal elements | largest difference | integer layers | remarks |')
    print('| --- | --- | --- | --- | --- |')
    results = {}
    for name in args.models:
        results[name] = compare(name, args)
        print(row(name, results[name]), flush=True)
    if args.json:
        content = {
            'onnxruntime': ort.__version__,
            'preset': args.preset,
            'bits': args.bits,
            'models': results,
        }
        args.json.write_text(json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
    main()
