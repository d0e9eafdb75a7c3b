"""Quantized checkpoints in mmdet's own APIs and in the command lines around a test."""

import logging
import pickle
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import pytest
import torch

mmdet = pytest.importorskip('mmdet')
from mini_coco import NUM_IMAGES, compose  # noqa: E402
from mmdet.apis import DetInferencer, inference_detector, init_detector  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.runner import load_checkpoint  # noqa: E402
from paths import TOOLS  # noqa: E402
from upstream_detectors import MIM, OLD_STYLE, SHORT, SSDLITE  # noqa: E402

from mmquant_jacinto import Quantization  # noqa: E402

OPTIONS = {
    **SHORT,
    **SSDLITE,
    'quantize.mode': 'ptq',
    'quantize.calibration.num_images': 4,
    'model.test_cfg.max_per_img': 20,
}


class Workspace:
    """A folder with a calibrated detector, and the tools run in this process."""

    def __init__(self, root):
        self.root = root
        self.config = str(root / 'config.py')
        self.checkpoint = str(root / 'work_dirs/config/epoch_1.pth')
        self.images = sorted((root / 'data/coco/val2017').glob('*.jpg'))

    def run(self, tool, *arguments, **options):
        options = {**OPTIONS, **options}
        argv = [str(TOOLS / tool), self.config, *arguments, '--cfg-options']
        sys.argv = [*argv, *(f'{key}={value}' for key, value in options.items())]
        runpy.run_path(argv[0], run_name='__main__')

    def tested(self, *arguments, **options):
        """Scores and boxes by image, as ``tools/test.py --out`` writes them."""
        out = self.root / 'out.pkl'
        self.run('test.py', self.checkpoint, '--out', str(out), *arguments, **options)
        results = pickle.loads(out.read_bytes())
        return {Path(item['img_path']).name: item['pred_instances'] for item in results}


def save_lively_detector(workspace):
    """A float checkpoint whose scores depend on the image, as trained ones do."""
    torch.manual_seed(0)
    detector = init_detector(config_of(workspace), device='cpu').train()
    images = [
        torch.from_numpy(cv2.resize(cv2.imread(str(path)), (96, 96))).permute(2, 0, 1)
        for path in workspace.images
    ]
    data = detector.data_preprocessor(dict(inputs=images), False)
    with torch.no_grad():
        for _ in range(20):  # statistics of the normalizations
            detector(**data, mode='tensor')
        for name, weight in detector.bbox_head.named_parameters():
            if name.startswith('cls_convs') and name.endswith('.1.weight'):
                weight *= 20
    torch.save(dict(state_dict=detector.state_dict()), 'lively.pth')


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp('workspace')
    compose(root / 'data' / 'coco')
    base = MIM / 'configs/ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
    (root / 'config.py').write_text(OLD_STYLE.format(base=str(base)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, 'argv', sys.argv)
        workspace = Workspace(root)
        save_lively_detector(workspace)
        workspace.run('train.py', load_from='lively.pth')
        workspace.expected = workspace.tested()
        for result in workspace.expected.values():
            assert len(set(result['scores'].tolist())) > 5
        yield workspace


def config_of(workspace, **changes):
    cfg = Config.fromfile(workspace.config)
    cfg.merge_from_dict(SSDLITE_TEST)
    cfg.merge_from_dict(changes)
    return cfg


SSDLITE_TEST = {
    'model.test_cfg.score_thr': 0.0,
    'model.test_cfg.max_per_img': 20,
    'test_dataloader.dataset.pipeline.1.scale': (96, 96),
}


@pytest.fixture
def logged():
    """Returns what MMEngine has logged in the test."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lambda: '\n'.join(record.getMessage() for record in records)
    logger.removeHandler(handler)


def assert_same(result, expected):
    for name in ('bboxes', 'scores', 'labels'):
        assert torch.equal(result[name].cpu(), expected[name]), name


def test_init_detector_gives_what_the_test_gives(workspace):
    detector = init_detector(config_of(workspace), workspace.checkpoint, device='cpu')
    for path in workspace.images:
        result = inference_detector(detector, str(path)).pred_instances
        assert_same(result, workspace.expected[path.name])
    assert Quantization.of(detector).phase == 'test'


def test_threads_may_share_a_detector_from_its_first_pass_on(workspace):
    detector = init_detector(config_of(workspace), workspace.checkpoint, device='cpu')
    paths = workspace.images * 4
    with ThreadPoolExecutor(4) as pool:
        samples = pool.map(lambda path: inference_detector(detector, str(path)), paths)
        for path, sample in zip(paths, samples):
            assert_same(sample.pred_instances, workspace.expected[path.name])


def test_det_inferencer_gives_what_the_test_gives(workspace):
    inferencer = DetInferencer(
        config_of(workspace), workspace.checkpoint, device='cpu', show_progress=False
    )
    images = [str(path) for path in workspace.images]
    results = inferencer(images, return_datasamples=True, no_save_vis=True)
    assert len(results['predictions']) == NUM_IMAGES['val']
    for path, sample in zip(workspace.images, results['predictions']):
        assert_same(sample.pred_instances, workspace.expected[path.name])


def test_det_inferencer_finds_the_config_in_the_checkpoint(workspace):
    inferencer = DetInferencer(
        weights=workspace.checkpoint, device='cpu', show_progress=False
    )
    path = workspace.images[0]
    results = inferencer(str(path), return_datasamples=True, no_save_vis=True)
    (sample,) = results['predictions']
    assert_same(sample.pred_instances, workspace.expected[path.name])


@pytest.mark.parametrize('quantize', [False, None])
def test_without_quantize_in_the_config_it_is_float_and_says_so(
    quantize, workspace, logged
):
    cfg = config_of(workspace, quantize=quantize)
    detector = init_detector(cfg, workspace.checkpoint, device='cpu')
    path = workspace.images[0]
    result = inference_detector(detector, str(path)).pred_instances
    assert 'it runs in float' in logged()
    assert 'unexpected key' not in logged()
    assert Quantization.of(detector) is None
    expected = workspace.expected[path.name]
    assert not torch.equal(result.scores, expected['scores'])


def test_teacher_that_a_model_loads_stays_float(workspace, logged):
    detector = init_detector(config_of(workspace), device='cpu')
    load_checkpoint(detector, workspace.checkpoint)
    # As a distillation loads its teacher, which has no config.
    del detector.cfg
    images = [torch.zeros(3, 96, 96, dtype=torch.uint8)]
    data = detector.data_preprocessor(dict(inputs=images), False)
    with torch.no_grad():
        detector(**data, mode='tensor')
    assert Quantization.of(detector) is None
    assert 'it runs in float' in logged()


# Around the test of a checkpoint


def test_test_time_augmentation(workspace):
    augmented = workspace.tested('--tta')
    assert augmented.keys() == workspace.expected.keys()
    for name, result in augmented.items():
        # Of this image, in integers, and of its mirror image.
        known = torch.isin(result['scores'], workspace.expected[name]['scores'])
        assert known.any()
        assert not known.all()


def test_pictures_of_the_detections_are_drawn(workspace):
    shown = workspace.tested('--show-dir', 'shown', '--work-dir', 'drawn')
    pictures = list((workspace.root / 'drawn').glob('*/shown/*.jpg'))
    assert len(pictures) == NUM_IMAGES['val']
    for name, result in shown.items():
        assert torch.equal(result['scores'], workspace.expected[name]['scores'])
