"""What cannot be combined with quantization, said before anything is built or run."""

from torch import nn

from ..errors import QuantizeError
from ..mmrazor_import import mmrazor_types, require_mmrazor
from ..quantization import NAME


def refuse_synchronized_norms(model: nn.Module) -> None:
    """Refuses SyncBN, for processes on CPUs.

    Raises:
        QuantizeError: If the model has one; it names the first.
    """
    for name, module in model.named_modules():
        # Torch's and mmcv's.
        if type(module).__name__ == 'SyncBatchNorm':
            raise QuantizeError(
                f'{name} is a SyncBN, which several processes on CPUs cannot train; '
                "use norm_cfg=dict(type='BN'), and no sync_bn"
            )


def refuse_conflicts(cfg: dict) -> None:
    """Refuses settings of a config that cannot be combined with quantization.

    Raises:
        QuantizeError: If one of them is set.
    """
    if cfg.get('efficient_conv_bn_eval'):
        raise QuantizeError(
            f'efficient_conv_bn_eval={cfg["efficient_conv_bn_eval"]!r} '
            'cannot be combined with quantize, which folds batch '
            'normalization itself; remove it'
        )
    if cfg.get('compile'):
        raise QuantizeError(
            f'compile={cfg["compile"]!r} cannot be combined with quantize: '
            "torch.compile does not see the quantizers' hooks; remove it"
        )
    taken = cfg.get('model', {})
    if isinstance(taken, nn.Module) and hasattr(taken, NAME):
        raise QuantizeError(
            'the model is quantized already; give QuantRunner the float model'
        )
    for key in mmrazor_types(taken, 'model'):
        require_mmrazor(key)
