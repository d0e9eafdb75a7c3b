"""The comparison with other libraries, as far as it needs none of them."""

import copy
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
import detector_scores  # noqa: E402
import peers  # noqa: E402
from mini_bccd import CONFIG, NUM_IMAGES, SIZE, annotate, random_detector  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A random detector's checkpoint, and images that hold what it finds in them."""
    root = tmp_path_factory.mktemp('peers')
    with pytest.MonkeyPatch.context() as patch:
        cfg, detector, test = random_detector(root, patch, head_std=0.02)
        checkpoint = root / 'float.pth'
        torch.save(dict(state_dict=detector.state_dict()), checkpoint)
        found = {}
        with torch.no_grad():
            for index, batch in enumerate(test.batches):
                (sample,) = detector.predict(batch['inputs'], batch['data_samples'])
                sides = sample.pred_instances.bboxes[:, 2:]
                sides = sides - sample.pred_instances.bboxes[:, :2]
                # Rounding changes small boxes most.
                instances = sample.pred_instances[sides.min(1).values > 8][:6]
                found[index] = [
                    # The data set counts pixels from 0, its files from 1.
                    (int(label), *(int(x) + 1 for x in box.round()))
                    for label, box in zip(instances.labels, instances.bboxes)
                ]
        annotate(root, found.get)
        yield root, cfg, checkpoint


def test_score_is_that_of_the_runner(workspace):
    root, cfg, checkpoint = workspace
    detector = peers.float_detector(cfg, checkpoint)
    test = detector_scores.DetectorTest(cfg, detector)
    metrics, raw = test.score(detector)
    plain = Config(cfg.to_dict())
    plain.pop('quantize')
    plain.update(work_dir=str(root / 'runner'), load_from=str(checkpoint))
    plain.test_dataloader.batch_size = 1
    assert Runner.from_cfg(plain).test() == metrics
    assert metrics['coco_style/mAP'] > 0.1

    network = detector_scores.FloatNetwork(copy.deepcopy(detector))
    with detector_scores.in_place(detector, network) as placed:
        again, outputs = test.score(placed)
    assert again == metrics
    for first, second in zip(raw, outputs):
        assert all(torch.equal(x, y) for x, y in zip(first, second))
    # Half of the outputs wrong is seen, and afterwards the detector is itself again.
    with detector_scores.in_place(
        detector, lambda x: [y * (-1) ** i for i, y in enumerate(network(x))]
    ):
        assert test.score(detector)[0] != metrics
    assert test.score(detector)[0] == metrics


def test_signal_to_noise_is_the_formula():
    rng = np.random.default_rng(0)
    images = [[rng.normal(size=(1, 2, n, n)) for n in (4, 2, 4, 2)] for _ in range(2)]
    noisy = [[x + 0.1 * rng.normal(size=x.shape) for x in image] for image in images]

    def tensors(nested):
        return [[torch.from_numpy(x) for x in image] for image in nested]

    expected = []
    for part in (slice(0, 2), slice(2, 4)):
        x, y = (
            np.concatenate([a.ravel() for image in nested for a in image[part]])
            for nested in (images, noisy)
        )
        expected.append(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    result = detector_scores.signal_to_noise(tensors(images), tensors(noisy))
    assert result == pytest.approx(expected)
    assert detector_scores.signal_to_noise(tensors(images), tensors(images)) == (
        np.inf,
        np.inf,
    )


def test_rows_are_written_with_reasons_and_not_made_again(
    workspace, capsys, monkeypatch
):
    root, _, checkpoint = workspace
    calls = []

    def coarse(network, images, folder):
        calls.append(images.shape)
        return lambda image: [(x * 16).round() / 16 for x in network(image)]

    def broken(network, images, folder):
        broken.calls += 1
        raise RuntimeError(f'cannot trace {root}/some/file.py\nmore')

    broken.calls = 0
    fakes = {
        ('coarse', 'plain', 'W8A8'): (coarse, {}),
        ('broken', 'plain', 'W4A8'): (broken, {}),
    }
    monkeypatch.setattr(peers, 'PEERS', fakes)
    # Random layers, never trained to be robust, amplify any error.
    exact = dict(bits=16, observer='minmax')
    monkeypatch.setattr(peers, 'OUR_VARIANTS', {('default', 'W8A8'): exact})
    path = root / 'out' / 'peers.json'
    line = ['peers.py', str(CONFIG), str(checkpoint), '--json', str(path)]
    line += ['--work-dir', str(root / 'work'), '--images', str(NUM_IMAGES)]
    monkeypatch.setattr(sys, 'argv', line)
    peers.main()
    content = json.loads(path.read_text())
    result = content['models'][CONFIG.stem]
    rows = result['rows']
    assert calls == [(NUM_IMAGES, 3, SIZE, SIZE)]
    assert rows['coarse / plain / W8A8']['scores_dB'] > 20
    ours = rows['mmquant_jacinto / default / W8A8']
    assert ours['scores_dB'] > 15 and ours['mAP50'] > 0
    reason = rows['broken / plain / W4A8']['reason']
    assert reason == 'RuntimeError: cannot trace file.py more'
    assert str(root) not in path.read_text()
    assert 'failed: RuntimeError' in capsys.readouterr().out
    peers.main()
    assert len(calls) == 1
    assert json.loads(path.read_text()) == content
    assert broken.calls == 1
    monkeypatch.setattr(sys, 'argv', [*line, '--retry'])
    peers.main()
    assert (len(calls), broken.calls) == (1, 2)
    monkeypatch.setattr(sys, 'argv', [*line, '--test-images', '1'])
    with pytest.raises(SystemExit, match='rows with .*, not'):
        peers.main()
    assert json.loads(path.read_text()) == content


def test_calibration_images_are_those_of_our_calibration(workspace, monkeypatch):
    _, cfg, checkpoint = workspace
    detector = peers.float_detector(cfg, checkpoint)
    images = peers.calibration_images(cfg, detector)
    seen = []
    preprocess = type(detector.data_preprocessor).forward

    def watch(self, data, training=False):
        result = preprocess(self, data, training)
        seen.append(result['inputs'])
        return result

    monkeypatch.setattr(type(detector.data_preprocessor), 'forward', watch)
    peers.quantize_ours(cfg, checkpoint, dict(bits=8))
    # The first pass over them, behind the batch that the model is recorded on.
    assert any(torch.equal(x, images) for x in seen if x.shape == images.shape)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.py', str(CONFIG)], 'missing.py is not a file'),
        ([str(CONFIG), 'missing.pth'], 'missing.pth is not a file'),
        ([str(CONFIG), str(CONFIG), '--images', '0'], 'at least one image'),
        ([str(CONFIG), str(CONFIG), '--only', 'ncnf*'], 'there is mmquant_jacinto'),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit):
        peers.parse_args(arguments)
    assert message in capsys.readouterr().err
