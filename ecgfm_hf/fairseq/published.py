"""Recognise a published checkpoint, download one from the Hub, and find the input that its model was trained with."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
from ..utils.errors import ECGFMError, InputNotFoundError, SettingsError
from .checkpoint import FairseqCheckpoint
from .label_sets import LABEL_SETS, PUBLISHED, PUBLISHED_LABELS

try:
    from httpx2 import TransportError
except ImportError:  # huggingface_hub before 2
    from httpx import TransportError  # type: ignore[assignment] # the same class, of the older package

HUB_SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?:models/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
_TIMEOUT = 2.0  # seconds in which the Hub must answer before the cache is used


# What a model takes, which tensors do not show: settings of the feature extractor.
INPUT_SETTINGS = ("sampling_rate", "segment_seconds", "standardize")
# Of the published checkpoints, and of fairseq-signals' own preprocessing scripts.
PUBLISHED_INPUT: dict[str, Any] = {"sampling_rate": 500, "segment_seconds": 5.0, "standardize": "recording"}


class DownloadError(ECGFMError, RuntimeError):
    """A checkpoint that cannot be downloaded from the Hub. The message names the address and the reason."""


class UnknownInputError(SettingsError):
    """
    A checkpoint that does not contain the preprocessing that its model was trained with.

    Attributes:
        missing: The names among `INPUT_SETTINGS` to give.
    """

    def __init__(self, message: str, missing: tuple[str, ...]):
        super().__init__(message)
        self.missing = missing


def download_checkpoint(address: str) -> Path:
    """
    Return a checkpoint of the Hub, downloaded to huggingface_hub's cache if it is not there yet.

    Args:
        address: `hf://OWNER/NAME/FILE`, or `hf://OWNER/NAME@REVISION/FILE`.

    Raises:
        `SettingsError`: an address of another form.
        `InputNotFoundError`: there is no such repository, revision or file.
        `DownloadError`: the Hub cannot be reached or refuses, and the cache does not have the file.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise SettingsError(f"{address!r} is no file on the Hub, expected hf://OWNER/NAME/FILE")
    repo_id, revision, name = match.groups()
    try:
        # This request is made once; hf_hub_download would repeat it for 24 s without a network.
        get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision), timeout=_TIMEOUT)
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except HFValidationError as error:
        raise SettingsError(f"{address}: {error}") from None
    except RepositoryNotFoundError:
        raise InputNotFoundError(
            f"{address}: there is no repository {repo_id}, or no access to it; check the name, and `hf auth login`"
        ) from None
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        missing = f"revision {revision}" if isinstance(error, RevisionNotFoundError) else f"file {name}"
        raise InputNotFoundError(f"{address}: {repo_id} has no {missing}") from None
    except (TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        try:
            return Path(hf_hub_download(repo_id, name, revision=revision, local_files_only=True))
        except (EntryNotFoundError, OSError):
            raise DownloadError(
                f"{address} cannot be downloaded ({_reason(error)}), and huggingface_hub's cache does not have it; "
                "check the network, or download the file elsewhere and give its path"
            ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answered with status {error.response.status_code}"
    return "the Hub cannot be reached"


def recognise(source: FairseqCheckpoint) -> str | None:
    """Return the name of the published checkpoint that a file is, by its name and number of labels; None otherwise."""
    name, head = source.path.stem, source.tensors.get("proj.weight")
    if name not in PUBLISHED:
        return None
    labels = PUBLISHED_LABELS.get(name)
    expected = 0 if labels is None else len(LABEL_SETS[labels].names)
    return name if (0 if head is None else len(head)) == expected else None


def resolve_input(
    source: FairseqCheckpoint, given: Mapping[str, Any], published: str | None
) -> tuple[dict[str, Any], list[str]]:
    """
    Return the feature extractor's settings that a model was trained with, and warnings.

    `given` comes first, then what the file contains (files that this package exported contain all, `task.sample_rate`
    is the rate), then the settings of the published checkpoints. Nothing is assumed about other files.

    Args:
        source: The checkpoint.
        given: Those of `INPUT_SETTINGS` that the user states.
        published: The name of the published checkpoint that the file is, if it is one.

    Raises:
        `UnknownInputError`: a setting is neither given nor known.
        `SettingsError`: an impossible one.
    """
    stated = dict(source.feature_extractor)
    rate = source.task_cfg.get("sample_rate")
    if isinstance(rate, int | float) and rate > 0:
        stated.setdefault("sampling_rate", rate)
    known = (PUBLISHED_INPUT if published else {}) | stated
    settings = {**known, **given}
    missing = tuple(name for name in INPUT_SETTINGS if name not in settings)
    if missing:
        found = ", ".join(f"{name}={settings[name]}" for name in INPUT_SETTINGS if name in settings)
        example = " ".join(f"{name}={PUBLISHED_INPUT[name]!r}" for name in missing)
        raise UnknownInputError(
            f"{source.path}: the preprocessing that its model was trained with is unknown"
            f"{f' (known: {found})' if found else ''}: the file does not contain it, and is not a published checkpoint "
            f"by its name and number of labels. Give what is missing; models trained on the output of "
            f"fairseq-signals' preprocessing scripts take {example}",
            missing,
        )
    warnings = [
        f"{name} is {given[name]!r}, as given; the {'file' if name in stated else 'published checkpoint'} has "
        f"{known[name]!r}"
        for name in INPUT_SETTINGS
        if name in given and name in known and given[name] != known[name]
    ]
    try:
        ECGFMFeatureExtractor(**settings)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{source.path}: {error}") from None
    return settings, warnings


__all__ = [
    "HUB_SCHEME",
    "INPUT_SETTINGS",
    "PUBLISHED_INPUT",
    "DownloadError",
    "UnknownInputError",
    "download_checkpoint",
    "recognise",
    "resolve_input",
]
