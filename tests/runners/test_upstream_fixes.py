"""What importing the package mends in MMEngine."""

from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from toy_runner import loader_config


@FUNCTIONS.register_module()
def collate_labels(batch, first=0):
    return [sample['labels'] for sample in batch[first:]]


def test_scope_of_a_base_is_no_argument_of_a_collation():
    config = loader_config(0, 4, 'train', type='DefaultSampler', shuffle=False)
    collate = dict(type='collate_labels', _scope_='mmengine', first=1)
    loader = Runner.build_dataloader({**config, 'collate_fn': collate}, seed=0)
    assert len(next(iter(loader))) == 3
    assert collate['_scope_'] == 'mmengine'


def test_loaders_are_left_as_they_are():
    config = loader_config(0, 4, 'train', type='DefaultSampler', shuffle=False)
    loader = Runner.build_dataloader(config, seed=0)
    assert Runner.build_dataloader(loader) is loader
