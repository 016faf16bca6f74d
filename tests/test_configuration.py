"""A configuration that cannot be is refused, by field and value; what belongs to labels goes with them."""

import pytest

from ecgfm_hf import ECGFMConfig, ECGFMForMultiLabelClassification

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
        ({**THREE, "pos_weight": [1.0, 2.0]}, "one entry per label \\(3\\), found 2"),
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


NAMES = ["AF", "SR", "PVC"]
# As transformers' guides write them.
GUIDE = {"id2label": {str(i): n for i, n in enumerate(NAMES)}, "label2id": {n: str(i) for i, n in enumerate(NAMES)}}


def assigned(**settings):
    config = ECGFMConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    "settings",
    [
        GUIDE,
        {"num_labels": 3, **GUIDE},
        {"id2label": GUIDE["id2label"]},
        {"label2id": GUIDE["label2id"]},
        {"label2id": {n: i for i, n in enumerate(NAMES)}},
        {"id2label": {2: "PVC", 0: "AF", 1: "SR"}},
    ],
)
def test_labels_are_the_same_however_they_are_given(settings, tmp_path):
    ECGFMConfig().save_pretrained(tmp_path)
    for config in (
        ECGFMConfig(**settings),
        ECGFMConfig.from_dict(settings),
        ECGFMConfig.from_pretrained(tmp_path, **settings),
        assigned(**settings),
    ):
        assert config.label_names == NAMES
        assert config.id2label == dict(enumerate(NAMES))
        assert config.label2id == {name: i for i, name in enumerate(NAMES)}
        assert config.num_labels == 3
        config.save_pretrained(tmp_path / "again")
        assert ECGFMConfig.from_pretrained(tmp_path / "again").label_names == NAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": {0: "A", 1: "B"}, "label2id": {"B": 0, "A": 1}}, "contradict"),
        ({"id2label": {0: "A", 1: "B"}, "num_labels": 3}, "num_labels is 3, but there are 2"),
        ({"label2id": {"A": 0, "B": 2}}, "without gaps"),
        ({"label2id": {"A": 0, "B": 0}}, "without gaps"),
        ({"num_labels": 0}, "num_labels must be 1 to"),
        ({"num_labels": 10**9}, "num_labels must be 1 to"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(settings, message, tmp_path):
    ECGFMConfig().save_pretrained(tmp_path)
    for make in (ECGFMConfig, lambda **given: ECGFMConfig.from_pretrained(tmp_path, **given)):
        with pytest.raises(ValueError, match=message):
            make(**settings)


FIELDS = ["pos_weight", "label_aggregation", "label_thresholds", "label_calibration", "label_notes"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"num_labels": 5}, []),
        ({"num_labels": 3}, FIELDS),
        ({"id2label": {"0": "A", "1": "B", "2": "D"}}, []),
        ({"id2label": {"0": "A", "1": "B", "2": "C"}}, FIELDS),
        ({"label2id": {"C": 0, "B": 1, "A": 2}}, []),
        ({"problem_type": "single_label_classification"}, ["label_notes"]),
        ({"problem_type": "multi_label_classification"}, FIELDS),
        ({"hidden_dropout": 0.3}, FIELDS),
    ],
)
def test_assigning_other_labels_drops_what_belonged_to_the_old_with_one_warning(stored, change, kept, monkeypatch):
    _, config = stored
    messages = []
    monkeypatch.setattr("ecgfm_hf.configuration_ecgfm.logger.warning", messages.append)
    for name, value in change.items():
        setattr(config, name, value)
    assert [name for name in FIELDS if getattr(config, name) is not None] == kept
    assert len(messages) == (len(kept) < len(FIELDS))
    config.validate()


def test_names_that_are_changed_in_place_are_new_labels_at_the_latest_when_saved(stored, tmp_path):
    _, config = stored
    config.id2label[0] = "atrial fibrillation"
    config.save_pretrained(tmp_path / "changed")
    again = ECGFMConfig.from_pretrained(tmp_path / "changed")
    assert again.label_names == ["atrial fibrillation", "B", "C"]
    assert again.label_thresholds is None


def test_a_contradiction_is_refused_where_it_is_assigned_or_the_model_is_built(stored):
    _, config = stored
    with pytest.raises(ValueError, match="labels that id2label does not have"):
        config.label_thresholds = {"D": 0.5}
    assert config.label_thresholds == {"B": 0.25}
    config.label_thresholds["D"] = 0.5
    with pytest.raises(Exception, match="labels that id2label does not have"):
        ECGFMForMultiLabelClassification(config)
