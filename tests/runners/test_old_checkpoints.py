"""Checkpoints of older versions predict what they did then, bit for bit.

``old_checkpoints/make.py`` has made them.
"""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from old_checkpoints import FOLDER, KINDS, config_of, scores_of
from toy_distiller import DigitsStudent  # noqa: F401 - registered
from toy_runner import load

from mmquant_jacinto import QuantTestModule
from mmquant_jacinto.wrappers.distillation import fit_names


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param == 'fake_quants':
        pytest.importorskip('mmrazor.models', reason='MMRazor is not installed')
    return request.param


def test_every_file_has_a_test():
    assert {path.stem for path in FOLDER.glob('*.pth')} == set(KINDS)


def assert_as_then(kind, found, checkpoint):
    expected, found = checkpoint['expected_scores'], found.cpu()
    if kind == 'wide':
        # It is of openvino, whose own order of operations is simulated since then.
        step = expected.abs().max().item() / 2**15
        torch.testing.assert_close(found, expected, rtol=0, atol=2 * step)
    else:
        assert torch.equal(found, expected)


def test_the_runner_tests_it_as_then(kind, tmp_path):
    path = FOLDER / f'{kind}.pth'
    cfg = config_of(kind, tmp_path)
    cfg.load_from = str(path)
    runner = Runner.from_cfg(cfg)
    runner.test()
    assert_as_then(kind, scores_of(runner.model), load(path))


def test_its_plan_is_all_that_a_module_needs(kind, tmp_path):
    checkpoint = load(FOLDER / f'{kind}.pth')
    model = QuantTestModule(MODELS.build(config_of(kind, tmp_path).model))
    model.module.load_state_dict(fit_names(checkpoint['state_dict'], model.module))
    assert_as_then(kind, scores_of(model), checkpoint)
