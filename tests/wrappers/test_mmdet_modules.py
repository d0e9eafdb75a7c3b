"""The wrappers around a real detector, from plain PyTorch."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from paths import CONFIGS

from mmquant_jacinto import (
    MMDetQuantCalibrateModule,
    MMDetQuantTestModule,
    MMDetQuantTrainModule,
)

CONFIG = CONFIGS / 'bccd' / 'ssd_mobilenet_fpn.py'
DetDataSample = pytest.importorskip('mmdet.structures').DetDataSample
SIZE = 160


@pytest.fixture
def make_detector(monkeypatch):
    monkeypatch.setenv('INPUT_SIZE', str(SIZE))
    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmdet')

    def make():
        torch.manual_seed(0)
        return MODELS.build(cfg.model)

    return make


@pytest.fixture
def batch():
    """Two images, as mmdet's dataloader yields them."""
    samples = [
        DetDataSample(
            metainfo=dict(
                img_shape=(SIZE, SIZE),
                ori_shape=(SIZE, SIZE),
                scale_factor=(1.0, 1.0),
                img_id=index,
            ),
            gt_instances=InstanceData(
                bboxes=torch.tensor([[20.0, 30.0, 90.0, 100.0]]),
                labels=torch.tensor([index]),
            ),
        )
        for index in range(2)
    ]
    images = torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=samples)


def scores(results):
    return [sample.pred_instances.scores for sample in results]


def test_raw_batch_calibrates_and_is_tested(make_detector, batch):
    calib = MMDetQuantCalibrateModule(make_detector(), dummy_input=batch, bits=8)
    calib.train()
    calib(**batch, mode='predict')
    calib.eval()
    calibrated = scores(calib(**batch, mode='predict'))

    test = MMDetQuantTestModule(make_detector()).eval()
    test.module.load_state_dict(calib.module.state_dict())
    tested = scores(test(**batch, mode='predict'))
    assert all(torch.equal(a, b) for a, b in zip(calibrated, tested))


def test_bare_image_tensor_plans_what_a_batch_plans(make_detector, batch):
    from_batch = MMDetQuantTrainModule(make_detector(), dummy_input=batch)
    from_tensor = MMDetQuantTrainModule(
        make_detector(), dummy_input=torch.rand(1, 3, SIZE, SIZE)
    )
    assert from_tensor.plan.to_json() == from_batch.plan.to_json()


def test_raw_batch_gives_losses_with_gradients(make_detector, batch):
    model = MMDetQuantTrainModule(make_detector(), dummy_input=batch, total_epochs=4)
    model.train()
    for _ in range(2):  # the second is quantized
        losses = model(**batch, mode='loss')
        loss, _ = model.module.parse_losses(losses)
        model.zero_grad()
        loss.backward()
    assert torch.isfinite(loss)
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all()
        for parameter in model.parameters()
    )
