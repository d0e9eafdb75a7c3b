"""Configs of OpenMMLab's libraries that the matrix has: what each is deployed for."""

import importlib.util
from pathlib import Path

from mmengine.config import Config

from mmquant_jacinto import QuantizeError

_KEYPOINTS = 'body_2d_keypoint'
_HEATMAP = f'{_KEYPOINTS}/topdown_heatmap/coco'
CONFIGS = {
    'mmyolo': (
        'yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py',
        'yolov6/yolov6_n_syncbn_fast_8xb32-400e_coco.py',
        'yolov7/yolov7_tiny_syncbn_fast_8x16b-300e_coco.py',
        'yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py',
        'rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco.py',
        'ppyoloe/ppyoloe_plus_s_fast_8xb8-80e_coco.py',
    ),
    'mmpose': (
        f'{_KEYPOINTS}/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py',
        f'{_HEATMAP}/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py',
        f'{_HEATMAP}/td-hm_litehrnet-18_8xb64-210e_coco-256x192.py',
        f'{_HEATMAP}/td-hm_mobilenetv2_8xb64-210e_coco-256x192.py',
        f'{_HEATMAP}/td-hm_ViTPose-small_8xb64-210e_coco-256x192.py',
        f'{_KEYPOINTS}/rtmo/coco/rtmo-s_8xb32-600e_coco-640x640.py',
    ),
    'mmrotate': (
        's2anet/s2anet-le135_r50_fpn_1x_dota.py',
        'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
        'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
        'rotated_rtmdet/rotated_rtmdet_tiny-3x-dota.py',
    ),
    'mmocr': (
        'textdet/dbnet/dbnet_resnet18_fpnc_1200e_icdar2015.py',
        'textdet/panet/panet_resnet18_fpem-ffm_600e_icdar2015.py',
        'textrecog/crnn/crnn_mini-vgg_5e_mj.py',
        'textrecog/sar/sar_resnet31_parallel-decoder_5e_st-sub_mj-sub_sa_real.py',
        'textrecog/satrn/satrn_shallow-small_5e_st_mj.py',
        'textrecog/svtr/svtr-tiny_20e_st_mj.py',
        'textrecog/abinet/abinet-vision_20e_st-an_mj.py',
    ),
    'mmaction': (
        'recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400'
        '-rgb.py',
        'recognition/tsm/tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_'
        'kinetics400-rgb.py',
        'recognition/slowfast/slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb.py',
        'recognition/x3d/x3d_s_13x6x1_facebook-kinetics400-rgb.py',
        'skeleton/stgcn/stgcn_8xb16-joint-u100-80e_ntu60-xsub-keypoint-2d.py',
    ),
    'mmdet3d': (
        'smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.py',
        'pgd/pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d.py',
        'pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car.py',
        'second/second_hv_secfpn_8xb6-80e_kitti-3d-car.py',
    ),
    'mmseg': (
        'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
        'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    ),
    'mmpretrain': (
        'mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        'mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py',
        'deit3/deit3-small-p16_64xb64_in1k.py',
    ),
}


def all_names() -> list[str]:
    """All configs: library, and path below its folder of configs."""
    return [f'{library}/{path}' for library in CONFIGS for path in CONFIGS[library]]


def load_config(name: str) -> Config:
    """Reads a config.

    Args:
        name (str): Of :func:`all_names`.

    Raises:
        QuantizeError: If the library has no such file.
    """
    library, _, path = name.partition('/')
    spec = importlib.util.find_spec(library)
    file = Path(spec.submodule_search_locations[0], '.mim', 'configs', path)
    if not file.exists():
        raise QuantizeError(f'{library} has no {path}; see {file.parent}')
    # Not as a module: several processes would write the same files.
    return Config.fromfile(file, import_custom_modules=False)
