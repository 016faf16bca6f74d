"""Which recordings are excluded from a store, and why."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..records.record import ECGReadError
from .splits import SplitError


@dataclass(frozen=True)
class Excluded:
    """
    A recording that is not in the store.

    Args:
        recording_id (`str`, *optional*): None where it has none.
        path (`str`, *optional*): Relative to the dataset's folder.
        stage (`str`): `"index"`, `"read"`, `"filter"` or `"split"`.
        reason (`str`): The same for all recordings of a kind: without ids and paths.
        detail (`str`): The whole message.
    """

    recording_id: str | None
    path: str | None
    stage: str
    reason: str
    detail: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, str | None]) -> "Excluded":
        """Return what `dataclasses.asdict` made into a mapping."""
        stage, reason, detail = (content[name] or "" for name in ("stage", "reason", "detail"))
        return cls(content["recording_id"], content["path"], stage, reason, detail)


def exclude(entry: Mapping[str, Any], error: Exception, root: Path | None, pseudonyms: bool = False) -> Excluded:
    """Return the entry for a recording that could not be read, without paths of this machine."""
    path = entry.get("path")
    detail = str(error) or type(error).__name__
    if root is not None:
        # Reports are shared with the data, and libraries may give the full path of a file.
        for folder in dict.fromkeys((os.path.realpath(root), os.path.abspath(root), os.fspath(root))):
            detail = re.sub(rf"(?<![\w./-]){re.escape(folder)}/", "", detail)
    # A message may quote the name of a file, which may contain the name of a patient.
    return Excluded(
        entry["recording_id"], None if pseudonyms else path, "read", _reason(error), "" if pseudonyms else detail
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ECGReadError):
        return error.code
    return (isinstance(error, OSError) and error.strerror) or "damaged"


@dataclass(frozen=True)
class FilterResult:
    """
    The result of filtering.

    Args:
        keep (`np.ndarray` (n,) bool): Which recordings pass.
        removed (`dict[str, int]`): Recordings removed, each counted for the first filter that matches.
        matched (`dict[str, int]`): Recordings that each filter matches.
    """

    keep: np.ndarray
    removed: dict[str, int]
    matched: dict[str, int]


def filter_recordings(
    *,
    sources: Sequence[str] | None = None,
    keep_sources: Sequence[str] | None = None,
    drop_sources: Sequence[str] | None = None,
    nan_leads: Any = None,
    constant_leads: Any = None,
    flags: Mapping[str, Sequence[Any]] | None = None,
) -> FilterResult:
    """
    Exclude recordings before splitting: sources first, then NaN leads, constant leads, and any other flags.

    Args:
        sources (sequence of `str`, length n): Each recording's source.
        keep_sources, drop_sources (sequences of `str`, *optional*): Keep only these; exclude these.
        nan_leads, constant_leads (`(n,)` or `(n, leads)`, *optional*): Exclude recordings with a true or
            non-zero value.
        flags (mapping of `str` to sequences, *optional*): The same by name, such as missing times.

    Returns:
        [`FilterResult`]

    Raises:
        `SplitError`: a source that no recording has, a flag that is neither true nor false (unknown included), columns
        of different lengths, nothing left.
    """
    sources = [] if sources is None else list(sources)
    removers: dict[str, np.ndarray] = {}
    for what, given in (("source not kept", keep_sources), ("source excluded", drop_sources)):
        if given is not None:
            chosen = {given} if isinstance(given, str) else set(given)
            if absent := chosen - set(sources):
                known = ", ".join(sorted(set(map(str, sources))))
                raise SplitError(f"no recording is of source {', '.join(sorted(absent))} (found: {known or 'none'})")
            removers[what] = np.array([(source in chosen) == (what == "source excluded") for source in sources])
    for what, values in {"NaN lead": nan_leads, "constant lead": constant_leads, **(flags or {})}.items():
        if values is not None:
            removers[what] = np.array([_flag(value, what, row) for row, value in enumerate(values)], dtype=bool)
    if len({len(remove) for remove in removers.values()}) != 1:
        raise SplitError(f"filters need columns of one length, found: { {k: len(v) for k, v in removers.items()} }")
    keep, removed = np.ones(len(next(iter(removers.values()))), dtype=bool), {}
    for what, remove in removers.items():
        removed[what] = int((keep & remove).sum())
        keep = keep & ~remove
    if not keep.any():
        raise SplitError(f"the filters exclude all recordings: {removed}")
    return FilterResult(keep, removed, {what: int(remove.sum()) for what, remove in removers.items()})


def _flag(value: Any, what: str, row: int) -> bool:
    words = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}  # as text is read from a CSV; bool("False") is True
    try:
        values = np.asarray(words.get(value.strip().lower()) if isinstance(value, str) else value, dtype=np.float64)
    except (TypeError, ValueError):  # not a number: pandas' NA, an object
        values = np.array(np.nan)
    if np.isnan(values).any():
        raise SplitError(f"{what}, row {row}: found {value!r}, expected true or false")
    return bool(values.any())
