"""
Splits of recordings into train, valid and test: drawn here, or published by others.

The functions take plain sequences, one item per recording. A split depends on the recordings' ids, patients and times,
on the sizes and on the seed, never on the order of rows. Draws and roundings are as in fairseq-signals, so ids that
sort like its rows give its splits. Differences:

- its command line cannot be seeded and shuffles rows in file order; here the rows are sorted by id first;
- it drops recordings without a patient from grouped splits; here that is an error, or an assumption in the report;
- its grouped temporal split leaves patients in valid *and* test, and crashes where all overlap is to be removed; here a
  patient is always in one split;
- it sorts dates as text, ties in no particular order, missing dates last; here they are parsed, and all are needed;
- it scales fractions that do not add up to 1, or adds a split; here they must add up, and an empty split is an error.
"""

import csv
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..utils.errors import ECGFMError
from ..utils.ids import canonical_id

UNSPLIT = "all"  # the split of a store that is not split
STRATEGIES = ("random", "grouped", "temporal", "grouped_temporal")
DEFAULT_FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}


class SplitError(ECGFMError, ValueError):
    """A split that cannot be made or trusted. The message gives what was found, with a few ids at most."""


def check_split_names(names: Iterable[str]) -> None:
    """
    Raise `SplitError` for a name that cannot be part of a file's name, or that has another meaning.

    Names also come from published files, which must not decide where this package writes.
    """
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*", name, re.ASCII):
            raise SplitError(f"a split cannot be called {name!r}: letters, digits, _ and single dots within only")
        if name == "all":
            raise SplitError("a split cannot be called 'all', which means all recordings")


@dataclass(frozen=True)
class SplitResult:
    """
    The split of each recording.

    Args:
        ids (`tuple[str, ...]`): The recordings, in the order given.
        splits (`tuple[str | None, ...]`): The split of each, aligned with `ids`; None where it was excluded.
        names (`tuple[str, ...]`): The splits.
        strategy (`str`): One of `STRATEGIES`, or `"imported"`.
        seed (`int`, *optional*): Where the strategy draws at random.
        sizes (`dict`): The fractions or counts asked for, by split.
        excluded (`dict[str, int]`): Excluded recordings, by reason.
        patients (`dict[str, int]`): Known patients, by split; empty where no patients were given.
        boundaries (`dict[str, str]`): For a temporal split, the start of each split but the first.
        assumptions (`tuple[str, ...]`): Sentences for the report and the model card.
    """

    ids: tuple[str, ...]
    splits: tuple[str | None, ...]
    names: tuple[str, ...]
    strategy: str
    seed: int | None = None
    sizes: dict[str, float | int | None] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    patients: dict[str, int] = field(default_factory=dict)
    boundaries: dict[str, str] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()

    def indices(self, name: str) -> np.ndarray:
        """Return the indices `(count,)` int64 of a split's recordings. `SplitError` for an unknown split."""
        if name not in self.names:
            raise SplitError(f"there is no split {name!r}, only {', '.join(self.names)}")
        return np.flatnonzero(np.array([split == name for split in self.splits], dtype=bool))

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of recordings in each split."""
        found = Counter(self.splits)
        return {name: found[name] for name in self.names}

    def summary(self) -> dict[str, Any]:
        """Return what the report contains about the split: no ids."""
        keys = ("strategy", "seed", "sizes", "excluded", "patients", "boundaries")
        facts = {key: getattr(self, key) for key in keys}
        return {**facts, "recordings": self.counts, "assumptions": list(self.assumptions)}


def split_recordings(
    ids: Sequence[Hashable],
    strategy: str,
    *,
    fractions: Mapping[str, float] | None = None,
    counts: Mapping[str, int | None] | None = None,
    seed: int = 0,
    patients: Sequence[Any] | None = None,
    times: Sequence[Any] | None = None,
    assume_independent: bool = False,
    exact_ids: bool = False,
) -> SplitResult:
    """
    Split recordings at random, by patient, by time, or by patient and time.

    `grouped` draws patients. `temporal` puts the oldest recordings into the first split. `grouped_temporal` cuts time
    likewise, gives each patient to the split with most of their recordings (of a tie, the split whose name sorts first,
    as in fairseq-signals), and excludes their recordings from another split's time.
    De-identified datasets such as MIMIC-IV-ECG shift each patient's dates by another amount: there, time orders the
    recordings of one patient, and means nothing between patients.

    Args:
        ids (sequence, length n): Unique recording ids.
        strategy (`str`): `"random"`, `"grouped"`, `"temporal"` or `"grouped_temporal"`.
        fractions (mapping of `str` to `float`, *optional*): By split, in order, with a sum of 1. Of recordings, or of
            patients if grouped. Defaults to 0.8 / 0.1 / 0.1 for train / valid / test.
        counts (mapping of `str` to `int`, *optional*): Numbers instead of `fractions`; one may be None for the
            rest, otherwise their sum is the number of all.
        seed (`int`): For `random` and `grouped`.
        patients (sequence, length n, *optional*): Unknown where None, NaN or empty.
        times (sequence, length n, *optional*): datetimes, numpy datetime64, ISO 8601 text, or numbers.
        assume_independent (`bool`): Assume that recordings of unknown patients are of different patients, and report
            it in `assumptions`. Grouped strategies need it where a patient is unknown, as in PhysioNet 2021.

    Returns:
        [`SplitResult`]

    Raises:
        `SplitError`: a patient in two splits (`random` and `temporal` where patients are given), unknown patients or
        times, repeated ids, sizes that do not fit, an empty split.
    """
    if strategy not in STRATEGIES:
        raise SplitError(f"strategy must be one of {', '.join(STRATEGIES)}, found: {strategy!r}")
    recordings = unique_ids(ids, exact_ids)
    if fractions is not None and counts is not None:
        raise SplitError("give fractions or counts, not both")
    sizes = dict(counts if counts is not None else DEFAULT_FRACTIONS if fractions is None else fractions)
    names = tuple(sizes)
    check_split_names(names)
    people = aligned(patients, len(recordings), "patients")
    people = None if people is None else [canonical_id(patient) for patient in people]
    draws = strategy in ("random", "grouped")
    if draws and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32):
        raise SplitError(f"seed must be a whole number from 0 to 2**32 - 1, found: {seed!r}")

    assumptions: list[str] = []
    excluded: dict[str, int] = {}
    boundaries: dict[str, str] = {}
    groups: list[tuple[bool, str]] = []
    if "grouped" in strategy:
        groups = _groups(recordings, people, assume_independent, assumptions)

    splits: list[str | None] = [None] * len(recordings)
    if strategy == "grouped":
        members = sorted(set(groups), key=lambda group: (group[0], *_id_order(group[1])))
        drawn = dict(zip(members, _draw_groups(sizes, counts is not None, len(members), int(seed)), strict=True))
        splits = [names[drawn[group]] for group in groups]
    else:
        if strategy == "random":
            order = np.array(sorted(range(len(recordings)), key=lambda row: _id_order(recordings[row])), dtype=np.int64)
            # numpy vouches for the bits of this generator; that `shuffle` uses them alike in all versions is tested.
            shuffled = np.arange(len(order))
            np.random.default_rng(int(seed)).shuffle(shuffled)
            order = order[shuffled]
        else:
            clock = _parse_times(aligned(times, len(recordings), "times"), strategy)
            rows = sorted(range(len(recordings)), key=lambda row: (clock[row], *_id_order(recordings[row])))
            order = np.array(rows, dtype=np.int64)
        for name, part in zip(names, np.split(order, _cuts(sizes, counts is not None, len(order))), strict=True):
            if strategy != "random" and name != names[0] and len(part):
                boundaries[name] = str(clock[part[0]])
            for row in part:
                splits[row] = name
    if strategy == "grouped_temporal":
        splits, outside = _one_split_each(groups, splits)
        if outside:
            excluded["outside the time of the patient's split"] = outside
    found = SplitResult(
        recordings, tuple(splits), names, strategy, int(seed) if draws else None, sizes, excluded, {}, boundaries
    )
    return finish_split(found, people, assumptions)


def draw_patients(ids: Sequence[Any], patients: Sequence[Any], fraction: float, seed: int) -> np.ndarray:
    """
    Return the indices of the recordings of a share of the patients, in order, for studies of label efficiency.

    Subsets are nested: with the same seed a larger share contains a smaller one. A recording without a patient counts
    as a patient of its own.

    Args:
        ids, patients (sequences): Of the recordings; a patient may be None.
        fraction (`float`): Above 0, at most 1; of the patients, rounded up.
        seed (`int`)

    Raises:
        `SplitError`: another fraction.
    """
    if not 0 < fraction <= 1:
        raise SplitError(f"the fraction must be above 0 and at most 1, found: {fraction}")
    groups = patient_keys(ids, patients)
    ranked = rank_patients(groups, seed)
    chosen = set(ranked[: math.ceil(fraction * len(ranked) - 1e-9)])
    return np.flatnonzero([group in chosen for group in groups])


def patient_keys(ids: Sequence[Any], patients: Sequence[Any]) -> list[tuple[str, str]]:
    """Return what identifies the patient of each recording; a recording without a patient is one of its own."""
    return [
        ("recording", str(name)) if (person := canonical_id(patient)) is None else ("patient", person)
        for name, patient in zip(ids, patients, strict=True)
    ]


def rank_patients(keys: Iterable[tuple[str, str]], seed: int | str) -> list[tuple[str, str]]:
    """Return the patients once each, in an order that depends on their keys and the seed alone."""
    rank = {key: hashlib.blake2b("\x1f".join((str(seed), *key)).encode(), digest_size=8).digest() for key in set(keys)}
    return sorted(rank, key=lambda key: (rank[key], key))


def check_patients(splits: Sequence[str | None], patients: Sequence[Any]) -> None:
    """Raise `SplitError` where a patient is in two splits. Unknown patients and splits (None) are skipped."""
    homes: dict[str, set[str]] = {}
    for split, patient in zip(splits, patients, strict=True):
        if split is not None and (person := canonical_id(patient)) is not None:
            homes.setdefault(person, set()).add(split)
    torn = [f"{person} is in {' and '.join(sorted(home))}" for person, home in homes.items() if len(home) > 1]
    if torn:
        more = f"; and {len(torn) - 3} more" if len(torn) > 3 else ""
        raise SplitError(
            f"patients in two splits: patient {'; patient '.join(torn[:3])}{more}. Split by patient instead"
        )


def finish_split(result: SplitResult, people: list[str | None] | None, assumptions: list[str]) -> SplitResult:
    """Check a split, and add patients and assumptions to it."""
    if "grouped" not in result.strategy:
        if people is None:
            assumptions.append("Patients were not given: recordings of one patient may be in several splits.")
        elif unknown := people.count(None):
            assumptions.append(
                f"{unknown} of {len(people)} recordings have no patient id: their overlap was not checked."
            )
    if people is not None:
        check_patients(result.splits, people)
        seen = set(zip(result.splits, people, strict=True))
        patients = Counter(split for split, person in seen if person is not None)
        result = replace(result, patients={name: patients[name] for name in result.names})
    empty = [name for name, count in result.counts.items() if not count]
    if empty:
        shown = ", ".join(f"{name} {count}" for name, count in result.counts.items())
        raise SplitError(f"no recordings for {', '.join(empty)} (found: {shown}); give other sizes")
    return replace(result, assumptions=tuple(assumptions))


def aligned(values: Sequence[Any] | None, length: int, what: str) -> list[Any] | None:
    values = None if values is None else list(values)
    if values is not None and len(values) != length:
        raise SplitError(f"{what} must have one item per recording: {length} recordings, found {len(values)}")
    return values


def unique_ids(ids: Sequence[Hashable], exact: bool) -> tuple[str, ...]:
    known = [str(value) if exact and value is not None else canonical_id(value) for value in ids]
    if not known:
        raise SplitError("there are no recordings to split")
    found = [name for name in known if name is not None]
    if len(found) < len(known):
        raise SplitError(f"{known.count(None)} recordings have no id, the first in row {known.index(None)}")
    if repeated := [name for name, count in Counter(found).items() if count > 1]:
        raise SplitError(f"{len(repeated)} recording ids are not unique, such as {', '.join(repeated[:3])}")
    return tuple(found)


def _id_order(text: str) -> tuple[bool, int, str]:
    """Sorts numbers by value before other text, whether a table library read them as numbers or as text."""
    number = text.isascii() and text.isdigit()
    digits = text.lstrip("0") if number else text
    return not number, len(digits) if number else 0, digits + "\0" + text


def _groups(
    ids: Sequence[str], people: list[str | None] | None, independent: bool, assumptions: list[str]
) -> list[tuple[bool, str]]:
    """Return (whether the patient is unknown, patient or recording) for each recording."""
    people = people if people is not None else [None] * len(ids)
    if unknown := people.count(None):
        what = f"{unknown} of {len(ids)} recordings have no patient id"
        if not independent:
            raise SplitError(
                f"{what}: a split by patient needs them. To assume that each is of another patient, give "
                "assume_independent=True"
            )
        assumptions.append(f"{what} and are assumed to be of different patients: one patient may be in two splits.")
    return [(person is None, id_ if person is None else person) for id_, person in zip(ids, people, strict=True)]


def _counts(sizes: Mapping[str, int | None], total: int) -> list[int]:
    """Return the counts of all splits, with None replaced by the rest."""
    given = [size for size in sizes.values() if size is not None]
    if any(isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0 for size in given):
        raise SplitError(f"counts must be whole numbers, found: {dict(sizes)}")
    rest = total - sum(given)
    if len(sizes) - len(given) > 1 or rest < 0 or (rest and len(given) == len(sizes)):
        raise SplitError(
            f"counts {dict(sizes)} do not add up to {total}, the number of all; one may be None, for the rest"
        )
    return [rest if size is None else int(size) for size in sizes.values()]


def _fractions(sizes: Mapping[str, float]) -> list[float]:
    values = list(sizes.values())
    if not values or not all(isinstance(v, int | float | np.number) and 0 <= v <= 1 for v in values):
        raise SplitError(f"fractions must be numbers from 0 to 1, found: {dict(sizes)}")
    if abs(sum(values) - 1) > 1e-6:
        raise SplitError(f"fractions must add up to 1, found {sum(values):g}: {dict(sizes)}")
    return [value / sum(values) for value in values]


def _cuts(sizes: Mapping[str, Any], are_counts: bool, total: int) -> list[int]:
    """Return where n ordered rows are cut: the cumulative fractions of n, rounded half to even."""
    if are_counts:
        return np.cumsum(_counts(sizes, total))[:-1].tolist()
    return np.round(np.cumsum(_fractions(sizes))[:-1] * total).astype(int).tolist()


def _draw_groups(sizes: Mapping[str, Any], are_counts: bool, total: int, seed: int) -> list[int]:
    """
    Return the index of the split for each of `total` sorted groups: each split is drawn from the remaining groups.

    Draws are as in scikit-learn's GroupShuffleSplit: the last floor(fraction * remaining) groups of a
    permutation by numpy's legacy generator, whose stream is frozen.
    """
    wanted, shares = (_counts(sizes, total), []) if are_counts else ([], _fractions(sizes))
    generator = np.random.RandomState(seed)
    home = np.full(total, len(sizes) - 1)
    remaining = np.arange(total)
    for number in range(len(sizes) - 1):
        left = sum(shares[number:]) if shares else 0
        # Shares of what remains, scaled again after each split; rounding must not ask for more than there is.
        take = wanted[number] if are_counts else int(min(shares[number] / left, 1) * len(remaining)) if left else 0
        order = generator.permutation(len(remaining))
        home[remaining[order[len(remaining) - take :]]] = number
        remaining = np.sort(remaining[order[: len(remaining) - take]])
    return home.tolist()


def _one_split_each(groups: Sequence[tuple[bool, str]], splits: Sequence[str | None]) -> tuple[list[str | None], int]:
    """Return splits with None for rows outside their group's split, and the number of these."""
    tally: dict[tuple[bool, str], Counter[str | None]] = {}
    for group, split in zip(groups, splits, strict=True):
        tally.setdefault(group, Counter())[split] += 1
    home = {group: min(found, key=lambda name: (-found[name], name or "")) for group, found in tally.items()}
    kept = [split if home[group] == split else None for group, split in zip(groups, splits, strict=True)]
    return kept, kept.count(None)


def _parse_times(times: list[Any] | None, strategy: str) -> list[Any]:
    """Return times as numbers or datetimes that can be compared."""
    if times is None:
        raise SplitError(f"a {strategy} split needs times")
    parsed = [parse_time(value, row) for row, value in enumerate(times)]
    if missing := [row for row, value in enumerate(parsed) if value is None]:
        where = ", ".join(map(str, missing[:3]))
        raise SplitError(f"{len(missing)} recordings have no time (rows {where}...): exclude them first")
    kinds = {"numbers" if not isinstance(t, datetime) else "aware" if t.tzinfo else "naive" for t in parsed}
    if len(kinds) > 1:
        raise SplitError(f"times of several kinds cannot be compared: {', '.join(sorted(kinds))} (of a time zone)")
    return parsed


def parse_time(value: Any, row: int) -> datetime | float | int | None:
    if isinstance(value, np.datetime64):
        value = None if np.isnat(value) else value.astype("datetime64[us]").item()
    elif isinstance(value, np.generic):
        value = value.item()
    if value is None or canonical_id(str(value)) is None:  # by its text: pandas' NA has no truth value
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise SplitError(f"row {row}: {value!r} is not a time in ISO 8601 (such as 2020-01-31 08:30:00)") from None
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise SplitError(f"row {row}: a {type(value).__name__} is not a time")


@dataclass(frozen=True)
class SplitSettings:
    """
    How recordings are split, and which are excluded before.

    Args:
        strategy (`str`, *optional*): One of `STRATEGIES`, `"imported"`, or None: a single split `all`.
        fractions (mapping of `str` to `float`, *optional*): See [`split_recordings`], as `counts` and `seed`.
        assume_independent (`bool`): Assume that recordings of unknown patients are of different patients.
        published (mapping of `str` to `str`, *optional*): For `"imported"`, the result of [`read_split_csv`].
        drop_nan_leads, drop_constant_leads (`bool`): Exclude recordings with such a lead.
    """

    strategy: str | None = None
    fractions: Mapping[str, float] | None = None
    counts: Mapping[str, int | None] | None = None
    seed: int = 0
    assume_independent: bool = False
    published: Mapping[str, str] | None = None
    drop_nan_leads: bool = False
    drop_constant_leads: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in (None, "imported", *STRATEGIES):
            raise SplitError(f"strategy must be one of {', '.join(STRATEGIES)}, found: {self.strategy!r}")
        if (self.strategy == "imported") != (self.published is not None):
            raise SplitError("the strategy 'imported' needs a published split, and other strategies take none")
        check_split_names([*(self.fractions or ()), *(self.counts or ())])

    @property
    def filters(self) -> dict[str, bool]:
        """Return which filters are on."""
        return {"drop_nan_leads": self.drop_nan_leads, "drop_constant_leads": self.drop_constant_leads}

    def to_json(self) -> dict[str, Any]:
        """Return names and values for the plan; of a published split only its number of recordings."""
        content = asdict(self)
        if self.published is not None:
            content["published"] = f"{len(self.published)} recordings"
        return content

    def check(self, index: pa.Table, published: Mapping[str, str | None] | None = None) -> None:
        """Try the split before reading, so that its errors do not come after hours of work."""
        if self.strategy is None or not index.num_rows:
            return
        columns = index.column_names
        if "temporal" in self.strategy and "time" not in columns:
            return  # the files may have times
        names = [name for name in ("recording_id", "patient_id", "time") if name in columns]
        self.apply({name: index[name].to_pylist() for name in names}, published)

    def apply(self, columns: Mapping[str, list], published: Mapping[str, str | None] | None = None) -> SplitResult:
        """Return the split of recordings with these `recording_id`, `patient_id` and `time`."""
        ids = columns["recording_id"]
        patients = columns.get("patient_id") or [None] * len(ids)
        if self.strategy == "imported":
            return import_split(published or self.published or {}, ids, patients=patients, exact_ids=True)
        if self.strategy is None:
            known = len({patient for patient in patients if patient is not None})
            return SplitResult(tuple(ids), (UNSPLIT,) * len(ids), (UNSPLIT,), "none", patients={UNSPLIT: known})
        return split_recordings(
            ids,
            self.strategy,
            fractions=self.fractions,
            counts=self.counts,
            seed=self.seed,
            patients=patients,
            times=columns.get("time"),
            assume_independent=self.assume_independent,
            exact_ids=True,
        )


def read_split_csv(path: str | os.PathLike, key: str = "save_file") -> dict[str, str]:
    """
    Return the split of each recording in a published CSV, such as `meta_split.csv` of fairseq-signals.

    Args:
        path (`str` or `Path`): With columns `idx, save_file, split`; others are ignored.
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
            # A file of segments has a row for each segment of a recording.
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
    published: str | Path | Mapping[str, str | None],
    ids: Sequence[Hashable],
    *,
    key: str = "save_file",
    patients: Sequence[Any] | None = None,
    exact_ids: bool = False,
) -> SplitResult:
    """
    Apply a published split to your recordings.

    Args:
        published (`str`, `Path` or mapping): A file for [`read_split_csv`], or its result.
        ids (sequence, length n): Your recordings' names in the file's column `key`.
        key (`str`): That column.
        patients (sequence, length n, *optional*): Checked: a patient in two splits is an error.
        exact_ids (`bool`): Compare `ids` and the keys of a mapping as they are.

    Returns:
        [`SplitResult`]. Recordings that are not in the file are excluded and counted in `excluded`; `assumptions`
        gives the number of the file's recordings that you do not have.

    Raises:
        `SplitError`: see [`read_split_csv`]; no recording in common; a patient in two splits.
    """
    recordings = unique_ids(ids, exact_ids)
    given: Mapping[str, str | None]
    given = published if isinstance(published, Mapping) else {**read_split_csv(published, key)}
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
        assumptions.append(f"{absent} of the {len(table)} recordings in the published split were not found.")
    excluded = {"not in the published split": len(splits) - matched} if matched < len(splits) else {}
    order = {name: index for index, name in enumerate(DEFAULT_FRACTIONS)}
    names = tuple(sorted(set(table.values()), key=lambda name: (order.get(name, len(order)), name)))
    assumptions += [f"No recording of the published split {name} was found." for name in names if name not in splits]
    names = tuple(name for name in names if name in splits)
    return finish_split(SplitResult(recordings, splits, names, "imported", excluded=excluded), people, assumptions)


def match_published_splits(table: pa.Table, source: str, published: Mapping[str, str]) -> list[str | None]:
    """
    Return the published split of each recording, or None.

    A recording is found by its id, its path, its file's name, or fairseq-signals' `<source>_<id>.mat`.

    Args:
        table: With columns `recording_id`, `path` and optionally `source`.
        source: Name of the dataset.
        published: Splits by the ids of the published file.
    """
    names = table["source"].to_pylist() if "source" in table.column_names else [None] * table.num_rows
    found = []
    for recording, path, name in zip(table["recording_id"].to_pylist(), table["path"].to_pylist(), names, strict=True):
        base = (path or "").rpartition("/")[2]
        stems = dict.fromkeys((recording, f"{source}_{recording}", f"{name}_{recording}", os.path.splitext(base)[0]))
        keys = [path, base, *stems, *(f"{stem}.mat" for stem in stems)]
        found.append(next((published[key] for key in keys if key in published), None))
    return found
