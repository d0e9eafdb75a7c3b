"""TIDL on SoCs with MMAv2: AM62A, AM68A, AM69A, TDA4AL, TDA4VH.

A model that was quantized for TDA4VM (``quantize.target='jacinto'``) goes to the same
importer in another form: as a float model that carries its ranges. Neither device is at
hand: tests compute as ONNX Runtime does with the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import QuantizeError
from ..registry import QUANT_TARGETS
from .artifacts import meta_arch
from .grid import Grid
from .onnxruntime import QdqArithmetic
from .preset import AFFINE, PER_CHANNEL, Preset
from .rules import TDA4VM_RULES, TIDL_RULES, Rules
from .storage import Storage
from .target import CLIP, QDQ, Target

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

TDA4VM = 'jacinto'


@QUANT_TARGETS.register_module(name='tidl')
class Tidl(Target):
    """S8 weights with a scale for each channel, U8 activations with a zero point."""

    preset = Preset(
        weight=PER_CHANNEL, activation=AFFINE, calibration_observer='minmax'
    )
    arithmetic = QdqArithmetic
    describes_heads = True
    max_bits = 8
    stores_shapes = True
    gains_by_surgery = True
    rules = TIDL_RULES

    def engine(self, preset: str) -> str:
        return TDA4VM if preset == TDA4VM else self.name

    def form(self, preset: str) -> str:
        return CLIP if preset == TDA4VM else QDQ

    def rules_for(self, preset: str) -> Rules:
        return TDA4VM_RULES if self.form(preset) == CLIP else self.rules

    def widest(self, preset: str) -> int:
        # A float model has no integers; TIDL is told its widths when it imports it.
        return 16 if self.form(preset) == CLIP else self.max_bits

    def activation_storage(self, grid: Grid) -> Storage:
        # Where a zero point must be 0, that of a signed grid is 0 as INT8 alone.
        if grid.low == -grid.levels // 2 and grid.levels <= 256:
            return Storage('int8', 0, -128, 127)
        return super().activation_storage(grid)

    def check(self, config: Mapping[str, Any]) -> None:
        if self.form(config['target']) == CLIP and config.get('per_channel') is True:
            raise QuantizeError(
                'the model was quantized with quantize.per_channel=True, and the '
                "importer of TDA4VM (--target tidl of quantize.target='jacinto') gives "
                'channels scales of their own in depthwise layers alone; use '
                "quantize.per_channel='depthwise' or False, or another --target"
            )

    def finish(self, model: onnx.ModelProto) -> None:
        # Needs the `export` extra, which a training does without.
        from .rewrites.space_to_depth import convolve_at_once

        convolve_at_once(model)

    def import_options(
        self, outputs: list[str], weights: list[str], in_float: list[str]
    ) -> dict[str, str]:
        # edgeai-tidl-tools, docs/quantization.md, Manual Mixed Precision: tensors, by
        # the names in the original model; of layers that TIDL merges, as it does with
        # clips, that of the last (help text of outputFeature16bitNamesList in TIDL's
        # import tool). Denied layers run on the Arm core, in float.
        lists = {
            'advanced_options:output_feature_16bit_names_list': outputs,
            'advanced_options:params_16bit_names_list': weights,
            'deny_list:layer_name': in_float,
        }
        return {key: ', '.join(names) for key, names in lists.items() if names}

    def head_outputs(
        self, trace: Any, head: nn.Module, raw: Any
    ) -> dict[str, tuple[str, Tensor]]:
        return meta_arch.head_levels(trace, head, raw)

    def head_text(
        self, head: nn.Module, outputs: list[str], shape: tuple[int, int]
    ) -> str | None:
        if not meta_arch.has_decoder(head):
            return None
        return meta_arch.to_text(meta_arch.describe_head(head, outputs, shape))

    def artifacts(
        self,
        model: onnx.ModelProto,
        stem: str,
        preset: str,
        head: str | None,
        options: Mapping[str, str],
        is_whole: bool,
    ) -> dict[str, str]:
        # Needs the `export` extra, which a training does without.
        from .artifacts.tidl_runner import quant_params, runner_yaml

        is_quantized = self.form(preset) == QDQ
        # Ranges are for symmetric plans that TIDL runs as one subgraph.
        ranges = None if is_quantized or not is_whole else quant_params(model)
        given = model, stem, head, options, is_quantized, ranges is not None
        files = {f'{stem}.yaml': runner_yaml(*given)}
        if head is not None:
            files[f'{stem}.prototxt'] = head
        if ranges is not None:
            files[f'{stem}_ranges.prototxt'] = ranges
        return files
