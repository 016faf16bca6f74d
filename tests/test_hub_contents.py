"""What of a folder goes to the Hub, what stays, and what forbids the push."""

import json
import shutil

import pytest
import torch
from card_stand_in import FRONT, SECTIONS, build_model_card
from hub_cases import make_classifier, make_folder, stand_in_cards
from safetensors.torch import load_file, save_file

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForPreTraining, ECGFMModel, save_model_folder
from ecgfm_hf.data.leakage import GUARD_FILE, write_training_ids
from ecgfm_hf.hub import Machine, folder_contents
from ecgfm_hf.provenance import add_step

GOING = {
    "LICENSE",
    "README.md",
    "config.json",
    "configuration_ecgfm.py",
    "feature_extraction_ecgfm.py",
    "model.safetensors",
    "modeling_ecgfm.py",
    "pipeline_ecgfm.py",
    "preprocessor_config.json",
}


@pytest.fixture(autouse=True)
def _somebody(monkeypatch):
    """The machine of somebody: that of the tests may have names without meaning."""
    machine = Machine(users=("jdoe",), hosts=("node-17",), home="/home/jdoe")
    monkeypatch.setattr("ecgfm_hf.hub.contents.this_machine", lambda: machine)
    with stand_in_cards():
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_config):
    labels = {name: {"slope": 1.0, "intercept": 0.0} for name in "ABC"}
    config = tiny_config(label_thresholds=dict.fromkeys("ABC", 0.5), label_calibration=labels)
    return make_folder(tmp_path_factory.mktemp("contents") / "model", config)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def problems(folder, **settings):
    return folder_contents(folder, "me/x", **settings).problems


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_a_whole_model_goes_with_card_and_licence_and_nothing_else(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    contents = folder_contents(folder, "me/x")
    assert contents.problems == contents.notes == contents.kept == ()
    assert {file.name for file in contents.uploads} == GOING
    by_name = {file.name: file for file in contents.uploads}
    assert b"MIT License" in by_name["LICENSE"].content
    assert by_name["README.md"].content.decode() == build_model_card(folder, repo_id="me/x")
    assert contents.size == sum(file.size for file in contents.uploads)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("model_class", [ECGFMModel, ECGFMForPreTraining])
def test_models_without_a_head_go(model_class, tiny_config, tmp_path):
    save_model_folder(model_class(tiny_config()), ECGFMFeatureExtractor(), tmp_path / "model")
    assert problems(tmp_path / "model") == ()


def test_sharded_weights_go_with_their_index(tiny_config, tmp_path):
    folder = make_folder(tmp_path / "model", tiny_config(), max_shard_size="30KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    contents = folder_contents(folder, "me/x")
    assert contents.problems == ()
    assert {f.name for f in contents.uploads} == GOING - {"model.safetensors"} | shards | {
        "model.safetensors.index.json"
    }
    next(iter(folder.glob("model-*.safetensors"))).unlink()
    assert any("which is missing" in problem for problem in problems(folder))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("other_ids.do-not-share.json", "identifies people"),
        ("anything.do-not-share.csv", "identifies people"),
        ("optimizer.pt", "pickle"),
        ("pytorch_model.bin", "pickle"),
        ("predictions.parquet", "data"),
        ("labels.csv", "data"),
        ("a.hea", "recordings"),
        ("a.dat", "recordings"),
        ("settings.yaml", "training run"),
        ("metrics.jsonl", "training run"),
        (".env", "hidden"),
        ("notes.txt", "not part of a model folder"),
        ("model-00001-of-00002.safetensors", "model.safetensors is loaded instead"),
        ("checkpoints/step-00000001/optimizer.pt", "checkpoints"),
        ("store/data/train.parquet", "data"),
        ("more/config.json", "not part of a model folder"),
    ],
)
def test_what_is_not_on_the_list_stays_and_is_reported(name, why, folder):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"patient 10000032")
    contents = folder_contents(folder, "me/x")
    assert contents.problems == ()
    assert {file.name for file in contents.uploads} == GOING
    ((left, reason),) = contents.kept
    assert left == (name.split("/")[0] + "/" if "/" in name else name)
    assert why in reason


@pytest.mark.parametrize(
    ("mark", "message"),
    [("report.json", "prepared store"), ("predictions.parquet", "an evaluation"), ("a.hea", "not a model folder")],
)
def test_a_folder_that_is_no_model_is_refused_for_what_it_is(mark, message, tmp_path):
    (tmp_path / mark).write_text("{}")
    with pytest.raises(FileNotFoundError, match=message):
        folder_contents(tmp_path, "me/x")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder_contents(tmp_path / "none", "me/x")


# ----------------------------------------------------------------------------------------------------------------------
# What forbids
# ----------------------------------------------------------------------------------------------------------------------


def test_a_path_or_name_is_refused_wherever_it_stands(folder):
    edit_json(folder / "config.json", _name_or_path="/data/models/first")
    edit_json(folder / "preprocessor_config.json", note="made by jdoe")
    with (folder / "modeling_ecgfm.py").open("a") as file:
        file.write("# copied from node-17\n")
    (folder / "README.md").write_text(build_model_card(folder) + "\nSee C:\\Users\\jdoe\\ecg.\n")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt", "from": "/home/jdoe/run"})
    found = problems(folder)
    for file, what in (
        ("config.json", "'/data/models/first'"),
        ("preprocessor_config.json", "the user's name, 'jdoe'"),
        ("modeling_ecgfm.py", "the host's name, 'node-17'"),
        ("README.md", "C:\\\\Users\\\\jdoe\\\\ecg"),
        ("model.safetensors", "'/home/jdoe/run'"),
    ):
        assert any(problem.startswith(f"{file}: ") and what in problem for problem in found), (file, found)


def test_a_user_of_the_same_name_on_the_hub_is_no_secret(folder):
    (folder / "README.md").write_text(build_model_card(folder, repo_id="jdoe/x"))
    assert folder_contents(folder, "jdoe/x").problems == ()
    assert folder_contents(folder, "lab/x").problems
    assert folder_contents(folder, "lab/x", allow=["jdoe"]).problems == ()


def test_ids_of_the_training_data_are_refused_and_not_repeated(folder, tmp_path):
    write_training_ids(folder, (["rec_0001", "p10/s40689238"], ["10000032", None]), (["JS00001"], ["7"]))
    (folder / "README.md").write_text(
        f"{build_model_card(folder)}\n| 10000032 | 7 |\nrec_0001.hea, `JS00001`\n40689238"
    )
    found = problems(folder)
    text = "has the id of a training recording or patient"
    assert [p for p in found if text in p] == [f"README.md: line {n}: {text}" for n in (17, 18)]
    assert not any("10000032" in problem for problem in found)
    assert GUARD_FILE in dict(folder_contents(folder, "me/x").kept)
    (folder / "README.md").write_text(build_model_card(folder) + "\n90,883,072 parameters, AUROC 0.9961234567\n")
    assert problems(folder) == ()
    (folder / GUARD_FILE).write_text("{}")
    assert any("is damaged" in problem for problem in problems(folder))


def test_links_out_of_the_folder_are_refused_and_links_within_are_not(folder, tmp_path):
    shutil.move(folder / "config.json", folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    assert problems(folder) == ()
    for name in ("model.safetensors", "README.md"):
        outside = tmp_path / f"outside-{name}"
        outside.write_bytes(b"x")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
        assert any(problem.startswith(f"{name}: is a link to") for problem in problems(folder))


def test_a_link_that_leads_nowhere_is_refused(folder):
    for target in ("README.md", "none"):
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "README.md").symlink_to(target)
        assert any(problem.startswith("README.md: is not a file") for problem in problems(folder)), target


def test_weights_must_be_the_models(folder):
    whole = load_file(folder / "model.safetensors")
    file = folder / "model.safetensors"

    def found(tensors):
        save_file(tensors, file, {"format": "pt"})
        return " ".join(problems(folder))

    assert "weights of ECGFMForMultiLabelClassification are missing and would be random: classifier.weight" in found(
        {k: v for k, v in whole.items() if k != "classifier.weight"}
    )
    assert "has tensors that ECGFMForMultiLabelClassification does not use: exp_avg" in found(
        {**whole, "exp_avg": torch.ones(2)}
    )
    assert "classifier.weight has shape [2, 32], the config expects [3, 32]" in found(
        {**whole, "classifier.weight": torch.ones(2, 32)}
    )
    assert "holds NaN" in found({**whole, "classifier.weight": torch.full((3, 32), torch.nan)})
    assert "never trained" in found({**whole, "classifier.bias": torch.zeros(3)})
    edit_json(folder / "config.json", architectures=["ECGFMForPreTraining"])
    assert "ECGFMForPreTraining does not use: classifier.bias, classifier.weight" in found(whole)
    edit_json(folder / "config.json", architectures=["ECGFMForMultiLabelClassification"])
    torch.save(whole, file)
    assert "not a safetensors file, or damaged" in " ".join(problems(folder))
    save_file(whole, file)
    file.write_bytes(file.read_bytes()[:-7])
    assert "not a safetensors file, or damaged" in " ".join(problems(folder))
    file.unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in " ".join(problems(folder))


@pytest.mark.parametrize("target", ["../other.safetensors", "/data/x.safetensors", "optimizer.pt", 3])
def test_an_index_names_only_shards_of_the_folder(target, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    assert any("the shard" in problem for problem in problems(folder))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "wav2vec2"}, "model_type must be 'ecgfm'"),
        ("config.json", {"architectures": ["Other"]}, "architectures must be one of"),
        (
            "config.json",
            {"auto_map": {"AutoModel": "modeling_ecgfm.ECGFMModel"}},
            "auto_map does not name the code files",
        ),
        ("config.json", {"custom_pipelines": None}, "custom_pipelines does not name the code files"),
        ("config.json", {"label_thresholds": {"D": 0.5}}, "labels that id2label does not have"),
        ("config.json", {"num_leads": 8}, "has 12 leads, but the model takes 8"),
        ("config.json", {"architectures": [{}]}, "architectures must be one of"),
        ("config.json", {"architectures": "ECGFMModel"}, "architectures must be one of"),
        ("config.json", {"hidden_act": "none such"}, "config.json: cannot build ECGFMForMultiLabelClassification"),
        ("config.json", {"id2label": 3}, "config.json: "),
        ("config.json", {"id2label": [1]}, "config.json: "),
        ("config.json", {"hidden_size": "768"}, "config.json: "),
        ("config.json", {"label_calibration": {"A": 3}}, "config.json: "),
        ("config.json", {"conv_dim": None}, "config.json: "),
        ("preprocessor_config.json", {"auto_map": None}, "auto_map does not name the code"),
        ("preprocessor_config.json", {"auto_map": 3}, "auto_map does not name the code"),
        (
            "preprocessor_config.json",
            {"auto_map": {"AutoFeatureExtractor": "me/other--feature_extraction_ecgfm.ECGFMFeatureExtractor"}},
            "auto_map does not name the code",
        ),
        ("preprocessor_config.json", {"lead_names": 3}, "preprocessor_config.json: "),
        ("preprocessor_config.json", {"sampling_rate": "500"}, "preprocessor_config.json: "),
        ("preprocessor_config.json", {"lead_names": ["I", "I"]}, "preprocessor_config.json: "),
    ],
)
def test_settings_must_be_whole_and_agree(file, changes, message, folder):
    edit_json(folder / file, **changes)
    assert any(message in problem for problem in problems(folder)), problems(folder)


@pytest.mark.parametrize("name", sorted(GOING - {"LICENSE", "README.md", "config.json"}))
def test_a_missing_part_is_named(name, folder):
    (folder / name).unlink()
    assert any(problem.startswith(f"{name}: missing") for problem in problems(folder))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"\xef\xbb\xbf{}", b""])
def test_damaged_settings_are_refused(content, folder):
    (folder / "preprocessor_config.json").write_bytes(content)
    assert any(problem.startswith("preprocessor_config.json: ") for problem in problems(folder))


def test_a_list_of_training_ids_that_is_gone_is_missed(folder):
    write_training_ids(folder, (["rec_0001"], ["10000032"]))
    assert problems(folder) == ()
    (folder / GUARD_FILE).unlink()
    (problem,) = problems(folder)
    assert problem.startswith("training_ids.do-not-share.json: missing, although the model was trained here")
    assert problems(folder, allow=[GUARD_FILE]) == ()


def test_foreign_model_code_is_refused_unless_it_is_allowed(folder):
    with (folder / "pipeline_ecgfm.py").open("a") as file:
        file.write("import os  # patient 10000032\n")
    (problem,) = problems(folder)
    assert problem.startswith("pipeline_ecgfm.py: differs from the installed package, and others will run it")
    assert "--allow-code" in problem
    contents = folder_contents(folder, "me/x", allow_code=True)
    assert contents.problems == ()
    assert any("pipeline_ecgfm.py: differs from the installed package" in note for note in contents.notes)
    write_training_ids(folder, ([], ["10000032"]))
    (problem,) = problems(folder, allow_code=True)
    assert problem.endswith("has the id of a training recording or patient")


def test_a_card_that_shows_small_groups_is_refused_unless_the_smallest_cell_is_repeated(folder):
    (folder / "README.md").write_text(build_model_card(folder) + "\n<!-- smallest cell: 3 -->\n")
    (problem,) = problems(folder)
    assert problem == (
        "README.md: made with a smallest cell of 3: everyone would see counts of 3 to 9 patients, and figures that "
        "reveal such counts. Make it again with a smallest cell of 10, or accept this with smallest_cell=3 "
        "(--smallest-cell 3)"
    )
    assert problems(folder, smallest_cell=4)
    assert problems(folder, smallest_cell=3) == ()


def test_weights_of_positives_that_reveal_withheld_counts_are_refused(folder):
    edit_json(folder / "config.json", pos_weight=[4.0, 9.0, 600.0])
    assert problems(folder) == ()
    many, few = {"positive": 20, "negative": 80}, {"positive": "<10", "negative": "withheld"}
    train = {"recordings": 100, "patients": 100, "labels": {"A": many, "B": many, "C": few}}
    add_step(folder, "fine-tuning", {"data": {"splits": {"train": train}}})
    (problem,) = [problem for problem in problems(folder) if "pos_weight" in problem]
    assert "pos_weight reveals counts of few patients for C, which provenance.json withholds" in problem
    edit_json(folder / "config.json", pos_weight=None)
    assert problems(folder) == ()
    edit_json(folder / "config.json", pos_weight=[4.0, 9.0, 600.0])
    (folder / "provenance.json").write_text("{")
    assert any(problem.startswith("provenance.json: ") for problem in problems(folder))


def test_a_text_too_large_to_look_through_is_refused(folder):
    with (folder / "README.md").open("w") as file:
        file.truncate(10_000_001)
    assert any("README.md: has 10,000,001 bytes, at most 10,000,000" in problem for problem in problems(folder))


def test_a_licence_behind_a_byte_order_mark_is_read(folder):
    (folder / "README.md").write_text("\ufeff" + build_model_card(folder).replace("mit", "cc-by-4.0"), encoding="utf-8")
    assert any("the card has license: cc-by-4.0" in problem for problem in problems(folder))


def test_a_card_with_empty_sections_is_refused(folder):
    (folder / "README.md").write_text(f"{FRONT}\n## {SECTIONS[0]}\n\n## {SECTIONS[1]}\n\nSome.\n")
    assert problems(folder) == (f"README.md: section {SECTIONS[0]!r} is empty or missing",)


def test_a_card_that_cannot_be_built_whole_is_refused(folder, monkeypatch):
    monkeypatch.setattr("card_stand_in.build_model_card", lambda *_, **__: f"{FRONT}\n## {SECTIONS[0]}\n\nSome.\n")
    missing, hint = problems(folder)
    assert SECTIONS[1] in missing
    assert "`ecgfm card`" in hint

    def fails(*_, **__):
        raise ValueError("no such evaluation")

    monkeypatch.setattr("card_stand_in.build_model_card", fails)
    assert problems(folder) == ("README.md: missing, and cannot be built: no such evaluation",)


def test_a_card_that_is_there_is_taken_and_an_evaluation_beside_it_is_an_error(folder, tmp_path):
    (folder / "README.md").write_text(build_model_card(folder) + "\nBy hand.\n")
    (card,) = (file for file in folder_contents(folder, "me/x").uploads if file.name == "README.md")
    assert card.content.endswith(b"By hand.\n")
    assert any("would not be used" in problem for problem in problems(folder, evaluation=tmp_path))
    assert any("so details would not be used" in problem for problem in problems(folder, details={"license": "mit"}))
    (folder / "README.md").unlink()
    (card,) = (f for f in folder_contents(folder, "me/x", evaluation=tmp_path).uploads if f.name == "README.md")
    assert b"It was evaluated." in card.content


def test_another_licence_must_be_there_to_go(folder):
    (folder / "README.md").write_text(build_model_card(folder).replace("license: mit", "license: cc-by-nc-4.0"))
    assert any("LICENSE: missing, and the card has license: cc-by-nc-4.0" in p for p in problems(folder))
    (folder / "LICENSE").write_text("Attribution-NonCommercial 4.0")
    assert problems(folder) == ()


def test_what_to_know_is_noted(tiny_config, tmp_path):
    config = tiny_config(id2label={0: "LABEL_0", 1: "B"}, label2id={"LABEL_0": 0, "B": 1})
    save_model_folder(make_classifier(config), ECGFMFeatureExtractor(), tmp_path)
    card = build_model_card(tmp_path) + "\n![roc](figures/roc.png) [config](config.json) [site](https://x.org/a)\n"
    (tmp_path / "README.md").write_text(card)
    contents = folder_contents(tmp_path, "me/x")
    assert contents.problems == ()
    notes = " ".join(contents.notes)
    assert "1 labels have default names" in notes
    assert "label_thresholds is missing for 2 of 2 labels" in notes
    assert [note for note in contents.notes if "refers" in note] == [
        "README.md: refers to figures/roc.png, which is not uploaded"
    ]
