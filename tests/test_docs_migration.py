"""The migration table is whole, and names only what exists."""

import dataclasses
import inspect
import re

import pytest
import torch
from doc_blocks import ROOT

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor
from ecgfm_hf.training import FinetuneSettings, PretrainSettings
from ecgfm_hf.training.augmentations import AUGMENTATIONS
from ecgfm_hf.training.settings import RENAMED

SETTINGS = {spec.name for cls in (PretrainSettings, FinetuneSettings) for spec in dataclasses.fields(cls)}
CONFIG = set(ECGFMConfig.__annotations__)
POLICIES = set(inspect.signature(ECGFMFeatureExtractor.__init__).parameters)


def _tables() -> dict[str, dict[str, tuple[str, str]]]:
    """By section of `cfg`: key, then (ours, remarks)."""
    text = (ROOT / "docs" / "migration.md").read_text()
    tables = {}
    for section, body in re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ?(.*?) ?\|$", body, re.MULTILINE)
        assert len({key for key, *_ in rows}) == len(rows), f"{section}: a key has two rows"
        tables[section] = {key: (ours, remarks) for key, ours, remarks in rows}
    return tables


TABLES = _tables()


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_every_setting_of_a_checkpoint_of_the_original_has_a_row(name, checkpoint_path):
    cfg = torch.load(checkpoint_path(name), weights_only=False)["cfg"]
    missing = [
        f"{section}.{key}"
        for section, settings in cfg.items()
        # How Python's logging is set up is no setting of the trainer.
        if isinstance(settings, dict) and section != "job_logging_cfg"
        for key, value in settings.items()
        if key not in TABLES[section] and not (key == "_name" and value is None)
    ]
    # Sections without a kind of their own have `_name: null`.
    assert [key for key in missing if key != "common_eval._name"] == []


def _exists(name: str) -> bool:
    group, _, key = name.partition(".")
    if group == "model":
        return key in CONFIG
    if group == "feature_extractor":
        return key in POLICIES
    if group == "augmentations" and key:
        augmentation, _, argument = key.partition(".")
        built = AUGMENTATIONS[augmentation]
        return argument in {spec.name for spec in dataclasses.fields(built)}
    return name in SETTINGS


@pytest.mark.parametrize("section", TABLES)
def test_what_a_row_names_exists(section):
    for key, (ours, _) in TABLES[section].items():
        names = re.findall(r"`([^`]+)`", ours)
        assert bool(names) != (ours == "none"), f"{section}.{key}: {ours!r} is neither a name nor none"
        for name in names:
            if not name.startswith("ecgfm "):
                assert _exists(name), f"{section}.{key}: {name} does not exist"


def test_the_table_of_old_names_is_the_one_that_errors_quote():
    text = (ROOT / "docs" / "migration.md").read_text().partition("## Settings of ecgfm-hf 0.1.0\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ?(.*?) ?\|$", text, re.MULTILINE)
    assert {old: (new.replace("`", ""), remark) for old, new, remark in rows} == RENAMED


@pytest.mark.parametrize("section", TABLES)
def test_a_row_without_counterpart_says_why(section):
    silent = [f"{section}.{key}" for key, (ours, remarks) in TABLES[section].items() if ours == "none" and not remarks]
    assert not silent
