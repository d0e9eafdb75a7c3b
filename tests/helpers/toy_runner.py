"""A classifier of handwritten digits that a Runner trains in a second.

Everything that a config of MMEngine names is registered here, and nothing of
``mmquant_jacinto`` is imported: a float run can be made without it.
"""

import functools
import itertools
import json
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from sklearn.datasets import load_digits
from torch import nn

EPOCHS = 6  # batch normalization freezes from the third on, ranges from the fifth
BATCH_SIZE = 16
NUM_TRAIN = 64
NUM_VAL = 48
QAT = dict(mode='qat', bits=8)
PTQ = dict(mode='ptq', bits=8)

_names = itertools.count()


@functools.lru_cache
def digits():
    """Images (N, 1, 8, 8), from 0 to 1, and labels."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    return images, torch.from_numpy(data.target).long()


@DATASETS.register_module()
class DigitsDataset(torch.utils.data.Dataset):
    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, start, stop, pipeline=()):
        self.range = range(start, stop)
        self.pipeline = Compose(list(pipeline))
        self.metainfo = self.METAINFO

    def __len__(self):
        return len(self.range)

    def __getitem__(self, index):
        images, labels = digits()
        place = self.range[index]
        return self.pipeline(
            dict(inputs=images[place].clone(), labels=labels[place], place=place)
        )


@TRANSFORMS.register_module()
class ShowPlace:
    """Keeps count of the images that went through a pipeline."""

    seen = []

    def __init__(self, tag):
        self.tag = tag

    def __call__(self, results):
        self.seen.append((self.tag, results['place']))
        return results


@TRANSFORMS.register_module()
class Break:
    """Cannot read an image: raises, or makes it NaN, at the given places."""

    def __init__(self, places=None, nan=False):
        self.places, self.nan = places, nan

    def __call__(self, results):
        if self.places is None or results['place'] in self.places:
            if not self.nan:
                raise FileNotFoundError(f'{results["place"]}.png')
            results['inputs'].fill_(torch.nan)
        return results


@TRANSFORMS.register_module()
class Jitter:
    """Random augmentation by all three generators that there are."""

    def __call__(self, results):
        images = results['inputs']
        if random.random() < 0.5:
            images = images.flip(-1)
        noise = np.random.normal(scale=0.05, size=images.shape).astype('float32')
        results['inputs'] = images + torch.from_numpy(noise) + 0.05 * torch.rand(1)
        return results


@MODELS.register_module()
class DigitsBackbone(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.stem_norm(self.stem(x)))
        return self.relu(x + self.norm(self.conv(x)))


@MODELS.register_module()
class DigitsClassifier(BaseModel):
    """
    Args:
        channels (int): Of the backbone.
        even_head (bool): Whether there is a head that trains only on batches
            with images from even places, as heads do that may find no object.
        hidden (int, optional): Channels of a layer in the head, whose scale the next
            layer can take.
        dropout (float): Share of the features that the head does not see.
    """

    def __init__(self, channels=8, even_head=False, hidden=None, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.backbone = DigitsBackbone(channels)
        self.head = nn.Linear(channels * 16, 10)
        if hidden is not None:
            self.head = nn.Sequential(
                nn.Linear(channels * 16, hidden), nn.ReLU(), nn.Linear(hidden, 10)
            )
        self.even_head = nn.Linear(channels * 16, 10) if even_head else None

    def forward(self, inputs, labels=None, place=None, mode='tensor'):
        x = nn.functional.max_pool2d(self.backbone(inputs), 2)
        scores = self.head(self.dropout(x.flatten(1)))
        if mode == 'loss':
            if self.even_head is not None and (place % 2 == 0).any():
                scores = scores + self.even_head(x.flatten(1))
            return dict(loss=nn.functional.cross_entropy(scores, labels))
        return list(scores) if mode == 'predict' else scores


@MODELS.register_module()
class Weightless(BaseModel):
    """A model with nothing to quantize."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs, labels=None, place=None, mode='tensor'):
        scores = inputs.flatten(1)[:, :10] * self.scale
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(scores, labels))
        return list(scores)


@METRICS.register_module()
class ScoreMetric(BaseMetric):
    """Accuracy, and a mean that changes with any bit of any prediction."""

    def process(self, data_batch, data_samples):
        for scores, label in zip(data_samples, data_batch['labels']):
            right = scores.argmax() == label
            self.results.append((float(right), float(scores.double().norm())))

    def compute_metrics(self, results):
        accuracy, norm = (sum(values) / len(results) for values in zip(*results))
        return dict(accuracy=accuracy, norm=norm)


class Killed(Exception):
    """Ends a run as a signal would."""


@HOOKS.register_module()
class KillHook(Hook):
    """Ends the run after an epoch, or before an iteration; counts both from 1."""

    priority = 'LOWEST'

    def __init__(self, after_epoch=None, before_iter=None):
        self.after_epoch, self.before_iter = after_epoch, before_iter

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.after_epoch:
            raise Killed

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.before_iter:
            raise Killed


@HOOKS.register_module()
class WatchHook(Hook):
    """Keeps what changes in a model from one iteration to the next."""

    priority = 'LOWEST'

    def __init__(self):
        self.states = []
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        self.states.append({k: v.clone() for k, v in model.state_dict().items()})
        self.losses.append(outputs['loss'].item())


def loader_config(start, stop, tag, **sampler):
    """A dataloader of some of the digits, whose pipeline :class:`ShowPlace` counts."""
    return dict(
        batch_size=BATCH_SIZE,
        num_workers=0,
        dataset=dict(
            type='DigitsDataset',
            start=start,
            stop=stop,
            pipeline=[dict(type='ShowPlace', tag=tag)],
        ),
        collate_fn=dict(type='default_collate'),
        sampler=sampler,
    )


def schedule_config(iters):
    """What depends on whether a training counts epochs or iterations."""
    by_epoch = iters is None
    if by_epoch:
        loop = dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS, val_interval=1)
    else:
        loop = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=2)
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    cosine = dict(type='CosineAnnealingLR', T_max=iters or EPOCHS, eta_min=0.002)
    checkpoint = dict(type='CheckpointHook', interval=1 if by_epoch else 2)
    return dict(
        train_cfg=loop,
        train_dataloader=loader_config(
            0, NUM_TRAIN, 'train', type=sampler, shuffle=True
        ),
        param_scheduler=[dict(cosine, by_epoch=by_epoch)],
        default_hooks=dict(
            checkpoint=dict(checkpoint, by_epoch=by_epoch),
            logger=dict(type='LoggerHook', interval=1),
        ),
    )


def make_config(work_dir, quantize=None, iters=None, **changes):
    """A config that trains, validates and tests :class:`DigitsClassifier`.

    Args:
        work_dir (Path): Where to.
        quantize (Any): The key under test; absent where it is None.
        iters (int, optional): Iterations of an iteration-based loop, with a
            checkpoint and a validation after every second. None: `EPOCHS`.
        **changes: Merged into the config.
    """
    val_loader = loader_config(
        NUM_TRAIN, NUM_TRAIN + NUM_VAL, 'val', type='DefaultSampler', shuffle=False
    )
    cfg = dict(
        # Runs that start in the same second must not share their logs.
        experiment_name=f'toy{next(_names)}',
        custom_imports=dict(imports=['toy_runner', 'mmquant_jacinto']),
        work_dir=str(work_dir),
        default_scope='mmengine',
        model=dict(type='DigitsClassifier'),
        val_dataloader=val_loader,
        test_dataloader=val_loader,
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=dict(type='ScoreMetric'),
        test_evaluator=dict(type='ScoreMetric'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9)),
        custom_hooks=[],
        randomness=dict(seed=1),
        log_level='INFO',
        **schedule_config(iters),
    )
    if quantize is not None:
        cfg['quantize'] = quantize
    cfg = Config(cfg)
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg):
    """What ``tools/train.py`` does; returns the runner."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def set_pipeline(cfg, loader, *transforms):
    """Puts transforms behind the pipeline of a dataloader of the config."""
    pipeline = [ConfigDict(item) for item in transforms]
    cfg[loader].dataset.pipeline = [*cfg[loader].dataset.pipeline, *pipeline]
    return cfg


def state_of(checkpoint):
    """The model's tensors in a checkpoint file."""
    return load(checkpoint)['state_dict']


def load(checkpoint):
    """A checkpoint file of a test's own making."""
    return torch.load(checkpoint, map_location='cpu', weights_only=False)


def differences(first, second):
    """Names whose tensors are not the same bit for bit in two state dicts."""
    names = [*first, *(name for name in second if name not in first)]
    return [
        name
        for name in names
        if name not in first
        or name not in second
        # On a GPU one of them may be in memory, the other from a file.
        or not torch.equal(first[name].cpu(), second[name].cpu())
    ]


def scalars(work_dir):
    """What the runs in a work dir wrote for the visualizer, in order."""
    lines = []
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return lines


def val_scores(work_dir):
    """The validation scores that were logged, in order."""
    return [
        {name: line[name] for name in ('accuracy', 'norm')}
        for line in scalars(work_dir)
        if 'accuracy' in line
    ]


def log_of(work_dir):
    """The text of the logs in a work dir."""
    return '\n'.join(
        path.read_text() for path in sorted(Path(work_dir).glob('*/*.log'))
    )
