"""What the models promise beyond the original's numbers."""

import copy
import logging
import math

import pytest
import torch
from goldens import golden, scaled_difference
from torch import nn

from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel
from ecgfm_hf.fairseq import build_model, config_from_checkpoint, load_fairseq_checkpoint


@pytest.fixture
def classifier(checkpoint_path):
    source = load_fairseq_checkpoint(checkpoint_path("finetune"))
    return build_model(source, config_from_checkpoint(source))


def pretraining_inputs(batch=4, samples=400, masked=9):
    frames = ECGFMConfig().num_frames(samples)
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(frames)[:masked]] = True
    return {
        "input_values": torch.randn(batch, 12, samples),
        "mask_time_indices": mask,
        "patient_ids": torch.arange(batch) // 2,
        "segment_ids": torch.arange(batch) % 2,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Nothing random in evaluation
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_evaluation_is_deterministic_and_masks_nothing(tiny_config):
    model, x = ECGFMForPreTraining(tiny_config()).eval(), torch.randn(2, 12, 400)
    first = model(x)
    torch.manual_seed(99)
    assert torch.equal(first.last_hidden_state, model(x).last_hidden_state)
    assert torch.equal(first.last_hidden_state, model.ecgfm(x).last_hidden_state)
    assert first.loss is None


@torch.no_grad()
def test_training_mode_masks_only_what_it_is_given(tiny_config):
    model = ECGFMModel(tiny_config(hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0)).train()
    x = torch.randn(2, 12, 400)
    assert torch.equal(model(x).last_hidden_state, model.eval()(x).last_hidden_state)


@torch.no_grad()
def test_prediction_does_not_see_the_masked_frames(tiny_config):
    model = ECGFMModel(tiny_config(feat_extract_norm="layer")).eval()
    x = torch.randn(1, 12, 400)
    mask = torch.zeros(1, 25, dtype=torch.bool)
    mask[0, 5:9] = True
    changed = x.clone()
    changed[:, :, 5 * 16 : 9 * 16] += 10.0
    found = [model(values, mask_time_indices=mask).last_hidden_state for values in (x, changed)]
    assert torch.allclose(*found, atol=1e-6)
    assert not torch.allclose(model(x).last_hidden_state, model(changed).last_hidden_state, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# Pretraining
# ----------------------------------------------------------------------------------------------------------------------


def test_sampled_negatives_are_other_masked_frames_equally_often(tiny_config):
    model = ECGFMForPreTraining(tiny_config(num_negatives=4000))
    negatives = model._sample_negatives(2, 5, torch.device("cpu"))
    assert negatives.shape == (2, 5, 4000)
    for frame in range(5):
        counts = torch.bincount(negatives[:, frame].flatten(), minlength=5)
        assert counts[frame] == 0
        others = counts[torch.arange(5) != frame].float() / 8000
        assert torch.allclose(others, torch.full((4,), 0.25), atol=0.03)


def test_loss_parts_add_up_and_every_weight_learns(tiny_config):
    model = ECGFMForPreTraining(tiny_config()).train()
    output = model(**pretraining_inputs())
    parts = output.contrastive_loss + output.diversity_loss + output.feature_penalty + output.cmsc_loss
    assert output.loss.item() == pytest.approx(parts.item())
    assert int(output.num_masked_frames) == 36
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_tuple_of_pretraining_begins_with_the_loss(tiny_config):
    model, inputs = ECGFMForPreTraining(tiny_config()).eval(), pretraining_inputs()
    inputs["sampled_negative_indices"] = model._sample_negatives(4, 9, torch.device("cpu"))
    assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).loss)


def test_without_patients_cmsc_is_left_out(tiny_config):
    inputs = pretraining_inputs()
    del inputs["patient_ids"], inputs["segment_ids"]
    output = ECGFMForPreTraining(tiny_config()).eval()(**inputs)
    assert output.cmsc_loss is None
    parts = output.contrastive_loss + output.diversity_loss + output.feature_penalty
    assert output.loss.item() == pytest.approx(parts.item())


def test_a_negative_with_the_codes_of_its_target_does_not_count(tiny_config):
    model = ECGFMForPreTraining(tiny_config())
    predictions = targets = torch.nn.functional.normalize(torch.randn(1, 3, 16), dim=-1)
    codes = torch.tensor([[[0, 0], [0, 0], [1, 0]]])
    loss, accuracy = model._contrastive_loss(predictions, targets, codes, torch.tensor([[[1], [0], [0]]]))
    # Frames 0 and 1 share their codes, so only frame 2 has a negative that counts.
    similarity = (targets[0, 2] @ targets[0, 0]).item() / 0.1
    expected = math.log(1 + math.exp(similarity - 10)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert accuracy.item() == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_ids": None}, "patient_ids and segment_ids go together"),
        ({"segment_ids": torch.zeros(4)}, "no such pair"),
        ({"mask_time_indices": torch.zeros(4, 25, dtype=torch.bool)}, "at least 2 frames"),
        ({"mask_time_indices": torch.rand(4, 25) > torch.rand(4, 1)}, "same number of frames"),
        ({"mask_time_indices": torch.zeros(4, 24, dtype=torch.bool)}, r"\(4, 25\)"),
        ({"sampled_negative_indices": torch.zeros(4, 8, 10).long()}, r"\(4, 9, \.\.\.\)"),
        ({"sampled_negative_indices": torch.full((4, 9, 10), 9)}, "0 to 8"),
    ],
)
def test_wrong_pretraining_inputs_are_named(tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        ECGFMForPreTraining(tiny_config())(**{**pretraining_inputs(), **change})


def test_feature_gradient_multiplier_scales_only_the_convolutions(tiny_config):
    inputs = pretraining_inputs()
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0}
    gradients = {}
    model = ECGFMForPreTraining(tiny_config(**quiet))
    for factor in (1.0, 0.1, 0.0):
        scaled = ECGFMForPreTraining(tiny_config(**quiet, feature_grad_multiplier=factor)).eval()
        scaled.load_state_dict(model.state_dict())
        torch.manual_seed(1)
        scaled(**inputs).loss.backward()
        gradients[factor] = {name: parameter.grad for name, parameter in scaled.named_parameters()}
    for name, whole in gradients[1.0].items():
        convolution = name.startswith("ecgfm.feature_extractor.")
        if convolution:
            assert name not in gradients[0.0] or gradients[0.0][name] is None, name
            assert torch.allclose(gradients[0.1][name], 0.1 * whole, rtol=1e-4, atol=1e-7), name
        elif whole is not None:
            assert torch.allclose(gradients[0.1][name], whole, rtol=1e-4, atol=1e-6), name


def test_gradient_checkpointing_changes_no_gradient(tiny_config):
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0}
    plain = ECGFMForPreTraining(tiny_config(**quiet)).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable()
    inputs = pretraining_inputs()
    for model in (plain, saving):
        torch.manual_seed(5)
        model(**inputs).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-7), name


# ----------------------------------------------------------------------------------------------------------------------
# Classification
# ----------------------------------------------------------------------------------------------------------------------


def test_unknown_targets_are_left_out_of_the_loss(tiny_config):
    model, x = ECGFMForMultiLabelClassification(tiny_config()).eval(), torch.randn(2, 12, 400)
    nan = float("nan")
    labels = torch.tensor([[1.0, nan, 0.0], [nan, nan, 1.0]])
    output = model(x, labels=labels)
    probability = output.logits.sigmoid()
    known = [probability[0, 0], 1 - probability[0, 2], probability[1, 2]]
    assert output.loss.item() == pytest.approx(-sum(p.log().item() for p in known) / 3, rel=1e-5)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model(x, labels=torch.full((2, 3), nan)).loss.item() == 0.0


def test_pos_weight_weighs_positive_targets(tiny_config):
    model = ECGFMForMultiLabelClassification(tiny_config(pos_weight=[5.0, 1.0, 1.0])).eval()
    x, labels = torch.randn(1, 12, 400), torch.tensor([[1.0, 1.0, 0.0]])
    output = model(x, labels=labels)
    p = output.logits.sigmoid()[0].tolist()
    assert output.loss.item() == pytest.approx(
        -(5 * math.log(p[0]) + math.log(p[1]) + math.log(1 - p[2])) / 3, rel=1e-5
    )


def test_single_label_and_regression_losses(tiny_config):
    x = torch.randn(3, 12, 400)
    single = ECGFMForMultiLabelClassification(tiny_config(problem_type="single_label_classification")).eval()
    output = single(x, labels=torch.tensor([0, -100, 2]))
    log = output.logits.log_softmax(-1)
    assert output.loss.item() == pytest.approx(-(log[0, 0] + log[2, 2]).item() / 2, rel=1e-5)
    one = tiny_config(problem_type="regression", id2label={0: "LVEF"}, label2id={"LVEF": 0})
    regression = ECGFMForMultiLabelClassification(one).eval()
    labels = torch.tensor([1.0, float("nan"), 3.0])
    output = regression(x, labels=labels)
    expected = ((output.logits[0, 0] - 1) ** 2 + (output.logits[2, 0] - 3) ** 2) / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert regression(x, labels=labels[:, None]).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("labels", [torch.zeros(2), torch.zeros(3, 2), torch.zeros(2, 4)])
def test_labels_of_the_wrong_shape_are_named(tiny_config, labels):
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 3\)"):
        ECGFMForMultiLabelClassification(tiny_config())(torch.randn(2, 12, 400), labels=labels)


def test_the_shape_of_the_labels_chooses_the_problem_type_where_the_config_does_not(tiny_config):
    x = torch.randn(2, 12, 400)
    numbers = torch.tensor([2, 0])
    model = ECGFMForMultiLabelClassification(tiny_config(label_thresholds={"A": 0.5})).eval()
    several = torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert torch.equal(model(x, labels=several).loss, model(x, labels=several.float()).loss)
    assert model.config.problem_type is None
    expected = nn.functional.cross_entropy(model(x).logits, numbers)
    torch.testing.assert_close(model(x, labels=numbers).loss, expected)
    assert model.config.problem_type == "single_label_classification"
    assert model.config.label_thresholds is None
    one = ECGFMForMultiLabelClassification(tiny_config(id2label={0: "A"}, label2id={"A": 0})).eval()
    targets = torch.tensor([1.0, 0.0])
    assert torch.equal(one(x, labels=targets).loss, one(x, labels=targets[:, None]).loss)


@pytest.mark.parametrize("wrong", [-100.0, -0.1, 1.5, 2.0, float("inf")])
def test_multi_label_targets_outside_0_to_1_are_refused_and_nan_is_unknown(tiny_config, wrong):
    model = ECGFMForMultiLabelClassification(tiny_config()).eval()
    labels = torch.tensor([[0.0, 1.0, float("nan")], [0.25, wrong, 1.0]])
    with pytest.raises(ValueError, match=f"between 0 and 1, or NaN where unknown; found: {wrong:g}"):
        model(torch.randn(2, 12, 400), labels=labels)
    labels[1, 1] = float("nan")
    assert model(torch.randn(2, 12, 400), labels=labels).loss.isfinite()


def test_class_numbers_with_fractions_are_refused(tiny_config):
    model = ECGFMForMultiLabelClassification(tiny_config(problem_type="single_label_classification")).eval()
    x = torch.randn(2, 12, 400)
    with pytest.raises(ValueError, match=r"whole class numbers, or -100 where unknown; found: 1\.7"):
        model(x, labels=torch.tensor([1.0, 1.7]))
    assert torch.equal(model(x, labels=torch.tensor([1.0, 2.0])).loss, model(x, labels=torch.tensor([1, 2])).loss)


def test_training_drops_thresholds_and_calibration_of_the_weights_before_it(tiny_config):
    fitted = {"label_thresholds": {"A": 0.5}, "label_calibration": {"A": {"slope": 1.0, "intercept": 0.0}}}
    model = ECGFMForMultiLabelClassification(tiny_config(pos_weight=[1.0, 2.0, 3.0], **fitted))
    x, labels = torch.randn(2, 12, 400), torch.ones(2, 3)
    model.eval()(x, labels=labels)
    assert model.config.label_thresholds == fitted["label_thresholds"]
    model.train()(x, labels=labels)
    assert model.config.label_thresholds is model.config.label_calibration is None
    assert model.config.pos_weight == [1.0, 2.0, 3.0]


FITTED = {"label_thresholds": {"A": 0.5}, "label_calibration": {"A": {"slope": 1.0, "intercept": 0.0}}}


@pytest.fixture
def fitted(tiny_config, tmp_path):
    """A folder of a classifier with thresholds and calibration."""
    ECGFMForMultiLabelClassification(tiny_config(**FITTED)).save_pretrained(tmp_path / "fitted")
    return tmp_path / "fitted"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds_and_calibration_stay_with_their_weights_in_any_precision(fitted, dtype, tmp_path):
    model = ECGFMForMultiLabelClassification.from_pretrained(fitted, dtype=dtype)
    assert model.config.label_thresholds == FITTED["label_thresholds"]
    model.save_pretrained(tmp_path / "again")
    again = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert {name: getattr(again.config, name) for name in FITTED} == FITTED


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_thresholds_and_calibration_of_other_weights_are_dropped(fitted, optimizer, tmp_path):
    model = ECGFMForMultiLabelClassification.from_pretrained(fitted).train()
    # A loss of the user's own, of which the model learns nothing.
    model(torch.randn(2, 12, 400)).logits.square().sum().backward()
    optimizer(model.parameters(), lr=1e-3 if optimizer is torch.optim.SGD else 1e-5).step()
    model.save_pretrained(tmp_path / "trained")
    trained = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "trained")
    assert trained.config.label_thresholds is trained.config.label_calibration is None
    trained.config.label_thresholds = {"A": 0.25}
    trained.save_pretrained(tmp_path / "fitted again")
    again = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "fitted again")
    assert again.config.label_thresholds == {"A": 0.25}


def test_thresholds_of_an_encoder_that_was_trained_under_a_frozen_head_are_dropped_with_one_warning(
    fitted, tmp_path, caplog
):
    model = ECGFMForMultiLabelClassification.from_pretrained(fitted).train()
    model.classifier.requires_grad_(False)
    model(torch.randn(2, 12, 400)).logits.square().sum().backward()  # not the model's own loss
    torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5).step()
    model.save_pretrained(tmp_path / "trained")
    trained = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "trained")
    assert trained.config.label_thresholds is trained.config.label_calibration is None
    assert [record.getMessage() for record in caplog.records] == [
        "label_thresholds, label_calibration dropped from the config: not made for these weights: scores are neither "
        "calibrated nor judged"
    ]
    assert torch.equal(
        trained.classifier.weight, ECGFMForMultiLabelClassification.from_pretrained(fitted).classifier.weight
    )


def test_thresholds_are_dropped_where_an_adapter_of_the_encoder_is_active_or_merged(fitted, tmp_path):
    peft = pytest.importorskip("peft")
    model = ECGFMForMultiLabelClassification.from_pretrained(fitted)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert merged.config.label_thresholds == FITTED["label_thresholds"]  # until they are used
    for model in (ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "merged"), merged):
        model.check_fitted()  # as the pipeline does
        assert model.config.label_thresholds is model.config.label_calibration is None
    adapted = peft.get_peft_model(
        ECGFMForMultiLabelClassification.from_pretrained(fitted), peft.LoraConfig(target_modules=["q_proj"], r=2)
    )
    adapted.check_fitted()
    assert adapted.config.label_thresholds is None


def test_thresholds_stay_with_int8_and_change_with_what_int8_leaves(fitted, caplog):
    pytest.importorskip("torchao")
    from ecgfm_hf.utils.precision import with_precision

    model = with_precision(ECGFMForMultiLabelClassification.from_pretrained(fitted), "int8")
    model.check_fitted()
    assert model.config.label_thresholds == FITTED["label_thresholds"]
    assert not caplog.records
    with torch.no_grad():
        model.classifier.bias += 1e-2
    model.check_fitted()
    assert model.config.label_thresholds is None


def test_weights_that_changed_before_int8_lose_their_thresholds_and_a_quantised_folder_warns(fitted, caplog):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    from ecgfm_hf.utils.precision import with_precision

    logging.Logger.warning_once.cache_clear()  # transformers' own
    model = ECGFMForMultiLabelClassification.from_pretrained(fitted)
    with torch.no_grad():
        model.ecgfm.encoder.layers[0].attention.q_proj.weight += 1e-2  # as a merged adapter
    assert with_precision(model, "int8").config.label_thresholds is None
    assert "dropped from the config: not made for these weights" in caplog.text
    how = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    quantised = ECGFMForMultiLabelClassification.from_pretrained(fitted, quantization_config=how)
    assert quantised.config.label_thresholds == FITTED["label_thresholds"]
    assert "compared with biases and norms only" in caplog.text


def test_the_trainer_drops_thresholds_with_one_warning_and_answers_are_scores(fitted, tmp_path, caplog):
    from transformers import Trainer, TrainingArguments

    from ecgfm_hf.inference.model_runner import UNCALIBRATED, score_note

    data = [{"input_values": torch.randn(12, 400), "labels": torch.ones(3)} for _ in range(2)]
    arguments = TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(ECGFMForMultiLabelClassification.from_pretrained(fitted), arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    trained = ECGFMForMultiLabelClassification.from_pretrained(tmp_path / "trained")
    assert trained.config.label_thresholds is trained.config.label_calibration is None
    assert score_note(trained.config) == UNCALIBRATED
    assert [record.getMessage() for record in caplog.records if "label_thresholds" in record.getMessage()] == [
        "label_thresholds, label_calibration dropped from the config: not made for weights that are trained further"
    ]


def test_embedding_comes_on_request(tiny_config):
    model, x = ECGFMForMultiLabelClassification(tiny_config()).eval(), torch.randn(2, 12, 400)
    assert model(x).pooler_output is None
    assert torch.equal(model(x, output_pooler_output=True).pooler_output, model.ecgfm(x).pooler_output)


def test_classifier_leaves_no_trainable_weight_without_gradient(tiny_config):
    model = ECGFMForMultiLabelClassification(tiny_config()).train()
    model(torch.randn(2, 12, 400), labels=torch.ones(2, 3)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_frozen_convolutions_are_not_trainable_and_let_the_inputs_gradient_through(tiny_config, tmp_path):
    model = ECGFMForMultiLabelClassification(tiny_config(feature_grad_multiplier=0.0))
    model.save_pretrained(tmp_path)
    for frozen in (model, ECGFMForMultiLabelClassification.from_pretrained(tmp_path)):
        trainable = [name for name, parameter in frozen.named_parameters() if parameter.requires_grad]
        assert not any("feature_extractor" in name for name in trainable)
        x = torch.randn(2, 12, 400, requires_grad=True)
        frozen.train()(x, labels=torch.ones(2, 3)).loss.backward()
        assert [n for n, p in frozen.named_parameters() if p.requires_grad and p.grad is None] == []
        assert x.grad.abs().sum() > 0


def test_trainer_accumulates_what_one_big_batch_gives(tiny_config, tmp_path):
    from transformers import Trainer, TrainingArguments

    quiet = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    start = ECGFMForMultiLabelClassification(tiny_config(**quiet))
    rows = [{"input_values": torch.randn(12, 400), "labels": torch.rand(3).round()} for _ in range(8)]
    weights = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            learning_rate=1.0,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        weights.append(model.classifier.weight.detach())
    assert not torch.allclose(weights[0], start.classifier.weight, atol=1e-3)
    assert torch.allclose(*weights, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Shapes
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("leads", [1, 2, 8, 12])
@pytest.mark.parametrize("samples", [16, 17, 250, 2500])
def test_any_leads_and_any_length_the_convolutions_admit(tiny_config, leads, samples):
    model = ECGFMModel(tiny_config(num_leads=leads)).eval()
    output = model(torch.randn(2, leads, samples))
    assert output.last_hidden_state.shape == (2, model.config.num_frames(samples), 32)
    assert output.pooler_output.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_values": torch.randn(2, 11, 400)}, r"12 leads.*\(2, 11, 400\)"),
        ({"input_values": torch.randn(12, 400)}, r"\(12, 400\)"),
        ({"input_values": torch.randn(2, 12, 15)}, "at least 16 samples, found: 15"),
        ({"input_values": torch.randn(2, 12, 400), "attention_mask": torch.ones(2, 25)}, r"\(2, 25\)"),
    ],
)
def test_wrong_inputs_are_named(tiny_config, inputs, message):
    with pytest.raises(ValueError, match=message):
        ECGFMModel(tiny_config())(**inputs)


def test_masking_without_mask_embedding_is_an_error(tiny_config):
    model = ECGFMModel(tiny_config(mask_time_prob=0.0))
    assert model.masked_spec_embed is None
    with pytest.raises(ValueError, match="mask_time_prob = 0"):
        model(torch.randn(1, 12, 400), mask_time_indices=torch.zeros(1, 25, dtype=torch.bool))


@torch.no_grad()
def test_padding_of_nothing_changes_nothing(classifier):
    x = golden("tiny/a_finetune_eval")["source"]
    masked = classifier(x, attention_mask=torch.ones(x.shape[0], x.shape[2]))
    assert scaled_difference(masked.logits, classifier(x).logits) < 1e-6


@torch.no_grad()
def test_bfloat16_stays_near_float32(classifier):
    x = golden("tiny/a_finetune_eval")["source"]
    exact = classifier(x).logits.sigmoid()
    classifier.bfloat16()
    for attention in ("eager", "sdpa"):
        classifier.set_attn_implementation(attention)
        assert (classifier(x).logits.float().sigmoid() - exact).abs().max() < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        assert (classifier.float()(x).logits.float().sigmoid() - exact).abs().max() < 0.03


# ----------------------------------------------------------------------------------------------------------------------
# torch.export, torch.compile
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True], ids=["without mask", "with mask"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_classifier_exports(classifier, padded, attention):
    classifier.set_attn_implementation(attention)
    case = golden("tiny/b_finetune_padded")
    inputs = {"input_values": case["source"]}
    if padded:
        inputs["attention_mask"] = case["attention_mask"]
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(classifier, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    smaller = {name: value[:2] for name, value in inputs.items()}
    for given in (inputs, smaller):
        assert scaled_difference(program.module()(**given).logits, classifier(**given).logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True], ids=["without mask", "with mask"])
def test_classifier_compiles_as_one_graph(classifier, padded):
    case = golden("tiny/b_finetune_padded")
    inputs = {"input_values": case["source"]}
    if padded:
        inputs["attention_mask"] = case["attention_mask"]
    torch.compiler.reset()
    compiled = torch.compile(classifier, fullgraph=True)
    assert scaled_difference(compiled(**inputs).logits, classifier(**inputs).logits) < 1e-5
