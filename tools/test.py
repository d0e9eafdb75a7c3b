"""Test a model of any OpenMMLab 2.x library: a checkpoint, or an exported file.

python tools/test.py CONFIG checkpoint.pth     in float, or quantized
python tools/test.py CONFIG model.onnx         the file of tools/export.py
python tools/test.py CONFIG checkpoint.pth --target onnxruntime
                                               as that file, whatever it was trained for
"""

import argparse
import inspect
from copy import deepcopy

from command_line import (
    add_common_arguments,
    build_runner,
    check_file,
    exit_on_quantize_error,
    load_config,
)
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.runners.checkpoint_files import read_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint (.pth) or exported file (.onnx)')
    parser.add_argument(
        '--backend',
        default='onnxruntime',
        help='what runs an .onnx file: onnxruntime (default) or openvino',
    )
    parser.add_argument(
        '--target',
        help="compute as this target's engine does, as tools/export.py --target; by "
        'default as that of quantize.target',
    )
    parser.add_argument(
        '--out', type=pickle_path, help='pickle file to write the predictions to'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir',
        help='where pictures of the predictions go, inside the work directory',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that each picture is shown'
    )
    parser.add_argument(
        '--tta', action='store_true', help='test with test-time augmentation'
    )
    add_common_arguments(parser)
    return parser.parse_args()


def pickle_path(path: str) -> str:
    if not path.endswith(('.pkl', '.pickle')):
        raise argparse.ArgumentTypeError(f'{path} must end in .pkl or .pickle')
    return path


def enable_visualization(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit(
            'error: --show and --show-dir need default_hooks.visualization'
        )
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        hook_type = registry.get(hook.type) if isinstance(hook.type, str) else hook.type
    # The libraries agree on what the hook does, not on what its arguments are called.
    settings = dict(draw=True, enable=True)
    if args.show:
        settings.update(show=True, wait_time=args.wait_time)
    if args.show_dir:
        settings.update(test_out_dir=args.show_dir, out_dir=args.show_dir)
    accepted = inspect.signature(hook_type).parameters
    hook.update({name: value for name, value in settings.items() if name in accepted})


def enable_tta(cfg: Config) -> None:
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        if cfg.get('default_scope') != 'mmdet':
            raise SystemExit(
                'error: --tta needs tta_model and tta_pipeline in the config'
            )
        set_default_detection_tta(cfg)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    innermost_dataset(cfg).pipeline = cfg.tta_pipeline


def innermost_dataset(cfg: Config) -> ConfigDict:
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def set_default_detection_tta(cfg: Config) -> None:
    """Average over each image and its mirror image, the default of MMDetection."""
    cfg.setdefault(
        'tta_model',
        dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
    )
    if 'tta_pipeline' not in cfg:
        *pipeline, pack = deepcopy(innermost_dataset(cfg).pipeline)
        pack.meta_keys = (
            *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            *('flip', 'flip_direction'),
        )
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        test_time_aug = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*pipeline, test_time_aug]


def build_dump_metric(cfg: Config, path: str) -> BaseMetric:
    """Build what writes the predictions, MMDetection's own where it is in use.

    It compresses instance masks, which MMEngine's writes as they are.
    """
    with METRICS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        metric_type = registry.get('DumpDetResults') or DumpResults
    return metric_type(out_file_path=path)


def run_onnx(cfg: Config, args: argparse.Namespace) -> None:
    """Test an exported file through the config's own data pipeline and evaluator."""
    from mmquant_jacinto.export.configs.file_page import FileReportHook, reports
    from mmquant_jacinto.export.configs.file_run import FileRun

    if args.target is not None:
        raise QuantizeError('--target is for a checkpoint; a file has its target')
    if args.tta or args.launcher != 'none':
        raise QuantizeError(
            f'{args.checkpoint} is tested in one process and without --tta; '
            'for those, test the checkpoint'
        )
    run = FileRun.read(cfg, args.checkpoint, args.backend)
    runner = build_runner(run.cfg)
    if reports(cfg):
        runner.register_hook(FileReportHook(args.checkpoint, run), priority='LOWEST')
    if args.out is not None:
        runner.test_evaluator.metrics.append(build_dump_metric(cfg, args.out))
    run.test(runner)


def set_engine(runner: Runner, target: str) -> None:
    """Let a quantized model compute as the engine of an exported file does."""
    from mmquant_jacinto.targets.target import get_file_target

    chosen = get_file_target(target)
    if getattr(runner, 'quantize_config', None) is None:
        raise QuantizeError(
            '--target is for quantized checkpoints, and this config has no `quantize`'
        )
    runner.wrap_for_test()
    quantization = runner.model.quantization
    quantization.engine = chosen.engine(runner.quantize_config.target)


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_file(args.checkpoint)
    if args.checkpoint.endswith('.onnx'):
        if args.show or args.show_dir:
            enable_visualization(cfg, args)
        run_onnx(cfg, args)
        return
    if not cfg.get('quantize'):
        # The quantized runner looks into it, with the model at hand.
        read_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        enable_visualization(cfg, args)
    if args.tta:
        enable_tta(cfg)
    runner = build_runner(cfg)
    if args.target is not None:
        set_engine(runner, args.target)
    if args.out is not None:
        runner.test_evaluator.metrics.append(build_dump_metric(cfg, args.out))
    runner.test()


if __name__ == '__main__':
    exit_on_quantize_error(main)
