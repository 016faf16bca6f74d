"""A saved folder, moved to where the package is not installed, loads with `trust_remote_code=True`, offline."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfm_hf import (
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    ECGFMModel,
    save_model_folder,
)
from ecgfm_hf.model_folder import load_model

# Runs where importing the package fails, as it does where it is not installed.
WITHOUT_PACKAGE = """
import json, sys
sys.modules["ecgfm_hf"] = None
import numpy as np
import torch
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining,
    AutoModelForSequenceClassification, AutoProcessor, pipeline,
)
classifier_dir, pretraining_dir, recording = sys.argv[1:4]
signal = np.load(recording)
call = {"sampling_rate": 400, "lead_names": ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]}
remote = {"trust_remote_code": True}
result = {"config": type(AutoConfig.from_pretrained(classifier_dir, **remote)).__name__}
extractor = AutoFeatureExtractor.from_pretrained(classifier_dir, **remote)
inputs = extractor(signal, **call, return_tensors="pt")["input_values"]
with torch.no_grad():
    for auto, folder in ((AutoModel, classifier_dir), (AutoModelForSequenceClassification, classifier_dir),
                         (AutoModelForAudioClassification, classifier_dir), (AutoModelForPreTraining, pretraining_dir)):
        model, loading = auto.from_pretrained(folder, output_loading_info=True, **remote)
        assert not loading["missing_keys"], loading
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        output = model.eval()(inputs)
        result[auto.__name__] = [type(model).__name__, float(output[1 if auto is AutoModel else 0].double().sum())]
pipe = pipeline("ecg-classification", model=classifier_dir, device="cpu", **remote)
result["pipeline"] = pipe({"signal": signal, **call})
try:
    pipe("recording.hea")
except ImportError as error:
    result["path"] = str(error)
# Saved again from remote code, by the model and by the pipeline, the folder still works whole.
AutoModelForSequenceClassification.from_pretrained(classifier_dir, **remote).save_pretrained(sys.argv[4])
extractor.save_pretrained(sys.argv[4])
pipe.save_pretrained(sys.argv[5])
again = {"signal": signal, **call}
several = {"subfolder": "classifier", **remote}
result["subfolder"] = [type(auto.from_pretrained(sys.argv[6], **several)).__name__
                       for auto in (AutoConfig, AutoModelForSequenceClassification, AutoProcessor)]
result["saved"] = [pipeline("ecg-classification", model=d, device="cpu", **remote)(again) for d in sys.argv[4:6]]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    models = {"classifier": ECGFMForMultiLabelClassification, "pretraining": ECGFMForPreTraining}
    for name, model_class in models.items():
        save_model_folder(
            model_class(tiny_config(pooling="attention")).eval(), ECGFMFeatureExtractor(), folder / "here" / name
        )
        # Moved: nothing may depend on where it was written.
        shutil.move(folder / "here" / name, folder / name)
    # Several models in subfolders, with the code where transformers looks for it.
    for code in (folder / "classifier").glob("*.py"):
        shutil.copy(code, folder)
    return folder


@torch.no_grad()
def test_moved_folder_loads_everywhere_without_the_package(folders, tmp_path):
    signal = np.random.default_rng(0).standard_normal((12, 4000))
    np.save(tmp_path / "signal.npy", signal)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_PACKAGE,
            folders / "classifier",
            folders / "pretraining",
            tmp_path / "signal.npy",
            tmp_path / "saved again",
            tmp_path / "saved_by_pipeline",
            folders,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])

    leads = [name.upper() for name in ECGFMFeatureExtractor().lead_names]
    inputs = ECGFMFeatureExtractor()(signal, sampling_rate=400, lead_names=leads, return_tensors="pt")["input_values"]
    classifier = ECGFMForMultiLabelClassification.from_pretrained(folders / "classifier").eval()
    logits = classifier(inputs).logits
    assert result["config"] == "ECGFMConfig"
    for auto in ("AutoModelForSequenceClassification", "AutoModelForAudioClassification"):
        name, total = result[auto]
        assert name == "ECGFMForMultiLabelClassification"
        assert total == pytest.approx(float(logits.double().sum()), abs=1e-4)
    assert result["AutoModel"][0] == "ECGFMModel"
    assert result["AutoModel"][1] == pytest.approx(
        float(classifier.ecgfm(inputs).extract_features.double().sum()), rel=1e-4, abs=1e-3
    )
    assert result["AutoModelForPreTraining"][0] == "ECGFMForPreTraining"
    assert list(result["pipeline"]["scores"].values()) == pytest.approx(logits.sigmoid().mean(0).tolist(), abs=1e-5)
    assert "pip install ecgfm-hf" in result["path"]
    assert result["subfolder"] == ["ECGFMConfig", "ECGFMForMultiLabelClassification", "ECGFMFeatureExtractor"]
    assert result["saved"] == [result["pipeline"]] * 2


@pytest.mark.parametrize("model_class", [ECGFMModel, ECGFMForPreTraining, ECGFMForMultiLabelClassification])
def test_every_saved_folder_names_every_auto_class(model_class, tiny_config, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForPreTraining",
        "AutoModelForSequenceClassification",
        "AutoModelForAudioClassification",
    }
    for reference in config["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()
    impl = config["custom_pipelines"]["ecg-classification"]["impl"]
    assert (tmp_path / f"{impl.split('.')[0]}.py").is_file()


def test_saved_folder_holds_no_trace_of_where_it_was_written(folders):
    home, here = str(Path.home()), str(folders)
    for path in (folders / "classifier").iterdir():
        content = path.read_bytes()
        assert here.encode() not in content, path.name
        assert len(home) < 3 or f"{home}/".encode() not in content, path.name


OWN_MODULE = """
from ecgfm_hf import ECGFMForMultiLabelClassification


class Weighted(ECGFMForMultiLabelClassification):
    pass
"""


@pytest.fixture
def subclass(tmp_path, monkeypatch):
    (tmp_path / "own_training.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_training").Weighted
    sys.modules.pop("own_training")


def test_a_subclass_is_saved_as_the_class_whose_code_the_folder_has(subclass, tiny_config, tmp_path):
    model = subclass(tiny_config()).eval()
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["ECGFMForMultiLabelClassification"]
    assert "saved_as" not in config
    assert not (tmp_path / "saved" / "own_training.py").exists()
    for reference in config["auto_map"].values():
        module, name = reference.split(".")
        assert f"class {name}(" in (tmp_path / "saved" / f"{module}.py").read_text()
    assert type(load_model(tmp_path / "saved")) is ECGFMForMultiLabelClassification
    assert type(subclass.from_pretrained(tmp_path / "saved")) is subclass


def test_a_registered_subclass_is_named_under_every_auto_class_of_its_base(subclass, tiny_config, tmp_path):
    subclass.register_for_auto_class("AutoModelForSequenceClassification")
    subclass(tiny_config()).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["Weighted"]
    for task in ("SequenceClassification", "AudioClassification"):
        assert config["auto_map"][f"AutoModelFor{task}"] == "own_training.Weighted"
    assert config["auto_map"]["AutoModel"] == "modeling_ecgfm.ECGFMModel"
    names = {path.name for path in (tmp_path / "saved").glob("*.py")}
    assert {"own_training.py", "modeling_ecgfm.py", "configuration_ecgfm.py"} <= names
