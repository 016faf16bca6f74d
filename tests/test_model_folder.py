"""Model folders load whole or not at all: nothing at its random start, nothing unused, nothing of another shape."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from killed_runs import damage_file
from safetensors.torch import load_file, save_file

from ecgfm_hf import (
    ECGFMConfig,
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    ECGFMModel,
    load_pipeline,
    save_model_folder,
)
from ecgfm_hf.cli.main import main
from ecgfm_hf.model_folder import ModelFolderError, ModelNotFoundError, load_feature_extractor, load_model
from ecgfm_hf.provenance import add_step
from ecgfm_hf.training.run_folder import Checkpoints
from ecgfm_hf.utils.errors import ECGFMError
from ecgfm_hf.utils.integrity import changed_files

CLASSES = {"encoder": ECGFMModel, "pretraining": ECGFMForPreTraining, "classifier": ECGFMForMultiLabelClassification}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_config):
    """A folder of each class, by name."""
    made = {}
    for name, model_class in CLASSES.items():
        torch.manual_seed(4)
        masked = {} if name == "classifier" else {"mask_time_prob": 0.65}
        made[name] = tmp_path_factory.mktemp(name)
        save_model_folder(model_class(tiny_config(**masked)), ECGFMFeatureExtractor(), made[name])
    return made


@pytest.fixture
def changed(folders, tmp_path):
    """A copy of a folder with other tensors or another config."""

    def change(name="classifier", tensors=None, **config):
        folder = tmp_path / name
        shutil.copytree(folders[name], folder)
        if tensors is not None:
            weights = load_file(folder / "model.safetensors")
            tensors(weights)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        stored = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(stored))
        return folder

    return change


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_loads_its_own_folder_with_the_same_weights_in_evaluation_mode(folders, name):
    model = load_model(folders[name])
    assert type(model) is CLASSES[name]
    assert not model.training
    stored = load_file(folders[name] / "model.safetensors")
    assert model.state_dict().keys() == stored.keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", CLASSES)
def test_the_encoder_of_every_folder_loads(folders, name):
    stored = load_file(folders[name] / "model.safetensors")
    model = load_model(folders[name], ECGFMModel)
    assert all(
        torch.equal(tensor, stored.get(f"ecgfm.{key}", stored.get(key))) for key, tensor in model.state_dict().items()
    )


def test_heads_that_a_folder_does_not_have_are_errors_that_say_what_to_do(folders):
    with pytest.raises(ModelFolderError, match=r"classifier\.(weight|bias).*fine-tune it first"):
        load_model(folders["pretraining"], ECGFMForMultiLabelClassification)
    with pytest.raises(ModelFolderError, match=r"classifier\."):
        load_model(folders["encoder"], ECGFMForMultiLabelClassification)
    with pytest.raises(ModelFolderError, match=r"quantizer\..*take a pretrained model"):
        load_model(folders["classifier"], ECGFMForPreTraining)


def test_an_encoder_without_mask_embedding_gets_none_at_random(changed):
    folder = changed("encoder", lambda weights: weights.pop("masked_spec_embed"))
    model = load_model(folder)
    assert model.masked_spec_embed is None
    assert model.config.mask_time_prob == 0
    folder = changed("pretraining", lambda weights: weights.pop("ecgfm.masked_spec_embed"))
    with pytest.raises(ModelFolderError, match="missing tensors: masked_spec_embed"):
        load_model(folder)


def test_a_changed_config_is_built_and_stays_as_it_was_given(folders):
    config = ECGFMConfig.from_pretrained(folders["pretraining"])
    config.mask_time_prob = 0.0
    config.hidden_dropout = 0.25
    model = load_model(folders["pretraining"], ECGFMModel, config=config)
    assert model.masked_spec_embed is None
    assert model.config.hidden_dropout == 0.25


LAYER = "ecgfm.encoder.layers.0.layer_norm.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (lambda weights: weights.pop(LAYER), {}, r"missing tensors: encoder\.layers\.0\.layer_norm\.weight"),
        (lambda weights: weights.update(extra=torch.ones(2)), {}, "unused tensors: extra"),
        (lambda weights: weights.update({LAYER: torch.ones(2)}), {}, r"wrong shapes: .* is \(2,\), expected \(\d+,\)"),
        (lambda weights: weights.update({LAYER: weights[LAYER].to(torch.int8)}), {}, r"wrong number types.* is I8"),
        (lambda weights: weights.update({LAYER[6:]: torch.ones(2)}), {}, "twice"),
        (None, {"num_hidden_layers": 1}, "num_hidden_layers=1, the weights have 2"),
        (None, {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, the weights have 2"),
        (None, {"intermediate_size": 10**9}, "wrong shapes"),
        (None, {"hidden_act": "nonsense"}, "no model that can be built"),
        (None, {"num_leads": 40}, "num_leads must be 1 to 12"),
        (None, {"model_type": "wav2vec2"}, "type 'wav2vec2', expected 'ecgfm'"),
        (None, {"architectures": ["Nonsense"]}, "architectures.*Nonsense"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(changed, tensors, config, message):
    folder = changed("classifier", tensors, **config)
    with pytest.raises(ModelFolderError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert isinstance(caught.value, ECGFMError)


def test_damaged_and_absent_weights_are_refused(changed):
    folder = changed()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is damaged"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelFolderError, match="has no weights"):
        load_model(folder)


def test_weights_in_several_files_load_and_one_that_is_absent_is_refused(folders, tmp_path):
    model = load_model(folders["classifier"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    again = load_model(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    files[0].unlink()
    with pytest.raises(ModelFolderError, match=files[0].name):
        load_model(tmp_path)


@pytest.mark.parametrize("load", [load_pipeline, load_model])
def test_a_folder_of_adapters_is_refused_with_its_base_model_and_what_to_do(tmp_path, load):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "me/ecg-fm"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ModelFolderError, match=r"LORA adapter of the base model me/ecg-fm.*merge_and_unload\(\)"):
        load(tmp_path)


def test_a_folder_that_is_not_there_and_a_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (tmp_path / "absent", "./absent", "../absent", "a/b/c"):
        with pytest.raises(ModelNotFoundError, match="there is no folder"):
            load_model(name)
    with pytest.raises(FileNotFoundError, match="there is no folder model, and no Hub repository of that name"):
        load_model("model")
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="ecgfm convert"):
        load_model(tmp_path / "last.pt")
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        load_model(tmp_path)


def test_the_feature_extractor_must_be_there_and_fit(folders, changed, tiny_config):
    assert load_feature_extractor(folders["classifier"], nan_samples="zero").nan_samples == "zero"
    with pytest.raises(ModelFolderError, match="takes 3 leads, its feature extractor gives 12"):
        load_feature_extractor(folders["classifier"], config=tiny_config(num_leads=3))
    folder = changed()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelFolderError, match="processing_class"):
        load_pipeline(folder)


def test_names_of_precisions_need_no_torch():
    code = "import sys, ecgfm_hf.utils.precision; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json", "checksums.json"])
def test_verify_finds_a_flipped_bit_of_a_model_folder(folders, tmp_path, capsys, name):
    folder = shutil.copytree(folders["classifier"], tmp_path / "model")
    assert main(["verify", str(tmp_path)]) == 0
    content = bytearray((folder / name).read_bytes())
    content[-40] ^= 1
    (folder / name).write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 1
    assert f"{folder}: " in capsys.readouterr().out.splitlines()[-1]
    if name != "checksums.json":
        assert main(["verify", "--update", str(tmp_path)]) == 0
    (folder / name).unlink()
    assert main(["verify", str(folder)]) == (2 if name == "checksums.json" else 1)


def test_every_flipped_bit_of_digests_and_provenance_is_found(folders, tmp_path):
    folder = shutil.copytree(folders["classifier"], tmp_path / "model")
    add_step(folder, "test", {"value": 1})
    assert changed_files(folder) == []
    provenance = (folder / "provenance.json").read_bytes()
    (folder / "provenance.json").write_bytes(provenance.replace(b"test", b"tesu"))
    assert changed_files(folder) == ["provenance.json has changed"]
    (folder / "provenance.json").write_bytes(provenance)
    content = (folder / "checksums.json").read_bytes()
    for index in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        (folder / "checksums.json").write_bytes(damaged)
        with pytest.raises(ValueError):  # noqa: PT011  # of JSON, of UTF-8 or our own
            changed_files(folder)


def test_verify_never_accepts_a_damaged_checkpoint(folders, tmp_path, capsys):
    model = shutil.copytree(folders["classifier"], tmp_path / "model")
    checkpoints = Checkpoints(tmp_path / "checkpoints", finetunes=True, limit=None)
    (checkpoints.begin(7) / "optimizer.pt").write_bytes(bytes(100))
    checkpoints.finish(7)
    damage_file(checkpoints.path(7) / "optimizer.pt")
    (model / "model.safetensors").unlink()
    for _ in range(2):
        assert main(["verify", "--update", str(tmp_path)]) == 1
        shown = capsys.readouterr().out.splitlines()
        assert "digests are never updated" in shown[0]
        assert "the checkpoint before" in shown[0]
        assert shown[1] == f"{model}: unchanged"
