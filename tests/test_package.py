"""What importing the package does, and does not do."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ecgfm_hf

PACKAGE = Path(ecgfm_hf.__file__).parent


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not re.search("torchao|Failed to load|register_constant", run.stderr)
    return run.stdout.strip()


def test_import_loads_nothing_heavy():
    heavy = ["transformers", "torch", "numpy", "datasets", "pyarrow", "scipy", "pandas", "huggingface_hub"]
    assert _python(f"import sys, ecgfm_hf; print(*[name for name in {heavy} if name in sys.modules])") == ""


def test_every_room_is_reachable_after_the_import():
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert "training" in rooms
    assert _python(f"import ecgfm_hf; print(*[getattr(ecgfm_hf, room).__name__ for room in {rooms}])").split() == [
        f"ecgfm_hf.{room}" for room in rooms
    ]


@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("__init__.pyi")), ids=lambda path: path.parent.name)
def test_every_name_of_a_stub_exists(stub):
    package = importlib.import_module(".".join(("ecgfm_hf", *stub.parent.relative_to(PACKAGE).parts)))
    for name in package.__all__:
        assert getattr(package, name) is not None


# Whichever comes first: this package, transformers, or a module of this package that imports transformers itself.
IMPORTS = {
    "ecgfm_hf first": "import ecgfm_hf, importlib.util as u; assert u.find_spec('transformers').origin",
    "transformers first": "import transformers, ecgfm_hf, importlib; importlib.reload(ecgfm_hf)",
    "the configuration alone": "import ecgfm_hf.configuration_ecgfm",
    "the model alone": "import ecgfm_hf.modeling_ecgfm",
    "the pipeline alone": "import ecgfm_hf.pipeline_ecgfm",
    "threads": (
        "import threading, ecgfm_hf\n"
        "lines = ['import transformers', 'import ecgfm_hf.pipeline_ecgfm', 'from ecgfm_hf import ECGFMModel'] * 3\n"
        "threads = [threading.Thread(target=exec, args=(line,)) for line in lines]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("package") / "model"
    model = ecgfm_hf.ECGFMForMultiLabelClassification(tiny_config())
    ecgfm_hf.save_model_folder(model, ecgfm_hf.ECGFMFeatureExtractor(), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_the_auto_classes_and_the_pipeline_find_our_classes(imports, folder):
    out = _python(
        f"{imports}\nfolder = {str(folder)!r}\n"
        "import sys, ecgfm_hf\n"
        "import transformers as t\n"
        "autos = [t.AutoModel, t.AutoModelForPreTraining, t.AutoModelForSequenceClassification,"
        " t.AutoModelForAudioClassification]\n"
        "config = t.AutoConfig.from_pretrained(folder)\n"
        "print(*[type(a.from_config(config)).__name__ for a in autos])\n"
        "print(type(t.AutoModel.from_pretrained(folder)).__module__)\n"
        "print(type(t.AutoFeatureExtractor.from_pretrained(folder)).__module__)\n"
        "print(type(ecgfm_hf.load_pipeline(folder)).__module__)\n"
        "pipe = t.pipeline('ecg-classification', model=folder, trust_remote_code=True)\n"
        "print(type(pipe).__name__, type(pipe.model).__module__)\n"
        # Nothing is left of the import hook.
        "assert not [f for f in sys.meta_path if type(f).__module__.startswith('ecgfm_hf')], sys.meta_path\n"
        "assert type(t.__spec__.loader).__module__ == '_frozen_importlib_external', t.__spec__.loader\n"
    )
    assert out.split() == [
        "ECGFMModel",
        "ECGFMForPreTraining",
        "ECGFMForMultiLabelClassification",
        "ECGFMForMultiLabelClassification",
        "ecgfm_hf.modeling_ecgfm",
        "ecgfm_hf.feature_extraction_ecgfm",
        "ecgfm_hf.pipeline_ecgfm",
        "ECGClassificationPipeline",
        "ecgfm_hf.modeling_ecgfm",
    ]


def test_a_failed_import_of_transformers_fails_as_it_would_without_us(tmp_path):
    (tmp_path / "transformers.py").write_text("raise OSError('broken')")
    out = _python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ecgfm_hf\n"
        "try:\n    import transformers\nexcept OSError as error:\n    print(error, 'transformers' in sys.modules)"
    )
    assert out == "broken False"


@pytest.mark.parametrize(
    "name", ["configuration_ecgfm", "feature_extraction_ecgfm", "modeling_ecgfm", "pipeline_ecgfm"]
)
def test_remote_code_needs_only_torch_numpy_and_transformers(name):
    import ast

    # transformers fetches the flat files that a flat file imports.
    flat = {"configuration_ecgfm", "feature_extraction_ecgfm"}
    allowed = {"torch", "numpy", "transformers", "huggingface_hub", *flat, *sys.stdlib_module_names}
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
