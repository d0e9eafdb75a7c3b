"""Images that a report needs not load again."""

from types import SimpleNamespace

import pytest
import torch

from mmquant_jacinto.hooks.seen_images import SeenImages


def run(count, batches, size):
    """What is kept of a pass in which the model writes into its batches."""
    seen = SeenImages('quantized', count)
    seen.begin(loop(batches, size))
    for index in range(batches):
        images = torch.arange(index * size, (index + 1) * size).float()
        batch = dict(inputs=[image.clone() for image in images])
        seen.before(index, batch)
        for image in batch['inputs']:
            image.zero_()
        samples = [
            SimpleNamespace(pred_label=image[None], gt_label=torch.zeros(1))
            for image in images
        ]
        seen.after(samples)
    return seen


class Loader(list):
    def __init__(self, batches, size):
        super().__init__(range(batches))
        self.batch_size = size


def loop(batches, size):
    return SimpleNamespace(dataloader=Loader(batches, size))


@pytest.mark.parametrize(
    'count, batches, size, kept',
    [
        (4, 3, 1, [0, 1, 2]),
        (4, 8, 1, [0, 2, 4, 6]),
        (2, 9, 1, [0, 5]),
        (4, 3, 2, [0, 1, 4, 5]),
        (3, 1, 8, [0, 1, 2]),
    ],
)
def test_images_are_kept_as_they_were_loaded_evenly_spread(count, batches, size, kept):
    seen = run(count, batches, size)
    assert [int(item.batch['inputs'][0]) for item in seen.images] == kept
    assert seen.total == batches * size
    found = [item.predictions['quantized'] for item in seen.images]
    assert found == [float(place == 0) for place in kept]


def test_what_cannot_be_read_is_left_out():
    seen = SeenImages('quantized', 4)
    seen.begin(loop(2, 1))
    seen.before(0, 'no batch')
    seen.after([object()])
    seen.before(1, dict(inputs=[torch.ones(1)]))
    # A label that is none.
    seen.after([SimpleNamespace(pred_label=None, gt_label=torch.zeros(1))])
    assert seen.images == [] and seen.total == 2


def test_a_new_pass_forgets_the_last():
    seen = run(4, 3, 1)
    seen.begin(loop(3, 1))
    assert seen.images == [] and seen.total == 0


def test_loops_and_outputs_of_any_kind_end_no_run():
    seen = SeenImages('quantized', 4)
    seen.begin(object())
    seen.before(0, dict(inputs=[torch.ones(1)]))
    seen.after(None)
    seen.after(torch.ones(3))
    assert seen.images == [] and seen.total == 3


def test_large_images_and_those_without_a_prediction_are_few(monkeypatch):
    for bytes_, most, kept in ((4, 2**28, 8), (100, 250, 3)):
        monkeypatch.setattr('mmquant_jacinto.hooks.seen_images.MOST_BYTES', most)
        seen = SeenImages('quantized', 32)
        seen.begin(loop(32, 1))
        for index in range(32):
            seen.before(index, dict(inputs=[torch.zeros(bytes_, dtype=torch.uint8)]))
            seen.after([object()])
        assert len(seen.images) == kept
