"""A calibration that searches widths."""

from mmquant_jacinto import QuantCalibrateModule


def calibrate_module(model, image, budget, **quantize):
    module = QuantCalibrateModule(
        model.eval(), image, mixed_precision=budget, target='onnxruntime', **quantize
    )
    return module.train()
