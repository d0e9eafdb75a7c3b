"""Post-training quantization of a float network by other libraries.

Each function of :data:`PEERS` takes the network, calibration images and a folder to
write in, and returns the quantized network as a function of one image. A library is
imported by its own function only, so that one that is missing or broken says so itself
and hinders no other.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

Quantized = Callable[[Tensor], 'list[Tensor]']
# The first of torch's exporter; ONNX Runtime refuses what NNCF makes of 21.
ONNX_OPSET = 18
ONNX_OPSET_INT4 = 21


def singles(images: Tensor) -> list[Tensor]:
    """Batches of one image each."""
    return list(images.split(1))


def modules_of(network: nn.Module, images: Tensor) -> nn.Module:
    """The network as a graph of ATen calls, by ``torch.export``.

    A region without automatic mixed precision, as YOLOX has around its pooling, would
    become a graph within the graph, which neither NNCF nor torchao enters; on a CPU
    it changes nothing.
    """
    with mock.patch('torch.cuda.amp.autocast', lambda **options: nullcontext()):
        return torch.export.export(network, (images[:1],)).module()


def onnx_file(network: nn.Module, images: Tensor, folder: Path, opset: int) -> Path:
    """The float network as an ONNX file."""
    path = folder / f'float_{opset}.onnx'
    if not path.is_file():
        torch.onnx.export(
            network,
            (images[:1],),
            str(path),
            input_names=['images'],
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def onnx_session(model: Any) -> Quantized:
    """Runs an ONNX model, given as its bytes or its path, by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=['CPUExecutionProvider'],
    )
    name = session.get_inputs()[0].name

    def run(image: Tensor) -> list[Tensor]:
        outputs = session.run(None, {name: image.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run


def nncf_options(
    bits: tuple[int, int] | None = None,
    mixed: bool = False,
    full_range: bool = False,
    fast: bool = True,
) -> dict[str, Any]:
    """Keywords of ``nncf.quantize``.

    Args:
        bits (Tuple[int, int], optional): Of weights and of activations, for the only
            device that it gives less than 8. None: 8 and 8.
        mixed (bool): Asymmetric activations.
        full_range (bool): All 8 bits for the first layer's weights too, which it keeps
            to 7 against overflow on processors without VNNI.
        fast (bool): Its fast bias correction; else the one layer after layer.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    advanced = AdvancedQuantizationParameters()
    options = dict(fast_bias_correction=fast, advanced_parameters=advanced)
    if mixed:
        options['preset'] = nncf.QuantizationPreset.MIXED
    if full_range:
        advanced.overflow_fix = OverflowFix.DISABLE
    if bits is not None:
        options['target_device'] = nncf.TargetDevice.NPU
        weight, activation = (QuantizationParameters(num_bits=n) for n in bits)
        advanced.weights_quantization_params = weight
        advanced.activations_quantization_params = activation
    return options


def nncf_torch(
    network: nn.Module, images: Tensor, folder: Path, **options: Any
) -> Quantized:
    """NNCF on the module."""
    import nncf

    return nncf.quantize(
        copy.deepcopy(network),
        nncf.Dataset(singles(images)),
        subset_size=len(images),
        **nncf_options(**options),
    )


def nncf_fx(
    network: nn.Module, images: Tensor, folder: Path, **options: Any
) -> Quantized:
    """NNCF on the graph of ``torch.export``."""
    import nncf

    return nncf.quantize(
        modules_of(network, images),
        nncf.Dataset(singles(images)),
        subset_size=len(images),
        **nncf_options(**options),
    )


def nncf_onnx(
    network: nn.Module, images: Tensor, folder: Path, **options: Any
) -> Quantized:
    """NNCF on the ONNX file."""
    import nncf
    import onnx

    samples = [{'images': image.numpy()} for image in singles(images)]
    quantized = nncf.quantize(
        onnx.load(onnx_file(network, images, folder, ONNX_OPSET)),
        nncf.Dataset(samples),
        subset_size=len(images),
        **nncf_options(**options),
    )
    return onnx_session(quantized.SerializeToString())


def modelopt(
    network: nn.Module,
    images: Tensor,
    folder: Path,
    config: str = 'INT8_DEFAULT_CFG',
    bits: tuple[int, int] | None = None,
    algorithm: str | None = None,
) -> Quantized:
    """NVIDIA's Model Optimizer, which simulates what TensorRT computes.

    Args:
        network, images, folder: As for all.
        config (str): Name of one of its configs.
        bits (Tuple[int, int], optional): Of weights and inputs, in place of those of
            the config.
        algorithm (str, optional): Calibration in place of the config's.
    """
    import modelopt.torch.quantization as mtq

    chosen = copy.deepcopy(getattr(mtq, config))
    if bits is not None:
        kinds = dict(zip(('*weight_quantizer', '*input_quantizer'), bits))
        for entry in chosen['quant_cfg']:
            if entry['quantizer_name'] in kinds:
                entry['cfg']['num_bits'] = kinds[entry['quantizer_name']]
    if algorithm is not None:
        chosen['algorithm'] = algorithm

    def run_all(model: nn.Module) -> None:
        for image in singles(images):
            model(image)

    return mtq.quantize(copy.deepcopy(network), chosen, run_all)


def modelopt_onnx(
    network: nn.Module, images: Tensor, folder: Path, method: str = 'entropy'
) -> Quantized:
    """NVIDIA's Model Optimizer on the ONNX file, run by ONNX Runtime.

    Args:
        network, images, folder: As for all.
        method (str): Calibration of activations.
    """
    quantized = folder / f'modelopt_{method}.onnx'
    # It renames nodes in the file that it is given, which the others read too.
    own = folder / f'modelopt_{method}_float.onnx'
    shutil.copyfile(onnx_file(network, images, folder, ONNX_OPSET), own)
    # It puts its own methods in the place of ONNX Runtime's, for the whole process.
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        pool.submit(
            _modelopt_file, str(own), str(quantized), images.numpy(), method
        ).result()
    return onnx_session(quantized)


def _modelopt_file(start: str, end: str, images: np.ndarray, method: str) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        start,
        quantize_mode='int8',
        calibration_data={'images': images},
        calibration_method=method,
        calibration_eps=['cpu'],
        # What is not quantized stays as the other libraries leave it.
        high_precision_dtype='fp32',
        output_path=end,
        log_level='ERROR',
    )


def fx(
    network: nn.Module, images: Tensor, folder: Path, backend: str = 'x86'
) -> Quantized:
    """torch.ao's FX graph mode, in the integer kernels of its backend.

    Args:
        network, images, folder: As for all.
        backend (str): ``'x86'`` keeps activations to 7 bits, against overflow on
            processors without VNNI; ``'onednn'`` does not.
    """
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = backend
    prepared = prepare_fx(
        copy.deepcopy(network), get_default_qconfig_mapping(backend), (images[:1],)
    )
    for image in singles(images):
        prepared(image)
    return convert_fx(prepared)


def pt2e(
    network: nn.Module, images: Tensor, folder: Path, bits: tuple[int, int] = (8, 8)
) -> Quantized:
    """torchao on the graph of ``torch.export``, for its x86 backend, simulated.

    Args:
        network, images, folder: As for all.
        bits (Tuple[int, int]): Of weights and activations, in the specification that
            the backend's quantizer is given.
    """
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(_x86_config(x86, *bits))
    prepared = prepare_pt2e(modules_of(network, images), quantizer)
    for image in singles(images):
        prepared(image)
    return move_exported_model_to_eval(convert_pt2e(prepared))


def _x86_config(x86: Any, weight: int, activation: int) -> Any:
    from dataclasses import replace

    config = x86.get_default_x86_inductor_quantization_config()
    half = 2 ** (weight - 1)
    return replace(
        config,
        input_activation=replace(
            config.input_activation, quant_min=0, quant_max=2**activation - 1
        ),
        weight=replace(config.weight, quant_min=-half, quant_max=half - 1),
    )


def onnxruntime_static(
    network: nn.Module,
    images: Tensor,
    folder: Path,
    weight: str = 'QInt8',
    method: str = 'MinMax',
) -> Quantized:
    """``onnxruntime.quantization.quantize_static``: QDQ, weights per channel.

    Args:
        network, images, folder: As for all.
        weight (str): Type of the weights.
        method (str): Calibration of activations.
    """
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.samples: Iterator[np.ndarray] = (x.numpy() for x in singles(images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {'images': sample}

    prepared = folder / 'prepared.onnx'
    quantized = folder / f'onnxruntime_{weight}_{method}.onnx'
    opset = ONNX_OPSET_INT4 if weight == 'QInt4' else ONNX_OPSET
    quant_pre_process(str(onnx_file(network, images, folder, opset)), str(prepared))
    ort.quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        activation_type=ort.QuantType.QUInt8,
        weight_type=getattr(ort.QuantType, weight),
        calibrate_method=getattr(ort.CalibrationMethod, method),
    )
    return onnx_session(quantized)


NNCF_BEST = dict(mixed=True, full_range=True)
W4A8, W4A4 = (4, 8), (4, 4)
# (library, variant, bits of weights and activations): function and keywords.
PEERS: dict[tuple[str, str, str], tuple[Callable[..., Quantized], dict[str, Any]]] = {
    ('nncf', 'torch, default', 'W8A8'): (nncf_torch, {}),
    ('nncf', 'torch, mixed', 'W8A8'): (nncf_torch, NNCF_BEST),
    ('nncf', 'torch.export, mixed', 'W8A8'): (nncf_fx, NNCF_BEST),
    ('nncf', 'torch.export, accurate', 'W8A8'): (nncf_fx, dict(NNCF_BEST, fast=False)),
    ('nncf', 'ONNX, mixed', 'W8A8'): (nncf_onnx, NNCF_BEST),
    ('nncf', 'ONNX, accurate', 'W8A8'): (nncf_onnx, dict(NNCF_BEST, fast=False)),
    ('nncf', 'torch, mixed', 'W4A8'): (nncf_torch, dict(NNCF_BEST, bits=W4A8)),
    ('nncf', 'torch, mixed', 'W4A4'): (nncf_torch, dict(NNCF_BEST, bits=W4A4)),
    ('modelopt', 'max', 'W8A8'): (modelopt, {}),
    ('modelopt', 'mse', 'W8A8'): (modelopt, dict(algorithm='mse')),
    ('modelopt', 'smoothquant', 'W8A8'): (
        modelopt,
        dict(config='INT8_SMOOTHQUANT_CFG'),
    ),
    ('modelopt', 'ONNX, entropy', 'W8A8'): (modelopt_onnx, {}),
    ('modelopt', 'ONNX, max', 'W8A8'): (modelopt_onnx, dict(method='max')),
    ('modelopt', 'max', 'W4A8'): (modelopt, dict(bits=W4A8)),
    ('modelopt', 'mse', 'W4A8'): (modelopt, dict(bits=W4A8, algorithm='mse')),
    # Its search emulates FP8, which takes a CPU more than a quarter of an hour.
    ('modelopt', 'AWQ, FP8', 'W4A8'): (modelopt, dict(config='W4A8_AWQ_BETA_CFG')),
    ('modelopt', 'max', 'W4A4'): (modelopt, dict(bits=W4A4)),
    ('modelopt', 'mse', 'W4A4'): (modelopt, dict(bits=W4A4, algorithm='mse')),
    ('torch FX', 'x86', 'W8A8'): (fx, {}),
    ('torch FX', 'onednn', 'W8A8'): (fx, dict(backend='onednn')),
    ('torchao', 'pt2e, x86', 'W8A8'): (pt2e, {}),
    ('torchao', 'pt2e, x86', 'W4A8'): (pt2e, dict(bits=W4A8)),
    ('torchao', 'pt2e, x86', 'W4A4'): (pt2e, dict(bits=W4A4)),
    ('onnxruntime', 'MinMax', 'W8A8'): (onnxruntime_static, {}),
    ('onnxruntime', 'MinMax', 'W4A8'): (onnxruntime_static, dict(weight='QInt4')),
}
