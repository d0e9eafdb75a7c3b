"""Bias correction: the ways to find what calibration adds to the biases.

See Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction
(arXiv 1906.04721), section 4.2.
"""

from ...registry import BIAS_CORRECTIONS


class BiasCorrection:
    """One way; an entry of ``registry.BIAS_CORRECTIONS``.

    Attributes:
        by_passes (bool): Whether quantized passes over the images correct.
        in_order (bool): Whether a pass corrects each layer behind those that are
            corrected already.
        is_robust (bool): Whether few elements that reach far count no more than the
            others, see :func:`~mmquant_jacinto.execute.calibrate.robust_mean`.
        by_mean_inputs (bool): Whether biases follow from what the rounded weights
            make of the mean inputs (:mod:`analytic_correction`), without a pass.
    """

    by_passes = False
    in_order = False
    is_robust = False
    by_mean_inputs = False

    def step(self, lr: float, batches: int) -> float:
        """How far biases move towards the float means of a batch.

        Args:
            lr (float): ``calibration.lr``, of this pass.
            batches (int): Batches that have corrected, this one included.
        """
        return lr


@BIAS_CORRECTIONS.register_module(name='iterative')
class IterativeCorrection(BiasCorrection):
    """All biases at once, a step with each batch, as the Jacinto devkit does."""

    by_passes = True


@BIAS_CORRECTIONS.register_module(name='sequential')
class SequentialCorrection(BiasCorrection):
    """One after the other, each to the float mean behind those before it."""

    by_passes = True
    in_order = True
    is_robust = True

    def step(self, lr: float, batches: int) -> float:
        # What a pass is off by does not depend on the passes before it: their mean.
        return 1 / batches


@BIAS_CORRECTIONS.register_module(name='analytic')
class AnalyticCorrection(BiasCorrection):
    """From mean inputs and rounding errors; not for deformable convolutions."""

    by_mean_inputs = True
