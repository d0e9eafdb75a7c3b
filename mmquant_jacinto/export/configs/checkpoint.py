"""A quantized checkpoint and its config: the model that is exported."""

from __future__ import annotations

import copy

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from ...config.quantize_config import QuantizeConfig
from ...errors import QuantizeError
from ...execute.stored_plan import find_plan
from ...runners.checkpoint_files import read_checkpoint
from ...runners.refusals import check_fits
from ...wrappers.mmdet_modules import wrapper_class
from ...wrappers.quant_module import QuantModule


def load_quantized(cfg: Config, checkpoint: str) -> QuantModule:
    """Builds a config's model and gives it a quantized checkpoint.

    Args:
        cfg (Config): Its ``quantize`` key may be absent; the checkpoint knows.
        checkpoint (str): Of ``mode='qat'`` or ``mode='ptq'``.

    Returns:
        QuantModule: A test module.

    Raises:
        QuantizeError: If the checkpoint cannot be read, is a float one, or was made
            with another model or other number formats than the config says.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    loaded = read_checkpoint(checkpoint)
    plan = find_plan(loaded.get('state_dict', loaded))
    if plan is None:
        raise QuantizeError(
            f'{checkpoint} is a float checkpoint, without quantization ranges: train '
            'it with quantize.mode=qat or calibrate it with quantize.mode=ptq first'
        )
    wanted = QuantizeConfig.parse(cfg.get('quantize'))
    if wanted is not None and wanted.target != plan.config['target']:
        raise QuantizeError(
            f'{checkpoint} was made with quantize.target={plan.config["target"]!r}, '
            f'and the config says {wanted.target!r}: give the config that it was '
            'made with'
        )
    model_cfg = copy.deepcopy(cfg.model)
    backbone = model_cfg.get('backbone')
    if isinstance(backbone, dict) and 'init_cfg' in backbone:
        backbone['init_cfg'] = None  # the checkpoint has the weights
    model = MODELS.build(model_cfg)
    wrapper = wrapper_class(model, 'test')(model, config=wanted)
    check_fits(checkpoint, loaded.get('state_dict', loaded), wrapper.quantization.root)
    _load_checkpoint_to_model(model, loaded, strict=False)
    model.dataset_meta = loaded.get('meta', {}).get('dataset_meta', {})
    return wrapper.eval()
