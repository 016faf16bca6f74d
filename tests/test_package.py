"""What importing the package does, and does not do."""

import subprocess
import sys
from pathlib import Path

import pytest

import ecgfm_hf

HEAVY = ["datasets", "scipy", "pandas", "wfdb", "matplotlib", "pydicom", "sklearn"]
PACKAGE = Path(ecgfm_hf.__file__).parent


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_import_loads_nothing_heavy_that_transformers_does_not():
    show = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    baseline = _python(f"from transformers import AutoModel, PreTrainedModel; {show}")
    assert _python(f"import ecgfm_hf; {show}") == baseline


def test_import_registers_the_auto_classes_and_the_pipeline():
    out = _python(
        "import ecgfm_hf, transformers as t\n"
        "from transformers.pipelines import PIPELINE_REGISTRY\n"
        "config = t.AutoConfig.for_model('ecgfm', num_hidden_layers=1)\n"
        "autos = [t.AutoModel, t.AutoModelForPreTraining, t.AutoModelForSequenceClassification,"
        " t.AutoModelForAudioClassification]\n"
        "print(type(config).__name__, *[type(a.from_config(config)).__name__ for a in autos],"
        " PIPELINE_REGISTRY.check_task('ecg-classification')[0])"
    )
    assert out.split() == [
        "ECGFMConfig",
        "ECGFMModel",
        "ECGFMForPreTraining",
        "ECGFMForMultiLabelClassification",
        "ECGFMForMultiLabelClassification",
        "ecg-classification",
    ]


def test_importing_twice_after_reload_warns_of_nothing():
    out = _python("import importlib, ecgfm_hf; importlib.reload(ecgfm_hf); print('ok')")
    assert out == "ok"


@pytest.mark.parametrize(
    "name", ["configuration_ecgfm", "feature_extraction_ecgfm", "modeling_ecgfm", "pipeline_ecgfm"]
)
def test_remote_code_needs_only_torch_numpy_and_transformers(name):
    import ast

    allowed = {"torch", "numpy", "transformers", "huggingface_hub", "configuration_ecgfm", *sys.stdlib_module_names}
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    guarded = {node for statement in ast.walk(tree) if isinstance(statement, ast.Try) for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in guarded:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                assert module.split(".")[0] in allowed, f"{name}.py imports {module}"


def test_configuration_needs_no_torch():
    assert "torch" not in (PACKAGE / "configuration_ecgfm.py").read_text().replace("Needs no torch", "")


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert ecgfm_hf.__version__ == version("ecgfm-hf")
