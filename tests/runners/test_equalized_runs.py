"""Trainings of equalized weights through the Runner."""

import pytest
from toy_runner import EPOCHS, differences, load, make_config, state_of, train


@pytest.fixture(scope='module')
def equalized_dir(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('equalized')
    train(equalized_config(work_dir))
    return work_dir


def equalized_config(work_dir, **changes):
    changes = {'model.hidden': 16, 'custom_hooks': [dict(type='EMAHook')], **changes}
    return make_config(work_dir, dict(mode='qat', equalize=True), **changes)


def test_equalized_run_that_is_killed_ends_as_the_other(equalized_dir, tmp_path):
    # The weights of its checkpoint are equalized already.
    path = str(equalized_dir / 'epoch_2.pth')
    assert state_of(path)['quantization.equalized']
    train(equalized_config(tmp_path, load_from=path, resume=True))
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(tmp_path / name), state_of(equalized_dir / name))


def test_average_of_equalized_weights_is_of_nothing_else(equalized_dir):
    # A mean of weights before and after it would be another function.
    average = load(equalized_dir / 'epoch_1.pth')['state_dict']
    present = load(equalized_dir / 'epoch_1.pth')['ema_state_dict']
    for name in ('head.0.weight', 'head.2.weight'):
        other = present['module.' + name]
        assert (average[name] - other).norm() < 0.1 * other.norm()
