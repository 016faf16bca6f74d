"""A user's own recordings: files and a table, or files without one."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ...labeler.report_labels import LABELLED, STATUSES
from ...labeler.tables import STATUS_COLUMN
from ...records import ECGRecord
from ...records.reading import Checksums, exam_ids, read_with_defaults, recognise
from ...utils.ids import canonical_id
from ..exclusion import Excluded
from ..store import COLUMNS, DataError
from ..table_file import MOST_NAMES, TableFile, clean_name, point_decimals, shown_header
from .base import (
    Source,
    SourceIndex,
    exclude_headless,
    header_of,
    inside,
    unique_rows,
    walk_files,
)
from .table_cells import (
    EXPECTED,
    MOST_QUOTES,
    OVER_89_YEARS,
    LabelCodes,
    age_in_years,
    binarised,
    check_label_names,
    convert_cells,
    label_cells,
    lead_names_in,
    number_in,
    over_89,
    sex_in,
    shown_label,
    text_of,
    text_or_none,
    time_cells,
    whole_number_in,
    why_no_label,
)

# Formats that describe themselves, and formats that need a sampling rate, unit or lead names.
_COMPLETE = (".hea", ".dcm", ".dicom", ".edf", ".xml", ".aecg", ".scp", ".ecg", ".h5", ".hdf5")
_WITH_ARGUMENTS = (".npy", ".csv", ".tsv", ".mat")
# Columns with a meaning; all others are labels, unless `labels` names these.
_FACTS = ("recording_id", "patient_id", "path", "source", "time", "age", "sex", "report")
_ARGUMENTS = ("sampling_rate", "units", "lead_names", "exam_id", "rename_leads")
_NUMBERS = ("age", "sampling_rate")
_MEANINGS: dict[str, Callable[[Any], Any]] = {
    "patient_id": canonical_id,
    "source": text_or_none,
    "age": age_in_years,
    "sex": sex_in,
    "report": text_or_none,
    "sampling_rate": number_in,
    "units": text_or_none,
    "lead_names": lead_names_in,
    "exam_id": whole_number_in,
    "rename_leads": text_or_none,
}


class RecordingTable(Source):
    """
    A folder of recordings in any format that `read_ecg` reads, with a table (CSV, TSV, Excel, Parquet) of them.

    Columns of the table, all optional but one of the first two: `path` (relative to the folder, or an absolute path
    inside it), `recording_id` (by default the path without suffix; without `path`, the file under the folder that has
    this name), `patient_id`, `source`, `time` (ISO 8601; in UTC
    where it has a zone), `age` (years; `>89`, `90+` and 300 become 90), `sex` (M, F, male, female, or unknown, other),
    `report`; `sampling_rate`, `units`, `lead_names` (separated by blanks or commas) and `exam_id` for files without
    them; `rename_leads` (`ECG=I,MLII=II`) for files with other names of leads; `status`, as `ecgfm label` writes it
    (labels are unknown unless it is `labelled`). Every other column is a label: 1, true, yes; 0, false, no; empty or NA
    for unknown. Columns of other numbers or of text are left out and named, unless `labels` names them. Two rows with
    one `recording_id` must have the same labels. Blanks around names are dropped, and columns without a name are
    ignored.

    Args:
        root (`str` or `Path`): The folder.
        table (`str` or `Path`, *optional*): Without it, all recordings in the folder are used, without labels.
        labels (sequence of `str`, *optional*): The columns that are labels, in order. Defaults to all columns whose
            names mean nothing else.
        columns (mapping of `str` to `str`, *optional*): The table's own names for the columns above:
            `{"patient_id": "MRN", "path": "file"}`. An empty name ignores a column: `{"age": ""}`.
        binarise (sequence of `str`): Labels made of columns of numbers: `["LVEF<=40", "old=age>80"]`. Unknown where the
            number is.
        positive, negative, unknown (sequences of `str`): The table's own codes of labels, such as `["2"]` and `["1"]`.
        encoding, separator, sheet: Of the table; see [`TableFile`].
        decimal (`str`, *optional*): `","` or `"."`, the decimal sign of the table's numbers. By default as found.
        unlabelled (`str`): `"unknown"`, or `"negative"` to read the labels of rows with another `status` as they are.
        sampling_rate, units, lead_names: For all files without them; see [`read_ecg`].
        rename_leads, leads, checksums: For all files; see [`read_ecg`].
    """

    name = "table"

    def __init__(
        self,
        root: str | os.PathLike,
        table: str | os.PathLike | None = None,
        *,
        labels: Sequence[str] | None = None,
        columns: Mapping[str, str] | None = None,
        binarise: Sequence[str] = (),
        positive: Sequence[str] = (),
        negative: Sequence[str] = (),
        unknown: Sequence[str] = (),
        encoding: str | None = None,
        separator: str | None = None,
        sheet: str | None = None,
        decimal: Literal[",", "."] | None = None,
        sampling_rate: float | None = None,
        units: str | None = None,
        lead_names: Sequence[str] | None = None,
        rename_leads: Mapping[str, str] | str | None = None,
        leads: Sequence[str] | None = None,
        checksums: Checksums | None = None,
        unlabelled: str = "unknown",
    ):
        super().__init__(root)
        self.table_path = None if table is None else Path(table)
        arguments: dict[str, Any] = {"sampling_rate": sampling_rate, "units": units, "lead_names": lead_names}
        arguments |= {"rename_leads": rename_leads, "leads": leads, "checksums": checksums}
        self._arguments = {name: value for name, value in arguments.items() if value is not None}
        self._columns = {ours: clean_name(theirs) for ours, theirs in dict(columns or {}).items()}
        if strange := [name for name in self._columns if name not in (*_FACTS, *_ARGUMENTS)]:
            raise DataError(
                f"columns= gives names for {', '.join(strange)}; expected: {', '.join((*_FACTS, *_ARGUMENTS))}"
            )
        if isinstance(labels, str):
            raise DataError(f"labels must be a list of names, found: {labels!r}")
        if decimal not in (None, ",", "."):
            raise DataError(f"decimal must be ',' or '.', found: {decimal!r}")
        about = {"encoding": encoding, "separator": separator, "sheet": sheet}
        if self.table_path is None and (binarise or any(about.values())):
            raise DataError("binarise, encoding, separator and sheet belong to a table: give table=")
        self._codes = LabelCodes(tuple(positive), tuple(negative), tuple(unknown))
        self._decimal = decimal
        self._file = None if self.table_path is None else TableFile(self.table_path, **about)
        header = [] if self._file is None else self._file.header()
        for ours, theirs in self._columns.items():
            if theirs and theirs not in header:
                raise DataError(f"{table} has no column {theirs!r} for {ours} ({shown_header(header)})")
        self._binarised = tuple(map(binarised, binarise))
        if missing := [one.column for one in self._binarised if one.column not in header]:
            raise DataError(f"{table} has no column {missing[0]!r} for binarise ({shown_header(header)})")
        self._left_out: list[str] = []
        self._labels_given = labels is not None
        self._columns_of_labels = tuple(
            self._found_labels() if labels is None and self._file is not None else map(clean_name, labels or ())
        )
        if missing := [name for name in self._columns_of_labels if name not in header]:
            raise DataError(f"{table} has no label column {', '.join(missing)} ({shown_header(header)})")
        self._label_names = (*self._columns_of_labels, *(one.name for one in self._binarised))
        check_label_names(self._label_names, table)
        named = set(self._columns.values())
        self._has_status = STATUS_COLUMN in header and STATUS_COLUMN not in (*named, *self._label_names)
        if unlabelled not in ("unknown", "negative"):
            raise DataError(f"unlabelled must be 'unknown' or 'negative', found: {unlabelled!r}")
        self._unlabelled = unlabelled

    @property
    def settings(self) -> dict[str, Any]:
        settings = {"columns": self._columns, "labels": list(self._columns_of_labels), **self._arguments}
        if self._binarised:
            settings["binarise"] = [f"{one.name}={one.column}{one.sign}{one.limit:g}" for one in self._binarised]
        if self._codes != LabelCodes():
            settings["codes"] = dataclasses.asdict(self._codes)
        return settings if self._unlabelled == "unknown" else settings | {"unlabelled": self._unlabelled}

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._label_names

    def index(self) -> SourceIndex:
        excluded: list[Excluded] = []
        notes: list[str] = []
        files = self._files(excluded)
        if self._file is None:
            exclude_headless(self.root, [path for path in files if path.lower().endswith(".hea")], excluded, files)
            if not files:
                others = f"; {len(excluded)} others cannot be used" if excluded else ""
                raise DataError(f"{self.root}: no recordings found (files of a format that read_ecg reads{others})")
            names = Counter(map(recording_id_of, files))  # two formats of one name are two recordings
            own = [path if names[recording_id_of(path)] > 1 else recording_id_of(path) for path in files]
            table = self._with_exams(own, files)
            notes.append("No table was given: patients and labels are unknown.")
            return SourceIndex(unique_rows(table, excluded), excluded, notes)

        columns = self._file.columns()
        notes += [*self._file.notes(), *self._left_out]
        self._file.forget()
        wanted = [*self._columns_of_labels, *(one.column for one in self._binarised)]
        wanted += [STATUS_COLUMN] if self._has_status else []
        columns = {
            ours: columns[self._columns.get(ours, ours)] for ours in (*_FACTS, *_ARGUMENTS) if self._has(ours, columns)
        } | {name: columns[name] for name in wanted}
        if "path" not in columns and "recording_id" not in columns:
            found = shown_header(self._file.header())
            raise DataError(
                f"{self.table_path} needs a column path or recording_id ({found}); give its name with "
                "columns={'path': 'NAME'}"
            )
        if not len(next(iter(columns.values()))):
            raise DataError(f"{self.table_path} has no rows")
        ids, paths = self._locate(columns, files, excluded)
        used = {recording_id_of(path) for path in paths if path is not None}
        if idle := sum(recording_id_of(path) not in used for path in files):
            notes.append(f"{idle} files in the folder look like recordings and are not in the table.")
        typed = self._typed(columns, notes)
        self._check_repeated(ids, typed)
        located = {"recording_id": pa.array(ids, pa.string()), "path": pa.array(paths, pa.string())}
        table = self._once_each(pa.table(located | typed), excluded)
        return SourceIndex(unique_rows(table, excluded), excluded, notes)

    def _with_exams(self, ids: list[str], files: list[str]) -> pa.Table:
        """Return a row for each file, or for each exam of a file of several."""
        rows = [
            (recording if exam is None else f"{recording}#{exam}", path, exam)
            for recording, path in zip(ids, files, strict=True)
            for exam in exam_ids(os.path.join(self.root, path), self._arguments)
        ]
        recordings, paths, exams = zip(*rows, strict=True)
        table = pa.table({"recording_id": pa.array(recordings, pa.string()), "path": pa.array(paths, pa.string())})
        if any(exam is not None for exam in exams):
            table = table.append_column("_exam_id", pa.array(exams, pa.int64()))
        return table

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Read one row of the index; see [`Source.read_one`]."""
        own = {name: entry[f"_{name}"] for name in _ARGUMENTS if entry.get(f"_{name}") is not None}
        return read_with_defaults(inside(self.root, entry["path"]), **(self._arguments | own))

    def _found_labels(self) -> list[str]:
        """Return the columns that can be labels, and note which others were left out."""
        assert self._file is not None
        named = {*self._columns.values(), *(one.column for one in self._binarised)}
        columns = {
            name: values
            for name, values in self._file.columns().items()
            if name not in named and name not in (*_FACTS, *_ARGUMENTS, STATUS_COLUMN)
        }
        columns = {name: self._decimal_points(name, values) for name, values in columns.items()}
        others = {name: why for name, values in columns.items() if (why := why_no_label(values, self._codes))}
        if others:
            shown = ", ".join(f"{name!r} ({why})" for name, why in list(others.items())[:MOST_NAMES])
            if len(others) == len(columns) and not self._binarised:
                raise DataError(
                    f"{self.table_path}: no column can be a label: {shown}. Name the columns that are labels "
                    "(labels=), the codes that they have (positive=, negative=), or make labels of numbers (binarise=)"
                )
            self._left_out.append(f"Columns that are no labels were left out: {shown}.")
        return [name for name in columns if name not in others]

    def _decimal_points(self, name: str, values: list) -> list:
        return point_decimals(self.table_path, name, values, self._decimal)

    def _has(self, ours: str, columns: Mapping[str, list]) -> bool:
        # An empty name, which no column has, ignores one.
        return self._columns.get(ours, ours) in columns and not (self._labels_given and ours in self._label_names)

    def _files(self, excluded: list[Excluded]) -> list[str]:
        """Return the files that are recordings, or look like one and cannot be read, by their content."""
        described = _WITH_ARGUMENTS if {"sampling_rate", "units", "lead_names"} & self._arguments.keys() else ()
        found = []
        own = None if self.table_path is None else os.path.abspath(self.table_path)
        for path in walk_files(self.root, ("",), excluded):
            whole = os.path.join(self.root, path)
            is_recording = path.lower().endswith(described or ("\0",)) or recognise(whole) is not None
            if is_recording and os.path.abspath(whole) != own:
                found.append(path)
        headed = {path[:-4] for path in found if path.lower().endswith(".hea")}
        return [path for path in found if not (path.lower().endswith(".mat") and path[:-4] in headed)]

    def _locate(
        self, columns: Mapping[str, list], files: list[str], excluded: list[Excluded]
    ) -> tuple[list[str | None], list[str | None]]:
        """Return ids and paths by row. A row without either has no path, and `excluded` receives it."""
        given = columns.get("recording_id")
        ids: list[str | None] = []
        if given is not None:
            ids = self._converted("recording_id", given, canonical_id)
        if "path" in columns:
            known = ids or [None] * len(columns["path"])
            paths = [
                self._relative(path, row, recording, excluded)
                for row, (path, recording) in enumerate(zip(columns["path"], known, strict=True), start=1)
            ]
            if given is None:  # names of files are ids as they are
                ids = [None if path is None else recording_id_of(path) for path in paths]
        else:
            paths = self._found_by_name(ids, columns["recording_id"], files, excluded)
        for row, recording in enumerate(ids):
            if recording is None and (paths[row] is not None or "path" not in columns):
                reason = "the table gives no recording_id"
                excluded.append(Excluded(None, paths[row], "index", reason, f"row {row + 1}"))
                paths[row] = None
        return ids, paths

    def _found_by_name(
        self, ids: Sequence[str | None], given: Sequence[Any], files: list[str], excluded: list[Excluded]
    ) -> list[str | None]:
        by_name: dict[str, list[str]] = {}
        for path in files:
            by_name.setdefault(recording_id_of(path.rpartition("/")[2]), []).append(path)
            if "/" in path:
                by_name.setdefault(recording_id_of(path), []).append(path)
        paths: list[str | None] = []
        for recording, cell in zip(ids, given, strict=True):
            found = [] if recording is None else by_name.get(recording) or by_name.get(str(cell).strip(), [])
            paths.append(found[0] if len(found) == 1 else None)
            if recording is not None and len(found) != 1:
                reason = "several files have the recording's name" if found else "no file has the recording's name"
                detail = f"{recording}: {', '.join(found) or reason}"
                excluded.append(Excluded(recording, None, "index", reason, detail))
        return paths

    def _relative(self, path: Any, row: int, recording: str | None, excluded: list[Excluded]) -> str | None:
        text = "" if path is None or path != path else str(path).strip()
        try:
            if not text:
                raise DataError("the table gives no path")
            if os.path.isabs(text):  # inside the folder it is as good as a relative one
                text = os.path.relpath(os.path.normpath(text), os.path.abspath(self.root))
            inside(self.root, text)
        except DataError as error:
            reason = "the table gives no path" if not text else "the path leads out of the dataset's folder"
            remedy = f"; give a folder above it in place of {self.root}" if text else ""
            excluded.append(Excluded(recording, None, "index", reason, f"row {row}: {error}{remedy}"))
            return None
        return os.path.normpath(text).replace(os.sep, "/")

    def _once_each(self, table: pa.Table, excluded: list[Excluded]) -> pa.Table:
        """Return rows with a path, and of several with the same recording of the same file the first."""
        ids, paths = table["recording_id"].to_pylist(), table["path"].to_pylist()
        exams = table["_exam_id"].to_pylist() if "_exam_id" in table.column_names else [None] * len(ids)
        kept_ids: set[str | None] = set()
        kept_files: dict[tuple[str, int | None], int] = {}
        keep: list[int] = []
        for row, (recording, path, exam) in enumerate(zip(ids, paths, exams, strict=True)):
            if path is None:
                continue
            if recording not in kept_ids:  # otherwise `unique_rows` reports it
                first = kept_files.setdefault((header_of(self.root, path), exam), row)
                if first != row:
                    detail = f"row {row + 1} ({recording}, {path}): same file as row {first + 1} ({ids[first]})"
                    excluded.append(Excluded(recording, path, "index", "another row has the same file", detail))
                    continue
                kept_ids.add(recording)
            keep.append(row)
        return table if len(keep) == table.num_rows else table.take(pa.array(keep, pa.int64()))

    def _check_repeated(self, ids: Sequence[str | None], typed: Mapping[str, pa.Array]) -> None:
        """Raise `DataError` where two rows with one id have different labels."""
        labels = {name: typed[name].to_pylist() for name in self._label_names}
        first: dict[str, int] = {}
        for row, recording in enumerate(ids):
            earlier = row if recording is None else first.setdefault(recording, row)
            different = [
                f"{name} is {shown_label(values[earlier])} and {shown_label(values[row])}"
                for name, values in labels.items()
                if values[earlier] != values[row]
            ]
            if different:
                more = f", and {len(different) - MOST_QUOTES} more" if len(different) > MOST_QUOTES else ""
                raise DataError(
                    f"{self.table_path}: rows {earlier + 1} and {row + 1} have the same recording_id {recording} and "
                    f"different labels: {', '.join(different[:MOST_QUOTES])}{more}. Keep the right one of the two rows"
                )

    def _typed(self, columns: Mapping[str, list], notes: list[str]) -> dict[str, pa.Array]:
        """Return all columns but ids and paths, with the store's types."""
        typed: dict[str, pa.Array] = {}
        for name in (*_FACTS, *_ARGUMENTS):
            if name in ("recording_id", "path") or name not in columns:
                continue
            cells = self._decimal_points(name, columns[name]) if name in _NUMBERS else columns[name]
            values = self._converted(name, cells, _MEANINGS.get(name, text_or_none))
            if name in _FACTS:
                typed[name] = pa.array(values, COLUMNS[name])
            elif any(value is not None for value in values):
                typed[f"_{name}"] = pa.array(values)
            if name == "age" and (aged := sum(map(over_89, columns[name]))):
                notes.append(f"{aged} ages given as over 89 are stored as {OVER_89_YEARS:g}.")
            if name == "sex" and None in values:
                texts = (text_of(text) for text, sex in zip(columns[name], values, strict=True) if sex is None)
                counts = Counter(text.lower() or "nothing" for text in texts)
                shown = ", ".join(f"{text}: {count}" for text, count in sorted(counts.items()))
                notes.append(f"{counts.total()} rows give no sex that is M or F ({shown}); it is stored as unknown.")
        where = self.table_path
        own = {name: self._decimal_points(name, columns[name]) for name in self._columns_of_labels}
        numeric = {
            name: why for name, values in own.items() if (why := why_no_label(values, self._codes)) and why != "text"
        }
        if numeric:
            shown = "; ".join(f"{name!r} ({why})" for name, why in numeric.items())
            binary = [name for name in own if name not in numeric][:MOST_NAMES]
            raise DataError(
                f"{where}: columns with other numbers than 0 and 1 cannot be labels: {shown}; leave them out of the "
                f"labels (labels={binary}), or make labels of them, such as binarise={[f'{next(iter(numeric))}<=40']}"
            )
        hint = "" if self._labels_given else "; name the columns that are labels (labels=)"
        labels = {name: label_cells(where, name, values, self._codes, hint) for name, values in own.items()}
        for one in self._binarised:
            labels[one.name] = one.cells(where, self._decimal_points(one.column, columns[one.column]))
        if self._has_status:
            statuses = columns[STATUS_COLUMN]
            if others := [status for status in statuses if status not in STATUSES]:
                expected = f"expected {', '.join(STATUSES)}, as `ecgfm label` writes it"
                raise DataError(f"{where}, column {STATUS_COLUMN}: found {others[0]!r}, {expected}{hint}")
            known = pa.array([status == LABELLED or self._unlabelled == "negative" for status in statuses])
            labels = {name: pc.if_else(known, column, pa.scalar(None, column.type)) for name, column in labels.items()}
            if unknown := len(known) - known.true_count:
                notes.append(f"{unknown} rows have another status than {LABELLED}: their labels are unknown.")
        return typed | labels

    def _converted(self, name: str, values: list, meaning: Callable[[Any], Any]) -> list:
        hint = f"; columns={{{name!r}: ''}} ignores this column"
        if name == "time":
            return time_cells(self.table_path, values, hint)
        return convert_cells(self.table_path, name, values, meaning, EXPECTED.get(name, "text"), hint)


def recording_id_of(path: str) -> str:
    """Return the id of a recording that has only a path: the path without a recording's suffix."""
    return os.path.splitext(path)[0] if path.lower().endswith((*_COMPLETE, *_WITH_ARGUMENTS, ".dat")) else path
