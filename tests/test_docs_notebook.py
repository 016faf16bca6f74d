"""The notebooks run from top to bottom, and are kept without outputs."""

import os
from pathlib import Path

import pytest
from doc_blocks import ROOT

NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
# Sizes that the notebooks read from the environment.
SMALL = {
    **{"ECGFM_QUICKSTART_PATIENTS": "60", "ECGFM_QUICKSTART_EPOCHS": "1"},
    **{"ECGFM_NOTEBOOK_PATIENTS": "40", "ECGFM_NOTEBOOK_EPOCHS": "1"},
}
# What each writes at its end, and the least bytes of it.
LAST_FILES = {
    "quickstart.ipynb": ("quickstart_output/page.pdf", 10_000),
    "own-recordings.ipynb": ("own_recordings_output/scores.csv", 500),
}


def _read(path: Path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def test_every_notebook_is_run():
    assert {path.name for path in NOTEBOOKS} == LAST_FILES.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(path):
    for cell in _read(path).cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"clear the outputs: {cell.source[:60]!r}"
            assert cell.execution_count is None
        assert not cell.metadata


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    for library in ("ipykernel", "matplotlib", "captum", "accelerate", "sklearn"):
        pytest.importorskip(library)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # Whoever runs the tests may have a profile of IPython of their own.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    work = tmp_path / "work"
    work.mkdir()
    notebook = _read(path)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(work)}}).execute()
    file, least = LAST_FILES[path.name]
    assert (work / file).stat().st_size > least
