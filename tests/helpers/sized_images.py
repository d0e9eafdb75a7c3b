"""A test set of images of given sizes, and a small detector that predicts on it."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from toy_models import ToyBackbone, ToyHead


@DATASETS.register_module()
class SizedImages(BaseDataset):
    """Images of noise; ``sizes`` are heights and widths.

    ``knows`` is whether its annotations say them.
    """

    def __init__(self, sizes, knows=True, **kwargs):
        self.sizes, self.knows = sizes, knows
        super().__init__(test_mode=True, **kwargs)

    def load_data_list(self):
        known = [dict(height=h, width=w) if self.knows else {} for h, w in self.sizes]
        return [
            dict(size=size, img_id=index, **known[index])
            for index, size in enumerate(self.sizes)
        ]


@TRANSFORMS.register_module()
class LoadNoise:
    def __call__(self, results):
        if 'img' not in results:
            rng = np.random.default_rng(results['img_id'])
            shape = (*results['size'], 3)
            results['img'] = rng.integers(0, 255, shape, np.uint8)
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class PackSized:
    def __call__(self, results):
        image = torch.from_numpy(results['img'].transpose(2, 0, 1).copy())
        keys = ('img_id', 'img_shape', 'ori_shape')
        sample = BaseDataElement(metainfo={key: results[key] for key in keys})
        return dict(inputs=image, data_samples=sample)


@MODELS.register_module()
class SizedDetector(BaseModel):
    """Two regions; what is predicted follows from the image's size as well."""

    def __init__(self, divisor=1, masks=False):
        super().__init__(ImgDataPreprocessor(pad_size_divisor=divisor, pad_value=7))
        self.backbone, self.head, self.masks = ToyBackbone(), ToyHead(), masks

    def forward(self, inputs, data_samples=None, mode='tensor'):
        levels = self.backbone(inputs)
        if self.masks:
            height, width = data_samples[0].img_shape
            levels[0][:, :, height:] = 0
            levels[0][..., width:] = 0
        scores = self.head(levels)
        return [
            BaseDataElement(
                metainfo=sample.metainfo, scores=scores[0][i].sigmoid() * level
            )
            for i, sample in enumerate(data_samples)
            for level in [sample.img_shape[0]]
        ]


def make_config(sizes, *steps, batch_size=1, knows=True, **model):
    """A config of the two, whose pipeline has these steps."""
    pipeline = [dict(type='LoadNoise'), *steps, dict(type='PackSized')]
    return Config(
        dict(
            model=dict(type='SizedDetector', **model),
            test_dataloader=dict(
                batch_size=batch_size,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(
                    type='SizedImages', sizes=sizes, knows=knows, pipeline=pipeline
                ),
            ),
        )
    )
