"""Weights that are elsewhere until a module's own `forward` asks for them: offloaded, adapted, checkpointed."""

import copy
import io
import logging
import pickle

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from packaging.version import Version
from torch import nn

from ecgfm_hf import ECGFMForMultiLabelClassification, ECGFMForPreTraining

VARIANTS = {
    "published": {},
    "pre-norm": {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True},
    "padding-safe": {"padding_safe": True, "num_conv_pos_embeddings": 15},
}


def segments(batch=3, samples=800):
    return torch.randn(batch, 12, samples, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classifier(tiny_config):
    torch.manual_seed(2)
    return ECGFMForMultiLabelClassification(tiny_config(mask_time_prob=0.0)).eval()


@pytest.fixture
def folder(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def scores(model, with_gradient=False):
    with torch.set_grad_enabled(with_gradient):
        return model(segments()).logits.detach()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_gradient", [False, True], ids=["no_grad", "grad"])
def test_offloaded_weights_give_the_same_scores(tiny_config, tmp_path, variant, with_gradient):
    torch.manual_seed(2)
    model = ECGFMForMultiLabelClassification(tiny_config(**VARIANTS[variant])).eval()
    expected = scores(model, with_gradient)
    on_cpu = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    on_disk = disk_offload(copy.deepcopy(model), tmp_path, execution_device="cpu")
    for offloaded in (on_cpu, on_disk):
        assert all(parameter.is_meta for parameter in offloaded.parameters())
        for _ in range(2):
            torch.testing.assert_close(scores(offloaded, with_gradient), expected, atol=1e-6, rtol=0)


def test_the_offloaded_pretraining_objective_is_the_same(tiny_config):
    model = ECGFMForPreTraining(tiny_config(mask_time_prob=0.65)).eval()
    mask = torch.zeros(2, model.config.num_frames(800), dtype=torch.bool)
    mask[:, 5:15] = True

    def loss(of):
        torch.manual_seed(3)
        ids = {"patient_ids": torch.zeros(2), "segment_ids": torch.arange(2)}
        return of(segments(2), mask_time_indices=mask, **ids).loss.item()

    expected = loss(model)
    assert loss(cpu_offload(model, execution_device="cpu")) == pytest.approx(expected, abs=1e-5)


needs_new_transformers = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.12 and older leave weights on the meta device, of Wav2Vec2 too",
)


@pytest.mark.parametrize(
    "part",
    [
        *("ecgfm.encoder", "ecgfm.encoder.pos_conv_embed", "ecgfm.feature_extractor"),
        pytest.param("", marks=needs_new_transformers),
    ],
)
def test_device_maps_with_offload_give_the_same_scores(classifier, folder, tmp_path, part):
    inside = ["ecgfm.encoder.pos_conv_embed", "ecgfm.encoder.layer_norm", "ecgfm.encoder.layers"]
    parts = ["ecgfm.feature_extractor", "ecgfm.feature_projection", "classifier"]
    parts += ["ecgfm.encoder"] if part == "ecgfm.encoder" else inside
    devices = {one: "disk" if one == part else "cpu" for one in parts} if part else {"": "disk"}
    model = ECGFMForMultiLabelClassification.from_pretrained(
        folder, device_map=devices, offload_folder=tmp_path / "off"
    )
    torch.testing.assert_close(scores(model), scores(classifier), atol=1e-6, rtol=0)


@needs_new_transformers
def test_an_automatic_device_map_never_parts_what_belongs_together(classifier, folder, tmp_path):
    size = sum(parameter.numel() * 4 for parameter in classifier.parameters())
    for share in (0.2, 0.4, 0.6, 0.8):
        model = ECGFMForMultiLabelClassification.from_pretrained(
            folder, device_map="auto", max_memory={"cpu": int(size * share)}, offload_folder=tmp_path / str(share)
        )
        assert "disk" in model.hf_device_map.values()
        torch.testing.assert_close(scores(model), scores(classifier), atol=1e-6, rtol=0)


def test_no_spectrum_is_kept_of_offloaded_weights(classifier):
    conv = classifier.ecgfm.encoder.pos_conv_embed.conv
    expected = scores(classifier)
    assert conv._spectrum is not None
    offloaded = cpu_offload(classifier, execution_device="cpu")
    torch.testing.assert_close(scores(offloaded), expected, atol=1e-6, rtol=0)
    assert conv._spectrum is None


@pytest.mark.parametrize("kernel", [16, 15])
def test_forward_hooks_of_the_position_convolution_see_what_conv1d_takes_and_gives(tiny_config, kernel):
    model = ECGFMForMultiLabelClassification(tiny_config(num_conv_pos_embeddings=kernel)).eval()
    conv, seen = model.ecgfm.encoder.pos_conv_embed.conv, []
    plain = nn.Conv1d(conv.in_channels, conv.out_channels, kernel, padding=kernel // 2, groups=conv.groups)
    plain.load_state_dict({"weight": conv.weight.detach(), "bias": conv.bias.detach()})
    conv.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    for with_gradient in (False, True):
        scores(model, with_gradient)
        torch.testing.assert_close(seen[-1][1], plain(seen[-1][0]), atol=1e-5, rtol=0)
    conv.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    positions = model.ecgfm.encoder.pos_conv_embed(torch.randn(1, 20, conv.in_channels))
    assert positions.abs().max() == 0, "what a hook returns counts"


def test_a_pickled_model_gives_the_same_scores_and_can_be_trained(classifier):
    expected = scores(classifier)
    buffer = io.BytesIO()
    torch.save(classifier, buffer)
    buffer.seek(0)
    for again in (pickle.loads(pickle.dumps(classifier)), torch.load(buffer, weights_only=False)):
        assert torch.equal(scores(again), expected)
        assert again.state_dict().keys() == classifier.state_dict().keys()
        again(segments()).logits.sum().backward()
        assert again.ecgfm.encoder.pos_conv_embed.conv.parametrizations.weight.original1.grad.abs().sum() > 0


# PEFT

ATTENTION = ["q_proj", "v_proj"]


def adapted(model, config):
    from peft import get_peft_model

    return get_peft_model(model, config).train()


def test_lora_of_every_convolution_is_saved_and_loaded(classifier, tmp_path):
    peft = pytest.importorskip("peft")
    base = copy.deepcopy(classifier)
    model = adapted(classifier, peft.LoraConfig(target_modules=["conv"], modules_to_save=["classifier"]))
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(2):
        model(input_values=segments(), labels=torch.ones(3, base.num_labels)).loss.backward()
        optimizer.step()
    moved = [name for name, one in model.named_parameters() if "pos_conv_embed" in name and "lora_B" in name]
    assert moved
    assert model.get_parameter(moved[0]).abs().max() > 0
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(scores(again.base_model.model), scores(model.base_model.model))
    with_gradient = scores(again.base_model.model, with_gradient=True)
    torch.testing.assert_close(with_gradient, scores(model.base_model.model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", ["lora", "all-linear", "dora", "adalora", "ia3"])
def test_adapters_get_the_same_gradient_with_and_without_checkpointing(classifier, kind, reentrant):
    peft = pytest.importorskip("peft")
    config = {
        "lora": lambda: peft.LoraConfig(target_modules=ATTENTION),
        "all-linear": lambda: peft.LoraConfig(target_modules="all-linear", modules_to_save=["classifier"]),
        "dora": lambda: peft.LoraConfig(target_modules=ATTENTION, use_dora=True),
        "adalora": lambda: peft.AdaLoraConfig(target_modules=ATTENTION, total_step=10),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "output_dense"], feedforward_modules=["output_dense"]),
    }[kind]

    def gradients(checkpointing):
        torch.manual_seed(5)
        model = adapted(copy.deepcopy(classifier), config())
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_E" in name:
                nn.init.normal_(parameter, std=0.02)
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        torch.manual_seed(6)
        model(input_values=segments(), labels=torch.ones(3, 3)).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n}

    found, expected = gradients(reentrant), gradients(None)
    assert expected
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("order", ["before", "prepared", "after"])
def test_checkpointing_is_enabled_before_or_after_the_adapters_without_a_warning(classifier, order, caplog):
    peft = pytest.importorskip("peft")
    logging.getLogger("transformers").addHandler(caplog.handler)
    reentrant = {"use_reentrant": True}
    if order == "before":
        classifier.gradient_checkpointing_enable(reentrant)
    elif order == "prepared":
        classifier = peft.prepare_model_for_kbit_training(classifier, gradient_checkpointing_kwargs=reentrant)
    model = adapted(classifier, peft.LoraConfig(target_modules=ATTENTION, modules_to_save=["classifier"]))
    if order == "after":
        model.gradient_checkpointing_enable(reentrant)
        model.enable_input_require_grads()
    model(input_values=segments(), labels=torch.ones(3, 3)).loss.backward()
    logging.getLogger("transformers").removeHandler(caplog.handler)
    for name, parameter in model.named_parameters():
        assert "lora_B" not in name or parameter.grad.abs().max() > 0, name
    assert not [record for record in caplog.records if "embeddings" in record.getMessage()]


def test_a_frozen_encoder_is_not_recomputed_for_nothing(classifier):
    classifier.ecgfm.requires_grad_(False)
    classifier.train().gradient_checkpointing_enable({"use_reentrant": True})
    output = classifier(segments(), labels=torch.ones(3, 3), output_hidden_states=True)
    assert not output.hidden_states[-1].requires_grad
    output.loss.backward()
    assert classifier.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "FEATURE_EXTRACTION"])
def test_peft_models_of_every_task_type_run(classifier, task_type):
    peft = pytest.importorskip("peft")
    base = classifier.ecgfm if task_type == "FEATURE_EXTRACTION" else classifier
    model = adapted(base, peft.LoraConfig(task_type=task_type, target_modules=ATTENTION))
    assert model(input_values=segments())[0].shape[0] == 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'input_ids'"):
        base(segments(), input_ids=torch.ones(1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'"):
        base(segments(), label=None)
