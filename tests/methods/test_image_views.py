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
