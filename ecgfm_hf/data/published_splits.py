"""Splits that somebody published: CSV files with columns `idx, save_file, split`, as fairseq-signals writes them."""

import csv
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.ids import canonical_id
from .splits import (
    DEFAULT_FRACTIONS,
    SplitError,
    SplitResult,
    aligned,
    check_split_names,
    finish_split,
    unique_ids,
)


def read_split_csv(path: str | Path, key: str = "save_file") -> dict[str, str]:
    """
    The split of each recording from a published CSV such as fairseq-signals' `meta_split.csv` or `segmented_split.csv`.

    Args:
        path (`str` or `Path`): With columns `idx, save_file, split`; others are passed over.
        key (`str`): The column that identifies recordings.

    Returns:
        `dict[str, str]` from id to split, in the file's order.

    Raises:
        `SplitError`: a missing column, id or split, a recording in two splits.
    """
    found: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := {key, "split"} - set(reader.fieldnames or ()):
            columns = ", ".join(reader.fieldnames or ()) or "none"
            raise SplitError(f"{path} has no column {', '.join(sorted(missing))} (found: {columns})")
        for row in reader:
            recording, split = canonical_id(row[key]), canonical_id(row["split"])
            if recording is None or split is None:
                raise SplitError(f"{path}, line {reader.line_num}: {key} and split must not be empty")
            # The files of segments name a recording once for each of its segments.
            if found.setdefault(recording, split) != split:
                raise SplitError(f"{path}: {recording} is in {found[recording]} and in {split}")
    if not found:
        raise SplitError(f"{path} names no recordings")
    try:
        check_split_names(sorted(set(found.values())))
    except SplitError as error:
        raise SplitError(f"{path}: {error}") from None
    return found


def import_split(
    published: str | Path | Mapping[str, str],
    ids: Sequence[Hashable],
    *,
    key: str = "save_file",
    patients: Sequence[Any] | None = None,
    exact_ids: bool = False,
) -> SplitResult:
    """
    Apply a published split to the recordings at hand.

    Args:
        published (`str`, `Path` or mapping): A file for [`read_split_csv`], or its result.
        ids (sequence, length n): What the recordings at hand are called in the file's column `key`.
        key (`str`): That column.
        patients (sequence, length n, *optional*): Checked: a patient in two splits is an error.
        exact_ids (`bool`): `ids`, and the keys of a mapping, are to be taken as they are.

    Returns:
        [`SplitResult`]. Recordings that the file does not name are left out and counted in `excluded`; `assumptions`
        says how many of the file's recordings are not at hand.

    Raises:
        `SplitError`: see [`read_split_csv`]; no recording in common; a patient in two splits.
    """
    recordings = unique_ids(ids, exact_ids)
    given = published if isinstance(published, Mapping) else read_split_csv(published, key)
    check_split_names({split for split in given.values() if split is not None})
    table = {
        recording if exact_ids else canonical_id(recording): split
        for recording, split in given.items()
        if split is not None
    }
    people = aligned(patients, len(recordings), "patients")
    people = None if people is None else [canonical_id(patient) for patient in people]
    splits = tuple(table.get(recording) for recording in recordings)
    matched = len(splits) - splits.count(None)
    if not matched:
        pair = f"the dataset has {recordings[0]!r}, the published split {next(iter(table), None)!r}"
        raise SplitError(f"no recording is in the published split: {pair}")
    assumptions = ["The split was imported."]
    if absent := len(table) - matched:
        assumptions.append(f"{absent} of the {len(table)} recordings in the published split are not at hand.")
    excluded = {"not in the published split": len(splits) - matched} if matched < len(splits) else {}
    order = {name: place for place, name in enumerate(DEFAULT_FRACTIONS)}
    names = tuple(sorted(set(table.values()), key=lambda name: (order.get(name, len(order)), name)))
    assumptions += [f"No recording of the published split {name} is at hand." for name in names if name not in splits]
    names = tuple(name for name in names if name in splits)
    return finish_split(SplitResult(recordings, splits, names, "imported", excluded=excluded), people, assumptions)


def write_split_csv(path: str | Path, idx: Sequence[int], save_files: Sequence[str], splits: Sequence[str | None]):
    """Write `idx, save_file, split` as fairseq-signals does, without recordings that are in no split."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("idx", "save_file", "split"))
        writer.writerows(row for row in zip(idx, save_files, splits, strict=True) if row[2] is not None)
