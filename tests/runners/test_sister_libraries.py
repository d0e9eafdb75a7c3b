"""The same two lines on a classifier of mmpretrain and a segmentor of mmseg."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from sklearn.datasets import load_digits
from toy_runner import load, log_of, scalars, state_of

from mmquant_jacinto.execute.stored_plan import find_plan

TWO_LINES = """
_base_ = {base!r}
custom_imports = dict(imports=['mmquant_jacinto'])
quantize = dict(mode='qat', bits=8)
"""


def installed(name):
    return importlib.util.find_spec(name) is not None


def stand_in_for_torchvision():
    """Modules by name; mmpretrain imports it for transforms that nobody uses here."""
    names = ['ops', 'ops.boxes', 'transforms', 'transforms.functional']
    modules = {'torchvision': ModuleType('torchvision')}
    for name in [*names, 'transforms.transforms']:
        module = modules[f'torchvision.{name}'] = ModuleType(f'torchvision.{name}')
        module.__getattr__ = lambda attribute: type(attribute, (), {})
        parent, _, leaf = f'torchvision.{name}'.rpartition('.')
        setattr(modules[parent], leaf, module)
    return modules


@pytest.fixture(scope='module', autouse=True)
def mmpretrain():
    """Imports it, without torchvision too, of which there is no CPU build."""
    if not installed('mmpretrain'):
        return
    with pytest.MonkeyPatch.context() as patch:
        if not installed('torchvision'):
            for name, module in stand_in_for_torchvision().items():
                patch.setitem(sys.modules, name, module)
        for part in ('apis', 'datasets', 'evaluation', 'engine', 'models'):
            importlib.import_module(f'mmpretrain.{part}')


def compose_classes(root):
    """Handwritten digits in colour, in one folder for each class."""
    data = load_digits()
    for split, places in dict(train=range(48), val=range(48, 64)).items():
        for place in places:
            folder = root / split / str(data.target[place])
            folder.mkdir(parents=True, exist_ok=True)
            image = cv2.resize(data.images[place] * 15, (32, 32))
            cv2.imwrite(str(folder / f'{place}.png'), image[..., None].repeat(3, 2))


def compose_masks(root):
    """The same digits on a page, and where they are, in Cityscapes's layout."""
    data = load_digits()
    rng = np.random.default_rng(0)
    for split, number in dict(train=4, val=2).items():
        for index in range(number):
            image = rng.integers(60, size=(64, 96, 3)).astype(np.uint8)
            mask = np.zeros((64, 96), np.uint8)
            for place in rng.integers(len(data.images), size=3):
                digit = cv2.resize(data.images[place] * 15, (24, 24))
                top, left = rng.integers(40), rng.integers(72)
                part = slice(top, top + 24), slice(left, left + 24)
                image[part] = np.maximum(image[part], digit[..., None])
                mask[part][digit > 100] = 1 + data.target[place]
            for folder, name, picture in (
                ('leftImg8bit', 'leftImg8bit', image),
                ('gtFine', 'gtFine_labelTrainIds', mask),
            ):
                path = root / folder / split / f'{index}_{name}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), picture)


def classifier_options(root):
    options = {
        'train_cfg.max_epochs': 2,
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.head.in_channels': 64,
    }
    for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        key = f'{loader}_dataloader'
        options[f'{key}.num_workers'] = 0
        options[f'{key}.persistent_workers'] = False
        options[f'{key}.dataset.type'] = 'CustomDataset'
        options[f'{key}.dataset.data_root'] = str(root / split)
        options[f'{key}.dataset.split'] = ''
    return options


def segmentor_options(root):
    options = {
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 4,
        'default_hooks.checkpoint.interval': 4,
        'model.pretrained': None,
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.decode_head.in_channels': 64,
        'model.decode_head.channels': 16,
        'model.auxiliary_head.in_channels': 32,
        'model.auxiliary_head.channels': 8,
        'model.data_preprocessor.size': (48, 64),
        'train_dataloader.dataset.pipeline.2.scale': (96, 64),
        'train_dataloader.dataset.pipeline.3.crop_size': (48, 64),
    }
    for loader in ('train', 'val', 'test'):
        key = f'{loader}_dataloader'
        options[f'{key}.num_workers'] = 0
        options[f'{key}.persistent_workers'] = False
        options[f'{key}.dataset.data_root'] = str(root)
        if loader != 'train':
            options[f'{key}.dataset.pipeline.1.scale'] = (96, 64)
    return options


class Library:
    """How a library's config is shortened, and what it calls its results."""

    def __init__(self, package, base, compose, options, checkpoint, metric):
        self.package, self.base = package, base
        self.compose, self.options = compose, options
        self.checkpoint, self.metric = checkpoint, metric


LIBRARIES = {
    'mmpretrain': Library(
        'mmpretrain',
        'resnet/resnet18_8xb16_cifar10.py',
        compose_classes,
        classifier_options,
        'epoch_2.pth',
        'accuracy/top1',
    ),
    'mmseg': Library(
        'mmseg',
        'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        compose_masks,
        segmentor_options,
        'iter_4.pth',
        'mIoU',
    ),
}


@pytest.fixture(scope='module', params=LIBRARIES)
def library(request):
    if not installed(request.param):
        pytest.skip(f'{request.param} is not installed')
    return LIBRARIES[request.param]


@pytest.fixture(scope='module')
def make_config(library, tmp_path_factory):
    root = tmp_path_factory.mktemp(library.package)
    library.compose(root / 'data')
    folder = Path(importlib.util.find_spec(library.package).origin).parent
    base = folder / '.mim' / 'configs' / library.base
    (root / 'config.py').write_text(TWO_LINES.format(base=str(base)))

    def make(name, **changes):
        cfg = Config.fromfile(root / 'config.py')
        cfg.merge_from_dict(library.options(root / 'data'))
        if library.package == 'mmpretrain':
            for loader in ('train', 'val', 'test'):
                dataset = cfg[f'{loader}_dataloader'].dataset
                dataset.pipeline.insert(0, dict(type='LoadImageFromFile'))
                del dataset['split']
        cfg.merge_from_dict(changes)
        cfg.work_dir = str(root / name)
        cfg.randomness = dict(seed=0)
        cfg.experiment_name = f'{library.package}_{name}'
        return cfg

    return make


@pytest.fixture(scope='module')
def trained(make_config):
    """The config of a finished quantization aware training."""
    cfg = make_config('qat')
    Runner.from_cfg(cfg).train()
    return cfg


def test_trains_quantized(trained, library):
    state = state_of(Path(trained.work_dir) / library.checkpoint)
    assert all(value.isfinite().all() for value in state.values())
    assert state['quantization.activations.count'].all()
    plan = find_plan(state)
    # Every convolution and linear layer, but of what the loss alone calls.
    weights = {name for name, value in state.items() if value.dim() in (2, 4)}
    auxiliary = {name for name in weights if name.startswith('auxiliary_head.')}
    assert {spec.weight for spec in plan.weights.values()} == weights - auxiliary
    assert len(plan.regions) >= 2
    left = (
        'auxiliary_head.conv_seg: only the loss calls it' if auxiliary else 'no layer'
    )
    assert left in log_of(trained.work_dir)


def test_test_gives_exactly_the_validation_score(trained, library, make_config):
    checkpoint = Path(trained.work_dir) / library.checkpoint
    cfg = make_config('test', load_from=str(checkpoint))
    score = Runner.from_cfg(cfg).test()
    lines = [line for line in scalars(trained.work_dir) if library.metric in line]
    assert score[library.metric] == lines[-1][library.metric]


def test_its_page_scores_and_shows_masks_as_the_library_does(
    trained, library, make_config
):
    checkpoint = Path(trained.work_dir) / library.checkpoint
    hooks = [dict(type='ReportHook', share=1000.0)]
    cfg = make_config('page', load_from=str(checkpoint), custom_hooks=hooks)
    score = Runner.from_cfg(cfg).test()[library.metric]
    (path,) = Path(cfg.work_dir).glob('*/report.json')
    found = {
        (item['network'], item['metric']): item['value']
        for item in json.loads(path.read_text())['scores']
    }
    metric = 'mIoU' if library.package == 'mmseg' else 'accuracy'
    assert found['quantized', metric] == pytest.approx(score, abs=0.01)
    assert ('float', metric) in found
    pictures = json.loads(path.read_text())['pictures']
    if library.package == 'mmseg':
        assert pictures['networks'] == ['float', 'quantized']
        assert 0 < pictures['kept'] + pictures['lost'] <= 1


def test_calibrates(trained, library, make_config):
    checkpoint = str(Path(trained.work_dir) / library.checkpoint)
    cfg = make_config(
        'ptq',
        load_from=checkpoint,
        quantize=dict(mode='ptq', calibration=dict(num_images=4)),
    )
    Runner.from_cfg(cfg).train()
    calibrated = load(Path(cfg.work_dir) / 'epoch_1.pth')
    assert 'optimizer' not in calibrated
    name = 'quantization.bias_correction'
    assert calibrated['state_dict'][name].any()


def test_keeps_a_budget_of_its_own_metric_and_tells_of_it(
    trained, library, make_config
):
    quantize = dict(
        mode='ptq',
        calibration=dict(num_images=4),
        max_drop=dict(metric=library.metric, points=0.1, scorings=2, num_images=2),
    )
    checkpoint = str(Path(trained.work_dir) / library.checkpoint)
    cfg = make_config('budget', load_from=checkpoint, quantize=quantize)
    Runner.from_cfg(cfg).train()
    found = json.loads((Path(cfg.work_dir) / 'max_drop.json').read_text())
    assert found['metric'] == library.metric and found['finished']
    assert found['met'] == (found['drop'] <= 0.1 * (1 + 1e-6))
    (path,) = Path(cfg.work_dir).glob('*/report.json')
    report = json.loads(path.read_text())
    assert report['layers'] and report['budget']['metric'] == library.metric
    scores = {(s['network'], s['metric']): s['value'] for s in report['scores']}
    assert scores['float', library.metric] == pytest.approx(found['float'], rel=1e-3)
    final = scores['quantized', library.metric]
    assert final == pytest.approx(found['final'], rel=1e-3)
    assert 'id="budget"' in path.with_suffix('.html').read_text()


def test_keeps_a_latency(trained, library, make_config):
    quantize = dict(
        mode='ptq',
        calibration=dict(num_images=4),
        mixed_precision=dict(latency=1.5, num_images=2),
    )
    checkpoint = str(Path(trained.work_dir) / library.checkpoint)
    cfg = make_config('latency', load_from=checkpoint, quantize=quantize)
    Runner.from_cfg(cfg).train()
    found = json.loads((Path(cfg.work_dir) / 'mixed_precision.json').read_text())
    assert 1 < found['latency'] <= 1.5 and found['layers']
    plan = find_plan(state_of(Path(cfg.work_dir) / 'epoch_1.pth'))
    assert {spec.format.bits for spec in plan.specs} == {8, 16}


def test_own_api_gives_the_quantized_results(trained, library):
    checkpoint = str(Path(trained.work_dir) / library.checkpoint)
    path = next(Path(trained.test_dataloader.dataset.data_root).rglob('*.png'))
    if library.package == 'mmseg':
        from mmseg.apis import inference_model, init_model

        model = init_model(trained, checkpoint, device='cpu')
        result = inference_model(model, str(path)).seg_logits.data
    else:
        from mmpretrain import ImageClassificationInferencer, get_model

        model = get_model(trained, pretrained=checkpoint, device='cpu')
        (result,) = ImageClassificationInferencer(model)(str(path))
        result = torch.tensor(result['pred_scores'])
    assert result.isfinite().all()
    assert model.quantization.phase == 'test'
