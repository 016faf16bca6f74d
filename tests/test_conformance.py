"""
Recipes of Hugging Face users, run on ECG-FM and on Wav2Vec2 of transformers: what works there works here.

`DIFFERENCES` lists each recipe that works with only one of them, with its error and the reason.
"""

import copy
import io
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    pipeline,
)

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification

peft = pytest.importorskip("peft")

ATTENTION = ["q_proj", "v_proj"]
LABELS = ["A", "B", "C"]
SAMPLES = 800


@dataclass
class Kit:
    """A tiny model with its folder, and input for it."""

    name: str
    task: str
    folder: Any
    model: Any
    extractor: Any
    shape: tuple[int, ...]

    def classifier(self, **settings):
        if not settings:
            return copy.deepcopy(self.model)
        return AutoModelForAudioClassification.from_pretrained(self.folder, **settings)

    def inputs(self, batch=3, seed=0):
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed))

    def recording(self, seed=0):
        """What the feature extractor is called with."""
        signal = np.random.default_rng(seed).standard_normal((*self.shape[:-1], 2500))
        more = {"lead_names": self.extractor.lead_names} if self.name == "ecgfm" else {}
        return (signal,), {"sampling_rate": self.extractor.sampling_rate, **more}

    def pipeline_input(self, seed=0):
        (signal,), more = self.recording(seed)
        return {"signal" if self.name == "ecgfm" else "raw": signal, **more}

    def rows(self, count=8):
        return Dataset.from_dict(
            {"input_values": self.inputs(count).numpy(), "labels": [i % 3 for i in range(count)]}
        ).with_format("torch")

    def trainer(self, folder, model=None, rows=None, **settings):
        """A Trainer of two steps; settings are TrainingArguments' or, where they have none, the Trainer's."""
        own = {
            name: settings.pop(name)
            for name in ("compute_metrics", "processing_class", "callbacks", "model_init", "optimizers")
            if name in settings
        }
        arguments = {
            "output_dir": str(folder),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 1e-3,
        }
        return Trainer(
            model=None if "model_init" in own else model or self.classifier(),
            args=TrainingArguments(**{**arguments, **settings}),
            train_dataset=self.rows() if rows is None else rows,
            eval_dataset=self.rows(4),
            **own,
        )


@pytest.fixture(scope="module")
def kits(tmp_path_factory, tiny_config):
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    single = {"problem_type": "single_label_classification"}
    wav2vec2 = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(8, 4),
        conv_stride=(4, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        mask_time_prob=0.0,
        apply_spec_augment=False,
        **names,
        **single,
    )
    # (name, task of the pipeline, model, feature extractor, shape of an input)
    made = (
        (
            "ecgfm",
            "ecg-classification",
            ECGFMForMultiLabelClassification(tiny_config(mask_time_prob=0.0, **single)),
            ECGFMFeatureExtractor(),
            (12, SAMPLES),
        ),
        (
            "wav2vec2",
            "audio-classification",
            Wav2Vec2ForSequenceClassification(wav2vec2),
            Wav2Vec2FeatureExtractor(return_attention_mask=False),
            (SAMPLES,),
        ),
    )
    found = {}
    for name, task, model, extractor, shape in made:
        folder = tmp_path_factory.mktemp(name)
        model.eval()
        with torch.no_grad():  # scores of a size that makes differences visible
            model.classifier.weight /= model(torch.randn(3, *shape)).logits.std()
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        found[name] = Kit(name, task, folder, model, extractor, shape)
    return found


RECIPES: dict[str, Any] = {}


def recipe(function):
    RECIPES[function.__name__] = function
    return function


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(input_values=inputs).logits


def assert_same(model, kit, tolerance=0.0):
    torch.testing.assert_close(logits(model, kit.inputs()), logits(kit.model, kit.inputs()), atol=tolerance, rtol=0)


# Loading and saving


@recipe
def auto_config(kit, folder):
    assert AutoConfig.from_pretrained(kit.folder).num_labels == 3


@recipe
def auto_model(kit, folder):
    assert AutoModel.from_pretrained(kit.folder)(kit.inputs()).last_hidden_state.shape[-1] == 32


@recipe
def auto_classifier(kit, folder):
    assert_same(kit.classifier(config=AutoConfig.from_pretrained(kit.folder)), kit)


@recipe
def auto_feature_extractor(kit, folder):
    assert type(AutoFeatureExtractor.from_pretrained(kit.folder)) is type(kit.extractor)


@recipe
def auto_processor(kit, folder):
    assert type(AutoProcessor.from_pretrained(kit.folder)) is type(kit.extractor)


@recipe
def model_from_config(kit, folder):
    assert AutoModelForAudioClassification.from_config(kit.model.config).config.num_labels == 3


@recipe
def other_number_of_labels(kit, folder):
    model = kit.classifier(num_labels=5, ignore_mismatched_sizes=True)
    assert logits(model, kit.inputs()).shape == (3, 5)


@recipe
def labels_of_the_guides_with_ids_as_strings(kit, folder):
    model = kit.classifier(label2id={n: str(i) for i, n in enumerate("xyz")}, id2label=dict(enumerate("xyz")))
    model.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).id2label == dict(enumerate("xyz"))


@recipe
def loading_info(kit, folder):
    _, info = kit.classifier(output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@recipe
def dtype_bfloat16(kit, folder):
    assert_same(kit.classifier(dtype=torch.bfloat16).float(), kit, 0.05)


@recipe
def dtype_auto(kit, folder):
    kit.classifier().half().save_pretrained(folder)
    assert AutoModel.from_pretrained(folder, dtype="auto").dtype is torch.float16


@recipe
def attention_chosen_at_loading(kit, folder):
    for implementation in ("eager", "sdpa"):
        assert_same(kit.classifier(attn_implementation=implementation), kit, 1e-5)


@recipe
def attention_changed_later(kit, folder):
    model = kit.classifier()
    model.set_attn_implementation("eager")
    assert_same(model, kit, 1e-5)


@recipe
def device_map_of_the_cpu(kit, folder):
    assert_same(kit.classifier(device_map="cpu"), kit)


@recipe
def subfolder(kit, folder):
    shutil.copytree(kit.folder, folder / "inside")
    model = AutoModelForAudioClassification.from_pretrained(folder, subfolder="inside")
    AutoFeatureExtractor.from_pretrained(folder, subfolder="inside")
    assert_same(model, kit)


@recipe
def shards(kit, folder):
    kit.model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_same(AutoModelForAudioClassification.from_pretrained(folder), kit)


@recipe
def variant(kit, folder):
    kit.model.save_pretrained(folder, variant="other")
    assert_same(AutoModelForAudioClassification.from_pretrained(folder, variant="other"), kit)


@recipe
def weights_in_pytorch_bin(kit, folder):
    kit.model.config.save_pretrained(folder)
    torch.save(kit.model.state_dict(), folder / "pytorch_model.bin")
    assert_same(AutoModelForAudioClassification.from_pretrained(folder), kit)


@recipe
def weights_from_a_state_dict(kit, folder):
    model = type(kit.model).from_pretrained(None, config=kit.model.config, state_dict=kit.model.state_dict())
    assert_same(model, kit)


@recipe
def state_dict_loaded_strictly(kit, folder):
    model = type(kit.model)(kit.model.config)
    model.load_state_dict(kit.model.state_dict())
    assert_same(model, kit)


@recipe
def saved_twice(kit, folder):
    for name in ("first", "second"):
        kit.model.save_pretrained(folder / name)
    assert (folder / "first" / "config.json").read_text() == (folder / "second" / "config.json").read_text()


@recipe
def config_to_dict_and_back(kit, folder):
    config = kit.model.config
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


@recipe
def config_changed_at_loading(kit, folder):
    assert kit.classifier(attention_dropout=0.3, layerdrop=0.0).config.attention_dropout == 0.3


@recipe
def config_with_a_key_of_ones_own(kit, folder):
    config = copy.deepcopy(kit.model.config)
    config.my_note = "x"
    config.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).my_note == "x"


@recipe
def subclass_with_another_loss(kit, folder):
    class Own(type(kit.model)):
        pass

    model = Own.from_pretrained(kit.folder)
    model.save_pretrained(folder)
    assert_same(Own.from_pretrained(folder), kit)


# The forward pass


@recipe
def output_as_a_tuple(kit, folder):
    assert torch.equal(kit.model(kit.inputs(), return_dict=False)[0], kit.model(kit.inputs()).logits)


@recipe
def hidden_states_and_attentions(kit, folder):
    output = kit.classifier(attn_implementation="eager")(
        kit.inputs(), output_hidden_states=True, output_attentions=True
    )
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)


@recipe
def hidden_states_by_the_config(kit, folder):
    assert len(kit.classifier(output_hidden_states=True)(kit.inputs()).hidden_states) == 3


@recipe
def loss_of_class_numbers(kit, folder):
    labels = torch.tensor([0, 1, 2])
    output = kit.model(kit.inputs(), labels=labels)
    scores = output.logits.detach().double().numpy()
    own = scores[np.arange(3), labels]
    per_row = np.log(np.exp(scores).sum(axis=1)) - own
    assert scores.std() > 0.1
    assert output.loss.item() == pytest.approx(per_row.mean(), abs=1e-5)
    one_unknown = kit.model(kit.inputs(), labels=torch.tensor([0, -100, 2])).loss.item()
    assert one_unknown == pytest.approx(per_row[[0, 2]].mean(), abs=1e-5)


@recipe
def attention_mask(kit, folder):
    mask = torch.ones(3, SAMPLES, dtype=torch.long)
    expected = kit.model(kit.inputs()).logits
    torch.testing.assert_close(kit.model(kit.inputs(), attention_mask=mask).logits, expected, atol=1e-5, rtol=0)


@recipe
def a_row_alone_gives_what_it_gives_in_a_batch(kit, folder):
    batch = logits(kit.model, kit.inputs())
    torch.testing.assert_close(logits(kit.model, kit.inputs()[1:2]), batch[1:2], atol=1e-5, rtol=0)


@recipe
def evaluation_is_deterministic_and_training_is_not(kit, folder):
    model = kit.classifier(hidden_dropout=0.5)
    assert torch.equal(logits(model, kit.inputs()), logits(model, kit.inputs()))
    model.train()
    assert not torch.equal(model(kit.inputs()).logits, model(kit.inputs()).logits)


@recipe
def gradient_of_the_input(kit, folder):
    inputs = kit.inputs().requires_grad_(True)
    kit.model(inputs).logits.sum().backward()
    assert inputs.grad.abs().sum() > 0


@recipe
def autocast(kit, folder):
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(kit.model, kit.inputs()).isfinite().all()


@recipe
def threads(kit, folder):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: logits(kit.model, kit.inputs()), range(4)))
    assert all(torch.equal(each, found[0]) for each in found)


@recipe
def pickled(kit, folder):
    assert_same(pickle.loads(pickle.dumps(kit.classifier())), kit)


@recipe
def whole_model_saved_by_torch(kit, folder):
    buffer = io.BytesIO()
    torch.save(kit.classifier(), buffer)
    buffer.seek(0)
    assert_same(torch.load(buffer, weights_only=False), kit)


@recipe
def forward_hooks(kit, folder):
    model, seen = kit.classifier(), []
    model.base_model.encoder.layers[0].register_forward_hook(lambda *_: seen.append(1))
    logits(model, kit.inputs())
    assert seen == [1]


@recipe
def base_model_and_its_prefix(kit, folder):
    assert kit.model.base_model is getattr(kit.model, kit.model.base_model_prefix)
    assert kit.model.main_input_name == "input_values"


@recipe
def frozen_feature_encoder(kit, folder):
    model = kit.classifier()
    model.freeze_feature_encoder()
    assert not any(one.requires_grad for one in model.base_model.feature_extractor.parameters())


@recipe
def frozen_base_model(kit, folder):
    model = kit.classifier()
    model.freeze_base_model()
    assert {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad} >= {"classifier"}
    assert not any(one.requires_grad for one in model.base_model.parameters())


@recipe
def number_of_parameters(kit, folder):
    assert kit.model.num_parameters() == sum(one.numel() for one in kit.model.parameters())


@recipe
def gradient_checkpointing_switched_on_and_off(kit, folder):
    model = kit.classifier().train()
    model.gradient_checkpointing_enable()
    model(kit.inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@recipe
def dynamic_quantisation_of_torch(kit, folder):
    quantised = torch.ao.quantization.quantize_dynamic(kit.classifier(), {torch.nn.Linear}, dtype=torch.qint8)
    assert_same(quantised, kit, 0.2)


@recipe
def exported_by_torch(kit, folder):
    with torch.no_grad():
        program = torch.export.export(kit.model, (kit.inputs(),), strict=False)
        found = program.module()(kit.inputs())
    torch.testing.assert_close(found["logits"], logits(kit.model, kit.inputs()), atol=1e-5, rtol=0)


@recipe
def traced_and_saved(kit, folder):
    model, path = AutoModel.from_pretrained(kit.folder).eval(), str(folder / "traced.pt")
    torch.jit.save(torch.jit.trace(model, kit.inputs(), strict=False), path)
    found = torch.jit.load(path)(kit.inputs())["last_hidden_state"]
    torch.testing.assert_close(found, model(kit.inputs()).last_hidden_state, atol=1e-5, rtol=0)


# The feature extractor


@recipe
def extractor_to_model(kit, folder):
    arguments, more = kit.recording()
    assert kit.model(**kit.extractor(*arguments, **more, return_tensors="pt")).logits.shape == (1, 3)


@recipe
def extractor_output_moves_and_changes_type(kit, folder):
    arguments, more = kit.recording()
    output = kit.extractor(*arguments, **more, return_tensors="pt").to("cpu", torch.bfloat16)
    assert output.input_values.dtype is torch.bfloat16


@recipe
def extractor_of_several(kit, folder):
    (signal,), more = kit.recording()
    assert len(kit.extractor([signal, signal], **more, return_tensors="np")["input_values"]) == 2


@recipe
def extractor_saved_and_loaded(kit, folder):
    kit.extractor.save_pretrained(folder)
    assert AutoFeatureExtractor.from_pretrained(folder).to_dict() == kit.extractor.to_dict()
    assert type(kit.extractor).from_dict(kit.extractor.to_dict()).to_dict() == kit.extractor.to_dict()


@recipe
def extractor_in_a_batched_map(kit, folder):
    (signal,), more = kit.recording()
    rows = Dataset.from_dict({"signal": [signal.tolist()] * 3})

    def extract(batch):
        return kit.extractor([np.asarray(one) for one in batch["signal"]], **more)

    assert len(rows.map(extract, batched=True, remove_columns="signal")) == 3


@recipe
def extractor_of_another_sampling_rate_is_an_error_without_its_name(kit, folder):
    arguments, more = kit.recording()
    del more["sampling_rate"]
    kit.extractor(*arguments, **more)


# Pipelines


@recipe
def pipeline_by_path(kit, folder):
    assert pipeline(kit.task, model=str(kit.folder))(kit.pipeline_input())


@recipe
def pipeline_of_objects(kit, folder):
    pipe = pipeline(kit.task, model=kit.classifier(), feature_extractor=kit.extractor)
    assert pipe(kit.pipeline_input())


@recipe
def pipeline_of_lists_and_batches(kit, folder):
    pipe = pipeline(kit.task, model=str(kit.folder))
    assert len(pipe([kit.pipeline_input(i) for i in range(3)], batch_size=2)) == 3


@recipe
def pipeline_of_a_generator(kit, folder):
    pipe = pipeline(kit.task, model=str(kit.folder))
    assert len(list(pipe(kit.pipeline_input(i) for i in range(3)))) == 3


@recipe
def pipeline_saved_and_loaded(kit, folder):
    pipeline(kit.task, model=str(kit.folder)).save_pretrained(folder)
    assert pipeline(kit.task, model=str(folder))(kit.pipeline_input())


@recipe
def pipeline_top_k(kit, folder):
    assert len(pipeline(kit.task, model=str(kit.folder))(kit.pipeline_input(), top_k=2)) == 2


@recipe
def pipeline_for_audio(kit, folder):
    pipeline("audio-classification", model=str(kit.folder))


@recipe
def pipeline_for_audio_of_a_loaded_model(kit, folder):
    audio = pipeline("audio-classification", model=kit.classifier(), feature_extractor=kit.extractor)
    audio(kit.pipeline_input().get("raw", kit.recording()[0][0]))


@recipe
def pipeline_for_features(kit, folder):
    pipeline("feature-extraction", model=str(kit.folder))


# The Trainer


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@recipe
def trainer_trains_evaluates_and_predicts(kit, folder):
    trainer = kit.trainer(folder, compute_metrics=accuracy)
    before = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.classifier.weight, before)
    assert "eval_accuracy" in trainer.evaluate()
    assert trainer.predict(kit.rows(4).remove_columns("labels")).predictions.shape == (4, 3)


@recipe
def trainer_checkpoint_loads_as_a_model_and_extractor(kit, folder):
    kit.trainer(folder, save_strategy="steps", save_steps=2, processing_class=kit.extractor).train()
    checkpoint = folder / "checkpoint-2"
    assert AutoModelForAudioClassification.from_pretrained(checkpoint).config.num_labels == 3
    assert type(AutoFeatureExtractor.from_pretrained(checkpoint)) is type(kit.extractor)


@recipe
def trainer_resumes_exactly(kit, folder):
    whole = kit.trainer(folder / "whole", max_steps=4, seed=1)
    whole.train()
    kit.trainer(folder / "parts", max_steps=4, seed=1, save_strategy="steps", save_steps=2).train()
    shutil.rmtree(folder / "parts" / "checkpoint-4")
    again = kit.trainer(folder / "parts", max_steps=4, seed=1)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(again.model.classifier.weight, whole.model.classifier.weight)


@recipe
def trainer_keeps_the_best_model(kit, folder):
    trainer = kit.trainer(
        folder,
        compute_metrics=accuracy,
        callbacks=[EarlyStoppingCallback(1)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint


@recipe
def trainer_saves_a_model_folder(kit, folder):
    trainer = kit.trainer(folder / "run", processing_class=kit.extractor)
    trainer.train()
    trainer.save_model(folder / "saved")
    assert pipeline(kit.task, model=str(folder / "saved"))(kit.pipeline_input())


@recipe
def trainer_in_bfloat16(kit, folder):
    kit.trainer(folder, bf16=True).train()


@recipe
def trainer_with_checkpointing(kit, folder):
    for reentrant in (False, True):
        kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        kit.trainer(folder, **kwargs).train()


@recipe
def trainer_with_accumulation(kit, folder):
    trainer = kit.trainer(folder, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert trainer.train().global_step == 2


@recipe
def trainer_with_label_smoothing(kit, folder):
    kit.trainer(folder, label_smoothing_factor=0.1).train()


@recipe
def trainer_with_a_model_init(kit, folder):
    kit.trainer(folder, model_init=lambda: kit.classifier()).train()


@recipe
def trainer_with_ones_own_optimizer(kit, folder):
    model = kit.classifier()
    kit.trainer(folder, model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None)).train()


@recipe
def trainer_with_adafactor_and_a_schedule(kit, folder):
    kit.trainer(folder, optim="adafactor", lr_scheduler_type="cosine", warmup_steps=1).train()


@recipe
def trainer_leaves_unknown_columns_out(kit, folder):
    kit.trainer(folder, rows=kit.rows().add_column("note", ["x"] * 8).with_format("torch")).train()


@recipe
def trainer_learns_several_labels(kit, folder):
    rows = Dataset.from_dict({"input_values": kit.inputs(8).numpy(), "labels": [[0.0, 1.0, 0.0]] * 8})
    model = kit.classifier(problem_type="multi_label_classification")
    kit.trainer(folder, model=model, rows=rows.with_format("torch"), eval_strategy="no").train()


@recipe
def trainer_infers_the_problem_type(kit, folder):
    model = kit.classifier(problem_type=None)
    kit.trainer(folder, model=model).train()
    assert model.config.problem_type == "single_label_classification"


# PEFT


def round_trip(kit, folder, config):
    model = peft.get_peft_model(kit.classifier(), config).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(2):
        model(input_values=kit.inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = logits(model, kit.inputs())
    assert not torch.equal(expected, logits(kit.model, kit.inputs()))
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(kit.classifier(), folder)
    assert torch.equal(logits(again, kit.inputs()), expected)
    torch.testing.assert_close(logits(again.merge_and_unload(), kit.inputs()), expected, atol=1e-4, rtol=0)


@recipe
def peft_lora(kit, folder):
    round_trip(kit, folder, peft.LoraConfig(target_modules=ATTENTION, modules_to_save=["classifier"]))


@recipe
def peft_dora(kit, folder):
    round_trip(kit, folder, peft.LoraConfig(target_modules=ATTENTION, use_dora=True))


@recipe
def peft_all_linear(kit, folder):
    round_trip(kit, folder, peft.LoraConfig(target_modules="all-linear", modules_to_save=["classifier"]))


@recipe
def peft_ia3(kit, folder):
    targets = ["k_proj", "output_dense"]
    round_trip(kit, folder, peft.IA3Config(target_modules=targets, feedforward_modules=["output_dense"]))


@recipe
def peft_of_layer_norms(kit, folder):
    round_trip(kit, folder, peft.LNTuningConfig(target_modules=["layer_norm"]))


@recipe
def peft_task_type_of_sequences(kit, folder):
    round_trip(kit, folder, peft.LoraConfig(task_type="SEQ_CLS", target_modules=ATTENTION))


@recipe
def peft_of_the_position_convolution(kit, folder):
    model = peft.get_peft_model(kit.classifier(), peft.LoraConfig(target_modules=["pos_conv_embed.conv"])).train()
    model(input_values=kit.inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert any(one.grad is not None for one in model.parameters())


@recipe
def peft_merge_of_the_position_convolution(kit, folder):
    peft.get_peft_model(kit.classifier(), peft.LoraConfig(target_modules=["pos_conv_embed.conv"])).merge_and_unload()


@recipe
def peft_adapter_of_transformers(kit, folder):
    model = kit.classifier()
    model.add_adapter(peft.LoraConfig(target_modules=ATTENTION))
    model.save_pretrained(folder)
    assert "adapter_model.safetensors" in {path.name for path in folder.iterdir()}


@recipe
def peft_folder_in_auto_classes(kit, folder):
    model = peft.get_peft_model(kit.classifier(), peft.LoraConfig(target_modules=ATTENTION))
    model.save_pretrained(folder)
    config = peft.PeftConfig.from_pretrained(folder)
    config.base_model_name_or_path = str(kit.folder)
    config.save_pretrained(folder)
    assert_same(AutoModelForAudioClassification.from_pretrained(folder), kit)


@recipe
def peft_auto_model(kit, folder):
    model = peft.get_peft_model(kit.classifier(), peft.LoraConfig(target_modules=ATTENTION))
    model.peft_config["default"].base_model_name_or_path = str(kit.folder)
    model.save_pretrained(folder)
    assert peft.AutoPeftModel.from_pretrained(folder)


@recipe
def peft_in_the_trainer_with_checkpointing(kit, folder):
    model = peft.get_peft_model(kit.classifier(), peft.LoraConfig(target_modules=ATTENTION))
    kit.trainer(
        folder,
        model=model,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    ).train()
    assert all(one.abs().max() > 0 for name, one in model.named_parameters() if "lora_B" in name)


# accelerate


@recipe
def offload_to_the_cpu(kit, folder):
    assert_same(accelerate.cpu_offload(kit.classifier(), execution_device="cpu"), kit, 1e-5)


@recipe
def offload_to_the_disk(kit, folder):
    assert_same(accelerate.disk_offload(kit.classifier(), folder, execution_device="cpu"), kit, 1e-5)


@recipe
def device_map_with_the_disk(kit, folder):
    assert_same(kit.classifier(device_map={"": "disk"}, offload_folder=str(folder)), kit, 1e-5)


@recipe
def empty_weights_filled_from_a_folder(kit, folder):
    with accelerate.init_empty_weights():
        model = AutoModelForAudioClassification.from_config(kit.model.config)
    weights = kit.folder / "model.safetensors"
    assert_same(accelerate.load_checkpoint_and_dispatch(model, str(weights), device_map={"": "cpu"}), kit, 1e-5)


@recipe
def training_loop_of_accelerate(kit, folder):
    accelerator = accelerate.Accelerator(cpu=True)
    model = kit.classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(kit.rows(), batch_size=4))
    for batch in loader:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.unwrap_model(model).save_pretrained(folder, save_function=accelerator.save)
    assert AutoModelForAudioClassification.from_pretrained(folder).config.num_labels == 3


# By recipe and model: the error's type, a part of its message, and the reason.
_TOKENIZER = "Wav2Vec2 has a processor with a tokenizer, which a folder of a classifier does not have"
_NO_TASK = "takes no recordings with named leads"
DIFFERENCES = {
    ("auto_processor", "wav2vec2"): (Exception, "", _TOKENIZER),
    ("pipeline_for_features", "wav2vec2"): (Exception, "", _TOKENIZER),
    ("pipeline_for_features", "ecgfm"): (ValueError, _NO_TASK, "the pipeline of transformers takes text"),
    ("pipeline_for_audio", "ecgfm"): (ValueError, _NO_TASK, "the pipeline of transformers takes one channel"),
    ("pipeline_for_audio_of_a_loaded_model", "ecgfm"): (
        ValueError,
        "single channel audio",
        "transformers asks neither a loaded model nor its config before its own check; it logs that the model is not "
        "supported",
    ),
    ("pipeline_top_k", "ecgfm"): (TypeError, "top_k", "a recording has all its scores; a cut list hides labels"),
    ("extractor_of_another_sampling_rate_is_an_error_without_its_name", "ecgfm"): (
        TypeError,
        "sampling_rate",
        "a sampling rate is never guessed; Wav2Vec2 logs a warning",
    ),
    ("pickled", "wav2vec2"): (RuntimeError, "parametrized", "torch cannot pickle weight norm; ECG-FM pickles its own"),
    ("whole_model_saved_by_torch", "wav2vec2"): (RuntimeError, "parametrized", "as above"),
    ("trainer_learns_several_labels", "wav2vec2"): (
        ValueError,
        "batch_size",
        "Wav2Vec2 has no multi-label loss",
    ),
    ("trainer_infers_the_problem_type", "wav2vec2"): (AssertionError, "", "Wav2Vec2 ignores the problem type"),
    ("peft_folder_in_auto_classes", "wav2vec2"): (ValueError, "adapter_attn_dim", "Wav2Vec2 has other adapters"),
    ("peft_auto_model", "ecgfm"): (ValueError, "allowlist", "PEFT imports other packages only if they are allowed"),
    ("peft_merge_of_the_position_convolution", "ecgfm"): (NotImplementedError, "groups", "PEFT's limit, as below"),
    ("peft_merge_of_the_position_convolution", "wav2vec2"): (NotImplementedError, "groups", "PEFT's limit"),
}


# By recipe: the transformers from which it works with either model, and the reason.
_SINCE = {"device_map_with_the_disk": ("5.23", "transformers 5.12 and older leave weights on the meta device")}

# Those of several seconds.
_SLOW = (
    *("exported_by_torch", "trainer_resumes_exactly", "trainer_keeps_the_best_model", "trainer_with_checkpointing"),
    "trainer_saves_a_model_folder",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in RECIPES]
)
@pytest.mark.parametrize("which", ["ecgfm", "wav2vec2"])
def test_recipe(which, name, kits, tmp_path):
    torch.manual_seed(0)
    if (name, which) == ("peft_auto_model", "ecgfm") and Version(peft.__version__) < Version("0.20"):
        pytest.skip("older versions of PEFT import every package")
    since, reason = _SINCE.get(name, ("0", ""))
    if Version(transformers.__version__) < Version(since):
        pytest.skip(reason)
    if (which, name)[::-1] not in DIFFERENCES:
        RECIPES[name](kits[which], tmp_path)
        return
    error, message, _ = DIFFERENCES[name, which]
    with pytest.raises(error, match=message):
        RECIPES[name](kits[which], tmp_path)


def test_there_are_at_least_sixty_recipes_and_every_difference_is_of_one():
    assert len(RECIPES) >= 60
    assert {name for name, _ in DIFFERENCES} <= RECIPES.keys()
