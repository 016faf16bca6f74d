"""What real runs push says nothing of the machine, its user, and whom it was trained on."""

import json
import re
import shutil

import pytest
from conversions import INPUT_OPTIONS
from finetune_cases import TINY_MODEL, make_store
from hub_cases import mock_hub
from tiny_pretraining import MODEL

from ecgfm_hf.cli.main import main
from ecgfm_hf.hub.cards import build_model_card

USER, HOST, FOLDER = "zebulon", "lab-cluster-07", "private study of zebulon"

DETAILS = {
    "license": "mit",
    "developers": "A laboratory.",
    "intended_use": "Research.",
    "training_data": "Sines.",
    "limitations": "It knows sines only.",
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, checkpoint_path):
    """What four runs in the folders of somebody have sent, by name of the repository."""
    pytest.importorskip("accelerate")
    import datasets

    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("runs") / FOLDER
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch, mock_hub(namespaces=("lab",)) as hub:
        patch.setenv("HOME", str(root))
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, USER)
        patch.setenv("HOSTNAME", HOST)
        patch.setattr("socket.gethostname", lambda: HOST)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
        store = make_store(root / "store")
        shutil.copy(checkpoint_path("finetune"), root / "published.pt")
        pretraining = ["max_steps=2", "per_device_train_batch_size=8", "use_cpu=true", f"model={json.dumps(MODEL)}"]
        finetuning = [
            "labels=[slow,fast]",
            "num_train_epochs=1",
            "min_cases=2",
            "use_cpu=true",
            f"model={json.dumps(TINY_MODEL)}",
        ]
        for command in (
            ["convert", root / "published.pt", root / "converted", "--heads", "4", *INPUT_OPTIONS],
            [
                "pretrain",
                "--config",
                "pretrain_tiny",
                f"data={store}",
                f"output_dir={root / 'pretrained'}",
                *pretraining,
            ],
            [
                "finetune",
                "--config",
                "finetune_small",
                f"data={store}",
                f"output_dir={root / 'finetuned'}",
                *finetuning,
            ],
            ["probe", root / "pretrained", store, "--output", root / "probed", "--labels", "slow,fast"],
        ):
            assert main([str(part) for part in command]) == 0, command
        # The machine as it would be named in a run's files, were one to write it.
        assert str(store) in (root / "finetuned" / "settings.yaml").read_text()
        for name in ("converted", "pretrained", "finetuned", "probed"):
            card = build_model_card(root / name, repo_id=f"lab/{name}", **DETAILS)
            (root / name / "README.md").write_text(card, encoding="utf-8")
            assert main(["push", str(root / name), f"lab/{name}"]) == 0, name
        yield hub, root


@pytest.mark.parametrize("name", ["converted", "pretrained", "finetuned", "probed"])
def test_what_a_run_pushes_has_no_path_and_no_name_of_user_or_host(name, pushed):
    hub, root = pushed
    files = hub.files(f"lab/{name}")
    whole = {"config.json", "model.safetensors", "preprocessor_config.json", "provenance.json", "README.md", "LICENSE"}
    assert whole <= set(files)
    for file, content in files.items():
        for secret in (str(root), str(root.parent), USER, HOST, FOLDER):
            assert secret.encode().lower() not in content.lower(), (file, secret)


def test_what_a_run_pushes_has_no_ids_and_no_file_of_the_run(pushed):
    hub, root = pushed
    for name in ("converted", "pretrained", "finetuned", "probed"):
        for file, content in hub.files(f"lab/{name}").items():
            assert re.search(r"training_ids|settings|metrics|checkpoint|optimizer|parquet", file) is None
            if not file.endswith(".safetensors"):
                assert re.search(rb"\b[rp]0_\d", content) is None, file
    # They are there to be left.
    assert (root / "finetuned" / "training_ids.do-not-share.json").is_file()
    assert (root / "finetuned" / "checkpoints").is_dir()


def test_everything_that_was_sent_is_in_the_repositories(pushed):
    hub, _ = pushed
    there = {content for repo in hub.repositories.values() for content in repo.at("main")[2].values()}
    assert set(hub.blobs.values()) <= there
