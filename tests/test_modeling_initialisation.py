"""
Initialisation is the original's: from scratch, and for every weight that a checkpoint lacks.

The expectations were measured on the original implementation. transformers fills missing weights by another way than
fresh models (on tensors without content, module by module), so that one can be right while the other leaves zeros,
torch's defaults or whatever stood in memory.
"""

import math
import re
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecgfm_hf.configuration_ecgfm import ECGFMConfig
from ecgfm_hf.modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel

# No initialisation draws it, and weights that were loaded are recognised by it.
LOADED = 7.0

CONFIGS = {
    "as published": {},
    "pre-norm, layer norm extractor, conv bias": {
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
    },
}


def make_config(**overrides) -> ECGFMConfig:
    # Dimensions differ from each other, so that no expectation holds by confusing two of them; and weights are large
    # enough for their statistics to mean something.
    settings = {
        "num_leads": 12,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "conv_dim": (48, 48, 48, 56),
        "conv_kernel": (3, 2, 2, 2),
        "num_conv_pos_embeddings": 20,
        "num_conv_pos_embedding_groups": 4,
        "num_codevectors_per_group": 40,
        "codevector_dim": 72,
        "proj_codevector_dim": 64,
        "num_labels": 17,
    }
    return ECGFMConfig(**{**settings, **overrides})


@dataclass
class Constant:
    value: float

    def check(self, weight: torch.Tensor) -> None:
        assert (weight == self.value).all(), f"expected {self.value} everywhere, found {weight.min()} to {weight.max()}"


@dataclass
class Normal:
    std: float

    def check(self, weight: torch.Tensor) -> None:
        count, std = weight.numel(), weight.std().item()
        # Five standard errors: what is right never fails, a deviation that is 5% off does from 5,000 weights on.
        assert abs(weight.mean().item()) < 5 * self.std / math.sqrt(count), f"mean {weight.mean()}, std {std}"
        assert abs(std / self.std - 1) < 5 / math.sqrt(2 * count), f"expected std {self.std}, found {std}"
        # A uniform distribution of the same deviation ends at 1.73 deviations.
        assert weight.abs().max() > 2 * self.std, f"largest value {weight.abs().max()} with std {self.std}: not normal"


@dataclass
class Uniform:
    low: float
    high: float

    def check(self, weight: torch.Tensor) -> None:
        count, width = weight.numel(), self.high - self.low
        found = f"found {weight.min():.4f} to {weight.max():.4f}, expected {self.low:.4f} to {self.high:.4f}"
        assert weight.min() >= self.low, found
        assert weight.max() <= self.high, found
        # (1 - 10 / n) ** n is e ** -10: so often nothing falls into the outer 10 / n of the interval.
        assert weight.min() <= self.low + width * 10 / count, found
        assert weight.max() >= self.high - width * 10 / count, found
        middle = (self.low + self.high) / 2
        assert abs(weight.mean().item() - middle) < 5 * width / math.sqrt(12 * count), f"mean {weight.mean()}"
        assert abs(weight.std().item() / (width / math.sqrt(12)) - 1) < 5 * 0.45 / math.sqrt(count), "not uniform"


def torch_linear(fan_in: int) -> Uniform:
    """torch's default for weight and bias of a linear layer, and for the bias of a convolution."""
    return Uniform(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def expectations(config: ECGFMConfig) -> dict[str, object]:
    """What the original draws, by regular expressions of weight names."""
    channels = (config.num_leads, *config.conv_dim)
    conv_fans = [width * kernel for width, kernel in zip(channels, config.conv_kernel, strict=False)]
    expected = {}
    for i, fan_in in enumerate(conv_fans):
        expected[rf"feature_extractor\.conv_layers\.{i}\.conv\.weight"] = Normal(math.sqrt(2 / fan_in))
        expected[rf"feature_extractor\.conv_layers\.{i}\.conv\.bias"] = torch_linear(fan_in)
    position_std = 2 / math.sqrt(config.num_conv_pos_embeddings * config.hidden_size)
    head_bound = math.sqrt(6 / (config.hidden_size + config.num_labels))
    return expected | {
        r".*layer_norm\.weight": Constant(1.0),
        r".*layer_norm\.bias": Constant(0.0),
        r"feature_projection\.projection\.(weight|bias)": torch_linear(config.conv_dim[-1]),
        r"masked_spec_embed": Uniform(0.0, 1.0),
        r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1": Normal(position_std),
        r"encoder\.pos_conv_embed\.conv\.bias": Constant(0.0),
        r"encoder\.layers\.\d+\.attention\.(q|k|v|out)_proj\.weight": Normal(0.02),
        r"encoder\.layers\.\d+\.attention\.(q|k|v|out)_proj\.bias": Constant(0.0),
        r"encoder\.layers\.\d+\.feed_forward\.(intermediate|output)_dense\.weight": Normal(0.02),
        r"encoder\.layers\.\d+\.feed_forward\.(intermediate|output)_dense\.bias": Constant(0.0),
        r"quantizer\.codevectors": Uniform(0.0, 1.0),
        r"quantizer\.weight_proj\.weight": Normal(1.0),
        r"quantizer\.weight_proj\.bias": Constant(0.0),
        r"project_q\.(weight|bias)": torch_linear(config.codevector_dim),
        r"project_hid\.(weight|bias)": torch_linear(config.hidden_size),
        r"classifier\.weight": Uniform(-head_bound, head_bound),
        r"classifier\.bias": Constant(0.0),
    }


def check_initialised(model: torch.nn.Module, names: set[str] | None = None) -> None:
    """Checks the weights `names` (all of them if absent) of `model` against what the original draws."""
    expected = expectations(model.config)
    state = model.state_dict()
    for name in names or state:
        weight, short = state[name].float(), name.removeprefix("ecgfm.")
        if short.endswith("original0"):
            # The magnitude of the position convolution is that of the direction, as it is found in the model.
            direction = state[name.replace("original0", "original1")].float()
            torch.testing.assert_close(weight, direction.square().sum(dim=(0, 1), keepdim=True).sqrt())
            continue
        matching = [what for pattern, what in expected.items() if re.fullmatch(pattern, short)]
        assert len(matching) == 1, f"{name} matches {len(matching)} expectations"
        try:
            matching[0].check(weight)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def save_with_marked_weights(model, folder, dropped: str | None = None) -> set[str]:
    """Saves `model` with every weight set to LOADED and those matching `dropped` left out; returns their names."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    state = {name: torch.full_like(weight, LOADED) for name, weight in load_file(path).items()}
    names = {name for name in state if dropped is not None and re.search(dropped, name)}
    save_file({name: weight for name, weight in state.items() if name not in names}, path, metadata={"format": "pt"})
    return names


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(20)


@pytest.fixture(params=CONFIGS, ids=list(CONFIGS))
def config(request) -> ECGFMConfig:
    return make_config(**CONFIGS[request.param])


both_heads = pytest.mark.parametrize("model_class", [ECGFMForPreTraining, ECGFMForMultiLabelClassification])


@both_heads
def test_initialisation_from_scratch(config, model_class):
    check_initialised(model_class(config))


@both_heads
def test_initialisation_of_a_checkpoint_without_any_weight(config, model_class):
    check_initialised(model_class.from_pretrained(None, config=config, state_dict={}))


@both_heads
def test_initialisation_of_a_model_made_without_memory(config, model_class):
    # As large models are made for sharded training: on the meta device, then given memory of any content.
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")
    for weight in model.state_dict().values():
        weight.fill_(math.nan)
    model.init_weights()
    check_initialised(model)


@pytest.mark.parametrize(
    ("dropped", "count"),
    [
        (r"conv_layers\.\d\.conv\.weight$", 4),
        (r"conv_layers\.0\.layer_norm", 2),
        (r"feature_projection", 4),
        (r"masked_spec_embed$", 1),
        (r"pos_conv_embed", 3),
        (r"original[01]$", 2),
        (r"original0$", 1),
        (r"attention\.[qkv]_proj", 12),
        # The module of a missing bias is initialised, its loaded weight must not be.
        (r"attention\.[qkv]_proj\.bias$", 6),
        (r"encoder\.layers\.1\.", 16),
        (r"quantizer\.", 3),
        (r"codevectors$", 1),
        (r"project_(q|hid)", 4),
    ],
)
def test_missing_weights_are_initialised_and_loaded_ones_untouched(tmp_path, dropped, count):
    missing = save_with_marked_weights(ECGFMForPreTraining(make_config()), tmp_path, dropped)
    assert len(missing) == count

    model, info = ECGFMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)

    assert info["missing_keys"] == missing
    check_initialised(model, missing)
    for name, weight in model.state_dict().items():
        assert name in missing or (weight == LOADED).all(), f"{name} was in the checkpoint, and was changed"


def test_missing_direction_keeps_the_loaded_magnitude(tmp_path):
    missing = save_with_marked_weights(ECGFMForPreTraining(make_config()), tmp_path, r"original1$")

    model = ECGFMForPreTraining.from_pretrained(tmp_path)

    check_initialised(model, missing)
    conv = model.ecgfm.encoder.pos_conv_embed.conv
    assert (conv.parametrizations.weight.original0 == LOADED).all()
    magnitude = torch.linalg.vector_norm(conv.weight, dim=(0, 1))
    torch.testing.assert_close(magnitude, torch.full_like(magnitude, LOADED))


def test_effective_position_weight_is_the_drawn_one():
    # Writing to `conv.weight` instead of its parametrisation does nothing, and torch's own scale stays.
    conv = ECGFMModel(make_config()).encoder.pos_conv_embed.conv
    torch.testing.assert_close(conv.weight, conv.parametrizations.weight.original1)


def test_layers_do_not_start_as_copies_of_each_other():
    model = ECGFMModel.from_pretrained(None, config=make_config(), state_dict={})
    first, second = (layer.attention for layer in model.encoder.layers)
    weights = [first.q_proj.weight, first.k_proj.weight, first.v_proj.weight, first.out_proj.weight]
    weights += [second.q_proj.weight, second.k_proj.weight, second.v_proj.weight, second.out_proj.weight]
    for i, weight in enumerate(weights):
        assert not any(torch.equal(weight, other) for other in weights[:i])


def test_missing_weights_are_drawn_with_the_callers_seed():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(ECGFMModel.from_pretrained(None, config=make_config(), state_dict={}).encoder.layers[0])
    first, same, other = (layer.attention.q_proj.weight for layer in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_pretrained_encoder_into_classifier_with_a_fresh_head(tmp_path):
    pretrained = ECGFMForPreTraining(make_config())
    pretrained.save_pretrained(tmp_path)

    classifier, info = ECGFMForMultiLabelClassification.from_pretrained(tmp_path, output_loading_info=True)

    head = {"classifier.weight", "classifier.bias"}
    assert info["missing_keys"] == head
    # Leaving the objective's weights behind is what a classifier does; a warning about them would only frighten.
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    check_initialised(classifier, head)
    expected = pretrained.ecgfm.state_dict()
    assert classifier.ecgfm.state_dict().keys() == expected.keys()
    for name, weight in classifier.ecgfm.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_pretrained_encoder_into_classifier_without_mask_embedding(tmp_path):
    pretrained = ECGFMForPreTraining(make_config())
    pretrained.save_pretrained(tmp_path)

    classifier, info = ECGFMForMultiLabelClassification.from_pretrained(
        tmp_path, mask_time_prob=0.0, output_loading_info=True
    )

    assert "ecgfm.masked_spec_embed" in info["unexpected_keys"]
    assert classifier.ecgfm.masked_spec_embed is None
    expected = pretrained.ecgfm.state_dict()
    for name, weight in classifier.ecgfm.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_base_model_folder_into_pretraining_with_fresh_objective(tmp_path):
    base = ECGFMModel(make_config())
    base.save_pretrained(tmp_path)

    model, info = ECGFMForPreTraining.from_pretrained(tmp_path, output_loading_info=True)

    assert {name.split(".")[0] for name in info["missing_keys"]} == {"quantizer", "project_q", "project_hid"}
    assert not info["unexpected_keys"]
    check_initialised(model, info["missing_keys"])
    for name, weight in base.state_dict().items():
        assert torch.equal(model.state_dict()[f"ecgfm.{name}"], weight), name


def test_head_of_another_size_is_drawn_anew(tmp_path):
    save_with_marked_weights(ECGFMForMultiLabelClassification(make_config()), tmp_path)

    model = ECGFMForMultiLabelClassification.from_pretrained(tmp_path, num_labels=26, ignore_mismatched_sizes=True)

    head = {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.shape == (26, 96)
    check_initialised(model, head)
    for name, weight in model.state_dict().items():
        assert name in head or (weight == LOADED).all(), f"{name} was in the checkpoint, and was changed"
