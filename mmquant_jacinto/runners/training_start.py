"""What a quantized training starts from: ranges, and scales of channels."""

from typing import Any

from ..config.sections import Calibration
from ..record.side_effects import preserved_random_state
from .calibration_batches import Batches, calibration_dataloader, count_batches
from .calibration_loop import check_measured

# Images that say what a training from a float checkpoint starts from.
START_IMAGES = 64


def measure_start(runner: Any) -> None:
    """Measures what a training starts from, where that is not known yet.

    A training from scratch, and one without a pipeline for such images, starts with
    its first step; learned scales have to start somewhere.

    Args:
        runner (QuantRunner): Its model is prepared, and has its weights.

    Raises:
        QuantizeError: If an image cannot be read, or what learned scales start from
            is never finite.
    """
    config, model = runner.quantize_config, runner.model
    learned, needed = config.learned_scale, config.learns_scales
    given = config.calibration.dataloader
    if model.quantization.has_scales or not (needed or runner._has_loaded):
        return
    has_pipeline = runner._val_dataloader or runner._test_dataloader
    if not (needed or given or has_pipeline):
        return
    if config.fake_quants:
        start = Calibration(iterations=1, dataloader=given)
    else:
        images = START_IMAGES if learned is None else learned.num_images
        start = Calibration(num_images=images, dataloader=given)
    with preserved_random_state():
        loader = calibration_dataloader(runner, start)
        batches = count_batches(loader, start)
        runner.logger.info(f'Ranges that training starts from: {batches} batches.')
        model.measure_start(Batches(loader, batches))
    if learned is not None:
        check_measured(model.quantization.activations, runner.logger)
