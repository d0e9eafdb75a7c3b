"""Images that cannot be read are named."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from refusals import refused

pytest.importorskip('mmcv')
pytest.importorskip('onnx')

from mmquant_jacinto.export.configs.image_sources import (  # noqa: E402
    folder_images,
    items_of,
    read,
)

CONFIG = Config(
    dict(
        test_dataloader=dict(
            dataset=dict(pipeline=[dict(type='mmcv.LoadImageFromFile')]),
        )
    )
)


def test_unreadable_image_of_a_folder_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((4, 6, 3), np.uint8))
    images = folder_images(CONFIG, str(tmp_path))
    assert next(images)['img'][0].shape == (4, 6, 3)
    (tmp_path / 'b.jpg').write_text('no image')
    images = folder_images(CONFIG, str(tmp_path))
    next(images)
    refused(lambda: next(images), f'--images {tmp_path}: b.jpg cannot be read')
    refused(lambda: next(folder_images(CONFIG, str(tmp_path / 'no'))), 'no images')


class Broken:
    def __getitem__(self, index):
        raise AssertionError(f'failed to load image: {index}.jpg')


def test_unreadable_image_of_a_test_set_is_named():
    words = 'test_dataloader cannot be read', '3.jpg', '--images'
    refused(lambda: next(read(Broken(), [3])), *words)


class Videos:
    """Of one frame, and of two."""

    def __len__(self):
        return 2

    def get_len_per_video(self, index):
        return index + 1


def test_frames_of_videos_are_what_their_sampler_asks_for():
    frames = dict(sampler=dict(type='mmdet.TrackImgSampler'))
    assert items_of(Videos(), frames) == [(0, 0), (1, 0), (1, 1)]
    assert items_of(Videos(), dict(sampler=dict(type='DefaultSampler'))) == [0, 1]
    assert items_of([5, 6, 7], frames) == [0, 1, 2]
    assert items_of(Videos(), None) == [0, 1]
