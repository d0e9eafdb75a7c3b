"""A model and its quantization: what all wrappers have in common."""

import copy
from typing import Any, Optional

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError
from ..execute import quantization as phases
from ..execute.quantization import Quantization
from ..plan.plan import Plan
from ..plan.summary import summarize
from ..record.graph import Graph
from ..record.recorder import record
from .call_arguments import arguments_of
from .distillation import check_distillation, student_of
from .glibc_memory import keep_freed_memory
from .prepare import (
    is_region,
    plan_recorded,
    probe_passes,
    quantize_model,
    refuse_compiled,
)
from .surgery import operate, summary


class QuantModule(nn.Module):
    """A float model and its quantization; base of the wrappers.

    ``module`` is the float model with its own names; it carries the
    quantizers as its child ``quantization``, so ``module.state_dict()`` has
    the float names plus the quantizer state. Of an algorithm of MMRazor it is the
    student, its ``architecture``, that is quantized and carries them.

    Args:
        module (nn.Module): The float model.
        dummy_input (Any): An image tensor (N, C, H, W), or a batch as the
            dataloader yields it. Without one the plan comes from the first
            checkpoint that is loaded, or from :meth:`prepare`.
        config (QuantizeConfig, optional): In place of the keywords.
        **quantize: The keys of ``quantize=dict(...)``, see
            :class:`~mmquant_jacinto.config.quantize_config.QuantizeConfig`.

    Raises:
        QuantizeError: If a keyword is unknown or has a bad value, or if the
            model has nothing to quantize.
    """

    module: Any  # any model: its methods are not nn.Module's
    mode: Optional[str] = None
    trains = False
    eval_phase = phases.TEST
    _graph: Optional[Graph] = None  # once recorded

    def __init__(
        self,
        module: nn.Module,
        dummy_input: Any = None,
        *,
        config: Optional[QuantizeConfig] = None,
        **quantize: Any,
    ) -> None:
        super().__init__()
        if self.mode is not None:
            quantize.setdefault('mode', self.mode)
        self.config = QuantizeConfig.parse(config or quantize or True)
        refuse_compiled(student_of(module))
        if all(parameter.device.type == 'cpu' for parameter in module.parameters()):
            keep_freed_memory()
        self.module = module
        if self.config.surgery:
            for line in summary(operate(student_of(module))):
                print_log(f'surgery: {line}', 'current')
        self._carrier = (student_of(module),)
        if Quantization.of(self._carrier[0]) is None:
            Quantization(self._carrier[0])
        self.quantization.trains = self.trains
        # A new module is in training mode, whatever its child is in.
        self.training = module.training
        if dummy_input is not None:
            self.prepare(dummy_input)
        self.train(self.training)

    @property
    def quantization(self) -> Quantization:
        """Quantization: What the model carries."""
        return Quantization.of(self._carrier[0])

    @property
    def plan(self) -> Optional[Plan]:
        """Plan: None before :meth:`prepare`."""
        return self.quantization.plan

    def prepare(self, dummy_input: Any, training_input: Any = None) -> Plan:
        """Records the model on an input, and plans its quantization.

        Args:
            dummy_input (Any): See the constructor.
            training_input (Any, optional): Another batch to see the modules
                on that run only in training. Defaults to the first.

        Returns:
            Plan: What is quantized, and how.
        """
        self.config = self.config.with_found_budget()
        root = self.quantization.root
        passes = probe_passes(
            root,
            self.as_batch(dummy_input),
            None if training_input is None else self.as_batch(training_input),
            getattr(self.module, 'data_preprocessor', None),
        )
        self._graph = record(root, passes, is_region)
        plan = plan_recorded(self._graph, root, self.config)
        check_distillation(self.module, plan)
        quantize_model(root, plan)
        self._follow_mode()
        print_log(summarize(plan), 'current')
        return plan

    def as_batch(self, dummy_input: Any) -> Any:
        """Makes an input that the model's ``data_preprocessor`` takes."""
        return dummy_input

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model; any signature and mode that it has."""
        self.check_ranges()
        return self.module(*args, **kwargs)

    def check_ranges(self) -> None:
        """Checks that there is something to compute with.

        Raises:
            QuantizeError: In evaluation, if no range was ever measured.
        """
        quantization = self.quantization
        if quantization.phase == phases.TEST and not quantization.has_ranges:
            raise QuantizeError(
                'there are no quantization ranges in this model or its '
                'checkpoint; train it with quantize.mode=qat or calibrate it '
                'with quantize.mode=ptq, starting from the float checkpoint '
                '(load_from=...), and test the checkpoint that gives'
            )

    def train(self, mode: bool = True) -> 'QuantModule':
        """Switches between the wrapper's own phase and integer evaluation."""
        super().train(mode)
        self._follow_mode()
        return self

    def _follow_mode(self) -> None:
        """Brings the quantization in line with ``training``."""
        self.quantization.set_phase(
            self.train_phase if self.training else self.eval_phase
        )

    @property
    def train_phase(self) -> phases.Phase:
        """Phase: What the model computes in training mode."""
        return phases.TEST

    def predict_call(self, batch: Any) -> tuple[tuple, dict[str, Any]]:
        """Arguments of the model's prediction for a batch of a dataloader."""
        data = self.module.data_preprocessor(batch, False)
        if isinstance(data, dict):
            return (), {**data, 'mode': 'predict'}
        return tuple(data), {'mode': 'predict'}

    def arguments(self, batch: Any) -> tuple[tuple, dict]:
        """Positional and keyword arguments of the model for a batch."""
        batch = self.as_batch(batch)
        if isinstance(self.module, BaseModel) and not isinstance(batch, Tensor):
            return self.predict_call(batch)
        return arguments_of(self.module, batch)

    def run_on(self, batch: Any) -> None:
        """Runs the model on a batch, which stays as it is."""
        # A preprocessor may change its batch in place.
        args, call = self.arguments(copy.deepcopy(batch))
        self.module(*args, **call)

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """MMEngine's training step of the model."""
        return self.module.train_step(*args, **kwargs)

    def val_step(self, *args: Any, **kwargs: Any) -> Any:
        """MMEngine's validation step of the model."""
        self.check_ranges()
        return self.module.val_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """MMEngine's test step of the model."""
        self.check_ranges()
        return self.module.test_step(*args, **kwargs)
