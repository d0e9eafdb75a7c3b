"""Images and weights with NaN or infinity, in calibration and training."""

import pytest
import torch
from toy_runner import PTQ, QAT, log_of, make_config, set_pipeline, state_of, train

from mmquant_jacinto import QuantizeError


@pytest.mark.parametrize('observer', ['mse', 'moving_average'])
def test_learned_scales_without_a_finite_image(observer, refused_training):
    def change(cfg):
        set_pipeline(cfg, 'val_dataloader', dict(type='Break', nan=True))

    quantize = dict(mode='qat', learned_scale=True, observer=observer)
    refused_training(quantize, 'NaN or infinity on every calibration', change=change)


def test_a_training_that_diverges_says_so(tmp_path):
    cfg = make_config(tmp_path, dict(mode='qat', learned_scale=True))
    cfg.optim_wrapper.optimizer.lr = 1e8
    with pytest.raises(QuantizeError, match='has diverged; use a lower optim_wrapper'):
        train(cfg)


def test_calibration_on_nan_alone(refused_training, float_checkpoint):
    def change(cfg):
        set_pipeline(cfg, 'val_dataloader', dict(type='Break', nan=True))

    refused_training(
        PTQ,
        'backbone/input gave NaN or infinity',
        'load_from',
        change=change,
        load_from=str(float_checkpoint),
    )


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_calibration_of_a_checkpoint_with_numbers_that_are_none(
    value, refused_training, float_checkpoint, tmp_path_factory
):
    checkpoint = torch.load(float_checkpoint, weights_only=False)
    checkpoint['state_dict']['head.bias'].fill_(value)
    path = tmp_path_factory.mktemp('broken') / 'broken.pth'
    torch.save(checkpoint, path)
    refused_training(
        PTQ, 'head/linear gave NaN or infinity', 'load_from', load_from=str(path)
    )


def test_calibration_leaves_a_broken_image_out_and_warns(float_checkpoint, tmp_path):
    cfg = make_config(tmp_path, PTQ, load_from=str(float_checkpoint))
    broken = dict(type='Break', places=[7], nan=True)
    train(set_pipeline(cfg, 'val_dataloader', broken))
    state = state_of(tmp_path / 'epoch_1.pth')
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    assert (state['quantization.activations.count'] == 3).all()
    assert 'NaN or infinity was left out of the ranges of backbone/input' in log_of(
        tmp_path
    )


def test_training_leaves_a_broken_batch_out_of_the_ranges_and_warns(tmp_path):
    # What a NaN does to weights and statistics is the same in float: here the
    # former change in the last iteration, the latter never.
    cfg = make_config(
        tmp_path,
        dict(QAT, freeze=dict(bn=0)),
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        **{'train_cfg.max_epochs': 1, 'optim_wrapper.accumulative_counts': 100},
    )
    set_pipeline(cfg, 'train_dataloader', dict(type='Break', places=[7], nan=True))
    runner = train(cfg)
    state = runner.model.quantization.activations
    assert state.low.isfinite().all()
    assert state.high.isfinite().all()
    assert state.count.tolist() == [3] * len(state.count)
    assert 'NaN or infinity was left out of the ranges of backbone/input' in log_of(
        tmp_path
    )
