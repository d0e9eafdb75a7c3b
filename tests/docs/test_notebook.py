"""The notebook runs from top to bottom, and what is kept of it is what that gives."""

import json

import pytest
from paths import ROOT

NOTEBOOK = ROOT / 'demo' / 'tutorial.ipynb'
PICTURES = 4


def pictures(cells):
    return sum(
        'image/png' in output.get('data', {})
        for cell in cells
        for output in cell.get('outputs', ())
    )


def test_it_runs(monkeypatch):
    nbclient = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    nbformat = pytest.importorskip('nbformat')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop('outputs', None)
        if cell.cell_type == 'code':
            cell.outputs = []
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources=dict(metadata=dict(path=str(NOTEBOOK.parent)))
    )
    client.execute()
    assert pictures(notebook.cells) == PICTURES
    text = json.dumps(notebook.cells)
    assert '100.0000% of the outputs are equal' in text
    assert '4 of 4 layers run on integer kernels' in text


def test_its_pictures_are_kept():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    assert pictures(cells) == PICTURES
    # A folder of the machine that it ran on says nothing to a reader.
    assert '/tmp/' not in NOTEBOOK.read_text()
