"""Learning rates that a quantized training takes from the float config's."""

import textwrap

import pytest
from mmengine.config import Config

from mmquant_jacinto.runners.starting.inherited_rates import bases, scale_rates

FLOAT = """
lr = 0.02
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', eta_min=lr * 0.05, T_max=3),
    dict(type='CosineAnnealingMomentum', eta_min=0.85, T_max=3),
]
"""
QUANTIZED = "_base_ = 'float.py'\nquantize = dict(mode='qat', bits=8)\n"


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(textwrap.dedent(text))
        return path

    write('float.py', FLOAT)
    return write


def scaled(path, from_checkpoint=True, **options):
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    text = scale_rates(cfg, from_checkpoint)
    rates = [cfg.optim_wrapper.optimizer.lr]
    rates += [item.eta_min for item in cfg.param_scheduler if 'eta_min' in item]
    return rates, text


def near(*values):
    return pytest.approx(values)


def test_inherited_rates_are_a_hundredth_and_their_ends_too(write):
    rates, text = scaled(write('qat.py', QUANTIZED))
    assert rates == near(2e-4, 1e-5, 0.85)  # a momentum is no rate
    assert '0.0002' in text and 'float.py' in text and 'quantize.lr_mult' in text


@pytest.mark.parametrize('bits', [4, dict(weight=4, activation=8)])
def test_few_bits_learn_at_a_tenth(write, bits):
    path = write('qat.py', QUANTIZED.replace('bits=8', f'bits={bits}'))
    rates, _ = scaled(path)
    assert rates == near(2e-3, 1e-4, 0.85)


@pytest.mark.parametrize(
    'name, text, options, from_checkpoint',
    [
        ('own.py', QUANTIZED + 'optim_wrapper = dict(optimizer=dict(lr=3e-3))', {}, 1),
        ('qat.py', QUANTIZED, {'optim_wrapper.optimizer.lr': 3e-3}, 1),
        ('scratch.py', QUANTIZED, {}, 0),
        ('ptq.py', "_base_ = 'float.py'\nquantize = dict(mode='ptq')", {}, 1),
        ('off.py', "_base_ = 'float.py'\nquantize = None", {}, 1),
        ('alone.py', FLOAT + "quantize = dict(mode='qat')", {}, 1),
        ('one.py', QUANTIZED, {'quantize.lr_mult': 1.0}, 1),
    ],
)
def test_others_stay(write, name, text, options, from_checkpoint):
    path = write(name, text)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    rate = cfg.optim_wrapper.optimizer.lr
    rates, told = scaled(path, bool(from_checkpoint), **options)
    assert rates == near(rate, 1e-3, 0.85) and told is None


def test_a_factor_that_is_named_is_taken_for_any_rate(write):
    own = QUANTIZED + 'optim_wrapper = dict(optimizer=dict(lr=3e-3))'
    rates, _ = scaled(write('own.py', own), **{'quantize.lr_mult': 0.5})
    assert rates == near(1.5e-3, 5e-4, 0.85)


def test_a_config_that_inherits_from_a_quantized_one(write):
    write('qat.py', QUANTIZED)
    child = write('few.py', "_base_ = 'qat.py'\nquantize = dict(bits=4)")
    assert scaled(child)[0][0] == pytest.approx(2e-3)
    write('own.py', QUANTIZED + 'optim_wrapper = dict(optimizer=dict(lr=3e-3))')
    child = write('few_own.py', "_base_ = 'own.py'\nquantize = dict(bits=4)")
    assert scaled(child)[0][0] == pytest.approx(3e-3)


def test_quantize_from_the_command_line(write):
    rates, text = scaled(write('float.py', FLOAT), quantize=dict(mode='qat'))
    assert rates == near(2e-4, 1e-5, 0.85)


def test_components_as_bases(write):
    write('schedule.py', FLOAT)
    write('model.py', 'model = dict()')
    text = "_base_ = ['model.py', 'schedule.py']\nquantize = dict(mode='qat')"
    assert scaled(write('qat.py', text))[0][0] == pytest.approx(2e-4)


def test_bases_of_the_new_style(write, tmp_path):
    write('package/float.py', FLOAT)
    text = """
    from mmengine.config import read_base
    with read_base():
        from .float import *
        from ..other.model import *
    quantize = dict(mode='qat')
    """
    write('other/model.py', 'model = dict()')
    path = write('package/qat.py', text)
    found = list(bases(str(path)))
    absolute = 'with read_base():\n    from mmdet.configs.some.model import *'
    inside = next(bases(str(write('absolute.py', absolute))))
    assert inside.endswith('mmdet/configs/some/model.py')
    names = ('package/float.py', 'other/model.py')
    assert found == [str(tmp_path / name) for name in names]
    cfg = Config.fromfile(path)
    assert scale_rates(cfg, True) is not None
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4)


def test_several_optimizers():
    rates = [dict(type='SGD', lr=0.1), dict(type='Adam', lr=0.2)]
    wrapper = {str(i): dict(optimizer=rate) for i, rate in enumerate(rates)}
    schedules = {'0': [dict(type='PolyLR', eta_min=0.01)]}
    cfg = Config(
        dict(
            optim_wrapper=dict(wrapper, constructor='Several'),
            param_scheduler=schedules,
            quantize=dict(mode='qat', lr_mult=0.1),
        )
    )
    scale_rates(cfg, False)
    assert cfg.optim_wrapper['0'].optimizer.lr == pytest.approx(0.01)
    assert cfg.optim_wrapper['1'].optimizer.lr == pytest.approx(0.02)
    assert cfg.param_scheduler['0'][0].eta_min == pytest.approx(0.001)
