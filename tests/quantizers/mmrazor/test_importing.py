"""MMRazor is optional, and imports on a torch that has dropped what it names."""

import subprocess
import sys

import pytest

from mmquant_jacinto import QuantizeError, QuantTrainModule
from mmquant_jacinto.quantizers.mmrazor.importing import mmrazor_types, require_mmrazor
from mmquant_jacinto.runners.refusals import refuse_conflicts

INSTALL = r"pip install 'mmquant_jacinto\[mmrazor\]'"


class Nowhere:
    """Does not find MMRazor, whatever is installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'mmrazor':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        return None


@pytest.fixture
def forgotten(monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmrazor']:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def absent(forgotten, monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', [Nowhere, *sys.meta_path])


def test_its_absence_gives_one_sentence(absent):
    model = dict(type='mmrazor.SingleTeacherDistill', architecture={}, teacher={})
    with pytest.raises(QuantizeError, match=INSTALL) as caught:
        refuse_conflicts(dict(model=model))
    assert str(caught.value) == (
        "model.type='mmrazor.SingleTeacherDistill' needs MMRazor, which is not "
        "installed; install it: pip install 'mmquant_jacinto[mmrazor]'"
    )


def test_its_absence_is_said_for_fake_quantizers_too(absent, toy_net, images):
    learned = dict(
        fake_quant=dict(type='mmrazor.LearnableFakeQuantize'),
        observer=dict(type='mmrazor.LSQObserver'),
    )
    with pytest.raises(QuantizeError, match=r'quantize\.weight.* is not installed'):
        QuantTrainModule(toy_net, images, target='onnxruntime', weight=learned)


def test_what_it_lacks_itself_is_named(forgotten, monkeypatch, tmp_path):
    (tmp_path / 'mmrazor').mkdir()
    (tmp_path / 'mmrazor' / '__init__.py').write_text('import not_there_at_all\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(QuantizeError, match='cannot be imported.*not_there_at_all'):
        require_mmrazor('model.type')


def test_a_config_without_it_needs_nothing(absent):
    refuse_conflicts(dict(model=dict(type='SSD', neck=[dict(type='FPN')])))


def test_places_that_name_it_are_found_at_any_depth():
    cfg = dict(
        _scope_='mmrazor', distiller=dict(losses=[dict(type='mmrazor.L2Loss', w=1)])
    )
    assert list(mmrazor_types(cfg, 'model')) == [
        "model._scope_='mmrazor'",
        "model.distiller.losses[0].type='mmrazor.L2Loss'",
    ]


def test_it_imports_after_our_import_alone():
    pytest.importorskip('mmrazor', reason='MMRazor is not installed')
    script = (
        'import mmquant_jacinto, mmrazor.models\n'
        'from mmengine.registry import MODELS\n'
        "assert MODELS.get('mmrazor.LearnableFakeQuantize') is not None\n"
        "assert MODELS.get('mmrazor.SingleTeacherDistill') is not None\n"
    )
    subprocess.run([sys.executable, '-c', script], check=True)
