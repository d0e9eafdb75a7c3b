"""What a file sees: how the images of a test become its input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import QuantizeError
from .pipelines import fit_dataset

METADATA_KEY = 'input'
IMAGES = 'imgs'  # MMDetection3D's key of them


@dataclass
class FileInput:
    """How the images of a test pipeline become the input of a file.

    With none of the flags the network gets images of one size anyway, and nothing is
    done to them: the file sees, pixel for pixel, what the checkpoint's test sees.

    Args:
        shape (Tuple[int, int]): Height and width of what the network gets.
        fitted (bool): The steps of the pipeline that resize and pad were given this
            size, because ``--shape`` asked for it.
        padded (bool): What the preprocessor gives is padded to the size, at the bottom
            and on the right, with its own pad value: neither pixels nor scale factors
            change.
        whole (bool): Padding is told to the network as a part of the image. DETRs
            mask padding by the image's size in the data samples, which no file gets.
    """

    shape: tuple[int, int]
    fitted: bool = False
    padded: bool = False
    whole: bool = False

    @classmethod
    def from_metadata(cls, found: dict[str, Any]) -> FileInput:
        """Reads what :meth:`to_metadata` gave."""
        return cls(**{**found, 'shape': tuple(found['shape'])})

    def to_metadata(self) -> dict[str, Any]:
        """What a file keeps of it, as JSON."""
        return {**asdict(self), 'shape': list(self.shape)}

    @property
    def is_untouched(self) -> bool:
        """bool: Whether the file sees what the test of the checkpoint sees."""
        return not (self.fitted or self.padded or self.whole)

    def fit(self, dataset: Any) -> None:
        """Brings the pipelines of a dataset's config to the size, if that is asked."""
        if self.fitted:
            fit_dataset(dataset, self.shape)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Context in which a model's preprocessor gives what the file sees."""
        preprocessor = getattr(model, 'data_preprocessor', None)
        if preprocessor is None or not (self.padded or self.whole):
            yield
            return
        value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))

        def pad(module: nn.Module, args: Any, data: Any) -> Any:
            images, inputs = images_of(data), data['inputs']
            padded: Any = self._pad(images, value)
            if isinstance(inputs, Mapping):
                padded = {**inputs, IMAGES: padded}
            return {
                **data,
                'inputs': padded,
                'data_samples': self._tell(images, data.get('data_samples')),
            }

        handle = preprocessor.register_forward_hook(pad)
        try:
            yield
        finally:
            handle.remove()

    def _pad(self, images: Tensor, value: float) -> Tensor:
        height, width = images.shape[-2:]
        more = self.shape[0] - height, self.shape[1] - width
        if min(more) < 0:
            raise QuantizeError(
                f'the test pipeline gives an image of {height} x {width}, and the file '
                f'takes {self.shape[0]} x {self.shape[1]}: export it with --shape '
                f'{max(height, self.shape[0])} {max(width, self.shape[1])}, or with '
                '--dynamic'
            )
        return F.pad(images, (0, more[1], 0, more[0]), value=value)

    def _tell(self, images: Tensor, samples: Any) -> Any:
        """Data samples that know of the padding."""
        height, width = images.shape[-2:]
        right, below = self.shape[1] - width, self.shape[0] - height
        for sample in _single_samples(samples):
            if 'batch_input_shape' in sample.metainfo_keys():
                found: dict[str, Any] = {'batch_input_shape': self.shape}
            else:
                # Of MMSegmentation: left, right, top, bottom; it cuts them off again.
                before = sample.get('img_padding_size', sample.get('padding_size'))
                left, more, top, bottom = before or (0, 0, 0, 0)
                size = (left, more + right, top, bottom + below)
                found = {'img_padding_size': size}
            found['pad_shape'] = self.shape
            if self.whole:
                found['img_shape'] = self.shape
            sample.set_metainfo(found)
        return samples


def images_of(data: Mapping[str, Any]) -> Tensor:
    """The images of a batch that a preprocessor has made.

    Args:
        data (Mapping): Its ``inputs`` are a tensor, or MMDetection3D's dict.

    Returns:
        Tensor: (..., H, W).

    Raises:
        QuantizeError: If there are other inputs than images.
    """
    inputs = data['inputs']
    if isinstance(inputs, Mapping):
        given = [name for name, value in inputs.items() if value is not None]
        if given == [IMAGES] and isinstance(inputs[IMAGES], Tensor):
            return inputs[IMAGES]
        raise QuantizeError(
            f'the network gets {" and ".join(given) or "nothing"}, and the commands '
            f'export what gets images alone ({IMAGES}); give mmquant_jacinto.export.'
            'exporter.export_onnx the part behind the encoder of points'
        )
    return inputs


def _single_samples(samples: Any) -> Iterator[Any]:
    """The data samples of images, also of those in a video."""
    for sample in samples or ():
        if hasattr(sample, 'video_data_samples'):
            yield from sample.video_data_samples
        elif hasattr(sample, 'set_metainfo'):
            yield sample
