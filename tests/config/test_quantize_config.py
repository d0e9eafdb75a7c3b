import pytest

from mmquant_jacinto import QuantizeConfig, QuantizeError


@pytest.mark.parametrize('value', [None, False, 0, '', {}, []])
def test_falsy_value_switches_quantization_off(value):
    assert QuantizeConfig.parse(value) is None


@pytest.mark.parametrize(
    'value, mode',
    [(True, 'qat'), (1, 'qat'), ('training', 'qat'), ('calibration', 'ptq')],
)
def test_short_forms(value, mode):
    assert QuantizeConfig.parse(value) == QuantizeConfig(mode=mode)


def test_defaults_are_those_of_the_jacinto_flow():
    config = QuantizeConfig.parse(True)
    assert (config.mode, config.bits, config.target) == ('qat', 8, 'jacinto')
    assert config.observer_name == 'percentile'
    assert config.percentile == 0.01
    assert config.weight_constraint is False
    assert config.weight_observer_name == 'minmax'


def test_calibration_for_jacinto_looks_for_the_least_error_of_weights():
    config = QuantizeConfig(mode='ptq')
    assert (config.observer_name, config.weight_observer_name) == ('percentile', 'mse')
    tuned = QuantizeConfig.parse(dict(mode='ptq', finetune=True))
    assert tuned.weight_observer_name == 'minmax'
    told = QuantizeConfig(mode='ptq', observer='minmax', weight_observer='minmax')
    assert (told.observer_name, told.weight_observer_name) == ('minmax', 'minmax')


@pytest.mark.parametrize('target', ['tidl', 'onnxruntime', 'openvino', 'tensorrt'])
@pytest.mark.parametrize('mode', ['qat', 'ptq'])
def test_other_presets_average_extremes_unless_told(target, mode):
    config = QuantizeConfig(target=target, mode=mode)
    assert config.observer_name == dict(qat='moving_average', ptq='minmax')[mode]
    assert config.weight_observer_name == 'minmax'
    told = QuantizeConfig(target=target, mode=mode, observer='percentile')
    assert told.observer_name == 'percentile'


@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
@pytest.mark.parametrize(
    'bits, width',
    [
        (8, 'narrow'),
        (4, 'few'),
        (dict(weight=4, activation=8), 'narrow'),
        (dict(weight=8, activation=6), 'few'),
        (9, 'fine'),
        (16, 'fine'),
        (dict(weight=8, activation=16), 'fine'),
    ],
)
def test_observer_follows_the_width_of_activations(bits, width, target):
    config = QuantizeConfig(target=target, mode='ptq', bits=bits)
    narrow = dict(jacinto='percentile', onnxruntime='minmax')[target]
    observer = dict(few='mse', narrow=narrow, fine='minmax')[width]
    assert config.observer_name == observer
    # Tensors of other widths in the same network.
    fine = 'mse' if width == 'few' else 'minmax'
    assert (config.observer_of(8), config.observer_of(16)) == (
        'mse' if width == 'few' else narrow,
        fine,
    )
    told = QuantizeConfig(target=target, mode='ptq', bits=bits, observer='entropy')
    assert {told.observer_of(bits) for bits in (4, 8, 16)} == {'entropy'}


def test_full_form_reaches_every_level():
    config = QuantizeConfig.parse(
        dict(
            mode='ptq',
            bits=dict(weight=4, output=16),
            target='tidl',
            overrides={'head.*': 16, 'neck': False},
            calibration=dict(iterations=5, lr=0.1),
            freeze=dict(bn=3, ranges=False),
        )
    )
    assert config.calibration.iterations == 5
    assert config.calibration.lr == 0.1
    assert config.calibration.epochs == 1
    assert (config.freeze.bn, config.freeze.ranges) == (3, False)
    assert config.overrides == {'head.*': 16, 'neck': False}


def test_parsed_config_parses_to_itself():
    config = QuantizeConfig(bits=4)
    assert QuantizeConfig.parse(config) is config


def test_bits_by_kind_fall_back_on_activation_then_on_8():
    config = QuantizeConfig(bits=dict(activation=6))
    assert config.bits_of('weight') == 8
    assert config.bits_of('activation') == 6
    assert QuantizeConfig(bits=dict(weight=4)).bits_of('output') == 8
    wide = dict(weight=8, activation=16)
    assert QuantizeConfig(bits=wide).bits_of('output') == 16


def test_sums_and_outputs_have_8_bits_at_least_unless_told():
    for bits in (4, dict(activation=4), dict(weight=4, activation=4)):
        config = QuantizeConfig(bits=bits)
        assert [config.bits_of(k) for k in ('activation', 'sum', 'output')] == [4, 8, 8]
    told = QuantizeConfig(bits=dict(activation=4, sum=6, output=4))
    assert [told.bits_of(kind) for kind in ('sum', 'output')] == [6, 4]


def test_constraints_default_to_the_preset_and_can_be_switched_off():
    assert QuantizeConfig().bias_constraint == 'reduce_weight_scale'
    assert QuantizeConfig(constrain_bias='saturate').bias_constraint == 'saturate'
    assert QuantizeConfig(constrain_bias=False).bias_constraint is None
    assert QuantizeConfig(target='tidl').weight_constraint is False
    assert QuantizeConfig(constrain_weights=False).weight_constraint is False
    assert QuantizeConfig(constrain_weights=True).weight_constraint is True
    assert QuantizeConfig().channel_scales == 'depthwise'
    assert QuantizeConfig(per_channel=False).channel_scales is False
    assert QuantizeConfig(target='tidl').channel_scales is True
    assert QuantizeConfig(target='tidl', per_channel=False).channel_scales is False


@pytest.mark.parametrize(
    'calibration, passes',
    [
        ({}, 1),
        (dict(epochs=3), 3),
        (dict(epochs=0), 0),
        (dict(bias_correction=False), 0),
        (dict(bias_correction='analytic'), 0),
        (dict(bias_correction='analytic', weights=True, epochs=2), 2),
    ],
)
def test_only_what_iterates_needs_further_passes(calibration, passes):
    config = QuantizeConfig.parse(dict(mode='ptq', calibration=calibration))
    assert config.calibration.passes == passes


# Each message names the key, the value found and what would be right.
BAD_VALUES = {
    'mode': (dict(mode='qatt'), 'quantize.mode', "'qatt'", "did you mean 'qat'"),
    'short form': ('trainig', "quantize='trainig'", "did you mean 'training'"),
    'number': (2, 'quantize=2', 'neither a dict nor a switch'),
    'list': (['qat'], "quantize=['qat']", 'neither a dict nor a switch'),
    'key': (dict(bit=8), 'quantize.bit ', "did you mean 'bits'"),
    'float bits': (dict(bits=3.5), 'quantize.bits=3.5', 'from 2 to 16'),
    'empty bits': (dict(bits={}), 'quantize.bits={} is empty', 'dict(weight=8)'),
    # One is no True where a key also takes words or numbers.
    'per channel 1': (dict(per_channel=1), 'quantize.per_channel=1', "'depthwise'"),
    'per channel 0': (dict(per_channel=0), 'quantize.per_channel=0', "'depthwise'"),
    'equalize 1': (dict(equalize=1), 'quantize.equalize=1', 'use True or False'),
    'constrain bias 0': (dict(constrain_bias=0), 'quantize.constrain_bias=0', 'satur'),
    'percentile switch': (
        dict(percentile=True),
        'quantize.percentile=True',
        'a number of percent',
    ),
    'learned scale 1': (dict(learned_scale=1), 'quantize.learned_scale=1', 'lr_mult'),
    'lr switch': (
        dict(mode='ptq', calibration=dict(lr=True)),
        'quantize.calibration.lr=True',
        'a number above 0',
    ),
    'weights 1': (
        dict(mode='ptq', calibration=dict(weights=1)),
        'quantize.calibration.weights=1 is not a switch',
        'use True or False',
    ),
    'scale channels 1': (
        dict(scale_channels=1),
        'quantize.scale_channels=1 is no number of decibels',
        'use True, False, or a number above 1',
    ),
    'scale channels by a word': (
        dict(scale_channels='all'),
        "quantize.scale_channels='all' is not a switch",
        'use True or False',
    ),
    'empty mixed precision': (
        dict(mode='ptq', mixed_precision={}),
        'quantize.mixed_precision has no budget',
        'average_bits',
    ),
    'mixed precision switch': (
        dict(mode='ptq', mixed_precision=True),
        'quantize.mixed_precision=True is not a dict',
        'average_bits',
    ),
    'huge factor': (
        dict(learned_scale=dict(lr_mult=1e30)),
        'quantize.learned_scale.lr_mult=1e+30',
        'up to 1e+06',
    ),
    'huge integer': (
        dict(mode='ptq', finetune=dict(lr=10**400)),
        'quantize.finetune.lr=1000',
        'up to 1e+06',
    ),
    'huge count': (
        dict(mode='ptq', finetune=dict(iterations=2**63)),
        'quantize.finetune.iterations=9223372036854775808',
        'below 2**31',
    ),
    'no bits': (dict(bits=0), 'quantize.bits=0', 'from 2 to 16'),
    'one bit': (dict(bits=1), 'quantize.bits=1', 'from 2 to 16'),
    'many bits': (dict(bits=33), 'quantize.bits=33', 'from 2 to 16'),
    'bool bits': (dict(bits=True), 'quantize.bits=True', 'from 2 to 16'),
    'text bits': (dict(bits='8'), "quantize.bits='8'", 'from 2 to 16'),
    'kind': (
        dict(bits=dict(weights=8)),
        'quantize.bits.weights',
        "did you mean 'weight'",
    ),
    'kind bits': (
        dict(bits=dict(weight=32)),
        'quantize.bits.weight=32',
        'from 2 to 16',
    ),
    'target': (
        dict(target='jacint'),
        "quantize.target='jacint'",
        "did you mean 'jacinto'",
    ),
    'unhashable target': (dict(target=['tidl']), "quantize.target=['tidl']", 'tidl'),
    'overrides': (dict(overrides=[]), 'quantize.overrides=[]', "{'bbox_head.*': 16}"),
    'override': (
        dict(overrides={'head.*': 32}),
        "quantize.overrides['head.*']=32",
        'from 2 to 16',
    ),
    'override switch': (
        dict(overrides={'head.*': True}),
        "quantize.overrides['head.*']=True",
        'from 2 to 16',
    ),
    'override kind': (
        dict(overrides={'head.*': dict(wieght=8)}),
        "quantize.overrides['head.*'].wieght",
        "did you mean 'weight'",
    ),
    'calibration': (
        dict(calibration=100),
        'quantize.calibration=100',
        'is not a dict',
    ),
    'bias correction': (
        dict(calibration=dict(bias_correction='analytical')),
        "quantize.calibration.bias_correction='analytical'",
        "did you mean 'analytic'",
    ),
    'bias correction switch': (
        dict(calibration=dict(bias_correction=True)),
        'quantize.calibration.bias_correction=True',
        "'iterative'",
    ),
    'weight correction': (
        dict(calibration=dict(weights='yes')),
        "quantize.calibration.weights='yes'",
        'True or False',
    ),
    'weight correction without passes': (
        dict(calibration=dict(weights=True, epochs=0)),
        'quantize.calibration.weights=True',
        'epochs=1',
    ),
    'calibration key': (
        dict(calibration=dict(iteration=5)),
        'quantize.calibration.iteration ',
        "did you mean 'iterations'",
    ),
    'images': (
        dict(calibration=dict(num_images=0)),
        'quantize.calibration.num_images=0',
        'at least 1',
    ),
    'iterations': (
        dict(calibration=dict(iterations=2.5)),
        'quantize.calibration.iterations=2.5',
        'at least 1',
    ),
    'calibration epochs': (
        dict(calibration=dict(epochs=-1)),
        'quantize.calibration.epochs=-1',
        'at least 0',
    ),
    'step': (
        dict(calibration=dict(lr=0)),
        'quantize.calibration.lr=0',
        'above 0, up to 1',
    ),
    'step text': (
        dict(calibration=dict(lr='0.1')),
        "quantize.calibration.lr='0.1'",
        'above 0, up to 1',
    ),
    'freeze': (dict(freeze=3), 'quantize.freeze=3', 'is not a dict'),
    'freeze key': (
        dict(freeze=dict(range=3)),
        'quantize.freeze.range ',
        "did you mean 'ranges'",
    ),
    'freeze value': (
        dict(freeze=dict(bn=True)),
        'quantize.freeze.bn=True',
        'at least 0',
    ),
    'freeze epoch': (
        dict(freeze=dict(ranges=-1)),
        'quantize.freeze.ranges=-1',
        'at least 0',
    ),
    'observer': (
        dict(observer='min_max'),
        "quantize.observer='min_max'",
        "did you mean 'minmax'",
    ),
    'observer of training': (
        dict(mode='qat', observer='mse'),
        "quantize.observer='mse'",
        "mode='ptq'",
    ),
    'percentile': (dict(percentile=50), 'quantize.percentile=50', 'below 50'),
    'percentile of another observer': (
        dict(percentile=0.1, target='onnxruntime'),
        'quantize.percentile=0.1',
        "quantize.observer is 'moving_average'",
        "add observer='percentile'",
    ),
    'pattern': (dict(overrides={1: 8}), 'the key 1', "such as 'bbox_head.*'"),
    'empty override': (
        dict(overrides={'head': {}}),
        "quantize.overrides['head'] is empty",
    ),
    'dataloader': (
        dict(calibration=dict(dataloader={'a': 1})),
        "quantize.calibration.dataloader={'a': 1}",
        'with dataset=dict(...)',
    ),
    'dataloader that is none': (
        dict(calibration=dict(dataloader=5)),
        'quantize.calibration.dataloader=5',
    ),
    'method': (
        dict(mode='ptq', rounding=dict(num_images=3)),
        "quantize.rounding={'num_images': 3} has no method",
        "'adaround'",
    ),
    'not a number': (
        dict(mode='ptq', finetune=dict(lr=float('nan'))),
        'quantize.finetune.lr=nan is not a positive number',
    ),
    'infinity': (
        dict(mode='ptq', rounding=dict(method='adaround', damping=float('inf'))),
        'quantize.rounding.damping=inf',
    ),
    'candidates': (
        dict(mode='ptq', mixed_precision=dict(average_bits=5, candidates=[4, [8]])),
        'quantize.mixed_precision.candidates=[8] is not a bit width',
    ),
    'bias': (
        dict(constrain_bias='saturat'),
        "quantize.constrain_bias='saturat'",
        "did you mean 'saturate'",
    ),
    'channels': (
        dict(per_channel='all'),
        "quantize.per_channel='all'",
        "True, False or 'depthwise'",
    ),
    'equalization': (
        dict(equalize='yes'),
        "quantize.equalize='yes'",
        'True or False',
    ),
    'weights': (
        dict(constrain_weights='yes'),
        "quantize.constrain_weights='yes'",
        'True or False',
    ),
}


@pytest.mark.parametrize('case', BAD_VALUES)
def test_bad_value_is_refused_by_name(case):
    value, *parts = BAD_VALUES[case]
    with pytest.raises(QuantizeError) as caught:
        QuantizeConfig.parse(value)
    for part in parts:
        assert part in str(caught.value)
