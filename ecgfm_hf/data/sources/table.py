"""Recordings of one's own: files and a table, or files alone."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...records import ECGRecord
from ...records.reading import read_with_defaults
from ...utils.ids import canonical_id
from ..store import COLUMNS
from . import table_cells as cells
from .base import LeftOut, Source, SourceError, SourceIndex, inside, unique_rows, walk_files
from .wfdb_pairs import header_of, tell_headless

# Files that say everything themselves, and files that do once their rate, unit or leads are given.
_COMPLETE = (".hea", ".dcm", ".dicom", ".edf", ".xml", ".scp", ".ecg")
_WITH_ARGUMENTS = (".npy", ".csv", ".tsv", ".mat")
# Columns that mean something by their names; all others are labels, unless `labels` says which are.
_FACTS = ("recording_id", "patient_id", "path", "source", "time", "age", "sex", "report")
_ARGUMENTS = ("sampling_rate", "units", "lead_names", "exam_id")
_MEANINGS: dict[str, Callable[[Any], Any]] = {
    "patient_id": canonical_id,
    "source": cells.text_or_none,
    "age": cells.age_in_years,
    "sex": cells.sex,
    "report": cells.text_or_none,
    "sampling_rate": cells.number,
    "units": cells.text_or_none,
    "lead_names": cells.names,
    "exam_id": cells.whole_number,
}


class RecordingTable(Source):
    """
    A folder of recordings in any format that `read_ecg` knows, with a CSV or Parquet table of what is known of them.

    Columns of the table, all optional but one of the first two: `path` (relative to the folder), `recording_id` (by
    default the path without suffix; without `path`, the file under the folder that has this name), `patient_id`,
    `source`, `time` (ISO 8601; in UTC where it has a zone), `age` (years; `>89`, `90+` and 300 become 90), `sex` (M, F,
    male, female, or unknown, other), `report`; `sampling_rate`, `units`, `lead_names` (separated by blanks or commas)
    and `exam_id` for files that lack them. Every other column is a label: 1, 0, true, false, or empty for unknown.
    Blanks around names are dropped, and columns without a name are passed over. A CSV may have `;` or tabs for commas.

    Args:
        root (`str` or `Path`): The folder.
        table (`str` or `Path`, *optional*): Without it, every recording in the folder is taken, without labels.
        labels (sequence of `str`, *optional*): The columns that are labels, in order. Defaults to all columns whose
            names mean nothing else.
        columns (mapping of `str` to `str`, *optional*): The table's own names for the columns above:
            `{"patient_id": "MRN", "path": "file"}`. An empty name leaves a column out: `{"age": ""}`.
        sampling_rate, units, lead_names: For all files that lack them; see [`read_ecg`].
    """

    name = "table"

    def __init__(
        self,
        root: str | os.PathLike,
        table: str | os.PathLike | None = None,
        *,
        labels: Sequence[str] | None = None,
        columns: Mapping[str, str] | None = None,
        sampling_rate: float | None = None,
        units: str | None = None,
        lead_names: Sequence[str] | None = None,
    ):
        super().__init__(root)
        self.table_path = None if table is None else Path(table)
        arguments = {"sampling_rate": sampling_rate, "units": units, "lead_names": lead_names}
        self._arguments = {name: value for name, value in arguments.items() if value is not None}
        self._columns = {ours: cells.clean_name(theirs) for ours, theirs in dict(columns or {}).items()}
        if unknown := [name for name in self._columns if name not in (*_FACTS, *_ARGUMENTS)]:
            raise SourceError(f"columns names {', '.join(unknown)}, expected among {', '.join((*_FACTS, *_ARGUMENTS))}")
        if isinstance(labels, str):
            raise SourceError(f"labels must be a list of names, found: {labels!r}")
        header = [] if table is None else cells.read_header(self.table_path)
        for ours, theirs in self._columns.items():
            if theirs and theirs not in header:
                raise SourceError(f"{table} has no column {theirs!r} for {ours} ({cells.shown_header(header)})")
        named = set(self._columns.values())
        free = [name for name in header if name and name not in named and name not in (*_FACTS, *_ARGUMENTS)]
        self._label_names = tuple(free if labels is None else map(cells.clean_name, labels))
        if missing := [name for name in self._label_names if name not in header]:
            raise SourceError(f"{table} has no label column {', '.join(missing)} ({cells.shown_header(header)})")
        cells.check_label_names(self._label_names, table)
        self._labels_given = labels is not None

    @property
    def settings(self) -> dict[str, Any]:
        return {"columns": self._columns, "labels": list(self._label_names), **self._arguments}

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._label_names

    def index(self) -> SourceIndex:
        left_out: list[LeftOut] = []
        notes: list[str] = []
        files = self._files(left_out)
        if self.table_path is None:
            tell_headless(self.root, [path for path in files if path.lower().endswith(".hea")], left_out, files)
            if not files:
                others = f"; {len(left_out)} others cannot be used" if left_out else ""
                raise SourceError(f"{self.root}: found no recording (files ending in {', '.join(_COMPLETE)}{others})")
            table = pa.table({"recording_id": pa.array([recording_id_of(path) for path in files]), "path": files})
            notes.append("No table was given: patients and labels are unknown.")
            return SourceIndex(unique_rows(table, left_out), left_out, notes)

        columns = cells.read_columns(self.table_path)
        columns = {
            ours: columns[self._columns.get(ours, ours)] for ours in (*_FACTS, *_ARGUMENTS) if self._has(ours, columns)
        } | {name: columns[name] for name in self._label_names}
        if "path" not in columns and "recording_id" not in columns:
            found = cells.shown_header(cells.read_header(self.table_path))
            raise SourceError(
                f"{self.table_path} needs a column path or recording_id ({found}); columns= or --columns says which "
                "of its columns they are"
            )
        if not len(next(iter(columns.values()))):
            raise SourceError(f"{self.table_path} has no rows")
        ids, paths = self._locate(columns, files, left_out)
        used = {recording_id_of(path) for path in paths if path is not None}
        if idle := sum(recording_id_of(path) not in used for path in files):
            notes.append(f"{idle} files that look like recordings lie in the folder, but the table does not name them.")
        located = {"recording_id": pa.array(ids, pa.string()), "path": pa.array(paths, pa.string())}
        table = self._once_each(pa.table(located | self._typed(columns, notes)), left_out)
        return SourceIndex(unique_rows(table, left_out), left_out, notes)

    def read_one(self, entry: Mapping[str, Any]) -> ECGRecord:
        """Reads one row of the index; see [`Source.read_one`]."""
        own = {name: entry[f"_{name}"] for name in _ARGUMENTS if entry.get(f"_{name}") is not None}
        return read_with_defaults(inside(self.root, entry["path"]), **(self._arguments | own))

    def _has(self, ours: str, columns: Mapping[str, list]) -> bool:
        # An empty name, which no column has, leaves one out.
        return self._columns.get(ours, ours) in columns and not (self._labels_given and ours in self._label_names)

    def _files(self, left_out: list[LeftOut]) -> list[str]:
        suffixes = _COMPLETE + (_WITH_ARGUMENTS if self._arguments else ())
        found = list(walk_files(self.root, suffixes, left_out))
        own = None if self.table_path is None else os.path.abspath(self.table_path)
        found = [path for path in found if os.path.abspath(os.path.join(self.root, path)) != own]
        headed = {path[:-4] for path in found if path.lower().endswith(".hea")}
        return [path for path in found if not (path.lower().endswith(".mat") and path[:-4] in headed)]

    def _locate(
        self, columns: Mapping[str, list], files: list[str], left_out: list[LeftOut]
    ) -> tuple[list[str | None], list[str | None]]:
        """Ids and paths by row; a row that lacks either has no path, and goes to `left_out`."""
        given = columns.get("recording_id")
        ids: list[str | None] = []
        if given is not None:
            ids = self._converted("recording_id", given, canonical_id)
        if "path" in columns:
            known = ids or [None] * len(columns["path"])
            paths = [
                self._relative(path, row, recording, left_out)
                for row, (path, recording) in enumerate(zip(columns["path"], known, strict=True), start=1)
            ]
            if given is None:  # names of files are ids as they are
                ids = [None if path is None else recording_id_of(path) for path in paths]
        else:
            paths = self._found_by_name(ids, given, files, left_out)
        for row, recording in enumerate(ids):
            if recording is None and (paths[row] is not None or "path" not in columns):
                reason = "the table gives no recording_id"
                left_out.append(LeftOut(None, paths[row], "index", reason, f"row {row + 1}"))
                paths[row] = None
        return ids, paths

    def _found_by_name(
        self, ids: Sequence[str | None], given: Sequence[Any], files: list[str], left_out: list[LeftOut]
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
                left_out.append(LeftOut(recording, None, "index", reason, detail))
        return paths

    def _relative(self, path: Any, row: int, recording: str | None, left_out: list[LeftOut]) -> str | None:
        text = "" if path is None or path != path else str(path).strip()
        try:
            if not text:
                raise SourceError("the table gives no path")
            if os.path.isabs(text):  # inside the folder it is as good as a relative one
                text = os.path.relpath(os.path.normpath(text), os.path.abspath(self.root))
            inside(self.root, text)
        except SourceError as error:
            reason = "the table gives no path" if not text else "the path leads out of the dataset's folder"
            left_out.append(LeftOut(recording, None, "index", reason, f"row {row}: {error}"))
            return None
        return os.path.normpath(text).replace(os.sep, "/")

    def _once_each(self, table: pa.Table, left_out: list[LeftOut]) -> pa.Table:
        """The rows that have a path; of several that would read the same recording from the same file, the first."""
        ids, paths = table["recording_id"].to_pylist(), table["path"].to_pylist()
        exams = table["_exam_id"].to_pylist() if "_exam_id" in table.column_names else [None] * len(ids)
        kept_ids: set[str | None] = set()
        kept_files: dict[tuple[str, int | None], int] = {}
        keep = []
        for row, (recording, path, exam) in enumerate(zip(ids, paths, exams, strict=True)):
            if path is None:
                continue
            if recording not in kept_ids:  # otherwise `unique_rows` tells
                first = kept_files.setdefault((header_of(self.root, path), exam), row)
                if first != row:
                    detail = f"row {row + 1} ({recording}, {path}): same file as row {first + 1} ({ids[first]})"
                    left_out.append(LeftOut(recording, path, "index", "another row has the same file", detail))
                    continue
                kept_ids.add(recording)
            keep.append(row)
        return table if len(keep) == table.num_rows else table.take(keep)

    def _typed(self, columns: Mapping[str, list], notes: list[str]) -> dict[str, pa.Array]:
        """All columns but ids and paths, as the store has them."""
        typed: dict[str, pa.Array] = {}
        for name in (*_FACTS, *_ARGUMENTS):
            if name in ("recording_id", "path") or name not in columns:
                continue
            values = self._converted(name, columns[name], _MEANINGS.get(name))
            if name in _FACTS:
                typed[name] = pa.array(values, COLUMNS[name])
            elif any(value is not None for value in values):
                typed[f"_{name}"] = pa.array(values)
            if name == "age" and (aged := sum(map(cells.over_89, columns[name]))):
                notes.append(f"{aged} ages given as over 89 are stored as {cells.OVER_89_YEARS:g}.")
            if name == "sex" and None in values:
                texts = (cells.text_of(text) for text, sex in zip(columns[name], values, strict=True) if sex is None)
                counts = Counter(text.lower() or "nothing" for text in texts)
                shown = ", ".join(f"{text}: {count}" for text, count in sorted(counts.items()))
                notes.append(f"{counts.total()} rows give no sex that is M or F ({shown}); it is stored as unknown.")
        hint = "" if self._labels_given else "; say which columns are labels (labels= or --labels)"
        where = self.table_path
        return typed | {name: cells.labels(where, name, columns[name], hint) for name in self._label_names}

    def _converted(self, name: str, values: list, meaning: Callable[[Any], Any] | None) -> list:
        hint = f"; columns={{{name!r}: ''}} or --columns {name}= leaves this column out"
        if name == "time":
            return cells.times(self.table_path, values, hint)
        return cells.converted(self.table_path, name, values, meaning, cells.EXPECTED.get(name, "text"), hint)


def recording_id_of(path: str) -> str:
    """The id of a recording that is known by its path alone: the path without the suffix of a recording."""
    return os.path.splitext(path)[0] if path.lower().endswith((*_COMPLETE, *_WITH_ARGUMENTS, ".dat")) else path
