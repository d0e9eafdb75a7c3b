"""A decoder called once in training, once a letter in prediction: the same ranges."""

import importlib.util

import pytest
import torch

from mmquant_jacinto import QuantizeConfig, quantize_model
from mmquant_jacinto.wrappers.prepare import plan_model, probe_passes

if importlib.util.find_spec('mmocr') is None:
    pytest.skip('MMOCR is not installed', allow_module_level=True)

from libraries.batches import source_of  # noqa: E402
from libraries.imports import import_library  # noqa: E402
from zoo.configs import strip_pretrained  # noqa: E402
from zoo.models import build_and_predict, run  # noqa: E402

SATRN = 'mmocr/textrecog/satrn/satrn_shallow-small_5e_st_mj.py'
LETTERS = 5


@pytest.fixture(scope='module')
def trained():
    """SATRN with the ranges of training alone, its batch, and its quantization."""
    import_library('mmocr')
    source = source_of(SATRN)
    cfg = strip_pretrained(source.load(SATRN))
    cfg.decoder.max_seq_len = LETTERS
    # Its layers are all alike.
    cfg.encoder.n_layers = cfg.decoder.n_layers = 2
    model, batch = build_and_predict(cfg, 'cpu', {}, source)
    plan = plan_model(
        model,
        probe_passes(model, batch, batch),
        QuantizeConfig(bits=8, target='onnxruntime'),
    )
    quantization = quantize_model(model, plan)
    quantization.set_phase('train')
    model.train()
    for _ in range(2):
        loss, _ = model.parse_losses(run(model, batch, 'loss'))
        loss.backward()
    model.eval()
    quantization.set_phase('test')
    return model, batch, quantization


def test_one_call_of_training_gives_all_steps_their_ranges(trained):
    _, _, quantization = trained
    # The end of a prediction, which no loss needs.
    assert quantization.activations.missing() == ['decoder.softmax/softmax']


def test_each_step_computes_what_the_one_call_does(trained):
    model, batch, _ = trained
    decoder = model.decoder
    with torch.no_grad():
        data = model.data_preprocessor(batch, False)
        samples = data['data_samples']
        encoded = model.encoder(model.extract_feat(data['inputs']), samples)
        stepped = decoder(None, encoded, samples)
        # What it has written becomes the text to be learned.
        letters = stepped.argmax(-1)
        starts = letters.new_full((len(letters), 1), decoder.start_idx)
        for sample, indexes in zip(samples, torch.cat([starts, letters], 1)):
            sample.gt_text.padded_indexes = indexes
            sample.set_metainfo(dict(have_target=True))
        decoder.training = True  # its layers are not: no dropout
        at_once = decoder(None, encoded, samples)[:, :LETTERS]
        decoder.training = False
    assert stepped.shape == at_once.shape
    assert torch.equal(stepped, at_once.softmax(-1))
    assert stepped.unique().numel() > 100
