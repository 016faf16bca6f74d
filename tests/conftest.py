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
