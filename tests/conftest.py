"""Fixtures that several test modules use."""

import os
from pathlib import Path

import pytest
import torch

# Tests must not depend on, nor reach for, anything outside this machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkpoint_path():
    """Path of a fairseq-signals checkpoint in the fixtures, by its name without `.pt`."""

    def path(name: str) -> Path:
        return FIXTURES / "checkpoints" / f"{name}.pt"

    return path


@pytest.fixture(scope="session")
def tiny_config():
    """Makes small configurations; three labels A, B, C."""
    from ecgfm_hf import ECGFMConfig

    def make(**settings):
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": [16] * 4,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "num_codevectors_per_group": 8,
            "codevector_dim": 16,
            "proj_codevector_dim": 16,
            "id2label": {0: "A", 1: "B", 2: "C"},
            "label2id": {"A": 0, "B": 1, "C": 2},
        }
        if "num_labels" in settings:  # other labels than these
            del sizes["id2label"], sizes["label2id"]
        return ECGFMConfig(**{**sizes, **settings})

    return make
