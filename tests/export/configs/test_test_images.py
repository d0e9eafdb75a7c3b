"""Sizes and images for an export, from a config."""

import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402


def test_size_that_the_stride_does_not_divide_is_refused():
    from mmengine.config import Config

    from mmquant_jacinto.export.configs.test_images import TestImages

    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[resize]))))
    # By default the pipeline's size, as the model pads it.
    images = TestImages(cfg, divisor=32)
    assert images.shape == (800, 1344)
    assert images.dataset_cfg.pipeline[0].scale == (1344, 800)
    assert not images.dataset_cfg.pipeline[0].keep_ratio
    with pytest.raises(QuantizeError, match='use --shape 320 320'):
        TestImages(cfg, shape=(300, 320), divisor=32)
