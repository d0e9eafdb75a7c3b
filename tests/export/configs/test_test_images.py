"""What a file sees, by running a test pipeline and looking at what the network gets."""

import pytest
import torch

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmengine.registry import MODELS  # noqa: E402
from mmengine.structures import BaseDataElement  # noqa: E402
from sized_images import make_config  # noqa: E402
from toy_models import randomize_norms  # noqa: E402

from mmquant_jacinto import QuantCalibrateModule, QuantizeError  # noqa: E402
from mmquant_jacinto.export.configs.end_to_end import digest, score_both  # noqa: E402
from mmquant_jacinto.export.configs.file_input import (  # noqa: E402
    METADATA_KEY,
    FileInput,
)
from mmquant_jacinto.export.configs.file_run import FileRun  # noqa: E402
from mmquant_jacinto.export.configs.test_images import TestImages  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402

SIZES = [(48, 64), (64, 48), (32, 64), (64, 64)]
KEEP = dict(type='Resize', scale=(32, 24), keep_ratio=True)
LETTER = dict(type='Resize', scale=(32, 32), keep_ratio=True)
SQUARE = dict(type='Pad', pad_to_square=True)
STRETCH = dict(type='Resize', scale=(32, 24), keep_ratio=False)


def calibrated_model(cfg):
    """The config's detector in 8 bits, in a wrapper."""
    model = randomize_norms(MODELS.build(cfg.model))
    batch = TestImages(cfg, model, free=True)._looked_at()[0]
    wrapper = QuantCalibrateModule(model, batch, target='onnxruntime')
    wrapper.train()
    data = model.data_preprocessor(batch, False)
    wrapper(**data, mode='predict')
    return wrapper.eval()


def look(cfg, **kwargs):
    return TestImages(cfg, calibrated_model(cfg).module, **kwargs)


def test_one_size_is_left_as_it_is():
    for steps in ([STRETCH], [LETTER, SQUARE]):
        images = look(make_config(SIZES, *steps))
        assert images.input.is_untouched
    assert look(make_config(SIZES, STRETCH)).input.shape == (24, 32)
    # What keeps the ratio gives one size, too, where all images have one ratio.
    images = look(make_config([(48, 64)] * 3, KEEP))
    assert images.input == FileInput((24, 32))


@pytest.mark.parametrize('knows', [True, False])
def test_several_sizes_are_padded_to_the_smallest_that_holds_all(knows):
    images = look(make_config(SIZES, KEEP, knows=knows, divisor=10))
    assert images.input == FileInput((40, 40), padded=True)
    # The first image alone has not told that.
    assert images.sizes[0] == (20, 40)


def test_a_free_size_is_not_padded():
    assert look(make_config(SIZES, KEEP), free=True).input.is_untouched


def test_padding_tells_pixels_and_samples_alike():
    cfg = make_config(SIZES, KEEP)
    images = look(cfg, count=1)
    model, (batch,) = images.model, list(images.batches())
    with images.input.applied(model):
        data = model.data_preprocessor(batch, False)
    before = model.data_preprocessor(batch, False)['inputs']
    assert before.shape[-2:] == (24, 32)
    assert torch.equal(data['inputs'][..., :24, :32], before)
    assert (data['inputs'][..., 24:, :] == 7).all()
    sample = data['data_samples'][0]
    assert sample.pad_shape == (32, 32)
    assert sample.img_padding_size == (0, 0, 0, 8)
    assert sample.img_shape == (24, 32)


def test_an_image_that_does_not_fit_is_refused():
    images = look(make_config(SIZES, KEEP), count=2)
    small = FileInput((24, 32), padded=True)
    with small.applied(images.model), pytest.raises(QuantizeError, match='--shape 32'):
        images.model.data_preprocessor(list(images.batches())[1], False)


@pytest.mark.parametrize(
    'steps, shape, expected',
    [
        ([STRETCH], (16, 16), FileInput((16, 16), fitted=True)),
        ([LETTER, SQUARE], (16, 16), FileInput((16, 16), fitted=True)),
        # What holds all images as they are is filled up with padding.
        ([KEEP], (40, 32), FileInput((40, 32), padded=True)),
        ([KEEP], (16, 16), FileInput((16, 16), fitted=True, padded=True)),
        ([STRETCH], (24, 32), FileInput((24, 32))),
    ],
)
def test_shape_decides(steps, shape, expected):
    images = look(make_config(SIZES, *steps), shape=shape, count=4)
    assert images.input == expected
    with images.input.applied(images.model):
        for batch in images.batches():
            data = images.model.data_preprocessor(batch, False)
            assert tuple(data['inputs'].shape[-2:]) == shape


@pytest.mark.parametrize(
    'steps, shape, message',
    [
        ([LETTER, SQUARE], (16, 24), 'behind Pad of the test pipeline'),
        ([], (16, 24), 'behind LoadNoise of the test pipeline'),
        ([STRETCH], (30, 32), 'use --shape 32 32'),
    ],
)
def test_shape_that_cannot_be_had_is_refused(steps, shape, message):
    cfg = make_config(SIZES, *steps, divisor=8)
    with pytest.raises(QuantizeError, match=message):
        look(cfg, shape=shape)


def test_a_config_whose_images_are_not_there_tells_the_size():
    cfg = make_config(SIZES, KEEP)
    model = calibrated_model(cfg).module
    cfg.test_dataloader.dataset.ann_file = 'nowhere.json'
    cfg.test_dataloader.dataset.type = 'BaseDataset'
    del cfg.test_dataloader.dataset.sizes, cfg.test_dataloader.dataset.knows
    cfg.test_dataloader.dataset.pipeline.insert(0, dict(type='LoadNothing'))
    assert TestImages(cfg, model).input == FileInput((32, 32), padded=True)
    with pytest.raises(QuantizeError, match='--images'):
        TestImages(cfg, model, count=1)


def end_to_end(cfg, count=4, **kwargs):
    wrapper = calibrated_model(cfg)
    root = wrapper.module
    images = TestImages(cfg, root, count=count, **kwargs)
    with images.input.applied(root):
        exported = export_onnx(
            wrapper,
            next(images.batches()),
            metadata={METADATA_KEY: images.input.to_metadata()},
            dynamic=kwargs.get('free', False),
        )
    run = FileRun(cfg, exported.model)
    assert run.input == images.input
    return images, score_both(cfg, wrapper, run, images)


@pytest.mark.parametrize('steps', [[STRETCH], [LETTER, SQUARE]])
def test_checkpoint_and_file_see_the_same_by_their_own_ways(steps):
    _, both = end_to_end(make_config(SIZES, *steps, batch_size=2))
    assert both.same is both.own
    assert both.own.equal(both.file) == 4
    assert both.problem(exact=True) is None


def test_padded_images_are_scored_both_ways():
    images, both = end_to_end(make_config(SIZES, KEEP))
    assert images.input.padded
    assert both.same.equal(both.file) == 4
    assert both.own.equal(both.file) == 0


def test_a_free_size_sees_each_image_as_it_is():
    images, both = end_to_end(make_config(SIZES, KEEP), free=True)
    assert both.own.equal(both.file) == 4


def test_padding_is_a_part_of_the_image_where_the_network_would_mask_it():
    images, both = end_to_end(make_config(SIZES, KEEP, masks=True))
    assert images.input.whole
    assert both.same.equal(both.file) == 4


def test_predictions_that_differ_are_a_problem():
    cfg = make_config(SIZES, STRETCH)
    _, both = end_to_end(cfg)
    both.file.predictions[1] = 'another'
    assert '1 of 4 images' in both.problem(exact=True)
    assert both.problem(exact=False) is None
    both.same.scores, both.file.scores = {'mAP': 0.64}, {'mAP': 0.58}
    assert 'mAP 0.6400 and the file 0.5800' in both.problem(exact=False)


def test_a_file_that_does_not_say_takes_what_the_pipeline_gives():
    cfg = make_config(SIZES, STRETCH)
    wrapper = calibrated_model(cfg)
    batch = next(TestImages(cfg, wrapper.module, count=1).batches())
    run = FileRun(cfg, export_onnx(wrapper, batch).model)
    assert run.input == FileInput((24, 32))
    cfg.test_dataloader.dataset.pipeline[1].scale = (16, 16)
    model = MODELS.build(cfg.model).eval()
    smaller = next(TestImages(cfg, wrapper.module, count=1).batches())
    with run.in_place(model), pytest.raises(QuantizeError, match='takes images of'):
        model.test_step(smaller)


def test_digest_is_of_values():
    boxes = torch.tensor([[0.0, 1.0]])
    first = BaseDataElement(bboxes=boxes, metainfo=dict(pad_shape=(1, 1)))
    assert digest(first) == digest(
        BaseDataElement(bboxes=boxes * torch.tensor([-1, 1]))
    )
    assert digest(first) != digest(BaseDataElement(bboxes=boxes + 1e-7))
    assert digest(first) != digest(BaseDataElement(bboxes=boxes.T))
    assert digest(first) == digest(BaseDataElement(bboxes=boxes, gt_labels=boxes))
