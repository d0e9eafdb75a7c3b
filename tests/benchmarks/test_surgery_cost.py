"""What the benchmark of surgery runs, and how it tells of it."""

import pytest

pytest.importorskip('mmdet')

import surgery_cost  # noqa: E402


@pytest.mark.parametrize('surgery', surgery_cost.WAYS.values())
def test_quantized_runs_start_from_the_float_training_of_their_way(tmp_path, surgery):
    trained, quantized = (
        surgery_cost.config(surgery, target, 3, 12, tmp_path)
        for target in ('float', 'tidl')
    )
    assert trained.get('quantize') is None
    kinds = [hook['type'] for hook in trained.custom_hooks]
    assert kinds == ['SurgeryHook'] * surgery
    assert quantized.load_from == str(tmp_path / 'float' / 'epoch_12.pth')
    assert quantized.quantize.surgery is surgery
    assert quantized.randomness == trained.randomness == dict(seed=3)
    assert quantized.val_dataloader == trained.val_dataloader
    assert trained.model.bbox_head.num_classes == 3


def test_table_has_means_and_their_ends():
    row = {way: dict(float=90.0, tidl=80.0, jacinto=70.0) for way in surgery_cost.WAYS}
    other = {way: {k: v + 1 for k, v in found.items()} for way, found in row.items()}
    one = surgery_cost.table({'0': row}).splitlines()
    assert one[2] == '| as it is | 90.0 | 80.0 | 70.0 |'
    two = surgery_cost.table({'0': row, '1': other}).splitlines()
    assert '| with surgery | 90.5 (90.0 to 91.0) |' in two[3]
