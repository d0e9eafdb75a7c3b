"""The images that a file is made for and proved on: those of a config's test."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from ...errors import QuantizeError
from ...execute import quantization as phases
from ...execute.quantization import Quantization
from ...wrappers.quant_module import QuantModule
from ...wrappers.random_image import random_image
from .file_input import FileInput, images_of
from .image_sources import (
    MAX_READ,
    folder_images,
    items_of,
    made_up_images,
    open_dataset,
    read,
    telling_images,
)
from .pipelines import fit_dataset, kind, pipelines


class TestImages:
    """The images of a config's test, and the input of a file that they are for.

    The user's own pipeline and the model's own preprocessor are run, and what the
    network gets is looked at.

    Args:
        cfg (Config): Its ``test_dataloader`` is used.
        model (nn.Module): The model, no wrapper.
        shape (Tuple[int, int], optional): Height and width, of ``--shape``.
        folder (str, optional): Take the images of this folder instead.
        count (int): Images that :meth:`batches` will be asked for. With 0 a config
            will do whose images are not there.
        free (bool): Whether the file takes any size, so that without ``shape``
            nothing need be padded. Defaults to False.

    Attributes:
        cfg (Config): With ``test_dataloader`` as the file needs it.
        input (FileInput): What the file sees.
        sizes (List[Tuple[int, int]]): Heights and widths that the network gets by
            the config as it was.

    Raises:
        QuantizeError: If the images are not there, or cannot be brought to the shape.
    """

    __test__ = False  # no test, whatever pytest thinks

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        shape: tuple[int, int] | None = None,
        folder: str | None = None,
        count: int = 0,
        free: bool = False,
    ) -> None:
        self.cfg = copy.deepcopy(cfg)
        self.model, self.folder, self.count = model, folder, count
        self._dataset: Any = None
        check_divisor(shape, pad_divisor(model))
        try:
            looked_at = self._looked_at()
        except QuantizeError:
            if shape is None or count:
                raise
            # Of a config alone, the size is known and nothing else.
            self.sizes, self.input = [], FileInput(shape, True, True)
            return
        self.sizes = self._sizes_of(looked_at)
        if shape is None:
            tallest, widest = (max(sides) for sides in zip(*self.sizes))
            padded = len(self.sizes) > 1 and not free
            self.input = FileInput((tallest, widest), padded=padded)
        else:
            self.input = self._asked_for(shape)
        if not free:
            self.input.whole = self._masks_padding(self._looked_at())

    def _sizes_of(self, batches: list[dict]) -> list[tuple[int, int]]:
        return sorted({network_size(self.model, batch) for batch in batches})

    def _asked_for(self, shape: tuple[int, int]) -> FileInput:
        """How the images become as large as ``--shape`` says."""
        if self.sizes == [shape]:
            return FileInput(shape)
        if len(self.sizes) > 1 and _hold(shape, self.sizes):
            # What one size cannot hold is padded, and is as the checkpoint sees it.
            return FileInput(shape, padded=True)
        loader = self.cfg.get('test_dataloader')
        fitted = loader is not None and fit_dataset(loader.dataset, shape)
        self._dataset = None
        sizes = self._sizes_of(self._looked_at())
        if not _hold(shape, sizes):
            height, width = max(sizes)
            raise QuantizeError(
                f'--shape {shape[0]} {shape[1]}: behind {self._last_step()} of the '
                f'test pipeline the network gets images of {height} x {width}; use '
                f'a --shape that holds them, or change test_dataloader'
            )
        return FileInput(shape, fitted=fitted, padded=sizes != [shape])

    def _looked_at(self) -> list[dict]:
        """Images whose sizes stand for all."""
        if self.folder is not None:
            images = folder_images(self.cfg, self.folder)
            return list(itertools.islice(images, self.count or MAX_READ))
        try:
            return list(telling_images(self.dataset, self.count, self._items()))
        except QuantizeError:
            if self.count:
                raise
            return list(made_up_images(self.cfg))

    def _items(self) -> list[Any]:
        return items_of(self.dataset, self.cfg.get('test_dataloader'))

    @property
    def dataset(self) -> Any:
        """Dataset: Of the test, with the pipeline that the file needs."""
        if self._dataset is None:
            self._dataset = open_dataset(self.cfg)
        return self._dataset

    def _last_step(self) -> str:
        """The step of the test pipeline that the size of an image comes from."""
        resizing = ('Resize', 'Pad', 'Crop')
        found = [kind(step) for step in pipelines(self.cfg.test_dataloader.dataset)[-1]]
        sized = [name for name in found if any(part in name for part in resizing)]
        return (sized or found)[-1 if sized else 0]

    def _masks_padding(self, batches: list[dict]) -> bool:
        """Whether the network computes otherwise by what it is told of the padding.

        One file computes one thing: masks that follow from the image's size in the
        data samples would be those of one image.
        """
        sizes = {size for batch in batches for size in _image_sizes(batch)}
        if len(sizes) < 2:
            return False
        batch = min(batches, key=lambda batch: min(_image_sizes(batch)))
        found = [
            region_outputs(self.model, batch, FileInput(self.input.shape, padded=True)),
            region_outputs(self.model, batch, FileInput(self.input.shape, whole=True)),
        ]
        return any(not torch.equal(x, y) for x, y in zip(*found))

    def batches(self) -> Iterator[dict]:
        """The first images, one a batch, as a dataloader yields them."""
        if self.folder is not None:
            images = folder_images(self.cfg, self.folder)
        else:
            images = read(self.dataset, self._items())
        yield from itertools.islice(images, self.count)


def _hold(shape: tuple[int, int], sizes: Iterable[tuple[int, int]]) -> bool:
    return all(a <= b for size in sizes for a, b in zip(size, shape))


def preprocess(model: nn.Module, batch: dict) -> dict:
    """What a model of MMEngine makes of a batch before its network gets it."""
    assert isinstance(model, BaseModel)
    return model.data_preprocessor(copy.deepcopy(batch), False)


def network_size(model: nn.Module, batch: dict) -> tuple[int, int]:
    """Height and width that a model's preprocessor makes of a batch."""
    data = preprocess(model, batch)
    height, width = images_of(data).shape[-2:]
    return height, width


def _image_sizes(batch: dict) -> list[tuple[int, int]]:
    samples = batch.get('data_samples') or ()
    found = [getattr(sample, 'img_shape', None) for sample in samples]
    return [(int(size[0]), int(size[1])) for size in found if size is not None]


def region_outputs(model: nn.Module, batch: dict, given: FileInput) -> list[Tensor]:
    """What the parts of a model that a file may hold return, in float."""
    quantization = Quantization.of(model)
    tensors: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        leaves = torch.utils._pytree.tree_leaves(output)
        tensors.extend(x.clone() for x in leaves if isinstance(x, Tensor))

    handles = [
        model.get_submodule(region).register_forward_hook(keep)
        for region in quantization.plan.regions
    ]
    phase = quantization.phase
    quantization.set_phase(phases.FLOAT)
    try:
        with torch.no_grad(), given.applied(model):
            assert isinstance(model, BaseModel)
            model._run_forward(preprocess(model, batch), mode='predict')
    finally:
        quantization.set_phase(phase)
        for handle in handles:
            handle.remove()
    return tensors


def check_divisor(shape: tuple[int, int] | None, divisor: int) -> None:
    """Raises QuantizeError if a model pads images of a shape to a larger one."""
    if shape is not None and any(size % divisor for size in shape):
        fitting = tuple(-(-size // divisor) * divisor for size in shape)
        raise QuantizeError(
            f'--shape {shape[0]} {shape[1]}: the model pads its images '
            f'to multiples of {divisor}; use --shape {fitting[0]} {fitting[1]}'
        )


def pad_divisor(model: nn.Module) -> int:
    """What a model's preprocessor pads images to a multiple of."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    divisor = getattr(preprocessor, 'pad_size_divisor', None)
    if divisor is None:
        # MMSegmentation's is of a test in particular.
        divisor = (getattr(preprocessor, 'test_cfg', None) or {}).get('size_divisor')
    return divisor or 1


def random_batch(wrapper: QuantModule, shape: tuple[int, int]) -> Any:
    """A batch of one random image, where no other is at hand."""
    return random_image(wrapper, shape)
