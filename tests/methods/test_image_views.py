"""Views of images: what they keep, and what they change."""

import pytest
import torch

from mmquant_jacinto.methods.finetune import views
from mmquant_jacinto.methods.image_views import has_views, image_view
from mmquant_jacinto.methods.judged_corrections import judges


def picture(*shape, dtype=torch.uint8):
    torch.manual_seed(0)
    return (torch.rand(*shape) * 255).to(dtype)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float16])
def test_a_view_has_shape_dtype_and_reach_of_the_image(dtype):
    x = picture(2, 3, 24, 32, dtype=dtype)
    seen = image_view(x, 3)
    assert seen.shape == x.shape
    assert seen.dtype == dtype
    assert not torch.equal(seen, x)
    assert x.min() <= seen.min() and seen.max() <= x.max()
    assert torch.equal(seen, image_view(x, 3))
    assert not torch.equal(seen, image_view(x, 4))


def test_a_view_shows_a_part_of_the_image_alone():
    # One colour on the left, another on the right: no view has a third beyond them.
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8:] = 1.0
    shares = [image_view(x, seed).mean().item() for seed in range(40)]
    assert min(shares) < 0.3 and max(shares) > 0.7


@pytest.mark.parametrize('as_list', [False, True])
def test_some_views_are_mosaics_of_several_images(as_list):
    x = torch.stack([torch.full((1, 16, 16), 50.0 * (1 + i)) for i in range(4)])
    # Contrast and brightness stay within an image's own reach: one colour is kept.
    batch = dict(inputs=list(x)) if as_list else x
    found = [image_view(batch, seed) for seed in range(12)]
    images = [view for seen in found for view in (seen['inputs'] if as_list else seen)]
    colours = [len(view.unique()) for view in images]
    assert all(view.shape == (1, 16, 16) for view in images)
    assert max(colours) == 4 and min(colours) == 1
    assert 0.25 < sum(count > 1 for count in colours) / len(colours) < 0.75
    # The parts lie in a row or a column of their own, as large as a quarter at least.
    mosaic = next(view[0] for view in images if len(view.unique()) == 4)
    row = (mosaic[1:, 0] != mosaic[:-1, 0]).nonzero().item() + 1
    assert 4 <= row <= 12 and len(mosaic[:row, 0].unique()) == 1


def test_parts_of_a_mosaic_have_its_channels_whatever_their_size():
    images = [torch.ones(3, 20, 30), torch.ones(1, 18, 22), torch.ones(3, 9, 40)]
    for seed in range(20):
        seen = image_view(dict(inputs=images), seed)['inputs']
        assert [x.shape for x in seen] == [x.shape for x in images]
        assert all((x == 1).all() for x in seen)


def test_a_batch_keeps_all_but_its_images():
    images = [picture(3, 20, 30), picture(3, 18, 22)]
    batch = dict(inputs=images, data_samples=['a', 'b'])
    assert has_views(batch)
    seen = image_view(batch, 0)
    assert seen['data_samples'] == ['a', 'b']
    assert [x.shape for x in seen['inputs']] == [x.shape for x in images]
    assert all(not torch.equal(x, y) for x, y in zip(seen['inputs'], images))
    assert batch['inputs'] is images


@pytest.mark.parametrize(
    'batch',
    [
        torch.zeros(2, 5, 8),
        torch.zeros(2, 4, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        dict(inputs=dict(points=[torch.zeros(9, 4)])),
        dict(inputs=[]),
        dict(inputs=[torch.zeros(3, 2, 8, 8)]),
        [torch.zeros(2, 3, 8, 8)],
        None,
    ],
)
def test_what_are_no_images_has_no_views(batch):
    assert not has_views(batch)


def test_images_are_seen_as_they_are_first_and_differently_afterwards():
    batches = [picture(1, 3, 8, 8) + i for i in range(3)]
    steps = views(batches, augment=True)
    found = [next(steps) for _ in range(9)]
    assert all(torch.equal(view.batch, x) for view, x in zip(found, batches))
    # What does not come again is held by nobody.
    assert {view.key for view in found} == {None}
    distinct = {view.batch.sum().item() for view in found}
    assert len(distinct) == 9
    plain = views(batches, augment=False)
    assert [next(plain).key for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_of_eight_batches_one_judges():
    assert [judges(count) for count in (1, 7, 8, 17, 1000)] == [0, 0, 1, 2, 8]
    steps = views([torch.zeros(1, 5, 8)] * 8, augment=True)
    assert [next(steps).key for _ in range(8)] == [1, 2, 3, 4, 5, 6, 7, 1]
