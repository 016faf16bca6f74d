"""Filters before a split: which recordings pass, and how many did not for which reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .splits import SplitError


@dataclass(frozen=True)
class FilterResult:
    """Which recordings pass (`keep`, bool `(n,)`), and by filter how many it removed, each recording counted once by
    the first that did (`removed`), and how many it would remove alone (`matched`)."""

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
    Leave out recordings before splitting: sources first, then NaN leads, constant leads, and any other flags.

    Args:
        sources (sequence of `str`, length n): Each recording's source.
        keep_sources, drop_sources (sequences of `str`, *optional*): Keep only these; leave these out.
        nan_leads, constant_leads (`(n,)` or `(n, leads)`, *optional*): Recordings with a true or non-zero value go.
        flags (mapping of `str` to sequences, *optional*): The same by name, such as missing times.

    Returns:
        [`FilterResult`]

    Raises:
        `SplitError`: a source that no recording has, a flag that is neither true nor false (unknown included), columns
        of different lengths, nothing left.
    """
    sources = [] if sources is None else list(sources)
    removers: dict[str, np.ndarray] = {}
    for what, asked in (("source not kept", keep_sources), ("source left out", drop_sources)):
        if asked is not None:
            asked = {asked} if isinstance(asked, str) else set(asked)
            if absent := asked - set(sources):
                known = ", ".join(sorted(set(map(str, sources))))
                raise SplitError(f"no recording is of source {', '.join(sorted(absent))} (found: {known or 'none'})")
            removers[what] = np.array([(source in asked) == (what == "source left out") for source in sources])
    for what, values in {"NaN lead": nan_leads, "constant lead": constant_leads, **(flags or {})}.items():
        if values is not None:
            removers[what] = np.array([_flag(value, what, row) for row, value in enumerate(values)], dtype=bool)
    if len({len(remove) for remove in removers.values()}) != 1:
        raise SplitError(f"filters need columns of one length, found: { {k: len(v) for k, v in removers.items()} }")
    keep, removed = True, {}
    for what, remove in removers.items():
        removed[what] = int((keep & remove).sum())
        keep = keep & ~remove
    if not keep.any():
        raise SplitError(f"the filters leave nothing: {removed}")
    return FilterResult(keep, removed, {what: int(remove.sum()) for what, remove in removers.items()})


def _flag(value: Any, what: str, row: int) -> bool:
    words = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}  # as text is read from a CSV; bool("False") is True
    try:
        values = np.asarray(words.get(value.strip().lower()) if isinstance(value, str) else value, dtype=np.float64)
    except (TypeError, ValueError):  # not a number: pandas' NA, an object
        values = np.array(np.nan)
    if np.isnan(values).any():
        raise SplitError(f"{what}, row {row}: neither true nor false: {value!r}")
    return bool(values.any())
