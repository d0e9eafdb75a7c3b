"""The runner that quantizes: MMEngine's, with the model wrapped by phase."""

import copy
import os
from pathlib import Path
from typing import Any, Callable, Optional, Union

from mmengine.device import get_device
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import (
    convert_sync_batchnorm,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError
from ..hooks import ExactResumeHook, QATHook, ReportHook
from ..plan.plan import Plan
from ..record.side_effects import preserved_random_state
from ..wrappers.distillation import student_of
from ..wrappers.mmdet_modules import wrapper_class
from ..wrappers.quant_module import QuantModule
from . import calibration_hooks
from .calibration_batches import first_batch, present_files
from .calibration_loop import CalibrationLoop
from .checkpoint_files import (
    PART,
    RemoveAfterSaving,
    note_start,
    read_checkpoint,
    remove_parts,
    write_whole,
)
from .cpu_distributed import distributed_arguments, init_cpu_process_group
from .environment import described
from .refusals import (
    MODE,
    check_metric,
    check_validation,
    checked_plan,
    note_other_settings,
    refuse_conflicts,
    refuse_synchronized_norms,
)
from .starting.inherited_rates import scale_rates
from .starting.run_start import find_start, load_from_in_file, measure_start
from .starting.teaching import TEACHER, refuse_second_teacher, start_teaching
from .train_batches import equalize_epochs, with_new_workers

# Part of the name of each learned scale; longer than a key that a user would write
# for the modules of the model.
LEARNED_KEY = 'quantization.'


@RUNNERS.register_module()
class QuantRunner(Runner):
    """A runner whose ``quantize`` key is obeyed.

    The phase decides the wrapper: ``train()`` with ``mode='qat'`` trains a
    ``QuantTrainModule``, with ``mode='ptq'`` calibrates a
    ``QuantCalibrateModule``; ``val()`` and ``test()`` use a
    ``QuantTestModule`` and what the checkpoint says. With a falsy
    ``quantize`` it is MMEngine's runner.

    Args:
        args, kwargs: Of :class:`mmengine.runner.Runner`; ``cfg.quantize``
            is read, see
            :class:`~mmquant_jacinto.config.quantize_config.QuantizeConfig`.

    Raises:
        QuantizeError: If ``quantize`` or something it cannot be combined
            with is set wrong.
    """

    # Of MMEngine's runner: each a dict until it is built.
    model: Any
    _train_loop: Any
    _train_dataloader: Any
    _val_loop: Any
    _hooks: list[Hook]
    _load_from: Optional[str]
    _resume: bool
    goes_on = False  # whether a run is started again, be it without a checkpoint
    start_from: Optional[str] = None  # the checkpoint that a run begins with
    known_teacher: Optional[dict[str, str]] = None  # of a training: path and digest

    def __init__(self, *args: Any, cfg: Optional[dict] = None, **kwargs: Any) -> None:
        self.quantize_config = QuantizeConfig.parse((cfg or {}).get('quantize'))
        if self.quantize_config is not None:
            refuse_conflicts(cfg)
        self._load_from_in_file = load_from_in_file(cfg or {})
        super().__init__(*args, cfg=cfg, **kwargs)

    @classmethod
    def from_cfg(cls, cfg: Any) -> 'QuantRunner':
        """Builds a runner from a config, whose learning rates may be too large."""
        cfg = copy.deepcopy(cfg)
        start = cfg.get('load_from') or cfg.get('resume')
        scaled = scale_rates(cfg, from_checkpoint=bool(start))
        runner = super().from_cfg(cfg)
        if scaled is not None:
            runner.logger.info(scaled)
        return runner

    def setup_env(self, env_cfg: dict) -> None:
        """Sets the environment up, several CPU processes included."""
        init_cpu_process_group(self._launcher)
        super().setup_env(env_cfg)

    def _log_env(self, env_cfg: dict) -> None:
        """Logs the environment, and what quantizes there."""
        super()._log_env({**env_cfg, **described(self.quantize_config)})

    def build_model(self, model: Union[nn.Module, dict]) -> nn.Module:
        """Builds the float model."""
        try:
            return super().build_model(model)
        except KeyError as error:
            if 'registry' not in str(error):
                raise
            raise QuantizeError(
                f'{error.args[0]} If an upstream config imports it: the '
                'custom_imports of a config replaces that of its _base_, so '
                "list both, imports=['mmquant_jacinto', ...]"
            ) from error

    def wrap_model(
        self, model_wrapper_cfg: Optional[dict], model: nn.Module
    ) -> nn.Module:
        """Places the model; it is wrapped when the phase is known."""
        if self.quantize_config is None:
            return super().wrap_model(model_wrapper_cfg, model)
        if is_model_wrapper(model):
            raise QuantizeError(
                'the model is wrapped already; give QuantRunner the float model'
            )
        unused = self.cfg.get('find_unused_parameters', False)
        self._distributed_args = distributed_arguments(
            model_wrapper_cfg, self.distributed, unused
        )
        model = model.to(get_device())
        if not self.distributed:
            return revert_sync_batchnorm(model)
        sync_bn = self.cfg.get('sync_bn')
        if sync_bn is not None:
            model = convert_sync_batchnorm(model, sync_bn)
        if get_device() == 'cpu':
            refuse_synchronized_norms(model)
        return model

    def train(self) -> nn.Module:
        """Trains (``mode='qat'``) or calibrates (``mode='ptq'``)."""
        if self.quantize_config is None:
            return super().train()
        if self._train_loop is None:
            raise QuantizeError(
                f'quantize.mode={self.quantize_config.mode!r} needs '
                'train_cfg, train_dataloader and optim_wrapper in the '
                'config; to test a checkpoint call tools/test.py'
            )
        self.quantize_config = self.quantize_config.with_found_budget()
        check_validation(self)
        refuse_second_teacher(self.model, self.quantize_config.distill)
        self._decide_start()
        if self.quantize_config.mode == 'ptq':
            return self._calibrate()
        self._train_dataloader = with_new_workers(
            self._train_loop, self._train_dataloader
        )
        self._train_loop = self.build_train_loop(self._train_loop)
        equalize_epochs(self._train_loop)
        self._wrap('train')
        self._prepare(self._train_loop.dataloader)
        if self.distributed:
            self.model.distributed = self._distributed_args
            self.model.distribute()
        self._add_hooks(QATHook, ExactResumeHook)
        return super().train()

    def _add_hooks(self, *kinds: type[Hook]) -> None:
        for kind in kinds:
            if not any(isinstance(hook, kind) for hook in self._hooks):
                self.register_hook(kind())

    @property
    def is_resuming(self) -> bool:
        """bool: Whether training goes on from a checkpoint of its own."""
        return self._resume

    def _decide_start(self) -> None:
        """Finds the checkpoint and the seed to go on with, or notes the new ones."""
        self.goes_on = self._resume
        start = find_start(
            self._load_from, self._resume, self.work_dir, self._load_from_in_file
        )
        self._load_from, self._resume = start.load_from, start.resume
        checkpoint = self._check_file(testing=False)
        meta = checkpoint.get('meta', {})
        if self._resume:
            self.known_teacher = meta.get(TEACHER)
        else:
            self.start_from = self._load_from
        seed = meta.get('seed') if self._resume else start.seed
        if seed is not None and self._randomness_cfg.get('seed') is None:
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)
        if not self._resume and is_main_process():
            note_start(self.work_dir, self._load_from, self.seed)

    def _check_file(self, testing: bool) -> dict[str, Any]:
        """Refuses a checkpoint that is no start, before any data set is built."""
        if self._load_from is None or self._has_loaded:
            return {}
        checkpoint = read_checkpoint(str(self._load_from))
        self._check_checkpoint(self._load_from, checkpoint, testing)
        return checkpoint

    def val(self) -> dict:
        """Validates a quantized checkpoint."""
        self.wrap_for_test()
        return super().val()

    def test(self) -> dict:
        """Tests a quantized checkpoint."""
        self.wrap_for_test()
        return super().test()

    def wrap_for_test(self) -> None:
        """Wraps the float model for a test, unless it is wrapped already."""
        if self.quantize_config is not None and not isinstance(self.model, QuantModule):
            self._check_file(testing=True)
            self._wrap('test')
            self.model.eval()

    def _wrap(self, phase: str) -> None:
        wrapper = wrapper_class(self.model, phase)
        self.model = wrapper(self.model, config=self.quantize_config)
        if self.quantize_config.report:
            self._add_hooks(ReportHook)

    def _prepare(self, train: Any) -> None:
        """Plans the quantization on one image, before anything trains."""
        with preserved_random_state():
            batch = first_batch(train, 'train_dataloader')
            predict = batch
            if self._val_loop is not None:
                with present_files('val_dataloader or val_evaluator'):
                    self._val_loop = self.build_val_loop(self._val_loop)
                predict = first_batch(self._val_loop.dataloader, 'val_dataloader')
            self.model.prepare(predict, batch)
        # Weights are loaded from any checkpoint; ranges only where they fit.
        self.model.quantization.on_other_plan = 'refuse' if self._resume else 'ignore'

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Builds the optimizer; learned scales have a learning rate of their own."""
        config = self.quantize_config
        learns = config is not None and config.learns_scales
        if learns and isinstance(optim_wrapper, dict):
            paramwise = dict(optim_wrapper.get('paramwise_cfg') or {})
            # A scale that decays would go back to where it started.
            learned = config.learning
            rate = 1.0 if learned is None else learned.lr_mult
            own = {LEARNED_KEY: dict(lr_mult=rate, weight_decay=0.0)}
            paramwise['custom_keys'] = {**own, **paramwise.get('custom_keys', {})}
            optim_wrapper = {**optim_wrapper, 'paramwise_cfg': paramwise}
        return super().build_optim_wrapper(optim_wrapper)

    def measure_start(self) -> None:
        """Finds what channels and ranges a training starts from, if it has not."""
        measure_start(self)

    def start_teaching(self) -> None:
        """Lets the float checkpoint teach the training, where it is to do so."""
        start_teaching(self)

    def _calibrate(self) -> nn.Module:
        with preserved_random_state():
            self._train_loop = CalibrationLoop(self)
        self._wrap('calibrate')
        self._prepare(self._train_loop.dataloader)
        check_metric(self)
        calibration_hooks.be_without_training(self)
        self.call_hook('before_run')
        self._init_model_weights()
        self.load_or_resume()
        if not self._has_loaded:
            self.logger.warning(
                'Calibrating the weights that the model was initialized '
                'with; set load_from to a float checkpoint.'
            )
        model = self._train_loop.run()
        self.call_hook('after_run')
        return model

    def load_checkpoint(
        self,
        filename: str,
        map_location: Union[str, Callable] = 'cpu',
        strict: bool = False,
        revise_keys: list = None,
    ) -> dict:
        """Loads a checkpoint, after a check that it is of this model.

        Raises:
            QuantizeError: If it is of another model; to be resumed or
                tested, also if it is a float one.
        """
        if revise_keys is None:
            revise_keys = [(r'^module.', '')]
        self._loading = filename
        return super().load_checkpoint(filename, map_location, strict, revise_keys)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Calls the hooks; a checkpoint is checked before it is used."""
        if fn_name == 'after_load_checkpoint' and self.quantize_config is not None:
            testing = self._train_loop is None or isinstance(self._train_loop, dict)
            plan = self._check_checkpoint(self._loading, kwargs['checkpoint'], testing)
            if testing:
                note_other_settings(self.quantize_config, plan.config)
        if isinstance(self.optim_wrapper, calibration_hooks.NoOptimizer):
            calibration_hooks.call_without_optimizer(self, fn_name, kwargs)
        else:
            super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_train' and self.quantize_config is not None:
            folders = {self.work_dir}
            for hook in self._checkpoint_hooks():
                hook.file_backend = RemoveAfterSaving(hook.file_backend)
                folders.add(hook.out_dir)
            for folder in folders if is_main_process() else ():
                remove_parts(folder)

    def _checkpoint_hooks(self) -> list[CheckpointHook]:
        return [hook for hook in self._hooks if isinstance(hook, CheckpointHook)]

    def _check_checkpoint(
        self, filename: str, checkpoint: dict, testing: bool
    ) -> Optional[Plan]:
        wrapped = isinstance(self.model, QuantModule)
        return checked_plan(
            filename,
            checkpoint,
            self.model.quantization.root if wrapped else student_of(self.model),
            self.quantize_config.mode,
            testing,
            self._resume,
        )

    @master_only
    def save_calibrated(self, filename: str) -> None:
        """Saves the calibrated model and names it the last checkpoint."""
        self.save_checkpoint(
            self.work_dir, filename, meta=dict(epoch=1, iter=self.iter)
        )
        path = os.path.join(self.work_dir, 'last_checkpoint')
        write_whole(path, os.path.join(self.work_dir, filename))

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: Optional[dict] = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Saves a checkpoint under its name only when it is complete."""
        if isinstance(self._train_loop, CalibrationLoop):
            # There is no optimizer and no schedule.
            kwargs.update(save_optimizer=False, save_param_scheduler=False)
        local = (
            '://' not in str(out_dir)
            and file_client_args is None
            and kwargs.get('backend_args') is None
        )
        if self.quantize_config is None:
            super().save_checkpoint(
                out_dir, filename, file_client_args, *args, **kwargs
            )
            return
        meta = {**(kwargs.get('meta') or {}), MODE: self.quantize_config.mode}
        if self.known_teacher is not None:
            meta[TEACHER] = self.known_teacher
        kwargs['meta'] = meta
        written = filename + PART if local else filename
        path = os.path.join(out_dir, filename)
        try:
            super().save_checkpoint(out_dir, written, file_client_args, *args, **kwargs)
        except BaseException as error:
            if local and is_main_process():
                Path(out_dir, written).unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise QuantizeError(
                f'{path} cannot be written ({error}); make room, and use --resume'
            ) from error
        if not is_main_process():
            return
        if local:
            os.replace(path + PART, path)
        for hook in self._checkpoint_hooks():
            backend = getattr(hook, 'file_backend', None)
            if isinstance(backend, RemoveAfterSaving):
                backend.remove_outdated(path)
