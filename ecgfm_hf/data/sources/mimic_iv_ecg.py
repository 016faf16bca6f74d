"""MIMIC-IV-ECG: a table of recordings, a table of the machine's reports, and WFDB files."""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...labeler.tables import STATUS_COLUMN
from ...records import ECGRecord
from ..exclusion import Excluded
from ..store import DataError
from .base import Source, SourceIndex, unique_rows
from .csv_columns import (
    csv_header,
    find_table,
    first_rows,
    id_column,
    label_column,
    number_column,
    read_text_columns,
    refuse_cell,
    time_column,
    translated_column,
)

if TYPE_CHECKING:
    from ...labeler import Labeler

_RECORDS, _REPORTS = "record_list.csv", "machine_measurements.csv"
# Keys of this dataset's tables, which are not labels in a table of labels either.
_KEYS = ("study_id", "subject_id", "file_name", "ecg_time", "path", "cart_id")
# What `str.strip` takes for white space; RE2's \s is the ASCII part of it, without the vertical tab.
_SPACE = r"\s\v\x1c-\x1f\x85\p{Z}"
_OVER_89 = 90.0


class MimicIVECG(Source):
    """
    MIMIC-IV-ECG as PhysioNet gives it: `record_list.csv`, `machine_measurements.csv` (both may be gzipped) and `files`.

    The tables are joined on `study_id`, never by position. A recording's id is its `study_id`, its patient the
    `subject_id`, its time the `ecg_time`. The report is the text of the machine's columns `report_0`, `report_1`, ...,
    from left to right, joined by "; " without the empty ones ([`join_lines`]); it is unknown for a study without a row
    there, with rows that differ, or with a row of another subject. Whether a recording's files exist shows when it is
    read.

    Args:
        root (`str` or `Path`): The folder with `record_list.csv`.
        patients (`str` or `Path`, *optional*): MIMIC-IV's `patients.csv` or `patients.csv.gz`, for sex and age. Age is
            `anchor_age` plus the years from `anchor_year` to the recording. MIMIC-IV gives everybody over 89 an
            `anchor_age` of 91: such patients are 91, which means 'over 89', from their anchor year on, and of unknown
            age before it.
        labels (`str` or `Path`, *optional*): A CSV (or `.csv.gz`) with a column `study_id` and one column per label (1,
            0, True, False, or empty for unknown; the other keys of the dataset's tables are passed over). Or the name
            of a preset of the labeler, such as `"mimic17"`, which labels the reports; a recording without a report has
            unknown labels, not negative ones. None for no labels. A column `status`, as `ecgfm label` writes it, makes
            the labels of a row unknown unless it is `labelled`.
        unlabelled (`str`): `"unknown"`, or `"negative"` to take the labels of reports in which the labeler found
            nothing (or that are in another script) as negative, as the original does.

    Raises:
        `DataError`: a missing table or column; an unknown preset.
    """

    name = "mimic_iv_ecg"

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        patients: str | os.PathLike | None = None,
        labels: str | os.PathLike | None = None,
        unlabelled: str = "unknown",
    ):
        super().__init__(root)
        if unlabelled not in ("unknown", "negative"):
            raise DataError(f"unlabelled must be 'unknown' or 'negative', found: {unlabelled!r}")
        self._unlabelled = unlabelled
        records = find_table(self.root, _RECORDS)
        if records is None:
            raise DataError(f"{self.root}: has no {_RECORDS} or {_RECORDS}.gz")
        self._records = records
        self._reports = find_table(self.root, _REPORTS)
        self._patients = None if patients is None else Path(patients)
        if self._patients is not None:
            csv_header(self._patients)
        self._preset: str | None = None
        self._label_file: Path | None = None
        self._label_names: tuple[str, ...] = ()
        if isinstance(labels, str) and not labels.lower().endswith((".csv", ".csv.gz")):
            self._preset = labels
            self._label_names = tuple(_labeler(labels).labels)
            if self._reports is None:
                raise DataError(f"{self.root}: has no {_REPORTS}, whose reports labels={labels!r} needs")
        elif labels is not None:
            self._label_file = Path(labels)
            # pandas leaves the name of its index empty.
            self._label_names = tuple(
                name for name in csv_header(self._label_file) if name and name not in (*_KEYS, STATUS_COLUMN)
            )
            if not self._label_names:
                raise DataError(f"{labels}: has no label, only {', '.join(csv_header(self._label_file))}")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "patients": self._patients and self._patients.name,
            "labels": self._preset or (self._label_file and self._label_file.name),
            **({} if self._unlabelled == "unknown" else {"unlabelled": self._unlabelled}),
        }

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._label_names

    def index(self) -> SourceIndex:
        excluded: list[Excluded] = []
        notes = [
            "MIMIC-IV-ECG shifts all times by an offset that differs from patient to patient: times order the "
            "recordings of one patient only."
        ]
        table = unique_rows(self._recordings(excluded), excluded)
        _count(notes, table["time"].combine_chunks().is_null().to_numpy(False), "{} recordings have no ecg_time.")
        if self._patients is not None:
            table = self._with_patients(table, self._patients, notes)
        if self._reports is None:
            notes.append(f"There is no {_REPORTS}: reports are unknown.")
        else:
            table = table.append_column("report", self._report_column(table, self._reports, notes))
        if self._label_file is not None:
            for name, column in self._labels_of_file(table["recording_id"], self._label_file, notes).items():
                table = table.append_column(name, column)
        return SourceIndex(table, excluded, notes)

    def labels(self, record: ECGRecord, entry: Mapping[str, Any]) -> dict[str, int | None]:
        if self._preset is None:
            return super().labels(record, entry)
        # Not when indexing: a million reports take minutes, which the processes that read recordings can share.
        if entry["report"] is None:
            return dict.fromkeys(self._label_names)
        labels = labels_from_report(entry["report"], self._preset)
        if labels is None:
            return dict.fromkeys(self._label_names, 0 if self._unlabelled == "negative" else None)
        return dict(zip(self._label_names, labels, strict=True))

    def _recordings(self, excluded: list[Excluded]) -> pa.Table:
        """Return the rows of the record list that have an id and a path."""
        where = self._records
        columns = read_text_columns(where, ("subject_id", "study_id", "ecg_time", "path"))
        table = pa.table(
            {
                "recording_id": id_column(columns["study_id"]),
                "patient_id": id_column(columns["subject_id"]),
                "path": pc.utf8_trim_whitespace(columns["path"]).cast(pa.string()),
                "time": time_column(where, "ecg_time", columns["ecg_time"]),
            }
        )
        named, placed = pc.is_valid(table["recording_id"]), pc.is_valid(table["path"])
        usable = pc.and_(named, placed)
        if not pc.all(usable).as_py():
            for row in np.flatnonzero(~usable.to_numpy()).tolist():
                recording, path = table["recording_id"][row].as_py(), table["path"][row].as_py()
                reason = f"{_RECORDS} gives no {'study_id' if recording is None else 'path'}"
                excluded.append(Excluded(recording, path, "index", reason, f"{where.name}, row {row + 1}"))
            table = table.filter(usable)
        return table

    def _with_patients(self, table: pa.Table, where: Path, notes: list[str]) -> pa.Table:
        """Return the table with sex and age."""
        columns = read_text_columns(where, ("subject_id", "gender", "anchor_age", "anchor_year"))
        ids, first, repeated = first_rows(id_column(columns["subject_id"]))
        wrong = np.isin(np.arange(len(columns["subject_id"])), repeated)
        refuse_cell(where, "subject_id", columns["subject_id"], wrong, "each subject once")
        sexes = translated_column(where, "gender", columns["gender"], _sex, "M, F or nothing", pa.string())
        ages = number_column(where, "anchor_age", columns["anchor_age"], 0, 150)
        years = number_column(where, "anchor_year", columns["anchor_year"], 1, 9999)

        index = pc.index_in(table["patient_id"], ids)
        rows = pa.array(first).take(index.combine_chunks())  # of each recording the row of its patient, or null
        known = rows.is_valid().to_numpy(zero_copy_only=False)
        at = rows.fill_null(0).to_numpy()
        years_on = _years(table["time"]) - years[at]
        age = ages[at] + years_on
        # An age over 89 is not known exactly: it does not grow, and is unknown before the anchor year.
        hidden = ages[at] >= _OVER_89
        age = np.where(hidden, np.where(years_on >= 0, ages[at], np.nan), age)
        impossible = known & (age < 0)
        age[~known | impossible] = np.nan
        _count(notes, ~known, f"{{}} recordings are of patients that are not in {where.name}: age and sex unknown.")
        _count(notes, impossible, f"{{}} recordings are older than their patient, by {where.name}: age unknown.")
        if (hidden & known).any():
            notes.append("An age of 91 may mean any age over 89, as in MIMIC-IV.")
        table = table.append_column("age", pa.array(age.astype(np.float32), from_pandas=True))
        return table.append_column("sex", sexes.take(rows))

    def _report_column(self, table: pa.Table, where: Path, notes: list[str]) -> pa.Array:
        """Return the report of each recording, null where there is none."""
        names = [name for name in csv_header(where) if re.fullmatch(r"report_\d+", name)]
        lines = sorted(names, key=lambda name: int(name[7:]))
        if not lines:
            raise DataError(f"{where}: has no column report_0 (found: {', '.join(csv_header(where)[:40])})")
        columns = read_text_columns(where, ("subject_id", "study_id", *lines))
        reports = joined_lines([columns.pop(name) for name in lines])
        studies, patients = id_column(columns["study_id"]), id_column(columns["subject_id"])
        ids, first, repeated = first_rows(studies)
        index = pc.index_in(table["recording_id"], ids).combine_chunks()

        # Rows that repeat a study count as one if their reports are the same.
        repeats = pc.index_in(studies.take(pa.array(repeated)), ids).to_numpy(zero_copy_only=False)
        texts = pc.fill_null(reports, "")
        differ = pc.not_equal(texts.take(pa.array(repeated)), texts.take(pa.array(first[repeats]))).to_numpy(False)
        rows = pa.array(first).take(index)
        there = rows.is_valid().to_numpy(False)
        several = there & np.isin(index.fill_null(0).to_numpy(), repeats[differ])
        other = pc.not_equal(patients.take(rows), table["patient_id"].combine_chunks()).fill_null(False).to_numpy(False)
        usable = there & ~several & ~other
        column = reports.take(pa.array(rows.fill_null(0).to_numpy(), mask=~usable))

        _count(notes, ~there, f"{{}} recordings have no row in {where.name}: report unknown.")
        _count(notes, several, f"{{}} recordings have rows in {where.name} that differ: report unknown.")
        _count(notes, other & ~several, f"{{}} recordings have another subject_id in {where.name}: report unknown.")
        _count(notes, usable & column.is_null().to_numpy(False), "{} recordings have an empty report: report unknown.")
        used = pc.is_in(ids, table["recording_id"].combine_chunks()).to_numpy(False)
        _count(notes, ~used, f"{{}} studies of {where.name} are not in {self._records.name}.")
        _count(notes, studies.is_null().to_numpy(False), f"{{}} rows of {where.name} have no study_id.")
        return column

    def _labels_of_file(self, recordings: pa.ChunkedArray, where: Path, notes: list[str]) -> dict[str, pa.Array]:
        """Return the labels of each recording, column by column: rows as Python objects would fill gigabytes."""
        has_status = STATUS_COLUMN in csv_header(where)
        columns = read_text_columns(where, ("study_id", *self._label_names, *([STATUS_COLUMN] if has_status else [])))
        studies = columns.pop("study_id")
        ids = id_column(studies)
        refuse_cell(where, "study_id", studies, ids.is_null().to_numpy(zero_copy_only=False), "a study")
        ids, _, repeated = first_rows(ids)
        wrong = np.isin(np.arange(len(studies)), repeated)
        refuse_cell(where, "study_id", studies, wrong, "each study once")
        rows = pc.index_in(recordings, ids).combine_chunks()  # each study is there once, so its index is its row
        _count(notes, rows.is_null().to_numpy(False), f"{{}} recordings are not in {where.name}: labels unknown.")
        used = pc.is_in(ids, recordings.combine_chunks()).to_numpy(False)
        _count(notes, ~used, f"{{}} studies of {where.name} are not among the recordings.")
        if has_status and self._unlabelled == "unknown":
            known = pc.equal(columns.pop(STATUS_COLUMN), "labelled")
            rows = pc.if_else(known.take(rows).combine_chunks(), rows, pa.scalar(None, rows.type))
            _count(notes, ~known.to_numpy(False), f"{{}} rows of {where.name} are not labelled: labels unknown.")
        taken = {name: label_column(where, name, columns[name]).take(rows) for name in self._label_names}
        return {name: column.combine_chunks() for name, column in taken.items()}


def joined_lines(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """
    Return reports from the columns of their lines, as [`join_lines`] does: joined by "; ", without empty ones.

    A report without text is null.
    """
    parts = []
    # In pieces, so that there are never two whole copies.
    for batch in pa.table(dict(zip(map(str, range(len(columns))), columns, strict=True))).to_batches(1 << 16):
        # Where Arrow skips all lines of a row, it drops the row, and later rows move up. So the first is never null.
        first, *others = batch.columns
        text = pc.binary_join_element_wise(pc.fill_null(first, ""), *others, "; ", null_handling="skip")
        text = pc.replace_substring_regex(text, f"[{_SPACE}]*;[;{_SPACE}]*", "; ")
        text = pc.replace_substring_regex(text, f"^[;{_SPACE}]+|[;{_SPACE}]+$", "")
        parts.append(pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text))
    return pa.concat_arrays(parts)


@functools.lru_cache(maxsize=1 << 14)  # machines repeat their reports
def labels_from_report(report: str, preset: str) -> tuple[int, ...] | None:
    """
    Return the labels of a report by one of the labeler's presets: 1 or 0 for each of its `labels`, in order.

    None where they are unknown: no phrase for a finding was found, or the report is in another script.

    Raises:
        `DataError`: no such preset.
    """
    labeler = _labeler(preset)
    found = labeler(report)
    return tuple(map(int, labeler.row_of(found))) if found.status == "labelled" else None


@functools.cache
def _labeler(preset: str) -> "Labeler":
    # Imported late: its tables take time to load, and most sources need none.
    from ...labeler import Labeler, LabelerError

    try:
        return Labeler.from_preset(preset)
    except LabelerError as error:
        raise DataError(f"labels={preset!r}: expected the path of a CSV or a preset ({error})") from None


def _count(notes: list[str], which: np.ndarray, sentence: str) -> None:
    """Add a sentence with the number of true values, if there are any."""
    if count := int(which.sum()):
        notes.append(sentence.format(count))


def _sex(text: str) -> str | None:
    sex = text.strip().upper()
    if sex not in ("M", "F", ""):
        raise ValueError(text)
    return sex or None


def _years(times: pa.ChunkedArray) -> np.ndarray:
    """Return calendar years, float64, NaN where the time is unknown."""
    return pc.year(times).cast(pa.float64()).to_numpy(zero_copy_only=False)
