"""Two processes on CPUs give what one process gives with the doubled batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from distributed_runs import run_all, run_others
from free_port import free_port
from mmengine.device import get_device
from paths import HELPERS
from toy_runner import (
    BATCH_SIZE,
    NUM_TRAIN,
    differences,
    log_of,
    make_config,
    train,
    val_scores,
)

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='needs no GPU')

FILE = 'mixed_precision.json'
TIMEOUT = 300  # a deadlock would last for ever
RUNS = [
    'ptq',
    'ptq_onnxruntime',
    'ptq_mse',
    'ptq_entropy',
    'ptq_sequential',
    'ptq_adaround',
    'ptq_coordinate_descent',
    'ptq_automatic',
    'ptq_finetune',
    'qat_learned',
    'ptq_moving_average',
    'ptq_minmax',
    'ptq_analytic',
    'ptq_weights',
    'ptq_mixed',
    'qat',
    'qat_minmax',
    'qat_resumed',
    'qat_checkpointed',
    'qat_equalized',
    'qat_frozen',
    'qat_synchronized',
    'qat_averaged',
    'qat_accumulated',
    'qat_one_sided',
    'qat_one_sided_learned',
    'qat_iterations',
]


# What one process sees at once, two see in halves, and each layer after layer.
ROUNDED = ['ptq_adaround', 'ptq_coordinate_descent']
BY_LAYER = [*ROUNDED, 'ptq_sequential']
# Gradients of losses that are relative to the outputs of each half.
BY_GRADIENTS = ['ptq_automatic', 'ptq_finetune']


class Results:
    """What the processes of a folder ended with."""

    def __init__(self, folder, world):
        self.folder = folder
        self.world = world

    def of(self, name):
        """The results of a run, by rank."""
        return [
            torch.load(self.folder / f'{name}_rank{rank}.pth', weights_only=False)
            for rank in range(self.world)
        ]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """The runs in this process."""
    folder = tmp_path_factory.mktemp('one')
    train(make_config(folder / 'float'))
    run_all(folder, folder / 'float' / 'epoch_6.pth', 'none')
    return Results(folder, 1)


@pytest.fixture(scope='module')
def two(one, tmp_path_factory):
    """The same runs in two processes."""
    folder = tmp_path_factory.mktemp('two')
    port = free_port()
    processes = []
    for rank in range(2):
        env = dict(
            os.environ,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=port,
            OMP_NUM_THREADS='1',
        )
        script = HELPERS / 'distributed_runs.py'
        arguments = [folder, one.folder / 'float' / 'epoch_6.pth', one.folder]
        with (folder / f'rank{rank}.log').open('w') as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, script, *arguments],
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f'rank{rank}.log').read_text()[-5000:] for rank in range(2)]
    assert codes == [0, 0], '\n'.join(logs)
    run_others(one.folder, folder, 'none')
    return Results(folder, 2)


@pytest.mark.parametrize('name', ['qat_fake_quants', 'qat_fake_quants_averaged'])
def test_fake_quantizers_of_mmrazor_are_the_same_in_all_processes(name, two):
    pytest.importorskip('mmrazor')
    first, second = two.of(name)
    assert any('fake_quants' in key for key in first)
    assert not differences(first, second)


def test_distilled_student_is_the_same_in_all_processes(one, two):
    pytest.importorskip('mmrazor.models', reason='MMRazor is not installed')
    first, second = two.of('qat_distilled')
    assert 'architecture.quantization.plan' in first
    assert not differences(first, second)
    teacher = torch.load(one.folder / 'float' / 'epoch_6.pth', weights_only=False)
    kept = {
        key[len('teacher.') :]: value
        for key, value in first.items()
        if key.startswith('teacher.')
    }
    assert not differences(kept, teacher['state_dict'])
    changed = differences(
        {key: first[f'architecture.{key}'] for key in kept}, teacher['state_dict']
    )
    assert 'backbone.stem.weight' in changed


@pytest.mark.parametrize('name', [*RUNS, 'ptq_uneven', 'qat_uneven'])
def test_all_processes_end_with_the_same_model(name, two):
    first, second = two.of(name)
    assert not differences(first, second)


@pytest.mark.parametrize(
    'name, other',
    [
        ('qat_resumed', 'qat'),
        ('qat_checkpointed', 'qat'),
        ('qat_checkpointed_head', 'qat_untaught'),
    ],
)
def test_training_ends_as_the_plain_one(name, other, two):
    for ours, plain in zip(two.of(name), two.of(other)):
        assert not differences(ours, plain)


@pytest.mark.parametrize(
    'name',
    [
        name
        for name in RUNS
        if name.startswith('ptq') and name not in (*BY_LAYER, *BY_GRADIENTS)
    ],
)
def test_calibration_gives_the_state_of_one_process(name, one, two):
    (alone,), (together, _) = one.of(name), two.of(name)
    prefix = 'quantization.'
    changed = differences(alone, together)
    assert all(key.startswith(prefix) for key in changed)
    for key in ('low', 'high', 'count'):
        key = f'{prefix}activations.{key}'
        torch.testing.assert_close(together[key], alone[key], rtol=1e-6, atol=0)
    key = f'{prefix}bias_correction'
    assert alone[key].any()
    torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-5)
    key = f'{prefix}weight_correction'
    assert (alone[key] != 1).any() == (name == 'ptq_weights')
    torch.testing.assert_close(together[key], alone[key], rtol=1e-5, atol=0)
    assert f'{prefix}plan' not in changed


def test_sequential_correction_is_nearly_that_of_one_process(one, two):
    (alone,), (together, _) = one.of('ptq_sequential'), two.of('ptq_sequential')
    key = 'quantization.bias_correction'
    assert alone[key].any()
    torch.testing.assert_close(together[key], alone[key], rtol=0, atol=2e-3)


@pytest.mark.parametrize('name', ROUNDED)
def test_rounding_on_two_processes_is_nearly_that_of_one(name, one, two):
    # Which rows of the images are seen differs.
    (alone,), (together, _) = one.of(name), two.of(name)
    for name in ('backbone.stem.weight', 'backbone.conv.weight', 'head.weight'):
        difference = (alone[name] - together[name]).norm()
        assert difference < 0.05 * alone[name].norm()


def test_fine_tuning_on_two_processes_is_nearly_that_of_one(one, two):
    (alone,), (together, _) = one.of('ptq_finetune'), two.of('ptq_finetune')
    (plain,) = one.of('ptq')
    for name in ('backbone.stem.weight', 'backbone.conv.weight', 'head.weight'):
        moved = (alone[name] - plain[name]).norm()
        assert 0 < (alone[name] - together[name]).norm() < 0.5 * moved


def test_all_processes_decide_alike_to_fine_tune(one, two):
    for results in (one, two):
        log = log_of(results.folder / 'ptq_automatic')
        assert 'less than 20 dB' in log and 'iteration 300 of 300' in log
        for state in results.of('ptq_automatic'):
            assert state['quantization.learned.log2_scale'].any()


def test_mixed_precision_chooses_as_one_process(one, two):
    alone, together = (
        json.loads((results.folder / 'ptq_mixed' / FILE).read_text())
        for results in (one, two)
    )
    widths = [layer['bits'] for layer in together['layers'].values()]
    assert set(widths) == {4, 8}
    for name, layer in alone['layers'].items():
        assert together['layers'][name] == dict(
            layer, noise=pytest.approx(layer['noise'], rel=1e-4)
        )
    assert log_of(two.folder / 'ptq_mixed').count('Mixed precision: ') == 1


def test_a_budget_is_kept_alike_in_both_processes(one, two):
    alone, together = (
        json.loads((results.folder / 'ptq_budget' / 'max_drop.json').read_text())
        for results in (one, two)
    )
    first, second = two.of('ptq_budget')
    assert differences(first, second) == []
    assert len(together['trials']) > 3 and together['layers']
    # Nothing raised is the same in both, and so is float.
    assert together['float'] == alone['float']
    assert together['trials'][0]['score'] == alone['trials'][0]['score']
    assert log_of(two.folder / 'ptq_budget').count('Budget: scoring 1 of') == 1


def test_a_latency_is_kept_alike_in_both_processes(one, two):
    alone, together = (
        json.loads((results.folder / 'ptq_latency' / FILE).read_text())
        for results in (one, two)
    )
    first, second = two.of('ptq_latency')
    assert differences(first, second) == []
    # The images of each process are others, the operations of one are as many.
    assert together['operations'] == alone['operations']
    assert 1 < together['latency'] <= 2.0 and together['layers']


def test_first_ranges_of_training_are_those_of_one_process(one, two):
    # Later ones follow weights, which rounding in another order moves apart,
    # and statistics of batches half as large.
    (alone,), (together, _) = one.of('qat'), two.of('qat')
    key = 'quantization.activations.count'
    assert torch.equal(alone[key], together[key])
    index = 0  # the images themselves
    for key in ('low', 'high'):
        key = f'quantization.activations.{key}'
        torch.testing.assert_close(together[key][index], alone[key][index])


def test_training_gives_the_state_of_one_process(one, two):
    # As long as no statistics of halves of batches are in it.
    (alone,), (together, _) = one.of('qat_frozen'), two.of('qat_frozen')
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        if value.is_floating_point():
            torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(together[name], value), name
    key = 'quantization.activations.count'
    assert torch.equal(together[key], alone[key])


def test_head_that_runs_in_one_process_only_blocks_nobody(two):
    for state in two.of('qat_one_sided'):
        assert state['even_head.weight'].isfinite().all()
        count = state['quantization.activations.count']
        # Rank 0 has all the even places: the head ran in every iteration.
        iterations = 3 * NUM_TRAIN // BATCH_SIZE
        assert count.tolist() == [iterations] * len(count)
    first, second = two.of('qat_one_sided')
    assert not torch.equal(
        first['even_head.weight'], torch.zeros_like(first['even_head.weight'])
    )
    assert torch.equal(first['even_head.weight'], second['even_head.weight'])


def test_learned_scale_of_a_head_in_one_process_only_blocks_nobody(two):
    first, second = two.of('qat_one_sided_learned')
    key = 'quantization.activations.count'
    assert first[key].all() and torch.equal(first[key], second[key])
    key = 'quantization.activations.learned.log2_scale'
    assert first[key].any() and torch.equal(first[key], second[key])


def test_processes_agree_on_the_number_of_batches(one, two):
    for name, keys in (
        ('ptq_uneven', ['quantize.calibration.dataloader']),
        ('qat_uneven', ['quantize.calibration.dataloader', 'train_dataloader']),
    ):
        log = log_of(two.folder / name)
        for key in keys:
            assert log.count(f'{key} has 3 to 4 batches in the 2 processes') == 1
        assert 'batches in the' not in log_of(one.folder / name)
    last = torch.load(two.folder / 'qat_uneven/epoch_4.pth', weights_only=False)
    assert last['meta']['iter'] == 4 * 3


def test_percentile_of_unequal_parts_is_that_of_the_whole(one, two):
    (alone,), together = one.of('unequal'), two.of('unequal')
    assert all(torch.equal(high, alone) for high in together)


def test_rows_of_a_layer_in_one_process_only_come_to_all(two):
    for first, second, nothing in two.of('rows'):
        assert torch.equal(first, second)
        assert torch.equal(first, torch.arange(6.0).view(3, 2, 1))
        assert nothing is None


@pytest.mark.parametrize('name', ['ptq', 'qat', 'qat_synchronized'])
def test_checkpoint_tests_the_same_on_one_and_on_two_processes(name, one, two):
    for own, other in ((one, two), (two, one)):
        score, checked = own.of(f'test_{name}')[0], other.of(f'others_{name}')[0]
        assert checked['accuracy'] == score['accuracy'] > 0
        # A sum over images, in another order.
        assert checked['norm'] == pytest.approx(score['norm'], rel=1e-12)


@pytest.mark.parametrize('name', ['ptq', 'qat_synchronized'])
def test_validation_on_two_processes_is_the_test_of_the_checkpoint(name, two):
    assert two.of(f'test_{name}')[0] == val_scores(two.folder / name)[-1]


def test_only_the_first_process_writes(two):
    names = [path.name for path in (two.folder / 'ptq').glob('*')]
    assert names.count('epoch_1.pth') == names.count('last_checkpoint') == 1
    assert log_of(two.folder / 'ptq').count('Calibration of ranges') == 1
    assert '/4' not in (two.folder / 'rank1.log').read_text()
