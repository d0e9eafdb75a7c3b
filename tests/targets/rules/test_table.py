"""Tables: their rows, and what a planner reads of them."""

import pytest

from mmquant_jacinto.targets.rules import TENSORRT_RULES, TIDL_RULES
from mmquant_jacinto.targets.rules.table import (
    ANY,
    PRODUCT,
    SEVERITIES,
    SILU,
    Activations,
    Limit,
    Rules,
    Source,
    Weights,
)
from mmquant_jacinto.targets.target import ruled_target, ruled_targets

HERE = Source('a manual', '1')


@pytest.mark.parametrize('name', ruled_targets())
def test_each_row_cites_a_document_and_its_version(name):
    rules = ruled_target(name).rules
    assert rules.rows and rules.reads
    for row in rules.rows:
        assert row.operators and row.source.document and row.source.version
        assert getattr(row, 'severity', 'violation') in SEVERITIES
        if isinstance(row, Limit):
            assert row.right


def test_row_of_an_operator_goes_before_that_of_all():
    rules = Rules(
        (
            Activations((ANY,), HERE, symmetric=True),
            Activations(('Conv',), HERE),
            Weights(('Conv',), HERE, per_channel=False),
        )
    )
    assert not rules.is_symmetric(['Conv'])
    assert rules.is_symmetric(['Conv', 'MaxPool'])
    assert not rules.scales_channels('Conv')
    assert rules.scales_channels('Gemm')


def test_empty_table_forbids_nothing():
    rules = Rules()
    assert not rules.is_symmetric(['Conv', ''])
    assert rules.scales_channels('ConvTranspose')
    assert not rules.fuses('Conv', 'Relu')


def test_widths_follow_from_types():
    assert Activations((ANY,), HERE, types=('int8', 'uint16')).bits == 16
    assert Activations((ANY,), HERE, types=('uint8',), severity='slower').bits == 16
    assert Weights((ANY,), HERE, types=('int4',)).bits == 4


def test_scales_along_another_axis_are_none_of_output_channels():
    assert not TENSORRT_RULES.scales_channels('ConvTranspose')


def test_what_tidl_says_of_matrix_products():
    assert not TIDL_RULES.is_symmetric(['MatMul'])
    assert TIDL_RULES.is_symmetric([PRODUCT])


def test_fusions_of_tensorrt():
    assert TENSORRT_RULES.fuses('Conv', 'Add')
    assert TENSORRT_RULES.fuses('Conv', SILU)
    assert not TENSORRT_RULES.fuses('MatMul', 'Add')
