"""A configuration that cannot be is refused, by field and value; what belongs to labels goes with them."""

import pytest

from ecgfm_hf import ECGFMConfig

THREE = {"id2label": {0: "A", 1: "B", 2: "C"}, "label2id": {"A": 0, "B": 1, "C": 2}}


def test_presets_are_the_published_sizes():
    base, large = ECGFMConfig.base(), ECGFMConfig.large()
    assert (base.num_hidden_layers, base.hidden_size, base.num_attention_heads, base.intermediate_size) == (
        12,
        768,
        12,
        3072,
    )
    assert (large.num_hidden_layers, large.hidden_size, large.num_attention_heads) == (24, 1024, 16)
    assert large.intermediate_size == 4096
    assert base.num_frames(2500) == 156
    assert base.min_samples == 16


def test_a_misspelt_field_of_a_preset_is_an_error():
    with pytest.raises(TypeError, match="num_lead"):
        ECGFMConfig.base(num_lead=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_leads": 0}, "num_leads must be 1 to 12"),
        ({"num_leads": 13}, "num_leads must be 1 to 12"),
        ({"conv_dim": [16, 16]}, "lengths 2, 4 and 4"),
        ({"conv_kernel": [2, 2, 2, 0]}, "conv_kernel"),
        ({"hidden_size": 770}, "multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"num_conv_pos_embedding_groups": 5}, "multiple of num_conv_pos_embedding_groups"),
        ({"codevector_dim": 255}, "multiple of num_codevector_groups"),
        ({"feat_extract_norm": "batch"}, "'batch'"),
        ({"hidden_dropout": 1.5}, "hidden_dropout must be between 0 and 1"),
        ({"contrastive_logits_temperature": 0}, "contrastive_logits_temperature must be above 0"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"problem_type": "guesswork"}, "guesswork"),
        ({**THREE, "pos_weight": [1.0, 2.0]}, "one entry a label \\(3\\), found 2"),
        ({**THREE, "pos_weight": [1.0, 2.0, float("inf")]}, "finite and positive"),
        ({**THREE, "label_aggregation": {"D": "max"}}, "D"),
        ({**THREE, "label_aggregation": {"A": "median"}}, "median"),
        ({**THREE, "label_thresholds": {"A": 1.5}}, "1.5"),
        ({**THREE, "label_calibration": {"A": {"slope": 1.0}}}, "intercept"),
        ({**THREE, "label_notes": {"E": "note"}}, "E"),
        ({"id2label": {0: "A", 1: "A"}}, "alike"),
        ({"id2label": {0: "A", 2: "B"}}, "without gaps"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(Exception, match=message):  # huggingface_hub wraps the ValueError in an error of its own
        ECGFMConfig(**settings)


@pytest.fixture
def stored(tmp_path):
    config = ECGFMConfig(
        **THREE,
        pos_weight=[1.0, 2.0, 3.0],
        label_aggregation={"A": "max"},
        label_thresholds={"B": 0.25},
        label_calibration={"C": {"slope": 0.5, "intercept": -1.0}},
        label_notes={"A": "note"},
    )
    config.save_pretrained(tmp_path)
    return tmp_path, config


def test_everything_survives_the_folder(stored):
    folder, config = stored
    assert ECGFMConfig.from_pretrained(folder).to_dict() == config.to_dict()


def test_other_labels_drop_what_was_said_of_the_stored_ones(stored):
    folder, _ = stored
    for change in ({"num_labels": 5}, {"id2label": {0: "A", 1: "B", 2: "D"}}):
        config = ECGFMConfig.from_pretrained(folder, **change)
        assert config.pos_weight is config.label_thresholds is config.label_notes is None
    assert config.label_names == ["A", "B", "D"]
    weighted = ECGFMConfig.from_pretrained(folder, num_labels=2, pos_weight=[4.0, 5.0])
    assert weighted.pos_weight == [4.0, 5.0]


def test_the_same_labels_keep_what_was_said_of_them(stored):
    folder, config = stored
    for same in ({"num_labels": 3}, {"id2label": THREE["id2label"]}):
        assert ECGFMConfig.from_pretrained(folder, **same).to_dict() == config.to_dict()


def test_labels_without_names_keep_their_weights(tmp_path):
    ECGFMConfig(num_labels=2, pos_weight=[2.0, 3.0]).save_pretrained(tmp_path)
    assert ECGFMConfig.from_pretrained(tmp_path, num_labels=2).pos_weight == [2.0, 3.0]
