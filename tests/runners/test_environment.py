"""The log of a run says what quantizes, and how."""

from toy_runner import PTQ, log_of, make_config, train

from mmquant_jacinto import QuantizeConfig, __version__
from mmquant_jacinto.runners.environment import described


def test_log_of_a_run_has_version_and_settings(tmp_path):
    train(make_config(tmp_path, dict(PTQ, observer='minmax')))
    environment = log_of(tmp_path).partition('Runtime environment:')[2]
    environment = environment.partition('Config:')[0]
    assert f'mmquant_jacinto: {__version__} (kernels in C: ' in environment
    assert "quantize: mode='ptq', bits=8, target='jacinto', observer='minmax'" in (
        environment
    )


def test_defaults_are_not_listed():
    assert described(QuantizeConfig())['quantize'] == (
        "mode='qat', bits=8, target='jacinto'"
    )
    assert 'quantize' not in described(None)
