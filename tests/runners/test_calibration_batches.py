"""Which images a calibration sees, and how often."""

from inspect import signature

import pytest
from mmengine.dataset import default_collate
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from ptq_runs import ptq_config
from refusals import refused
from torch.utils.data import ConcatDataset, Dataset, Subset
from toy_runner import (
    BATCH_SIZE,
    NUM_TRAIN,
    PTQ,
    DigitsDataset,
    ShowPlace,
    differences,
    log_of,
    make_config,
    state_of,
    train,
)

from mmquant_jacinto import QuantCalibrateModule
from mmquant_jacinto.runners import QuantRunner
from mmquant_jacinto.runners.seen_datasets import (
    dataset_seen_through,
    find_pipeline,
    take_unlabelled,
)

CHECKPOINT = 'epoch_1.pth'


@pytest.fixture
def seen():
    """The (pipeline, image) pairs that were loaded during a test."""
    ShowPlace.seen.clear()
    return ShowPlace.seen


def calibrate(work_dir, checkpoint, **calibration):
    train(ptq_config(work_dir, checkpoint, dict(PTQ, calibration=calibration)))
    return state_of(work_dir / CHECKPOINT)


def test_images_are_training_images_in_the_pipeline_of_validation(
    float_checkpoint, tmp_path, seen
):
    cfg = ptq_config(tmp_path, float_checkpoint)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    train(cfg)
    assert {tag for tag, _ in seen} == {'val'}
    places = sorted(place for _, place in seen[1:])
    # One pass for ranges and one for biases; the first was to prepare.
    assert places == sorted(2 * list(range(NUM_TRAIN)))


@pytest.mark.parametrize('epochs', [0, 1, 2])
def test_each_pass_sees_the_same_batches(epochs, float_checkpoint, tmp_path, seen):
    calibrate(tmp_path, float_checkpoint, num_images=32, epochs=epochs)
    places = [place for _, place in seen if place < NUM_TRAIN]
    places = places[-32 * (1 + epochs) :]
    first = places[:32]
    assert len(set(first)) == 32
    assert places == first * (1 + epochs)


def test_step_of_the_correction_halves_with_each_pass(
    float_checkpoint, tmp_path, monkeypatch
):
    rates = []
    step = QuantCalibrateModule.calibrate_step

    def noted_step(self, batch, reference, lr, *others):
        if reference is not None:
            rates.append(lr)
        return step(self, batch, reference, lr, *others)

    monkeypatch.setattr(QuantCalibrateModule, 'calibrate_step', noted_step)
    calibrate(tmp_path, float_checkpoint, iterations=2, epochs=3, lr=0.4)
    assert rates == [0.4, 0.4, 0.2, 0.2, 0.1, 0.1]


def test_analytic_correction_needs_no_further_pass(float_checkpoint, tmp_path, seen):
    state = calibrate(
        tmp_path, float_checkpoint, num_images=32, bias_correction='analytic'
    )
    places = [place for _, place in seen if place < NUM_TRAIN]
    assert len(set(places[-32:])) == 32
    assert state['quantization.bias_correction'].any()
    assert 'Calibration of biases' not in log_of(tmp_path)


def test_the_seed_decides_which_images_are_taken(float_checkpoint, tmp_path, seen):
    taken = []
    for number, seed in enumerate((3, 4, 3)):
        seen.clear()
        quantize = dict(PTQ, calibration=dict(num_images=32, epochs=0))
        cfg = ptq_config(tmp_path / str(number), float_checkpoint, quantize)
        cfg.randomness = dict(seed=seed)
        train(cfg)
        taken.append([place for _, place in seen if place < NUM_TRAIN][-32:])
    assert taken[0] == taken[2]
    assert set(taken[0]) != set(taken[1])


def test_iterations_and_num_images_count_the_same(float_checkpoint, tmp_path):
    by_images = calibrate(tmp_path / 'images', float_checkpoint, num_images=32)
    by_iterations = calibrate(tmp_path / 'iterations', float_checkpoint, iterations=2)
    assert not differences(by_images, by_iterations)
    every = calibrate(tmp_path / 'every', float_checkpoint, num_images=10**6)
    assert 'quantization.activations.high' in differences(by_images, every)
    # The last batch is not cut.
    more = calibrate(tmp_path / 'more', float_checkpoint, num_images=BATCH_SIZE + 1)
    assert not differences(by_images, more)


def test_calibration_dataloader_of_the_config_is_used(float_checkpoint, tmp_path, seen):
    loader = make_config(tmp_path).test_dataloader
    loader.dataset.pipeline = [dict(type='ShowPlace', tag='calibration')]
    calibrate(tmp_path, float_checkpoint, dataloader=loader, epochs=0)
    tags = [tag for tag, _ in seen]
    assert tags.count('calibration') >= len(loader.dataset) > 0


def refuse(batch):
    raise AssertionError('the collation of the training')


def test_images_come_in_the_batches_of_validation(float_checkpoint, tmp_path):
    sizes = []

    def collate(batch):
        sizes.append(len(batch))
        return default_collate(batch)

    FUNCTIONS.register_module(name='noted_collate', module=collate, force=True)
    FUNCTIONS.register_module(name='refused_collate', module=refuse, force=True)
    cfg = ptq_config(tmp_path, float_checkpoint, dict(PTQ, calibration=dict(epochs=0)))
    cfg.val_dataloader.update(batch_size=3, collate_fn=dict(type='noted_collate'))
    cfg.train_dataloader.collate_fn = dict(type='refused_collate')
    train(cfg)
    # The first two are the images that the model is prepared on.
    assert sizes[2:24] == [3] * 21 + [1]


@pytest.mark.parametrize('given', ['train', 'val', 'both'])
def test_loaders_may_be_objects(given, float_checkpoint, tmp_path, seen, ptq_dir):
    cfg = ptq_config(tmp_path, float_checkpoint)
    if given != 'val':
        cfg.train_dataloader.dataset.pipeline = [dict(type='Jitter')]
    loaders = {
        f'{name}_dataloader': Runner.build_dataloader(cfg[f'{name}_dataloader'])
        for name in ('train', 'val')
        if given in (name, 'both')
    }
    kept = {name: loader.dataset.pipeline for name, loader in loaders.items()}
    arguments = {key: cfg[key] for key in signature(Runner).parameters if key in cfg}
    QuantRunner(**{**arguments, **loaders, 'cfg': cfg}).train()
    ours, theirs = (state_of(folder / CHECKPOINT) for folder in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)
    for name, loader in loaders.items():
        assert loader.dataset.pipeline is kept[name]


class Plain(Dataset):
    """A data set without a pipeline."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


class Repeated(Dataset):
    """As wrappers of the libraries are."""

    def __init__(self, dataset):
        self.dataset = dataset


def test_pipeline_is_found_and_set_within_wrappers():
    part = dict(type='A', pipeline=[dict(type='Train')])
    config = dict(type='RepeatDataset', dataset=dict(type='C', datasets=[part, part]))
    assert find_pipeline(config) == part['pipeline']
    seen = dataset_seen_through(config, [dict(type='Val')])
    assert [item['pipeline'] for item in seen['datasets']] == [[dict(type='Val')]] * 2
    assert config['dataset']['datasets'][0]['pipeline'] == [dict(type='Train')]
    refused(lambda: find_pipeline(dict(type='A')), "'A'", 'has no pipeline')


class Spatial(Plain):
    """As MMDetection3D's: an image counts by what the pipeline says of its boxes."""

    def __init__(self, filter_empty_gt=True):
        self.filter_empty_gt = filter_empty_gt

    def __getitem__(self, index):
        return {}['labels'] if self.filter_empty_gt else index


def test_images_without_labels_are_taken_from_data_sets_that_ask_for_them():
    first, second = Spatial(), Spatial()
    with pytest.raises(KeyError):
        first[0]
    take_unlabelled(ConcatDataset([first, Plain()]))
    take_unlabelled(Repeated(second))
    assert first[3] == second[3] == 3


def test_pipeline_of_objects():
    digits = DigitsDataset(0, 8, [dict(type='ShowPlace', tag='train')])
    pipeline = DigitsDataset(0, 8).pipeline
    for given, size in (
        (digits, 8),
        (Subset(digits, [1, 2]), 2),
        (ConcatDataset([digits, Subset(digits, [3])]), 9),
        (Repeated(digits), 8),
    ):
        ShowPlace.seen.clear()
        found = dataset_seen_through(given, pipeline)
        assert len(found) == size
        assert found[1]['place'] in (1, 2)
        assert not ShowPlace.seen
    plain = Plain()
    assert dataset_seen_through(plain, pipeline) is plain


def test_without_bias_correction_biases_stay(float_checkpoint, tmp_path, ptq_dir):
    name = 'quantization.bias_correction'
    assert not calibrate(tmp_path, float_checkpoint, epochs=0)[name].any()
    assert state_of(ptq_dir / CHECKPOINT)[name].any()
