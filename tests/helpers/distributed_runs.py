"""All that ``test_distributed.py`` wants run: one of two processes, or the only one.

Usage: distributed_runs.py FOLDER FLOAT_CHECKPOINT FOLDER_OF_OTHERS

Leaves, for each run, what the process ended with in FOLDER/RUN_rankN.pth.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner
from toy_distiller import distilling_model
from toy_runner import PTQ as DEFAULT
from toy_runner import QAT, make_config, train

from mmquant_jacinto import PRESETS
from mmquant_jacinto.methods.layer_samples import gather
from mmquant_jacinto.plan.plan import ActivationSpec
from mmquant_jacinto.quantizers.activations import ActivationQuantizers

# Corrects all layers at once: exactly so, whichever process has which images.
PTQ = dict(DEFAULT, calibration=dict(bias_correction='iterative'))

FAKE_QUANTS = dict(
    QAT,
    target='onnxruntime',
    weight=dict(
        fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
        observer=dict(type='mmrazor.LSQPerChannelObserver'),
    ),
    activation=dict(
        fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
        observer=dict(type='mmrazor.LSQObserver'),
    ),
)
WORLD_BATCH = 16
TESTED = ('ptq/epoch_1', 'qat/epoch_4', 'qat_synchronized/epoch_4')
UNEVEN = 49  # images: 4 batches in the first of two processes, 3 in the second


class Runs:
    def __init__(self, folder, launcher):
        self.folder = Path(folder)
        self.launcher = launcher
        self.world = 1

    def config(self, name, quantize, **changes):
        cfg = make_config(
            self.folder / name, quantize, launcher=self.launcher, **changes
        )
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.batch_size = WORLD_BATCH // self.world
        if 'max_epochs' in cfg.train_cfg:
            cfg.train_cfg.max_epochs = 4
        return cfg

    def train(self, name, quantize, **changes):
        runner = train(self.config(name, quantize, **changes))
        self.save(name, runner.model.module.state_dict())

    def test(self, name, checkpoint):
        cfg = self.config(name, QAT, load_from=str(checkpoint))
        self.save(name, Runner.from_cfg(cfg).test())

    def save(self, name, result):
        torch.save(result, self.folder / f'{name}_rank{get_rank()}.pth')


def unequal_samples(rank, world):
    """The range of a tensor of which the first process has a tenth."""
    spec = ActivationSpec('x', 'activation', PRESETS['jacinto'].activation, False)
    found = ActivationQuantizers([spec], 'percentile', 1.0)
    # All that is large is in that tenth.
    x = torch.arange(10000.0).flip(0)
    parts = [x] if world == 1 else [x[:1000], x[1000:]]
    found.observe('x', parts[rank].view(-1, 1), None)
    found.commit()
    found.commit()  # a step in which no process saw anything
    return found.high


def rows_of(only, rank):
    """Rows of a layer that ran in one process only, or in none."""
    rows = torch.arange(6.0).view(3, 2, 1) if rank == only else None
    return gather(rows, torch.device('cpu'))


def run_all(folder, float_checkpoint, launcher):
    """Every run, in the only process or in one of two."""
    runs = Runs(folder, launcher)
    # The first runner creates the process group.
    cfg = runs.config('start', PTQ)
    Runner.from_cfg(cfg)
    runs.world = get_world_size()
    load_from = str(float_checkpoint)
    calibrate_all(runs, load_from)
    if importlib.util.find_spec('mmrazor') is not None:
        train_with_mmrazor(runs, load_from)
    train_all(runs, load_from)
    train_one_sided(runs)
    run_uneven(runs, load_from)
    runs.save('unequal', unequal_samples(get_rank(), runs.world))
    runs.save('rows', [rows_of(only, get_rank()) for only in (0, 1, None)])
    runs.train('qat_iterations', QAT, iters=6)
    for name in TESTED:
        runs.test(f'test_{name.partition("/")[0]}', runs.folder / f'{name}.pth')


def calibrate_all(runs, load_from):
    budget = dict(average_bits=6.0, num_images=20)
    few = dict(PTQ, bits=4)
    narrow = dict(few, finetune=False)
    for name, ptq in dict(
        ptq=PTQ,
        ptq_onnxruntime=dict(PTQ, target='onnxruntime'),
        ptq_mse=dict(PTQ, observer='mse'),
        ptq_entropy=dict(PTQ, observer='entropy'),
        ptq_moving_average=dict(PTQ, observer='moving_average'),
        ptq_minmax=dict(PTQ, observer='minmax'),
        ptq_sequential=dict(PTQ, calibration=dict(bias_correction='sequential')),
        ptq_analytic=dict(narrow, calibration=dict(bias_correction='analytic')),
        ptq_weights=dict(
            narrow, calibration=dict(weights=True, bias_correction='iterative')
        ),
        ptq_automatic=dict(few, bits=2, edge_bits=2, target='onnxruntime'),
        ptq_finetune=dict(narrow, target='onnxruntime', finetune=dict(iterations=8)),
        ptq_mixed=dict(PTQ, mixed_precision=budget, finetune=False),
        ptq_budget=dict(
            PTQ,
            bits=dict(weight=2, activation=4, sum=4, output=4),
            edge_bits=2,
            max_drop=dict(points=0, scorings=6),
        ),
        ptq_latency=dict(
            PTQ,
            bits=dict(weight=2, activation=4, sum=4, output=4),
            edge_bits=2,
            mixed_precision=dict(latency=2.0, num_images=8),
            finetune=False,
        ),
    ).items():
        runs.train(name, ptq, load_from=load_from)
    for method in ('adaround', 'coordinate_descent'):
        rounding = dict(method=method, iterations=20)
        ptq = dict(PTQ, rounding=rounding, target='onnxruntime')
        runs.train(f'ptq_{method}', ptq, load_from=load_from)


def train_with_mmrazor(runs, load_from):
    runs.train('qat_fake_quants', FAKE_QUANTS, load_from=load_from)
    averaged = [dict(type='EMAHook')]
    runs.train(
        'qat_fake_quants_averaged',
        FAKE_QUANTS,
        load_from=load_from,
        custom_hooks=averaged,
    )
    taught = dict(model=dict(distilling_model(load_from), _delete_=True))
    runs.train('qat_distilled', QAT, load_from=load_from, **taught)


def train_all(runs, load_from):
    runs.train('qat', QAT, load_from=load_from)
    runs.train('qat_learned', dict(QAT, learned_scale=True), load_from=load_from)
    runs.train('qat_minmax', dict(QAT, observer='minmax'), load_from=load_from)
    # Goes on from what the first run left after its second epoch.
    second = str(runs.folder / 'qat' / 'epoch_2.pth')
    runs.train('qat_resumed', QAT, load_from=second, resume=True)
    parts, untaught = ['backbone.conv', 'backbone.norm'], dict(QAT, distill=False)
    runs.train(
        'qat_checkpointed', QAT, load_from=load_from, activation_checkpointing=parts
    )
    runs.train('qat_untaught', untaught, load_from=load_from)
    runs.train(
        'qat_checkpointed_head',
        untaught,
        load_from=load_from,
        activation_checkpointing=[*parts, 'head'],
    )
    equalized = dict(QAT, equalize=True)
    runs.train('qat_equalized', equalized, **{'model.hidden': 16})
    runs.train('qat_frozen', dict(untaught, freeze=dict(bn=0)), load_from=load_from)
    runs.train('qat_synchronized', QAT, custom_hooks=[dict(type='SyncBuffersHook')])
    runs.train('qat_averaged', QAT, custom_hooks=[dict(type='EMAHook')])
    runs.train('qat_accumulated', QAT, **{'optim_wrapper.accumulative_counts': 2})


def train_one_sided(runs):
    """A head whose images all come to one of two processes."""
    for name, qat in (
        ('qat_one_sided', QAT),
        ('qat_one_sided_learned', dict(QAT, learned_scale=True)),
    ):
        runs.train(
            name,
            qat,
            find_unused_parameters=True,
            **{'model.even_head': True, 'train_dataloader.sampler.shuffle': False},
        )


def run_uneven(runs, load_from):
    """Runs in which the first of two processes has a batch more, of a single image."""
    sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)
    loader = dict(
        batch_size=WORLD_BATCH // 2,
        dataset=dict(type='DigitsDataset', start=0, stop=UNEVEN),
        sampler=sampler,
        collate_fn=dict(type='default_collate'),
    )
    calibration = dict(dataloader=loader, bias_correction='iterative')
    ptq = dict(
        PTQ,
        bits=4,
        target='onnxruntime',
        calibration=calibration,
        rounding='coordinate_descent',
        finetune=dict(iterations=8),
    )
    runs.train('ptq_uneven', ptq, load_from=load_from)
    qat = dict(QAT, learned_scale=True, calibration=dict(dataloader=loader))
    fewer = {
        'train_dataloader.dataset.stop': UNEVEN,
        'train_dataloader.sampler.round_up': False,
    }
    runs.train('qat_uneven', qat, load_from=load_from, **fewer)


def run_others(folder, others, launcher):
    """Tests the checkpoints that another number of processes left."""
    runs = Runs(folder, launcher)
    for name in TESTED:
        runs.test(f'others_{name.partition("/")[0]}', Path(others, f'{name}.pth'))


if __name__ == '__main__':
    torch.set_num_threads(1)
    _, folder, float_checkpoint, others = sys.argv
    run_all(folder, float_checkpoint, 'pytorch')
    run_others(folder, others, 'pytorch')
