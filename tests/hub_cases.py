"""Model folders and a mock Hub, for tests of pushing."""

import contextlib
import sys

import card_stand_in
import pytest
import torch
from mock_hub import TOKEN, MockHub

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, save_model_folder


def make_classifier(config):
    """A classifier whose head is as if it had been trained: its bias is not where it began."""
    torch.manual_seed(0)
    model = ECGFMForMultiLabelClassification(config).eval()
    torch.nn.init.normal_(model.classifier.bias)
    return model


def make_folder(folder, config, **kwargs):
    """A model folder without a card."""
    save_model_folder(make_classifier(config), ECGFMFeatureExtractor(), folder, **kwargs)
    return folder


@contextlib.contextmanager
def stand_in_cards():
    """Cards that say next to nothing in place of the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ecgfm_hf.hub.cards", card_stand_in)
        yield card_stand_in


@contextlib.contextmanager
def mock_hub(**settings):
    """
    A mock Hub, and huggingface_hub turned to it; the tests' own offline mode is off meanwhile.

    A test that sets huggingface_hub otherwise uses `hub.patch`: the fixture `monkeypatch` would end later, and then set
    what it found here.
    """
    with MockHub(**settings).running() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        patch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", TOKEN)
        hub.patch = patch
        yield hub
