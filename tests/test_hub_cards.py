"""Cards on their way to a mock Hub: built, filled in, pushed, and taken along by the model that they are of."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from card_cases import DETAILS, FIXTURES, evaluation_of, fine_tuned, tiny_config, write_model
from doc_blocks import ROOT, blocks_of
from hub_cases import mock_hub
from huggingface_hub import ModelCard
from mock_hub import TOKEN

from ecgfm_hf import ECGFMForMultiLabelClassification
from ecgfm_hf.cli.main import main
from ecgfm_hf.hub import Machine, PushRefusedError, push_folder
from ecgfm_hf.hub.cards import build_model_card, card_problems
from ecgfm_hf.provenance import PROVENANCE_FILE


@pytest.fixture(autouse=True)
def _somebody(monkeypatch):
    machine = Machine(users=("jdoe",), hosts=("node-17",), home="/home/jdoe")
    for module in ("contents", "pushing", "private_details"):
        monkeypatch.setattr(f"ecgfm_hf.hub.{module}.this_machine", lambda: machine)


@pytest.fixture
def hub():
    with mock_hub(namespaces=("lab",)) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A fine-tuned model, its head as if it had been trained."""
    folder = fine_tuned(tmp_path / "model")
    change(folder)
    return folder


def change(folder):
    model = ECGFMForMultiLabelClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)


def card_of(hub, name="lab/rhythms"):
    return hub.files(name)["README.md"].decode()


def test_a_card_is_built_filled_in_by_hand_and_pushed(hub, folder, tmp_path, capsys):
    push = ["push", str(folder), "lab/rhythms"]
    # Without the details that only a person can state.
    assert main([*push, "--dry-run"]) == 1
    assert "section 'Intended use': fill in intended_use" in capsys.readouterr().err
    evaluation = evaluation_of(folder, tmp_path / "evaluation")
    assert main(["card", str(folder), "--evaluation", str(evaluation), "--repo", "lab/rhythms"]) == 1
    assert main([*push, "--dry-run"]) == 1
    assert "fill in dataset_name" in capsys.readouterr().err
    assert hub.requests == []
    details = tmp_path / "details.yaml"
    details.write_text(yaml.safe_dump(DETAILS), encoding="utf-8")
    write = ["card", str(folder), "--evaluation", str(evaluation), "--repo", "lab/rhythms", "--details", str(details)]
    assert main([*write, "--overwrite"]) == 0
    # By hand, in another editor.
    card = (folder / "README.md").read_text(encoding="utf-8").replace("Adults only.", "Adults of one town only.")
    (folder / "README.md").write_bytes(card.replace("\n", "\r\n").encode())
    assert main([*push, "--dry-run"]) == 0
    assert main(push) == 0
    assert card_of(hub) == card.replace("\n", "\r\n")


def test_a_push_builds_the_card_with_results_that_the_hub_reads(hub, folder, tmp_path):
    details = tmp_path / "details.yaml"
    details.write_text(yaml.safe_dump(DETAILS), encoding="utf-8")
    evaluation = evaluation_of(folder, tmp_path / "evaluation")
    push = ["push", str(folder), "lab/rhythms", "--evaluation", str(evaluation), "--details", str(details)]
    assert main(push) == 0
    results = json.loads((FIXTURES / "metrics.json").read_text())
    found = {result.metric_name: result for result in ModelCard(card_of(hub)).data.eval_results}
    assert found["AUROC, mean over labels"].metric_value == round(results["macro"]["auroc"]["value"], 4)
    assert found["AUROC, mean over labels"].dataset_name == DETAILS["dataset_name"]
    assert json.loads(hub.files("lab/rhythms")[PROVENANCE_FILE])["steps"][-1]["step"] == "fine-tuning"
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize(
    ("details", "message"),
    [("licence: mit", "unknown detail 'licence'; did you mean license"), ("- a", "key: value"), (None, "No such file")],
)
def test_details_that_cannot_be_used_stop_a_push(details, message, hub, folder, tmp_path, capsys):
    path = tmp_path / "details.yaml"
    if details is not None:
        path.write_text(details)
    assert main(["push", str(folder), "lab/rhythms", "--details", str(path)]) == 1
    assert message in capsys.readouterr().err
    assert hub.requests == []


def test_a_path_in_a_card_is_reported_once(hub, folder):
    text = build_model_card(folder, **{**DETAILS, "training_data": "From /home/jdoe/node-17/records."})
    (folder / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(PushRefusedError) as caught:
        push_folder(folder, "lab/rhythms")
    (problem,) = caught.value.problems
    assert "a path of a machine, '/home/jdoe/node-17/records'" in problem


def test_a_model_that_was_pulled_is_pushed_again(hub, folder, tmp_path):
    push_folder(folder, "lab/rhythms", details=DETAILS)
    program = (
        "from huggingface_hub import snapshot_download\n"
        "from ecgfm_hf import push_folder\n"
        "push_folder(snapshot_download('lab/rhythms', local_dir='pulled'), 'lab/again')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    first, again = hub.files("lab/rhythms"), hub.files("lab/again")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert again[name] == first[name], name


def test_labels_of_any_name_reach_the_hub(hub, tmp_path):
    names = ("<b>a|b</b>: #1", "- `x`\n---", "'\"\\ \u202e\U0001f600", "yes")
    folder = write_model(tmp_path / "m", tiny_config(names, label_notes={names[0]: "[x](http://y.example)"}))
    change(folder)
    push_folder(folder, "lab/names", details=DETAILS)
    assert card_problems(card_of(hub, "lab/names")) == []
    assert list(json.loads(hub.files("lab/names")["config.json"])["id2label"].values()) == list(names)


def test_the_licence_of_other_peoples_weights_is_asked_for(folder, capsys, tmp_path):
    (folder / "README.md").write_text(build_model_card(folder, **DETAILS), encoding="utf-8")
    assert main(["push", str(folder), "lab/rhythms", "--dry-run"]) == 0
    assert "note        LICENSE: is the licence of the code" in capsys.readouterr().out


def test_the_details_that_the_documentation_shows_are_enough(folder, tmp_path):
    (block,) = [block for block in blocks_of(ROOT / "docs" / "hub.md") if block.language == "yaml"]
    evaluation = evaluation_of(folder, tmp_path / "evaluation")
    assert card_problems(build_model_card(folder, evaluation=evaluation, **yaml.safe_load(block.text))) == []
