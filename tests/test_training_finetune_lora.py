"""LoRA: few trained weights, an ordinary model at the end, adapters that load again."""

import copy
from dataclasses import replace

import pytest
import torch
from finetune_cases import TINY_MODEL, make_store, train_in_memory
from transformers import TrainerCallback

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification
from ecgfm_hf.data import load_prepared
from ecgfm_hf.training import FinetuneData, Finetuner, FinetuneSettings, SettingsError, build_classifier
from ecgfm_hf.training.recipes import read_recipe
from ecgfm_hf.training.trainable_weights import add_lora, count_parameters

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        make_store(folder / "store", patients=10)
        yield load_prepared(folder / "store")


def prepared(store, **changes):
    given = {
        "model": TINY_MODEL,
        "labels": ["slow", "fast"],
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
    }
    given |= {"learning_rate": 1e-2, "use_cpu": True, "thresholds": "none", "calibration": "none", "lora": LORA}
    settings = FinetuneSettings(**{**given, **changes})
    data = FinetuneData.from_datasets(store["train"], store["valid"], ECGFMFeatureExtractor(), settings)
    return settings, data, build_classifier(settings, data.names)


def test_the_merged_model_equals_its_adapters_and_loads_as_any_other(store, tmp_path):
    from peft import PeftModel

    settings, data, model = prepared(store)
    base = copy.deepcopy(model)
    trainer_free = base.state_dict()
    result = train_in_memory(model, data, settings, tmp_path)
    assert isinstance(result.model, ECGFMForMultiLabelClassification)
    assert result.model.state_dict().keys() == trainer_free.keys()
    moved = {name for name, value in result.model.state_dict().items() if not torch.equal(value, trainer_free[name])}
    adapted = {n for n in trainer_free if n.endswith(("q_proj.weight", "v_proj.weight")) or n.startswith("classifier.")}
    assert moved == adapted
    x = torch.randn(3, 12, 2500)
    with torch.no_grad():
        merged = result.model(x).logits
        adapters = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapters")).eval()
        assert torch.allclose(adapters(x).logits, merged, atol=1e-5)
        result.model.save_pretrained(tmp_path / "model")
        loaded = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "model").eval()
        assert torch.equal(loaded(x).logits, merged)
        assert not torch.allclose(base.eval()(x).logits, merged, atol=1e-2)


def test_regression_adapters_and_merged_model_are_in_the_targets_units(store, tmp_path):
    from peft import PeftModel

    settings, data, model = prepared(store, problem_type="regression", labels=["age"], num_train_epochs=1)
    base = copy.deepcopy(model)
    result = train_in_memory(model, data, settings, tmp_path)
    x = torch.randn(3, 12, 2500)
    with torch.no_grad():
        merged = result.model(x).logits
        adapters = PeftModel.from_pretrained(base, str(tmp_path / "adapters")).eval()
        assert torch.allclose(adapters(x).logits, merged, rtol=1e-5, atol=1e-3)
    assert float(merged.mean()) > 20, "ages, not standardised ones"


def test_a_run_continues_from_its_adapters(store, tmp_path):
    settings, data, model = prepared(store, num_train_epochs=3)
    whole = train_in_memory(model, data, settings, tmp_path / "whole")
    settings, data, model = prepared(store, num_train_epochs=3)
    cut = Finetuner(replace(settings, output_dir=str(tmp_path / "cut")), data=data, model=model)
    cut.trainer.add_callback(BreakOff())
    with pytest.raises(BrokenPipeError):
        cut.run()
    settings, data, model = prepared(store, num_train_epochs=3)
    rest = train_in_memory(model, data, settings, tmp_path / "cut")
    assert rest.update == whole.update
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in rest.model.state_dict().items())


@pytest.mark.parametrize(
    "lora",
    [
        "{r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj]}",
        "{r: 8, lora_alpha: 16, target_modules: [conv, projection, q_proj, v_proj], "
        "exclude_modules: [pos_conv_embed.conv], rank_pattern: {conv: 16}}",
    ],
)
def test_the_published_base_model_has_under_2_percent_to_train(lora):
    settings = read_recipe("finetune_small", [f"lora={lora}"], FinetuneSettings)
    config = ECGFMConfig.base(mask_time_prob=0.0, num_labels=26, feature_grad_multiplier=1.0)
    with torch.device("meta"):
        model = ECGFMForMultiLabelClassification(config)
    trainable, parameters = count_parameters(add_lora(model, settings.lora))
    assert 0 < trainable / parameters < 0.02


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 2, "target_modules": ["nothing"]}, "lora: "),
        ({"rank": 2, "target_modules": ["q_proj"]}, "lora: .*rank"),
        ({"modules_to_save": ["x"]}, "lora.modules_to_save cannot be set: .*the head is always trained"),
        (
            {"r": 16, "target_modules": ["pos_conv_embed.conv"]},
            r"adapts ecgfm\.encoder\.pos_conv_embed\.conv.*merged",
        ),
    ],
)
def test_impossible_adapters_are_refused(tiny_config, lora, message):
    with pytest.raises(SettingsError, match=message):
        add_lora(ECGFMForMultiLabelClassification(tiny_config()), lora)


def test_convolutions_are_adapted_only_where_a_gradient_reaches_them(store, tmp_path):
    lora = {"r": 1, "target_modules": r".*(conv_layers\.\d+\.conv|q_proj)"}
    settings, data, model = prepared(store, lora=lora)
    with pytest.raises(SettingsError, match="no gradient reaches them"):
        train_in_memory(model, data, settings, tmp_path / "frozen")
    settings, data, model = prepared(store, lora=lora, model={**TINY_MODEL, "feature_grad_multiplier": 1.0})
    before = {name: value.clone() for name, value in model.ecgfm.feature_extractor.state_dict().items()}
    after = train_in_memory(model, data, settings, tmp_path / "run").model.ecgfm.feature_extractor.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.endswith("conv.weight")}


class BreakOff(TrainerCallback):
    """An error at the beginning of the second epoch."""

    def on_epoch_begin(self, args, state, control, **_):
        if state.global_step:
            raise BrokenPipeError
