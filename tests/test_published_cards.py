"""The cards of the published checkpoints: equal to their rendering, true to the package's definitions."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from conversions import INPUT_OPTIONS, convert_checkpoint
from huggingface_hub import ModelCard

from ecgfm_hf.cli.main import main
from ecgfm_hf.fairseq import LABEL_SETS, MIMIC17
from ecgfm_hf.fairseq.label_sets import PUBLISHED
from ecgfm_hf.hub.cards import PublishedCardError, card_problems, converted_card, published, published_card
from ecgfm_hf.hub.cards.published import published_names, read_published
from ecgfm_hf.provenance import read_steps

CARDS = Path(__file__).parents[1] / "model_cards"
CHECKPOINTS = Path(__file__).parent / "fixtures" / "checkpoints"
NAMES = ("mimic_iv_ecg_finetuned", "mimic_iv_ecg_physionet_pretrained", "physionet_finetuned")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_in_the_repository_is_the_whole_rendering(name):
    text = published_card(name)
    assert text == (CARDS / f"{name}.md").read_text(encoding="utf-8"), "ecgfm card --published renders it anew"
    assert card_problems(text) == []


def test_every_published_checkpoint_has_its_card():
    assert tuple(published_names()) == NAMES
    assert {path.stem for path in CARDS.glob("*.md")} - {"README"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_must_not_be_missed_is_in_each_card(name):
    text = published_card(name)
    data = ModelCard(text).data
    assert (data.license, data.base_model) == ("mit", PUBLISHED[name])
    # No figure of these weights was measured, so none is a result of theirs.
    assert data.eval_results is None
    assert "Not a medical device." in text
    assert "PhysioNet 2021 was part of pretraining" in text
    assert "0.996" in text
    assert "0.929" in text
    assert "aVR, aVF, aVL" in text
    assert "10.1093/jamiaopen/ooaf122" in text
    assert f"{name}.pt" in text
    if name != "mimic_iv_ecg_physionet_pretrained":
        assert "0.5 is not a sensible threshold" in text or "0.5 has no special meaning" in text
        assert "shifted by" in text


def test_labels_and_notes_are_those_of_the_label_sets():
    for name, labels in (("mimic_iv_ecg_finetuned", "mimic17"), ("physionet_finetuned", "physionet26")):
        text, label_set = published_card(name), LABEL_SETS[labels]
        outputs = text.split("\n## Outputs\n")[1].split("\n## ")[0]
        rows = [line.split("|")[1:3] for line in outputs.splitlines() if line.startswith("| ")][2:]
        assert [(label.strip(), how.strip()) for label, how in rows] == [
            (label, label_set.aggregation.get(label, "mean")) for label in label_set.names
        ]
        assert all(note.split(".")[0] in text for note in label_set.notes.values())
    assert "no evidence of an accessory pathway" in published_card("mimic_iv_ecg_finetuned")


def test_counts_are_consistent_with_the_notes_and_the_weights():
    known = read_published("mimic_iv_ecg_finetuned")
    assert list(known.positives) == list(MIMIC17.names)
    assert known.recordings["train"] == 630_178
    weights = dict(zip(MIMIC17.names, known.config().pos_weight, strict=True))
    assert round(weights["Ventricular tachycardia"]) == 1105
    assert f"{math.log(weights['Atrial fibrillation']):.3f}" in published_card("mimic_iv_ecg_finetuned")
    af, flutter, pathway = (
        known.positives[label][0] for label in ("Atrial fibrillation", "Atrial flutter", "Accessory pathway conduction")
    )
    note = MIMIC17.notes["Accessory pathway conduction"]
    assert all(f"{count:,}" in note for count in (af, flutter, pathway))
    drifted = dataclasses.replace(known, positives={**known.positives, "Another": [1, 1, 1]})
    with pytest.raises(ValueError, match="different labels"):
        drifted.config()


def test_parameters_are_those_of_the_published_models():
    expected = (90_386_321, 90_883_072, 90_373_248 + 26 * 769)
    for name, parameters in zip(NAMES, expected, strict=True):
        assert f"| Parameters | {parameters:,} |" in published_card(name)


# ----------------------------------------------------------------------------------------------------------------------
# ecgfm convert --card
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_published(monkeypatch, tmp_path):
    """The pretrained checkpoint's card takes the tests' checkpoint for its own."""
    config = convert_checkpoint(CHECKPOINTS / "pretrain.pt", tmp_path / "plain").config
    name = "mimic_iv_ecg_physionet_pretrained"
    real = read_published(name)

    class Tiny(type(real)):
        def config(self):
            return config

    known = Tiny(**{spec.name: getattr(real, spec.name) for spec in dataclasses.fields(real)})
    monkeypatch.setattr(published, "read_published", lambda name: known)
    return name


def test_conversion_puts_the_card_beside_the_weights_with_what_it_found(tiny_published, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["convert", str(CHECKPOINTS / "pretrain.pt"), str(out), "--card", tiny_published, *INPUT_OPTIONS]
    assert main([*command, "--verify"]) == 0
    (step,) = read_steps(out)
    assert step["published"] == tiny_published
    text = (out / "README.md").read_text(encoding="utf-8")
    assert card_problems(text) == []
    assert step["source_sha256"] in text
    assert f"largest difference {step['largest_difference']:.1e}" in text
    assert str(tmp_path) not in text
    # A card that nobody has touched may be replaced; one that somebody has is theirs.
    assert main([*command, "--overwrite"]) == 0
    assert "not compared with the source's outputs" in (out / "README.md").read_text(encoding="utf-8")
    (out / "README.md").write_text(f"{text}\nMine.\n", encoding="utf-8")
    assert main([*command, "--overwrite"]) == 2
    assert "also holds README.md" in capsys.readouterr().err
    assert (out / "README.md").read_text(encoding="utf-8").endswith("Mine.\n")


def test_a_card_is_not_put_beside_another_model(tmp_path, capsys):
    out = tmp_path / "out"
    for name, message in (
        ("mimic_iv_ecg_physionet_pretrained", "expected parameters 90,883,072"),
        ("mimic_iv_ecg_finetuned", "expected a model of the class ECGFMForMultiLabelClassification"),
        ("unheard_of", "no published checkpoint 'unheard_of'"),
    ):
        assert main(["convert", str(CHECKPOINTS / "pretrain.pt"), str(out), "--card", name, *INPUT_OPTIONS]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert main(["convert", "--to-fairseq", str(out), str(out / "x.pt"), "--card", "physionet_finetuned"]) == 2
    assert "--card cannot be used with --to-fairseq" in capsys.readouterr().err


def test_labels_of_ones_own_are_not_those_of_the_card(tiny_published, monkeypatch, tmp_path):
    known = published.read_published(tiny_published)
    report = convert_checkpoint(CHECKPOINTS / "pretrain.pt", tmp_path / "m")
    from ecgfm_hf import ECGFMForPreTraining

    model = ECGFMForPreTraining.from_pretrained(report.output_dir)
    known.label_set = "mimic17"
    model.config.id2label = {0: "mine", 1: "too"}
    with pytest.raises(PublishedCardError, match="convert with --labels mimic17"):
        converted_card(tiny_published, {}, model)


def test_the_list_of_cards(capsys):
    assert main(["card", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(NAMES)
    assert main(["card", "--published", NAMES[0]]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
