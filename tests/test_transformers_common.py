"""
transformers' own common model and configuration tests, run against our classes.

Wheels have no tests: `python scripts/fetch_transformers_tests.py` takes them from the source distribution of the
installed transformers. That distribution holds the common tests, but not three modules that they import, which
stand-ins below replace.
"""

import copy
import dataclasses
import importlib.metadata
import shutil
import sys
import tempfile
import types
import unittest
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, set_seed
from transformers.testing_utils import CaptureLogger, torch_device
from transformers.utils import logging

import ecgfm_hf  # noqa: F401 (registers the Auto classes, which some of the tests go through)
from ecgfm_hf.configuration_ecgfm import ECGFMConfig
from ecgfm_hf.modeling_ecgfm import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel

PACKAGE = "transformers_common_tests"
FOLDER = (
    Path(__file__).resolve().parent.parent
    / ".cache"
    / f"transformers-tests-{importlib.metadata.version('transformers')}"
)

if not (FOLDER / PACKAGE).is_dir():
    pytest.skip(
        f"transformers' common tests are not in {FOLDER}; fetch them with `python scripts/fetch_transformers_tests.py`",
        allow_module_level=True,
    )

# Every argument that PreTrainedConfig itself defines, at another value than its default.
CONFIG_COMMON_ARGUMENTS = {
    "architectures": ["ECGFMModel"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "Sinus rhythm"},
    "label2id": {"Sinus rhythm": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


class ExportTesterMixin:
    """
    Stand-in: the source distribution lacks the export tests.

    Exports every model class through transformers' own Dynamo exporter, with fixed and with dynamic sizes.
    """

    def check_export(self, options: dict, other_inputs: tuple[dict, ...] = ()) -> None:
        from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                set_seed(42)
                config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
                model = model_class(config).eval()
                program = DynamoExporter().export(model, dict(inputs), config=DynamoConfig(**options))
                for sample in (inputs, *other_inputs):
                    with torch.no_grad():
                        expected = model(**sample)
                        found = program(**sample)
                    assert found.keys() == expected.keys()
                    for name in expected:
                        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)

    def test_dynamo_export(self):
        self.check_export({"dynamic": False})

    def test_dynamo_export_with_dynamic_sizes(self):
        auto = torch.export.Dim.AUTO
        dynamic_shapes = {"input_values": {0: auto, 2: auto}, "attention_mask": {0: auto, 1: auto}}
        other = type(self.model_tester)(self, batch_size=5, num_samples=self.model_tester.num_samples + 113)
        _, other_inputs = other.prepare_config_and_inputs_for_common()
        self.check_export({"dynamic_shapes": dynamic_shapes}, (other_inputs,))


class GenerationTesterMixin:
    """Stand-in: a marker that the common tests compare with; our models do not generate."""


def _import_common_tests() -> tuple[types.ModuleType, types.ModuleType]:
    for name, content in (
        ("exporters.test_export", {"ExportTesterMixin": ExportTesterMixin}),
        ("generation.test_utils", {"GenerationTesterMixin": GenerationTesterMixin}),
        ("utils.test_configuration_utils", {"config_common_kwargs": CONFIG_COMMON_ARGUMENTS}),
    ):
        parent = types.ModuleType(f"{PACKAGE}.{name.split('.')[0]}")
        parent.__path__ = []
        module = types.ModuleType(f"{PACKAGE}.{name}")
        vars(module).update(content)
        sys.modules.setdefault(parent.__name__, parent)
        sys.modules.setdefault(module.__name__, module)
    sys.path.insert(0, str(FOLDER))
    try:
        with warnings.catch_warnings():
            # Their marks are registered in their pytest settings.
            warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
            from transformers_common_tests import test_configuration_common, test_modeling_common
    finally:
        sys.path.remove(str(FOLDER))
    # They look class names up in tables that registering a class does not extend. Without an entry our classes would be
    # passed over in silence (heads) or trained without a head (base). These are the module's own copies of the tables.
    for table, model_class in (
        ("MODEL_MAPPING_NAMES", ECGFMModel),
        ("MODEL_FOR_PRETRAINING_MAPPING_NAMES", ECGFMForPreTraining),
        ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", ECGFMForMultiLabelClassification),
        ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", ECGFMForMultiLabelClassification),
    ):
        entries = {**getattr(test_modeling_common, table), ECGFMConfig.model_type: model_class.__name__}
        setattr(test_modeling_common, table, entries)
    return test_configuration_common, test_modeling_common


configuration_common, modeling_common = _import_common_tests()


class ECGFMModelTester:
    """A tiny model, and batches for it: every second row is padded."""

    num_leads = 12
    overrides = {}

    def __init__(self, parent, batch_size: int = 4, num_samples: int = 400):
        self.parent = parent
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.num_labels = 3
        self.is_training = True
        # The name under which the common tests ask for the length of a sequence.
        self.seq_length = self.get_config().num_frames(num_samples)

    def get_config(self) -> ECGFMConfig:
        settings = {
            "num_leads": self.num_leads,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 48,
            "conv_dim": (16, 16, 16, 16),
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "num_codevectors_per_group": 8,
            "num_codevector_groups": 2,
            "codevector_dim": 16,
            "proj_codevector_dim": 16,
            "num_negatives": 5,
            "num_labels": self.num_labels,
        }
        return ECGFMConfig(**{**settings, **self.overrides})

    def prepare_config_and_inputs_for_common(self) -> tuple[ECGFMConfig, dict[str, torch.Tensor]]:
        input_values = torch.randn(self.batch_size, self.num_leads, self.num_samples, device=torch_device)
        attention_mask = torch.ones(self.batch_size, self.num_samples, dtype=torch.long, device=torch_device)
        attention_mask[1::2, -self.num_samples // 4 :] = 0
        return self.get_config(), {"input_values": input_values, "attention_mask": attention_mask}

    def targets(self, model_class: type, class_numbers: bool = False) -> dict[str, torch.Tensor]:
        """What `model_class` needs to compute its loss."""
        if model_class is ECGFMForPreTraining:
            mask = torch.zeros(self.batch_size, self.seq_length, dtype=torch.bool, device=torch_device)
            mask[:, 2:12] = True
            rows = torch.arange(self.batch_size, device=torch_device)
            # Every frame has the next five masked ones as negatives: drawing them would change the loss between calls.
            positions = torch.arange(10, device=torch_device)
            negatives = (positions[:, None] + torch.arange(1, 6, device=torch_device)) % 10
            return {
                "mask_time_indices": mask,
                "sampled_negative_indices": negatives.expand(self.batch_size, -1, -1),
                "patient_ids": rows // 2,
                "segment_ids": rows % 2,
            }
        if model_class is ECGFMForMultiLabelClassification:
            shape = (self.batch_size,) if class_numbers else (self.batch_size, self.num_labels)
            return {"labels": torch.zeros(shape, dtype=torch.long, device=torch_device)}
        return {}


class ECGFMVariantModelTester(ECGFMModelTester):
    """Everything that a published model does not use: pre-norm, layer norms after convolutions, an odd kernel, ..."""

    num_leads = 1
    overrides = {
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "conv_dim": (16, 16, 16, 32),
        "num_conv_pos_embeddings": 15,
        "padding_safe": True,
        "feature_grad_multiplier": 1.0,
    }


# What does not apply to these models, and why. A test that skips itself and is not in this list fails: a change that
# silences one is seen.
NOT_APPLICABLE = {
    "test_attn_implementation_composite_models": "one model, not composed of several",
    "test_can_capture_specific_layers_hidden_states": "the encoder collects its outputs itself, all layers or none",
    "test_can_load_from_already_mapped_keys": "loads under the names it is saved with; there is no key mapping",
    "test_can_set_attention_dynamically_composite_model": "one model, not composed of several",
    "test_capture_outputs_decorator": "the encoder collects its outputs itself, without that decorator",
    "test_causal_lm_loss_honors_shift_labels": "no language modelling head",
    "test_eager_matches_batched_and_grouped_inference": "no mixture of experts",
    "test_enable_input_require_grads_with_gradient_checkpointing": "no token embeddings whose gradient to look at",
    "test_encoder_decoder_loss_no_double_shift": "no decoder",
    "test_inputs_embeds": "no token embeddings: the input is a signal",
    "test_inputs_embeds_matches_input_ids": "no token embeddings: the input is a signal",
    "test_internal_model_config_and_subconfig_are_same": "one configuration without sub-configurations",
    "test_keep_in_fp32_modules": "no weights are kept in float32; norms and losses convert what they compute",
    "test_model_get_set_embeddings": "no token embeddings: the input is a signal",
    "test_model_rope": "no rotary position embedding: positions are convolved",
    "test_moe_models_record_router_logits": "no mixture of experts",
    "test_output_router_logits_from_config": "no mixture of experts",
    "test_resize_embeddings_untied": "no token embeddings: the input is a signal",
    "test_resize_position_vector_embeddings": "no table of position embeddings: positions are convolved",
    "test_resize_tokens_embeddings": "no token embeddings: the input is a signal",
    "test_reverse_loading_mapping": "loads under the names it is saved with; there is no key mapping",
    "test_sdpa_can_dispatch_composite_models": "one model, not composed of several",
    "test_sliding_window_mask": "attention over all frames, no sliding window",
    "test_tied_head_has_a_tp_plan_entry": "no tensor-parallel plan",
    "test_tp_plan_matches_params": "no tensor-parallel plan",
    "test_vision_axial_rope": "no rotary position embedding: positions are convolved",
}


class ECGFMModelTest(modeling_common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (ECGFMModel, ECGFMForPreTraining, ECGFMForMultiLabelClassification)
    # No token embeddings to resize: the input is a signal.
    test_resize_embeddings = False
    # The test looks for a copyright year in the configuration file and, finding none, would skip itself.
    test_can_init_all_missing_weights_before_2023 = True
    # test_problem_types makes its own targets out of one number a row.
    class_numbers = False

    model_tester_class = ECGFMModelTester

    def setUp(self):
        set_seed(42)
        self.model_tester = self.model_tester_class(self)

    def skipTest(self, reason):
        reasons = [why for name, why in NOT_APPLICABLE.items() if self._testMethodName.startswith(name)]
        # With an accelerator, tests run that cannot be foreseen here, and they skip for what it lacks.
        if not reasons and torch_device == "cpu":
            self.fail(f"skips itself, which is not expected: {reason}")
        super().skipTest(reasons[0] if reasons else reason)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:
            inputs |= self.model_tester.targets(model_class, self.class_numbers)
        return inputs

    def test_nothing_is_passed_over_in_silence(self):
        # Without these, the common tests leave classes out and pass.
        for table in (
            "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
        ):
            names = modeling_common.get_values(getattr(modeling_common, table))
            assert ECGFMForMultiLabelClassification.__name__ in names
        assert modeling_common.MODEL_MAPPING_NAMES[ECGFMConfig.model_type] == ECGFMModel.__name__
        for model_class in self.all_model_classes:
            assert model_class.supports_gradient_checkpointing
            assert model_class._no_split_modules
            assert not model_class.can_generate()

    def test_problem_types(self):
        self.class_numbers = True
        super().test_problem_types()

    def test_load_with_mismatched_shapes(self):
        # Theirs changes the size of the vocabulary and feeds token numbers; here it is the number of leads.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        other_config = copy.deepcopy(config)
        other_config.num_leads = 3
        with tempfile.TemporaryDirectory() as folder:
            ECGFMForMultiLabelClassification(config).save_pretrained(folder)
            with pytest.raises(RuntimeError, match="size"):
                AutoModelForSequenceClassification.from_pretrained(folder, num_labels=42)
            with pytest.raises(RuntimeError, match="size"):
                AutoModel.from_pretrained(folder, config=other_config)

            logger = logging.get_logger("transformers.modeling_utils")
            with CaptureLogger(logger) as captured:
                classifier = AutoModelForSequenceClassification.from_pretrained(
                    folder, num_labels=42, ignore_mismatched_sizes=True
                )
            assert "Reinit due to size mismatch" in captured.out
            assert classifier(**inputs).logits.shape[1] == 42

            with CaptureLogger(logger) as captured:
                encoder = AutoModel.from_pretrained(folder, config=other_config, ignore_mismatched_sizes=True)
            assert "Reinit due to size mismatch" in captured.out
            encoder(inputs["input_values"][:, :1].expand(-1, 3, -1))

    def test_model_get_set_embeddings(self):
        # Theirs demands an embedding table. We answer None, which quantised loading relies on.
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        assert all(model_class(config).get_input_embeddings() is None for model_class in self.all_model_classes)
        self.skipTest("no token embeddings")

    def test_torch_compile_for_training(self):
        # Theirs feeds token numbers and needs a GPU. Pretraining counts masked frames, which breaks a graph in two.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        # Random numbers of compiled code are not those of eager code.
        for name in ("hidden_dropout", "attention_dropout", "feat_proj_dropout"):
            setattr(config, name, 0.0)
        inputs |= self.model_tester.targets(ECGFMForMultiLabelClassification)
        model = ECGFMForMultiLabelClassification(config).train()
        model(**inputs).loss.backward()
        expected = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
        model.zero_grad()
        # This backend traces forward and backward pass, and spares the minute that generating C++ takes.
        torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss.backward()
        for name, param in model.named_parameters():
            if param.requires_grad:
                torch.testing.assert_close(param.grad, expected[name], rtol=1e-4, atol=1e-6)


class ECGFMVariantModelTest(ECGFMModelTest):
    model_tester_class = ECGFMVariantModelTester


class ECGFMFlexAttentionTest(unittest.TestCase):
    @pytest.mark.skipif(shutil.which("g++") is None, reason="compiling flex attention for the CPU needs g++")
    def test_flex_attention_on_cpu(self):
        # Theirs needs a GPU. On a CPU flex attention has no backward pass, but its outputs can be compared.
        config, inputs = ECGFMModelTester(self).prepare_config_and_inputs_for_common()
        config.num_hidden_layers = 1
        config.num_attention_heads = 2
        model = ECGFMModel(config).eval()
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state
            model.set_attn_implementation("flex_attention")
            found = model(**inputs).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class ECGFMConfigTest(unittest.TestCase):
    def test_common_configuration(self):
        configuration_common.ConfigTester(
            self,
            config_class=ECGFMConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"],
            num_leads=2,
            hidden_size=32,
            num_attention_heads=4,
            label_notes={"LABEL_1": "a note"},
        ).run_common_tests()

    def test_stand_in_for_the_common_arguments_is_complete(self):
        missing = {field.name for field in dataclasses.fields(PreTrainedConfig)} - CONFIG_COMMON_ARGUMENTS.keys()
        # Not for users to set; and there is no decoder.
        assert missing == {"transformers_version", "is_encoder_decoder"}
        default = PreTrainedConfig()
        assert not [name for name, value in CONFIG_COMMON_ARGUMENTS.items() if getattr(default, name) == value]
