"""Surgery of a model that is trained in float."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..wrappers.surgery import operate, summary


@HOOKS.register_module()
class SurgeryHook(Hook):
    """Replaces modules of a float model before it is trained or tested.

    Does to a float run what ``quantize.surgery`` does to a quantized one, which then
    starts from its checkpoint. What takes a module's place has no parameters, so
    that optimizer and checkpoint are as they were.

    Examples:
        >>> custom_hooks = [dict(type='SurgeryHook')]
    """

    def before_run(self, runner: Runner) -> None:
        """Replaces them; a second time there is nothing to replace."""
        wrapped = is_model_wrapper(runner.model)
        for line in summary(operate(runner.model.module if wrapped else runner.model)):
            print_log(f'surgery: {line}', 'current')
