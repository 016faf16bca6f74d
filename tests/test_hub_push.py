"""Pushing to, and pulling from, a mock Hub on the loopback address: the real client, real HTTP, not the real Hub."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from card_stand_in import build_model_card
from hub_cases import make_folder, mock_hub, stand_in_cards
from mock_hub import DROP, LOSE, TOKEN
from transformers import PreTrainedModel

import ecgfm_hf
from ecgfm_hf import (
    ECGFMConfig,
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    load_pipeline,
    push_folder,
    save_model_folder,
)
from ecgfm_hf.cli.main import main
from ecgfm_hf.data.leakage import write_training_ids
from ecgfm_hf.hub import PushError, PushRefusedError, find_private_details, this_machine

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
# Runs where importing the package fails, as it does where it is not installed.
PULL = """
import json, sys
sys.modules["ecgfm_hf"] = None
import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification, pipeline
repo, recording = sys.argv[1:3]
call = {"sampling_rate": 500, "lead_names": json.loads(sys.argv[3])}
signal, remote = np.load(recording), {"trust_remote_code": True}
extractor = AutoFeatureExtractor.from_pretrained(repo, **remote)
inputs = extractor(signal, **call, return_tensors="pt")["input_values"]
model, loading = AutoModelForSequenceClassification.from_pretrained(repo, output_loading_info=True, **remote)
assert not any(loading.values()), loading
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
with torch.no_grad():
    result = {"logits": model.eval()(inputs).logits.tolist()}
    result["encoder"] = type(AutoModel.from_pretrained(repo, **remote)).__name__
pipe = pipeline("ecg-classification", model=repo, device="cpu", **remote)
result["pipeline"] = pipe({"signal": signal, **call})
branch = AutoModelForSequenceClassification.from_pretrained(repo, revision="trial", **remote)
result["branch"] = branch.config.label_notes
# Without the package, pushing is transformers' own.
model.push_to_hub("me/again")
print(json.dumps(result))
"""


@pytest.fixture(autouse=True)
def _cards(monkeypatch):
    monkeypatch.setattr("ecgfm_hf.hub.pushing._WAITS", (0.01, 0.01))
    with stand_in_cards():
        yield


@pytest.fixture
def hub():
    with mock_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_config):
    labels = {name: {"slope": 2.0, "intercept": 0.5} for name in "ABC"}
    config = tiny_config(
        label_thresholds=dict.fromkeys("ABC", 0.5), label_calibration=labels, label_aggregation={"B": "max"}
    )
    return make_folder(tmp_path_factory.mktemp("push") / "model", config)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def change(folder):
    """Other weights in a folder."""
    model = ECGFMForMultiLabelClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)


# ----------------------------------------------------------------------------------------------------------------------
# What arrives
# ----------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_pushed_whole_in_one_commit_and_not_changed(hub, folder):
    for name in ("optimizer.pt", "settings.yaml", "recording.dat"):
        (folder / name).write_bytes(b"stays at home")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = push_folder(folder, "me/model")
    assert done.repo_url == f"{hub.url}/me/model"
    files = hub.files("me/model")
    assert set(files) == set(before) - {"optimizer.pt", "settings.yaml", "recording.dat", "checksums.json"} | {
        "README.md",
        "LICENSE",
        ".gitattributes",
    }
    assert all(files[name] == content for name, content in before.items() if name in files)
    assert files["README.md"].decode() == build_model_card(folder, repo_id="me/model")
    assert [title for _, title, _ in hub.repositories["me/model"].branches["main"]][1:] == [done.commit_message]
    assert done.oid == hub.repositories["me/model"].at("main")[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not any(b"stays at home" in content for content in hub.sent)


def test_a_push_of_what_is_there_makes_no_commit_and_sends_no_weights(hub, folder):
    first = push_folder(folder, "me/model")
    again = push_folder(folder, "me/model")
    assert again.oid == first.oid
    assert hub.count("PUT", "/storage/") == 1


@pytest.mark.parametrize("private", [True, None])
def test_a_repository_is_as_private_as_asked(private, hub, folder):
    push_folder(folder, "me/model", private=private)
    assert hub.repositories["me/model"].private is bool(private)


def test_a_private_push_to_a_public_repository_is_refused_before_anything_goes(hub, folder):
    push_folder(folder, "me/model")
    change(folder)
    sent = len(hub.sent)
    with pytest.raises(PushError, match="exists and is public"):
        push_folder(folder, "me/model", private=True)
    assert len(hub.sent) == sent


def test_a_branch_is_made_where_there_is_none_and_main_stays(hub, folder):
    push_folder(folder, "me/model")
    old = weights(folder)
    change(folder)
    for _ in range(2):
        push_folder(folder, "me/model", revision="trial/2", commit_message="Try another head")
    assert hub.files("me/model", "trial/2")["model.safetensors"] == weights(folder)
    assert hub.repositories["me/model"].at("trial/2")[1] == "Try another head"
    assert hub.files("me/model")["model.safetensors"] == old


def test_weights_in_other_files_replace_those_of_an_earlier_push(hub, folder, tiny_config, tmp_path):
    push_folder(folder, "me/model")
    sharded = make_folder(tmp_path / "sharded", tiny_config(), max_shard_size="30KB")
    push_folder(sharded, "me/model")
    assert "model.safetensors" not in hub.files("me/model")
    assert "model.safetensors.index.json" in hub.files("me/model")
    push_folder(folder, "me/model")
    assert [name for name in hub.files("me/model") if "safetensors" in name] == ["model.safetensors"]


def test_large_weights_go_in_parts(folder):
    with mock_hub(chunk_size=5_000) as hub:
        push_folder(folder, "me/model")
        assert hub.count("PUT", r"/storage/\w+/\d+") == -(-len(weights(folder)) // 5_000) > 2
        assert hub.files("me/model")["model.safetensors"] == weights(folder)


def test_what_is_pushed_loads_and_predicts_where_the_package_is_not_installed(hub, folder, tmp_path):
    push_folder(folder, "me/model", private=True)
    model = ECGFMForMultiLabelClassification.from_pretrained(folder)
    model.config.label_notes = {"A": "another"}
    save_model_folder(model, ECGFMFeatureExtractor(), tmp_path / "other")
    push_folder(tmp_path / "other", "me/model", revision="trial")
    signal = np.random.default_rng(0).standard_normal((12, 5500))
    np.save(tmp_path / "signal.npy", signal)
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    run = subprocess.run(
        [sys.executable, "-c", PULL, "me/model", tmp_path / "signal.npy", json.dumps(LEADS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    inputs = ECGFMFeatureExtractor()(signal, sampling_rate=500, lead_names=LEADS, return_tensors="pt")["input_values"]
    with torch.no_grad():
        logits = ECGFMForMultiLabelClassification.from_pretrained(folder).eval()(inputs).logits
    assert np.array(result["logits"]) == pytest.approx(logits.numpy(), abs=1e-6)
    expected = load_pipeline(folder)({"signal": signal, "sampling_rate": 500, "lead_names": LEADS})
    assert result["pipeline"]["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    assert result["pipeline"]["positive"] == expected["positive"]
    assert result["encoder"] == "ECGFMModel"
    assert result["branch"] == {"A": "another"}
    again = hub.files("me/again")
    assert again["model.safetensors"] == weights(folder)
    assert "modeling_ecgfm.py" in again


# ----------------------------------------------------------------------------------------------------------------------
# What goes wrong
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [DROP, 503])
def test_an_interrupted_upload_is_tried_again(how, hub, folder):
    hub.fail("PUT", "/storage/", how)
    push_folder(folder, "me/model")
    assert hub.count("PUT", "/storage/") == 2
    assert hub.files("me/model")["model.safetensors"] == weights(folder)


@pytest.mark.parametrize("how", [DROP, LOSE, 502])
@pytest.mark.parametrize("path", ["/repos/create", "/branch/", "/commit/", "^/api/models/me/model/revision"])
def test_whatever_is_interrupted_is_tried_again_and_done_once(how, path, hub, folder):
    for method in ("GET", "POST"):
        hub.fail(method, path, how)
    done = push_folder(folder, "me/model", revision="trial")
    commits = hub.repositories["me/model"].branches["trial"]
    assert len(commits) == 2
    assert commits[-1][0] == done.oid
    assert hub.files("me/model", "trial")["model.safetensors"] == weights(folder)


def test_a_push_that_died_after_the_upload_continues_without_it(hub, folder):
    hub.fail("POST", "/commit/", DROP, times=9)
    with pytest.raises(PushError, match=r"cannot be reached.*No file there has changed"):
        push_folder(folder, "me/model")
    assert hub.files("me/model") == {".gitattributes": b""}
    hub.faults.clear()
    push_folder(folder, "me/model")
    assert hub.count("PUT", "/storage/") == 1
    assert hub.files("me/model")["model.safetensors"] == weights(folder)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/repos/create", 401, "rejects the access token.*hf auth login"),
        ("/preupload/", 403, "cannot write to me/model"),
        ("/commit/", 404, "me/model does not exist"),
        ("/commit/", 409, "changed by another push.*push again"),
        ("/commit/", 413, r"the Hub refused me/model \(413\)"),
        ("/validate-yaml", 400, "me/model"),
    ],
)
def test_a_refusal_is_explained_and_leaves_the_repository_as_it_was(path, status, message, hub, folder):
    hub.fail("POST", path, status)
    with pytest.raises(PushError, match=message) as caught:
        push_folder(folder, "me/model")
    assert TOKEN not in str(caught.value)
    assert all(repo.at("main")[2] == {".gitattributes": b""} for repo in hub.repositories.values())


def test_a_token_that_the_hub_does_not_know_is_explained_and_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 6)
    with pytest.raises(PushError, match=r"\(401\).*hf auth login") as caught:
        push_folder(folder, "me/model")
    assert "wrongwrong" not in str(caught.value)


def test_without_a_token_nothing_is_asked(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PushError, match="no access token: run `hf auth login`"):
        push_folder(folder, "me/model")
    assert hub.requests == []


def test_a_namespace_of_others_is_refused(hub, folder):
    with pytest.raises(PushError, match=r"cannot write to them/model \(403\)"):
        push_folder(folder, "them/model")


def test_a_repository_that_vanishes_is_reported(hub, folder):
    hub.fail("POST", "/preupload/", None, before=hub.repositories.clear)
    with pytest.raises(PushError, match=r"me/model does not exist \(404\).*removed or renamed"):
        push_folder(folder, "me/model")


def test_signed_addresses_are_not_shown(hub, folder):
    hub.fail("PUT", "/storage/", 418)
    with pytest.raises(PushError) as caught:
        push_folder(folder, "me/model")
    assert "(418)" in str(caught.value)
    assert "signature" not in str(caught.value)


def test_no_hub_and_offline_mode_are_named(folder):
    # Each patch ends before the mock's own, which would be set back to otherwise.
    with mock_hub(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
            push_folder(folder, "me/model")
    with mock_hub(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(PushError, match=r"127\.0\.0\.1:9 cannot be reached"):
            push_folder(folder, "me/model")


def test_of_two_pushes_at_once_one_goes_and_the_other_is_reported(hub, folder, original):
    change(folder)
    # While the first is about to commit, the second goes all the way.
    hub.fail("POST", "/commit/", None, before=lambda: threaded(push_folder, original, "me/model"))
    with pytest.raises(PushError, match=r"changed by another push \(412\)"):
        push_folder(folder, "me/model")
    assert hub.files("me/model")["model.safetensors"] == weights(original)
    assert len(hub.repositories["me/model"].branches["main"]) == 2


def threaded(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def test_weights_that_change_during_the_push_do_not_go(hub, folder):
    hub.fail("PUT", "/storage/", None, before=lambda: change(folder))
    with pytest.raises(PushError, match="has changed since it was checked"):
        push_folder(folder, "me/model")
    assert hub.files("me/model") == {".gitattributes": b""}


def test_what_the_hub_leaves_out_is_reported(hub, folder, monkeypatch):
    create_commit = "huggingface_hub.hf_api.HfApi.create_commit"
    import huggingface_hub

    whole = huggingface_hub.HfApi.create_commit
    monkeypatch.setattr(create_commit, lambda self, repo, operations, **how: whole(self, repo, operations[1:], **how))
    with pytest.raises(PushError, match=r"without config\.json: check whether its \.gitignore"):
        push_folder(folder, "me/model")


# ----------------------------------------------------------------------------------------------------------------------
# Other ways in
# ----------------------------------------------------------------------------------------------------------------------


def test_what_is_refused_sends_nothing(hub, folder):
    (folder / "README.md").write_text(build_model_card(folder) + "\nFrom /data/mimic/records.\n")
    with pytest.raises(PushRefusedError, match=r"README\.md: .*'/data/mimic/records'"):
        push_folder(folder, "me/model")
    (folder / "README.md").unlink()
    with pytest.raises(PushRefusedError, match=r"commit message: .*'/data/mimic/x'"):
        push_folder(folder, "me/model", commit_message="From /data/mimic/x")
    with pytest.raises(PushRefusedError, match="repository: "):
        push_folder(folder, "a/b/c")
    with pytest.raises(PushRefusedError, match=r"repository: expected NAMESPACE/NAME, found: model"):
        push_folder(folder, "model")
    assert hub.requests == []


@pytest.mark.parametrize("part", ["model", "config", "feature extractor", "pipeline"])
def test_saving_writes_nothing_of_this_machine(part, folder, tmp_path):
    """No path, host, user or id: what transformers' own `push_to_hub` sends is clean, whoever calls it."""
    write_training_ids(folder, (["rec_0001"], ["10000032"]))
    pipeline = load_pipeline(folder)
    parts = {
        "model": ECGFMForMultiLabelClassification.from_pretrained(folder),
        "config": ECGFMConfig.from_pretrained(folder),
        "feature extractor": ECGFMFeatureExtractor.from_pretrained(folder),
        "pipeline": pipeline,
    }
    parts[part].save_pretrained(tmp_path / "saved")
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert files
    secrets = [str(tmp_path), "rec_0001", "10000032", "_name_or_path", "_commit_hash"]
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            (size,) = struct.unpack("<Q", content[:8])
            content = content[8 : 8 + size]
            assert json.loads(content)["__metadata__"] == {"format": "pt"}
        if file.suffix == ".py":  # the package's own code, copied
            assert content == (Path(ecgfm_hf.__file__).parent / file.name).read_bytes()
        else:
            assert not [secret for secret in secrets if secret in content.decode()], file.name
            assert not find_private_details(content.decode(), this_machine()), file.name  # user, host, paths


def test_pushing_a_model_in_memory_is_transformers_own():
    # A fresh process pushes one to the mock above; here transformers has its endpoint already.
    assert ECGFMForMultiLabelClassification.push_to_hub is PreTrainedModel.push_to_hub


def test_the_command_pushes_and_prints_what_went_where(hub, folder, capsys):
    (folder / "metrics.jsonl").write_text("{}")
    assert main(["push", str(folder), "me/model", "--private", "--revision", "v1", "--message", "First"]) == 0
    printed = capsys.readouterr()
    assert f"{hub.url}/me/model" in printed.out
    assert "not sent    metrics.jsonl" in printed.out
    assert TOKEN not in printed.out + printed.err
    assert hub.repositories["me/model"].private
    assert hub.repositories["me/model"].at("v1")[1] == "First"


def test_a_dry_run_lists_and_sends_nothing(hub, folder, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "me/model", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "upload      model.safetensors" in printed
    assert "nothing was sent" in printed
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"A"', '"/data/x/A"'))
    assert main(["push", str(folder), "me/model", "--dry-run"]) == 1
    printed = capsys.readouterr()
    assert "upload      model.safetensors" in printed.out
    assert "config.json: line 60: a path of a machine, '/data/x/A'" in printed.err
    assert main(["push", str(folder / "none"), "me/model"]) == 2
    assert hub.requests == []
