"""Batches of a dataloader in parts."""

import pytest
import torch

from mmquant_jacinto.report.build import split_batch

IMAGES = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(
    'batch, second',
    [
        (IMAGES, IMAGES[1:2]),
        (dict(inputs=IMAGES, labels=IMAGES[:, 0]), dict(inputs=IMAGES[1:2])),
        (dict(inputs=list(IMAGES), samples=['a', 'b', 'c']), dict(samples=['b'])),
        (dict(inputs=dict(img=IMAGES), samples=[1, 2, 3]), dict(samples=[2])),
    ],
)
def test_each_image_is_a_batch(batch, second):
    parts = split_batch(batch, 2)
    assert len(parts) == 2
    if isinstance(batch, torch.Tensor):
        assert torch.equal(parts[1], second)
        return
    for key, value in second.items():
        found = parts[1][key]
        assert torch.equal(found, value) if key == 'inputs' else found == value


def test_fields_without_names():
    first, second, third = split_batch([list(IMAGES), [4, 5, 6]], 8)
    assert torch.equal(third[0][0], IMAGES[2]) and third[1] == [6]
    assert split_batch((IMAGES, torch.ones(3)), 1)[0][0].shape == (1, 2)
