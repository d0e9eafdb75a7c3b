"""Layers: the modules and parameters behind a weight quantizer, folding included."""

from typing import Optional, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..plan.plan import WeightSpec
from ..targets.grid import inverse_root


class Layer:
    """The modules and parameters behind a weight quantizer.

    Args:
        spec (WeightSpec): From the plan.
        owner (nn.Module): The module that has the weight.
        bias_owner (nn.Module, optional): The module that has the bias.
        norm (nn.Module, optional): Batch normalization folded into it.

    Attributes:
        correction (Tensor, optional): What calibration multiplies the weight of
            each output channel with: (C,). None: nothing.
        input_factor (Tensor, optional): What the channels that it reads are divided
            by, where they are quantized: (I,). None: nothing.
        output_factor (Tensor, optional): The same of those that it makes: (C,).
    """

    def __init__(
        self,
        spec: WeightSpec,
        owner: nn.Module,
        bias_owner: Optional[nn.Module],
        norm: Optional[_BatchNorm],
    ) -> None:
        self.spec = spec
        self.owner = owner
        self.bias_owner = bias_owner
        self.norm = norm
        self._weight_name = spec.weight.rpartition('.')[2]
        self._bias_name = None if spec.bias is None else spec.bias.rpartition('.')[2]
        self._rows = None if spec.rows is None else slice(*spec.rows)
        self.correction: Optional[Tensor] = None
        self.input_factor: Optional[Tensor] = None
        self.output_factor: Optional[Tensor] = None

    @classmethod
    def find(cls, root: nn.Module, spec: WeightSpec) -> 'Layer':
        """Resolves the names in ``spec`` below ``root``."""

        def owner(name: Optional[str]) -> Optional[nn.Module]:
            return None if name is None else root.get_submodule(name.rpartition('.')[0])

        return cls(
            spec,
            owner(spec.weight),
            owner(spec.bias),
            None
            if spec.norm is None
            else cast(_BatchNorm, root.get_submodule(spec.norm)),
        )

    def with_spec(self, spec: WeightSpec) -> 'Layer':
        """The same modules under another spec."""
        layer = Layer(spec, self.owner, self.bias_owner, self.norm)
        layer.input_factor = self.input_factor
        layer.output_factor = self.output_factor
        return layer

    # Looked up at each use: EMA, SyncBN conversion and the like may replace
    # parameters of a module, but not the modules.
    @property
    def parameter(self) -> Tensor:
        """Tensor: The weight as the model has it."""
        weight = getattr(self.owner, self._weight_name)
        return weight if self._rows is None else weight[self._rows]

    @property
    def weight(self) -> Tensor:
        """Tensor: The weight as it is quantized, corrected by calibration."""
        if self.correction is None:
            return self.parameter
        return self.parameter * self.along_channels(self.correction)

    def write(self, weight: Tensor) -> None:
        """Changes the parameter so that ``weight`` is this, in place."""
        if self.correction is not None:
            weight = weight / self.along_channels(self.correction)
        self.parameter.copy_(weight)

    @property
    def bias(self) -> Optional[Tensor]:
        if self._bias_name is None:
            return None
        bias = getattr(self.bias_owner, self._bias_name)
        # Rows of a packed weight may have a bias of their own.
        if self._rows is None or len(bias) == self.spec.channels:
            return bias
        return bias[self._rows]

    @property
    def parameters(self) -> tuple[Optional[Tensor], ...]:
        """Tuple[Tensor | None]: All tensors that the folded layer uses."""
        norm = self.norm
        own = self.parameter, self.bias, self.correction
        if norm is None:
            return own
        return (
            *own,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
        )

    def check(self) -> None:
        """Raises AttributeError where the model lacks a parameter."""
        assert self.parameters[0] is not None

    @property
    def norm_is_live(self) -> bool:
        """Whether the normalization uses the statistics of the batch."""
        return self.norm is not None and (
            self.norm.training or self.norm.running_var is None
        )

    def fold_factor(self) -> Tensor:
        """Factor per output channel that the normalization puts on it."""
        return norm_factor(self.norm)

    def along_channels(self, values: Tensor) -> Tensor:
        """Shapes one value per output channel to multiply the weight."""
        weight = self.parameter
        further = (1,) * (weight.dim() - 2)
        if self.spec.axis == 0:
            return values.view(-1, 1, *further)
        if weight.shape[1] == values.numel():
            return values.view(1, -1, *further)
        # Grouped transposed convolution: (in, out / groups, ...), group after
        # group along the input axis.
        groups = values.numel() // weight.shape[1]
        values = values.view(groups, -1).repeat_interleave(
            weight.shape[0] // groups, dim=0
        )
        return values.view(values.shape + further)

    def along_inputs(self, values: Tensor) -> Tensor:
        """Shapes one value per input channel to multiply the weight."""
        weight = self.parameter
        further = (1,) * (weight.dim() - 2)
        if self.spec.axis == 1:
            return values.view(-1, 1, *further)
        groups = values.numel() // weight.shape[1]
        rows = values.view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        return rows.view(*rows.shape, *further)

    @property
    def is_scaled(self) -> bool:
        """bool: Whether channels that it reads or makes have factors."""
        return self.input_factor is not None or self.output_factor is not None

    def scaled(self, weight: Tensor) -> Tensor:
        """A weight as it multiplies scaled channels, and makes such."""
        if self.input_factor is not None:
            weight = weight * self.along_inputs(self.input_factor)
        if self.output_factor is not None:
            weight = weight / self.along_channels(self.output_factor)
        return weight

    def unscaled(self, weight: Tensor) -> Tensor:
        """What :meth:`scaled` was given."""
        if self.output_factor is not None:
            weight = weight * self.along_channels(self.output_factor)
        if self.input_factor is not None:
            weight = weight / self.along_inputs(self.input_factor)
        return weight

    def scaled_bias(self, bias: Tensor) -> Tensor:
        """A bias as it is added to scaled channels: (C,)."""
        return bias if self.output_factor is None else bias / self.output_factor

    def folded(self) -> tuple[Tensor, Optional[Tensor]]:
        """Weight and bias (C,) with the frozen normalization folded in."""
        bias, norm = self.bias, self.norm
        if norm is None:
            return self.weight, bias
        factor = self.fold_factor()
        return self.weight * self.along_channels(factor), fold_bias(bias, norm, factor)


def norm_factor(norm: _BatchNorm) -> Tensor:
    """Factor per channel of a batch normalization with frozen statistics: (C,)."""
    factor = inverse_root(norm.running_var + norm.eps)
    return factor if norm.weight is None else factor * norm.weight


def fold_bias(bias: Optional[Tensor], norm: _BatchNorm, factor: Tensor) -> Tensor:
    """A bias behind a normalization of that :func:`norm_factor`: (C,)."""
    mean = norm.running_mean
    bias = (-mean if bias is None else bias - mean) * factor
    return bias if norm.bias is None else bias + norm.bias


def channel_rows(layer: Layer, values: Tensor) -> Tensor:
    """Views a tensor shaped like the layer's weight as one row per channel: (C, n)."""
    if layer.spec.axis == 1:
        # (in, out / groups, ...) holds group after group along its first axis.
        groups = layer.spec.channels // values.shape[1]
        values = values.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return values.flatten(1)


def from_channel_rows(layer: Layer, rows: Tensor) -> Tensor:
    """What :func:`channel_rows` made rows of, in the shape of the layer's weight."""
    shape = layer.weight.shape
    if layer.spec.axis == 0:
        return rows.view(shape)
    groups = layer.spec.channels // shape[1]
    rows = rows.unflatten(1, (shape[0] // groups, *shape[2:]))
    return rows.unflatten(0, (groups, shape[1])).transpose(1, 2).flatten(0, 1)


def channel_reach(layer: Layer) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight in each output channel, scaled: (C,) each."""
    rows = channel_rows(layer, layer.scaled(layer.weight))
    # aminmax over an axis takes ten times as long as both of these.
    return rows.amin(1), rows.amax(1)
