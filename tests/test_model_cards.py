"""Cards of models: the whole text, what is unknown, what is asked for, what must not be in one."""

import getpass
import json
import shutil
import socket

import pytest
import yaml
from card_cases import DETAILS, FIXTURES, LABELS, evaluation_of, fine_tuned, tiny_config, write_model
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm_hf.cli.main import main
from ecgfm_hf.hub import Machine
from ecgfm_hf.hub.cards import CardDetailsError, CardError, build_model_card, card_problems
from ecgfm_hf.hub.cards.details import MANDATORY
from ecgfm_hf.hub.cards.model_card import plain, section_titles
from ecgfm_hf.provenance import PROVENANCE_FILE, ProvenanceError

REPOSITORY = "example/ecg-fm-rhythms"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("secret-4711") / "folder")


@pytest.fixture(scope="module")
def evaluation(model):
    return evaluation_of(model, model.parent / "evaluation")


@pytest.fixture(scope="module")
def card(model, evaluation):
    return build_model_card(model, evaluation=evaluation, repo_id=REPOSITORY, **DETAILS)


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_whole_card_of_a_fine_tuned_and_evaluated_model(card):
    assert card == (FIXTURES / "card.md").read_text(encoding="utf-8")
    assert card_problems(card) == []


def test_results_reach_the_hub_through_the_front_matter(card):
    results = json.loads((FIXTURES / "metrics.json").read_text())
    data = ModelCard(card).data
    assert data.license == "mit"
    assert data.library_name == "transformers"
    assert data.base_model == "wanglab/ecg-fm"
    found = {result.metric_name: result for result in data.eval_results}
    assert found["AUROC, mean over labels"].metric_value == round(results["macro"]["auroc"]["value"], 4)
    for label in LABELS[:2]:
        one = found[f"AUROC, {label}"]
        assert one.metric_value == round(results["per_label"][label]["metrics"]["auroc"]["value"], 4)
        assert (one.dataset_name, one.dataset_type, one.dataset_split) == (
            "Clinic ECG 2021",
            "example/clinic-ecg",
            "test",
        )
    # What the evaluation withholds has no result.
    assert f"AUROC, {LABELS[2]}" not in found
    again = yaml.safe_load(data.to_yaml())
    assert again == yaml.safe_load(card.split("---\n")[1])


def test_no_path_person_or_machine_is_in_a_card(card, model, evaluation):
    bare = build_model_card(model, evaluation=evaluation)
    host = socket.gethostname()
    for text in (card, bare):
        assert str(model.parent) not in text
        assert "4711" not in text
        assert len(host) < 4 or host not in text
        assert getpass.getuser() not in ("", text)
        assert "metrics.json" not in text
        # Folders' names are nobody's business either; the evaluated store is called as the author says.
        assert "store" not in section(text, "Evaluation")


def test_counts_that_the_evaluation_withholds_stay_withheld(card):
    rows = [line for line in card.splitlines() if line.startswith("| pacing rhythm")]
    assert "| pacing rhythm | <10 | withheld | – | – | – | – |" in rows


def test_weights_that_would_reveal_withheld_counts_are_not_reported(card, tmp_path):
    # pos_weight times positives are the negatives.
    assert "ln(pos_weight)" not in card
    assert "Training weighted positives, which shifts the logits" in card
    folder = write_model(tmp_path / "m", tiny_config(pos_weight=[4.07, 9.03, 600.0]))
    assert "| pacing rhythm | mean | – | no | 6.397 |" in build_model_card(folder)
    shutil.copy(FIXTURES / PROVENANCE_FILE, folder)
    text = build_model_card(folder)
    assert "| pacing rhythm | mean | – | no | – |" in text
    assert "| atrial fibrillation | mean | – | no | 1.404 |" in text
    assert "600" not in text


@pytest.mark.parametrize("title", section_titles())
def test_each_section_must_be_there_and_hold_something(title, card):
    content = section(card, title)
    problems = card_problems(card.replace(f"\n## {title}\n{content}", f"\n## {title}\n\n<!-- later -->\n\n"))
    assert problems == [f"section '{title}' is empty"]
    assert card_problems(card.replace(f"\n## {title}\n", f"\n### {title}\n")) == [f"section '{title}' is missing"]


@pytest.mark.parametrize("key", [*MANDATORY, "dataset_name"])
def test_what_only_a_person_knows_is_asked_for(key, model, evaluation):
    text = build_model_card(model, evaluation=evaluation, **{name: v for name, v in DETAILS.items() if name != key})
    problems = card_problems(text)
    assert problems
    assert all(key in problem for problem in problems)
    assert f"**To be filled in** (`{key}`)" in text


def test_headings_in_code_are_no_sections(card):
    title = "How to use"
    text = card.replace(f"\n## {title}\n", f"\n## {title}\n\n```text\n## Evaluation\n```\n")
    assert card_problems(text) == []
    hidden = card.replace("\n## Evaluation\n", "\n```text\n## Evaluation\n```\n")
    assert "section 'Evaluation' is missing" in card_problems(hidden)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.pop("license"), "license is missing"),
        (lambda data: data.update(license="My own licence"), "license must be one of"),
        (lambda data: data.update(license="other"), "license other needs license_name"),
        (lambda data: data.update(library_name="ecgfm"), "library_name must be transformers"),
        (lambda data: data.pop("pipeline_tag"), "pipeline_tag is missing"),
        (lambda data: data.pop("tags"), "tags are missing"),
        (lambda data: data.update(tags="ecg"), "tags must be a list"),
        (lambda data: data.update(base_model="/home/x"), "base_model must be a Hub repository"),
        (lambda data: data["model-index"][0]["results"][0].pop("task"), "model-index cannot be read"),
        (lambda data: data["model-index"][0]["results"][0]["dataset"].pop("type"), "model-index cannot be read"),
        (lambda data: data["model-index"][0]["results"][0]["dataset"].update(name=""), "a result has no dataset.name"),
        (lambda data: data["model-index"][0]["results"][0]["metrics"][0].update(value="0.9"), "must be a number"),
        (lambda data: data.update({"model-index": []}), "model-index cannot be read"),
    ],
)
def test_a_front_matter_that_the_hub_cannot_use_is_reported(change, problem, card):
    _, front, body = card.split("---\n", 2)
    data = yaml.safe_load(front)
    change(data)
    found = card_problems(f"---\n{yaml.safe_dump(data)}---\n{body}")
    assert any(problem in one and one.startswith("front matter") for one in found), found


@pytest.mark.parametrize("front", ["", "---\n: {\n---\n", "---\n- a\n---\n", "---\nlicense: mit\n"])
def test_a_card_without_a_readable_front_matter_is_reported(front, card):
    body = card.split("---\n", 2)[2]
    assert any(problem.startswith("front matter") for problem in card_problems(front + body))


def test_a_card_is_read_whatever_ends_its_lines_and_not_behind_a_byte_order_mark(card):
    assert card_problems(card.replace("\n", "\r\n")) == []
    assert card_problems("\ufeff" + card) == [
        "front matter: a byte order mark hides it: save the file as UTF-8 without one"
    ]


def test_a_lost_disclaimer_is_a_problem(card):
    assert card_problems(card.replace("**Not a medical device.**", "")) == [
        "the card does not contain: Not a medical device."
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Names that are not ours
# ----------------------------------------------------------------------------------------------------------------------

EVIL = "<img src=x onerror=alert(1)>|**[b](http://evil.example)**`\n## Evaluation\n---"


def test_names_of_labels_are_text_whatever_they_hold(tmp_path):
    names = (EVIL, "2nd/3rd degree <b>AV</b> block", "plain")
    folder = write_model(tmp_path / "m", tiny_config(names, label_notes={EVIL: EVIL}))
    text = build_model_card(folder, **{**DETAILS, "name": EVIL.replace("\n## Evaluation\n", " ")})
    body = text.split("---\n", 2)[2]
    assert "<img" not in body
    assert "<b>" not in body
    assert "http://evil" not in body
    assert body.count("\n## Evaluation\n") == 1
    assert card_problems(text) == []
    rows = [line for line in section(text, "Outputs").splitlines() if line.startswith("| ")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {rows[0].count("|")}


@settings(deadline=None)
@given(st.text())
def test_any_text_stays_in_its_cell(text):
    shown = plain(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")


# ----------------------------------------------------------------------------------------------------------------------
# Other models, and what is not known
# ----------------------------------------------------------------------------------------------------------------------


def test_what_is_not_noted_is_reported_as_unknown(tmp_path):
    folder = write_model(tmp_path / "m", tiny_config())
    text = build_model_card(folder, **DETAILS)
    assert card_problems(text) == []
    assert "The folder of these weights does not record how they were made: this is unknown here." in text
    assert "does not record the recordings and patients that they were trained on" in text
    assert "**No evaluation is reported.**" in text
    assert "**There are no thresholds:**" in text
    assert "scores, not probabilities" in text
    assert "model-index" not in text
    assert "base_model" not in text
    bare = build_model_card(folder)
    assert bare.count("**To be filled in**") == len(MANDATORY)
    (folder / PROVENANCE_FILE).write_text('{"format": 1, "steps": [{"step": "unknown"}, {"step": "fine-tuning"}]}')
    assert "records nothing about them: how they were made is unknown here" in section(
        build_model_card(folder), "Training procedure"
    )
    (folder / PROVENANCE_FILE).write_text("{")
    with pytest.raises(ProvenanceError, match="damaged"):
        build_model_card(folder)


def test_where_thresholds_come_from_is_reported_only_if_it_was_noted(card, tmp_path):
    assert (
        "chosen on the validation recordings below. Labels without a threshold are not decided: pacing rhythm." in card
    )
    folder = fine_tuned(tmp_path / "m")
    (folder / PROVENANCE_FILE).unlink()
    assert "their origin is not recorded" in build_model_card(folder)


def test_an_interrupted_run_has_no_duration(tmp_path):
    folder = fine_tuned(tmp_path / "m")
    content = json.loads((folder / PROVENANCE_FILE).read_text())
    content["steps"][1]["seconds"] = None
    (folder / PROVENANCE_FILE).write_text(json.dumps(content))
    assert "| Duration | Not recorded (the run was interrupted and resumed). |" in build_model_card(folder)


def test_a_regression_model_has_values_and_errors(tmp_path):
    folder = write_model(tmp_path / "m", tiny_config(("age",), problem_type="regression"))
    figure = {"value": 7.5, "low": 7.0, "high": 8.1}
    results = {
        "problem_type": "regression",
        "labels": ["age"],
        "macro": {"mean_absolute_error": {**figure, "labels": 1, "left_out": 0}},
        "per_label": {"age": {"counts": {"known": 200, "unknown": 0}, "metrics": {"mean_absolute_error": figure}}},
        "subgroups": {},
        "thresholds_from": None,
    }
    evaluation = evaluation_of(folder, tmp_path / "evaluation", **results)
    text = build_model_card(folder, evaluation=evaluation, **DETAILS)
    assert card_problems(text) == []
    assert "| age | 200 | 7.500 (7.000 to 8.100) |" in text
    outputs = section(text, "Outputs")
    assert "A value for each" in outputs
    assert not any(word in outputs for word in ("threshold", "probabilit", "sigmoid"))
    (result,) = ModelCard(text).data.eval_results
    assert (result.metric_type, result.metric_value) == ("mae", 7.5)


def test_classes_that_exclude_one_another_have_no_thresholds(tmp_path):
    folder = write_model(tmp_path / "m", tiny_config(problem_type="single_label_classification"))
    outputs = section(build_model_card(folder), "Outputs")
    assert "softmax" in outputs
    assert "There are no thresholds" not in outputs


def test_an_encoder_has_embeddings_and_no_scores(tmp_path):
    import torch
    from tiny_pretraining import MODEL

    from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForPreTraining, save_model_folder

    torch.manual_seed(0)
    network = ECGFMForPreTraining(ECGFMConfig(**MODEL))
    save_model_folder(network, ECGFMFeatureExtractor(), tmp_path / "m")
    text = build_model_card(tmp_path / "m", **DETAILS)
    assert card_problems(text) == []
    assert "pipeline_tag: feature-extraction" in text
    assert "pooler_output" in section(text, "How to use")
    assert "has no scores to evaluate" in text
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert f"| Parameters | {parameters:,} |" in text


def test_other_thresholds_and_unknown_weights_are_reported(model, tmp_path):
    results = json.loads((FIXTURES / "metrics.json").read_text())
    results["per_label"][LABELS[0]]["decisions"]["threshold"] = 0.9
    evaluation = evaluation_of(model, tmp_path / "e", per_label=results["per_label"], weights=None)
    text = build_model_card(model, evaluation=evaluation, **DETAILS)
    assert "use other thresholds than those in the model's config" in text
    assert "does not record which weights it is of" in text


# ----------------------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------------------


def test_figures_of_another_model_are_refused(model, tmp_path):
    other = evaluation_of(model, tmp_path / "weights", weights="0" * 64)
    with pytest.raises(CardError, match=r"of other weights than those in .*evaluate this model"):
        build_model_card(model, evaluation=other)
    with pytest.raises(CardError, match=r"not an evaluation of the model in .*it has the labels x"):
        build_model_card(model, evaluation=evaluation_of(model, tmp_path / "labels", labels=["x"]))
    with pytest.raises(CardError, match="its problem type is regression"):
        build_model_card(model, evaluation=evaluation_of(model, tmp_path / "kind", problem_type="regression"))
    with pytest.raises(CardError, match="format 2"):
        build_model_card(model, evaluation=evaluation_of(model, tmp_path / "format", format=2))


def test_what_is_no_model_or_evaluation_is_refused(model, tmp_path):
    with pytest.raises(CardError, match=r"not a model folder.*config\.json"):
        build_model_card(tmp_path)
    with pytest.raises(CardError, match=r"metrics\.json is missing"):
        build_model_card(model, evaluation=tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(CardError, match="has no results of"):
        build_model_card(model, evaluation=tmp_path)
    evaluation_of(model, tmp_path, intervals=None)
    with pytest.raises(CardError, match=r"provenance\.json or .* is damaged: UndefinedError"):
        build_model_card(model, evaluation=tmp_path)
    with pytest.raises(CardError, match="repo_id"):
        build_model_card(model, repo_id='a"b')


@pytest.mark.parametrize(
    "step",
    [
        {"step": ["fine-tuning"]},
        {"step": "fine-tuning", "data": [1]},
        {"step": "fine-tuning", "data": {"splits": {"train": {}}}},
        {"step": "fine-tuning", "seconds": "long", "hardware": {"device": "CPU"}},
        {"step": "conversion", "warnings": 3},
    ],
)
def test_facts_that_are_not_of_their_form_are_reported(step, tmp_path):
    folder = write_model(tmp_path / "m", tiny_config())
    (folder / PROVENANCE_FILE).write_text(json.dumps({"format": 1, "steps": [step]}))
    with pytest.raises(CardError, match=r"provenance\.json is damaged"):
        build_model_card(folder)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": "768"}, {"id2label": 3}, {"id2label": {"x": "A"}}, {"conv_dim": None}, {"pos_weight": [1]}],
)
def test_a_config_that_cannot_be_is_reported(change, tmp_path):
    folder = write_model(tmp_path / "m", tiny_config())
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(CardError):
        build_model_card(folder)


def test_a_model_of_other_tasks_has_no_weights_of_positives_and_no_thresholds_chosen(tmp_path):
    folder = write_model(tmp_path / "m", tiny_config(("age",), problem_type="regression"))
    train = {"recordings": 100, "patients": 100, "labels": {"age": {"known": 100, "unknown": 0}}}
    step = {
        "step": "fine-tuning",
        "data": {"smallest_cell": 10, "splits": {"train": train, "valid": train}},
        "pos_weight": None,
        "settings": {"problem_type": "regression"},
    }
    for name, used in (("fine-tuning", "validation (chose the update)"), ("linear probe", "validation")):
        content = {"format": 1, "steps": [{**step, "step": name}]}
        (folder / PROVENANCE_FILE).write_text(json.dumps(content))
        text = build_model_card(folder)
        assert f"| {used} | 100 | 100 |" in text
        assert "| Weight of positives | none |" in text


def test_unknown_and_impossible_details_are_refused(model):
    with pytest.raises(CardDetailsError, match="unknown detail 'licence'; did you mean license"):
        build_model_card(model, licence="mit")
    with pytest.raises(CardDetailsError, match="intended_use must be a text"):
        build_model_card(model, intended_use=["a"])
    with pytest.raises(CardDetailsError, match="tags must be a list"):
        build_model_card(model, tags="ecg")
    with pytest.raises(CardDetailsError, match="would start a new section"):
        build_model_card(model, limitations="Some.\n## Evaluation\nSplendid.")


# ----------------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_card_and_names_what_it_lacks(model, evaluation, tmp_path, capsys):
    details, output = tmp_path / "details.yaml", tmp_path / "card.md"
    details.write_text(yaml.safe_dump({**DETAILS, "license": "cc-by-4.0"}))
    command = ["card", str(model), "--evaluation", str(evaluation), "--output", str(output), "--repo", REPOSITORY]
    assert main([*command, "--details", str(details), "--license", "mit"]) == 0
    assert output.read_text(encoding="utf-8") == (FIXTURES / "card.md").read_text(encoding="utf-8")
    assert main(command) == 2
    assert "may have been edited" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1
    err = capsys.readouterr().err
    assert all(f"fill in {key}" in err for key in (*MANDATORY, "dataset_name"))
    assert [path.name for path in tmp_path.iterdir()] in (["details.yaml", "card.md"], ["card.md", "details.yaml"])


def test_the_command_names_paths_and_people_in_what_it_wrote(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "ecgfm_hf.hub.private_details.this_machine",
        lambda: Machine(users=("jdoe",), hosts=("node-17",), home="/home/jdoe"),
    )
    details = tmp_path / "details.yaml"
    given = {name: text for name, text in DETAILS.items() if "data" not in name or name == "training_data"}
    details.write_text(yaml.safe_dump({**given, "training_data": "From /data/clinic/2020.", "contact": "jdoe"}))
    command = ["card", str(model), "--details", str(details), "--output", "-", "--repo"]
    assert main([*command, "lab/x"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("a path of a machine, '/data/clinic/2020'")
    assert second.endswith("the user's name, 'jdoe'")
    # In a repository of jdoe's own the name is no secret.
    assert main([*command, "jdoe/x"]) == 1
    (only,) = capsys.readouterr().err.splitlines()
    assert only.endswith("'/data/clinic/2020'")


def test_the_command_refuses_what_it_cannot_use(model, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("licence: mit\n")
    (tmp_path / "worse.yaml").write_text("evaluation: mine\n")
    for arguments, message in (
        ([], "give MODEL_DIR, or --published"),
        ([str(tmp_path)], "not a model folder"),
        ([str(model), "--output", "-", "--details", str(tmp_path / "bad.yaml")], "did you mean license"),
        ([str(model), "--output", "-", "--details", str(tmp_path / "worse.yaml")], "unknown detail 'evaluation'"),
        ([str(model), "--output", "-", "--published", "physionet_finetuned"], "is a complete card"),
        (["--published", "nothing"], "no published checkpoint 'nothing'"),
    ):
        assert main(["card", *arguments]) == 2
        assert message in capsys.readouterr().err
