"""What a type checker makes of the package from outside."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
# Parsing these takes a minute, and the answers below do not depend on them.
_LARGE = ("torch", "transformers", "datasets", "accelerate", "pyarrow", "sklearn", "huggingface_hub", "safetensors")
CONFIG = f"""
[mypy]
python_version = 3.11
ignore_missing_imports = True
[mypy-{",".join(f"{name}.*" for name in _LARGE)}]
follow_imports = skip
"""
CODE = """
from ecgfm_hf import read_ecg
from ecgfm_hf.evaluation import auroc
from ecgfm_hf.training import Finetuner, FinetuneSettings, Pretrainer, PretrainSettings, read_recipe

FinetuneSettings(learning_rat=1)
PretrainSettings(epochs=3)
reveal_type(auroc)
reveal_type(read_ecg("recording.hea"))
reveal_type(Finetuner(FinetuneSettings(learning_rate=1e-4)).run())
reveal_type(Pretrainer(PretrainSettings()).run())
reveal_type(read_recipe("finetune_small", (), FinetuneSettings))
"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """What mypy reports of `CODE`, by line."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("types")
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "code.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "code.py"]
    run = subprocess.run(command, cwd=folder, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    lines = dict(enumerate(CODE.splitlines(), 1))
    found = re.findall(r"^code\.py:(\d+): (?:error|note): (.*)$", run.stdout, re.MULTILINE)
    assert found, run.stdout + run.stderr
    return {lines[int(number)]: message for number, message in found}


def test_a_misspelt_or_old_setting_is_an_error(reported):
    assert (
        'Unexpected keyword argument "learning_rat" for "FinetuneSettings"'
        in reported["FinetuneSettings(learning_rat=1)"]
    )
    assert 'Unexpected keyword argument "epochs" for "PretrainSettings"' in reported["PretrainSettings(epochs=3)"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("auroc", "ndarray"),
        ('read_ecg("recording.hea")', "ecgfm_hf.records.record.ECGRecord"),
        ("Finetuner(FinetuneSettings(learning_rate=1e-4)).run()", "ecgfm_hf.training.finetuning.FinetuneResult"),
        ("Pretrainer(PretrainSettings()).run()", "ecgfm_hf.training.pretraining.PretrainResult"),
        ('read_recipe("finetune_small", (), FinetuneSettings)', "ecgfm_hf.training.settings.FinetuneSettings"),
    ],
)
def test_public_functions_have_types(reported, code, expected):
    revealed = reported[f"reveal_type({code})"]
    result = revealed.rpartition("->")[2] if "->" in revealed else revealed
    assert expected in result
    # What is left of `numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]`: its shape and number type may be anything.
    without_parameters = re.sub(r"\[.*\]", "", result)
    assert "Any" not in without_parameters
