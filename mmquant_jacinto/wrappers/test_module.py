"""The wrapper for tests on integers."""

from mmengine.registry import MODEL_WRAPPERS

from .quant_module import QuantModule


@MODEL_WRAPPERS.register_module()
class QuantTestModule(QuantModule):
    """Test of a calibrated or trained model, on integers.

    Args:
        module (nn.Module): The float model.
        dummy_input (Any): See :class:`QuantModule`; not needed where a
            quantized checkpoint is loaded, which brings its plan.
        **quantize: The keys of ``quantize=dict(...)``.
    """
