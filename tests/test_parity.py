"""The model computes what the original code computes: frames, embeddings, logits, attention maps, losses, gradients."""

import pytest
import torch
from goldens import golden, recipe_weight, scaled_difference

from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification, ECGFMForPreTraining
from ecgfm_hf.fairseq import (
    build_model,
    config_from_checkpoint,
    convert_state_dict,
    load_fairseq_checkpoint,
    revert_state_dict,
)

OUTPUT, LOSS, GRADIENT, GRADIENT_FLOOR = 1e-5, 1e-4, 1e-4, 1e-6
NO_DROPOUT = (
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "feat_quantizer_dropout",
    "final_dropout",
)
VARIANTS = ("ln_first", "conv_bias", "latent_dim", "extractor_ln")
LOSS_PARTS = {
    "contrastive_loss": ("loss_0_infonce_sum", "loss_0"),
    "diversity_loss": ("loss_1_diversity_term", "loss_1"),
    "feature_penalty": ("loss_2_features_pen_term", "loss_2"),
    "cmsc_loss": ("loss_3_cmsc_term", "loss_3"),
}


@pytest.fixture
def load(checkpoint_path):
    """Loads a converted checkpoint by name, with other settings where given."""

    def load(name, **settings):
        source = load_fairseq_checkpoint(checkpoint_path(name))
        converted = config_from_checkpoint(source)
        for key, value in settings.items():
            setattr(converted.config, key, value)
        return build_model(source, converted)

    return load


@pytest.fixture(params=["eager", "sdpa"])
def attention(request):
    return request.param


@torch.no_grad()
def test_classifier_equals_the_original(load, attention):
    case, model = golden("tiny/a_finetune_eval"), load("finetune")
    model.set_attn_implementation(attention)
    output = model(case["source"], output_pooler_output=True, output_hidden_states=True)
    assert scaled_difference(output.logits, case["out"]) < OUTPUT
    assert scaled_difference(output.pooler_output, case["pooled"]) < OUTPUT
    assert scaled_difference(output.pooler_output, golden("tiny/a2_notebook_emb_saliency")["embs"]) < OUTPUT
    assert scaled_difference(output.hidden_states[0], case["h_encoder_layer_norm"]) < OUTPUT
    assert scaled_difference(output.hidden_states[1], case["h_layer0"]) < OUTPUT
    assert scaled_difference(output.hidden_states[-1], case["encoder_out"]) < OUTPUT


@torch.no_grad()
def test_attention_maps_equal_the_original(load, attention):
    case, model = golden("tiny/a_finetune_eval"), load("finetune")
    model.set_attn_implementation(attention)
    maps = torch.stack(model(case["source"][:1], output_attentions=True).attentions, dim=1).mean(dim=2)
    assert scaled_difference(maps, case["attn"]) < OUTPUT
    saliency = golden("tiny/a2_notebook_emb_saliency")["attn_max"][:1]
    assert scaled_difference(maps[:, -1].max(dim=-1).values, saliency) < OUTPUT


@torch.no_grad()
def test_padded_batch_equals_the_original(load, attention):
    case, model = golden("tiny/b_finetune_padded"), load("finetune")
    model.set_attn_implementation(attention)
    output = model(
        case["source"], attention_mask=case["attention_mask"], output_pooler_output=True, output_hidden_states=True
    )
    valid = ~case["frame_padding_mask"]
    assert scaled_difference(output.logits, case["out"]) < OUTPUT
    assert scaled_difference(output.pooler_output, case["pooled"]) < OUTPUT
    assert scaled_difference(output.hidden_states[-1][valid], case["encoder_out"][valid]) < OUTPUT


@torch.no_grad()
def test_attention_maps_of_a_padded_batch_equal_the_original(load):
    case, model = golden("tiny/b_finetune_padded"), load("finetune")
    maps = model(case["source"], attention_mask=case["attention_mask"], output_attentions=True).attentions
    assert scaled_difference(torch.stack(maps, dim=1).mean(dim=2)[:1], case["attn"]) < OUTPUT


@torch.no_grad()
def test_padding_safe_model_gives_a_padded_recording_what_it_gives_it_alone(load, attention):
    case, model = golden("tiny/b_finetune_padded"), load("finetune", padding_safe=True)
    model.set_attn_implementation(attention)
    output = model(case["source"], attention_mask=case["attention_mask"])
    assert scaled_difference(output.logits, case["out_alone"]) < OUTPUT
    # Whatever stands in the padding.
    noise = torch.randn_like(case["source"]).masked_fill(case["attention_mask"][:, None].bool(), 0.0)
    noisy = model(case["source"] + 5 * noise, attention_mask=case["attention_mask"])
    assert scaled_difference(noisy.logits, case["out_alone"]) < OUTPUT


@torch.no_grad()
@pytest.mark.parametrize("samples", [32, 33, 1000, 2499, 2501, 5000])
def test_other_lengths_equal_the_original(load, samples):
    case, model = golden("tiny/c_finetune_lengths"), load("finetune")
    output = model(case[f"source_{samples}"], output_pooler_output=True)
    assert scaled_difference(output.logits, case[f"out_{samples}"]) < OUTPUT
    assert scaled_difference(output.pooler_output, case[f"pooled_{samples}"]) < OUTPUT


@torch.no_grad()
def test_zero_leads_equal_the_original(load):
    case, model = golden("tiny/c_finetune_zero_input"), load("finetune")
    assert scaled_difference(model(case["source"]).logits, case["out"]) < OUTPUT


@torch.no_grad()
def test_pretrained_encoder_equals_the_original(load):
    case, model = golden("tiny/d_pretrain_features"), load("pretrain")
    output = model(case["source"])
    assert output.loss is None
    assert scaled_difference(output.last_hidden_state, case["x"]) < OUTPUT
    assert scaled_difference(output.extract_features, case["features"]) < OUTPUT
    padded = model(case["padded_source"], attention_mask=case["padded_attention_mask"])
    assert scaled_difference(padded.last_hidden_state, case["padded_x"]) < OUTPUT
    assert scaled_difference(padded.extract_features, case["padded_features"]) < OUTPUT


@torch.no_grad()
def test_quantizer_equals_the_original(load):
    case, model = golden("tiny/d_pretrain_features"), load("pretrain")
    quantized, codes, code_perplexity, prob_perplexity = model.quantizer(case["features"])
    assert torch.equal(codes, case["quant_targets"])
    assert scaled_difference(quantized, case["quant_x"]) < OUTPUT
    assert scaled_difference(code_perplexity, case["quant_code_perplexity"]) < OUTPUT
    assert scaled_difference(prob_perplexity, case["quant_prob_perplexity"]) < OUTPUT


def _pretraining_output(model, case, prefix="", **inputs):
    def get(key):
        return case[prefix + key] if prefix + key in case else case[key]

    source = "pair_source" if "pair_source" in case else prefix + "source"
    source = source if source in case else "source"
    mask = case[source.replace("source", "attention_mask")]
    return model(
        case[source],
        attention_mask=None if mask.all() else mask,
        mask_time_indices=get("mask_indices"),
        sampled_negative_indices=get("neg_idxs"),
        patient_ids=get("patient_id"),
        segment_ids=get("segment"),
        **inputs,
    )


def _assert_losses(output, case, prefix=""):
    num_masked = float(case[prefix + "sample_size"])
    assert int(output.num_masked_frames) == num_masked
    assert output.loss.item() * num_masked == pytest.approx(float(case[prefix + "loss"]), rel=LOSS)
    parts = [getattr(output, part) for part in LOSS_PARTS]
    assert sum(parts).item() == pytest.approx(output.loss.item(), rel=1e-6)
    for part, keys in LOSS_PARTS.items():
        expected = next(case[prefix + key] for key in keys if prefix + key in case)
        # A part that is 0 is compared on the scale of the whole.
        assert getattr(output, part).item() * num_masked == pytest.approx(
            float(expected), rel=LOSS, abs=1e-6 * float(case[prefix + "loss"])
        ), part
    for perplexity in ("code_perplexity", "prob_perplexity"):
        if prefix + perplexity in case:
            assert getattr(output, perplexity).item() == pytest.approx(float(case[prefix + perplexity]), rel=LOSS)
    if prefix + "correct" in case:
        accuracy = float(case[prefix + "correct"]) / float(case[prefix + "count"])
        assert float(output.contrastive_accuracy) == pytest.approx(accuracy)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("tiny/e_pretrain_eval_loss", ""),
        ("tiny/e_pretrain_eval_loss", "shared_"),
        ("tiny/e_pretrain_eval_loss", "one_"),
        ("tiny/e_pretrain_eval_loss_padded", ""),
    ],
    ids=["four pairs", "two pairs of a patient", "one pair", "padded"],
)
def test_pretraining_loss_equals_the_original(load, name, prefix):
    case, model = golden(name), load("pretrain")
    _assert_losses(_pretraining_output(model, case, prefix), case, prefix)


def _assert_gradients(model, case, scale):
    recorded = {key.removeprefix("grad."): value for key, value in case.items() if key.startswith("grad.")}
    # Frozen tensors have no gradient in the original; names are translated for whole models.
    absent = revert_state_dict({name: torch.full_like(t, torch.nan) for name, t in model.state_dict().items()})
    expected = convert_state_dict({**absent, **recorded})
    expected = {name: gradient for name, gradient in expected.items() if not gradient.isnan().any()}
    assert len(expected) == len(recorded)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        if name not in expected:
            assert parameter.grad is None, f"{name} has a gradient, in the original it has none"
            continue
        if name.endswith("k_proj.bias"):
            continue  # Its true gradient is 0; what the original recorded is rounding.
        found, wanted = parameter.grad * scale, expected[name]
        tolerance = max(GRADIENT * float(wanted.abs().max()), GRADIENT_FLOOR * largest)
        assert float((found - wanted).abs().max()) <= tolerance, name


def test_pretraining_gradients_equal_the_original(load):
    case = golden("tiny/f_pretrain_train_grads")
    model = load("pretrain", **dict.fromkeys(NO_DROPOUT, 0.0)).train()
    model.set_gumbel_temperature(model.gumbel_temperature_at(6))
    assert model.quantizer.temperature == pytest.approx(float(case["temp"]))
    noise = case["gumbel_noise"].view(*case["neg_idxs"].shape[:2], 2, -1)
    output = _pretraining_output(model, case, gumbel_noise=noise)
    _assert_losses(output, case)
    output.loss.backward()
    _assert_gradients(model, case, float(case["sample_size"]))


def test_fine_tuning_gradients_equal_the_original(load):
    case = golden("tiny/k_finetune_train_step")
    settings = dict.fromkeys(NO_DROPOUT, 0.0) | {"pos_weight": case["pos_weight"].tolist()}
    model = load("finetune", **settings).train()
    assert model.config.feature_grad_multiplier == 0
    output = model(case["source"], attention_mask=case["attention_mask"], labels=case["label"])
    assert scaled_difference(output.logits, case["out"]) < OUTPUT
    assert output.loss.item() * float(case["sample_size"]) == pytest.approx(float(case["loss"]), rel=LOSS)
    output.loss.backward()
    _assert_gradients(model, case, float(case["sample_size"]))


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_equal_the_original(load, variant):
    case = golden(f"variants/{variant}")
    model = load(f"{variant}_pretrain")
    output = model(case["source"])
    assert scaled_difference(output.last_hidden_state, case["x"]) < OUTPUT
    assert scaled_difference(output.extract_features, case["features"]) < OUTPUT
    padded = model(case["padded_source"], attention_mask=case["padded_attention_mask"])
    assert scaled_difference(padded.last_hidden_state, case["padded_x"]) < OUTPUT
    _assert_losses(_pretraining_output(model, case), case)

    classifier = load(f"{variant}_classifier")
    output = classifier(case["source"], output_hidden_states=True)
    assert scaled_difference(output.logits, case["cls_out"]) < OUTPUT
    assert scaled_difference(output.hidden_states[-1], case["cls_encoder_out"]) < OUTPUT
    padded = classifier(case["padded_source"], attention_mask=case["padded_attention_mask"])
    assert scaled_difference(padded.logits, case["cls_padded_out"]) < OUTPUT
    maps = classifier(case["source"][:1], output_attentions=True).attentions
    assert scaled_difference(torch.stack(maps, dim=1).mean(dim=2), case["cls_attn"]) < OUTPUT


FINE_TUNED = {"mask_time_prob": 0.0, "feature_grad_multiplier": 0.0, "num_labels": 17}
PRESETS = {"base": ECGFMConfig.base, "large": ECGFMConfig.large}


def _full_size(model_class, config):
    """A full-size model with the goldens' weights, which a rule makes from the tensors' names."""
    with torch.device("meta"):
        model = model_class(config)
    names = revert_state_dict(model.state_dict())
    weights = convert_state_dict({name: recipe_weight(name, tuple(tensor.shape)) for name, tensor in names.items()})
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


LARGE_CLASSIFIER = pytest.param("large", 311_382_161, marks=pytest.mark.slow)
LARGE_PRETRAINING = pytest.param("large", 311_940_352, marks=pytest.mark.slow)


@torch.no_grad()
@pytest.mark.parametrize(("size", "parameters"), [("base", 90_386_321), LARGE_CLASSIFIER])
def test_full_size_classifier_equals_the_original(size, parameters):
    case = golden(f"full/full_{size}_classifier17")
    model = _full_size(ECGFMForMultiLabelClassification, PRESETS[size](**FINE_TUNED))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    for prefix in ("", "padded_"):
        mask = case[prefix + "attention_mask"]
        output = model(
            case[prefix + "source"],
            attention_mask=None if mask.all() else mask,
            output_pooler_output=True,
            output_hidden_states=True,
        )
        assert scaled_difference(output.logits, case[prefix + "out"]) < OUTPUT
        assert scaled_difference(output.pooler_output, case[prefix + "pooled"]) < OUTPUT
        first = output.hidden_states[-1][:, :8]
        assert scaled_difference(first, case[prefix + "encoder_out_first8"]) < OUTPUT


@torch.no_grad()
@pytest.mark.parametrize(("size", "parameters"), [("base", 90_883_072), LARGE_PRETRAINING])
def test_full_size_pretraining_equals_the_original(size, parameters):
    case = golden(f"full/full_{size}_pretrain")
    model = _full_size(ECGFMForPreTraining, PRESETS[size]())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    output = model(case["source"])
    assert scaled_difference(output.last_hidden_state[:, :8], case["x_first8"]) < OUTPUT
    assert scaled_difference(output.extract_features[:, :8], case["features_first8"]) < OUTPUT
    _assert_losses(_pretraining_output(model, case), case)
