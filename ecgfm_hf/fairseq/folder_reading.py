"""
Processed folders of fairseq-signals as tables of recordings, and their segments as the model's input.

Nothing but manifests and tables is read before a recording is needed; the tables are Arrow arrays, so a million
recordings take little memory.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..feature_extraction_ecgfm import STANDARD_LEADS, ECGFMFeatureExtractor
from ..records import read_ecg
from ..records.record import ECGReadError, ECGRecord
from ..utils.errors import SettingsError
from ..utils.ids import canonical_id
from .label_sets import read_labels
from .manifests import ROWS, FairseqFolderError, Manifest, Segment, path_below, read_segment

logger = logging.getLogger(__name__)

LABELED_SPLITS_FILE = "meta_split_labeled.csv"
# Columns of a recording that is segments in files: their paths, and its row in `y.npy` as text.
SEGMENT_FILES, IDX = "segment_files", "idx"
# Tables with the number (`idx`) of each recording (`save_file`); the first also has ids.
_TABLES = ("meta.csv", LABELED_SPLITS_FILE, "meta_split.csv", "segmented_split.csv")
_FACTS = ("recording_id", "patient_id", "source", "age", "sex")
_FIRST_SPLITS = ("train", "valid", "test")
_ROWS = 50_000  # recordings in a table
_TRIED_ROWS = 20  # recordings whose files are looked for to find the folder of segments
_THREADS = 8  # that read the numbers of recordings from their files
_MANY = 10_000


class FairseqFolder:
    """
    A processed folder, written by fairseq-signals' scripts or by [`export_fairseq_folder`].

        segmented/RECORDING_0.mat ...     manifests/train.tsv, manifests/cmsc/train.tsv ...
        labels/y.npy, label_def.csv, pos_weight.txt, meta_split_labeled.csv     meta.csv

    Only the segments and the manifest of a split are required, so `path` may be a folder of manifests (`task.data`).
    The segments are looked for beside the manifests (`segmented`, the last part of the manifest's root, the folder
    itself), and then below the root that the manifest's first line names; or below `root` only.

    Args:
        path: The folder, or a folder of manifests.
        root: The folder that the names in the manifests are relative to.
        labels: `y.npy` or its folder. By default it is looked for in `labels` and in the folder itself.
        patient_column: The column of `meta.csv` with patient ids.

    Attributes:
        splits (`tuple[str, ...]`): Those that have a manifest.
        label_names (`tuple[str, ...]`): In the order of `y.npy`'s columns; empty without labels.
        pos_weight (`np.ndarray | None`): (L,) float64, from `pos_weight.txt`.

    Raises:
        `FairseqFolderError`: no such folder, or files that contradict one another.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        root: str | Path | None = None,
        labels: str | Path | None = None,
        patient_column: str = "patient_id",
    ):
        self.path, self.root = Path(path), None if root is None else Path(root)
        for folder in (self.path, self.root):
            if folder is not None and not folder.is_dir():
                raise FairseqFolderError(f"{folder}: no such folder")
        self.manifests = self.path / "manifests" if (self.path / "manifests").is_dir() else self.path
        self.splits = _splits(self.manifests) or _splits(self.manifests / "cmsc")
        self._patient_column = patient_column
        self._homes = [self.path]
        while self._homes[-1].name in ("manifests", "cmsc"):
            self._homes.append(self._homes[-1].absolute().parent)
        self._label_folder = self._find_labels(labels)
        self._read_labels()

    def manifest(self, split: str, pairs: bool = False) -> Manifest:
        """
        Open a split's manifest: the CMSC manifest for pairs of adjacent segments, else the one of classification.

        Raises:
            `FairseqFolderError`: there is none, or for pairs only one of classification.
        """
        if Path(split).name != split:
            raise FairseqFolderError(f"{split!r} cannot be the name of a split")
        own, cmsc = self.manifests / f"{split}.tsv", self.manifests / "cmsc" / f"{split}.tsv"
        found = Manifest(cmsc if cmsc.is_file() and (pairs or not own.is_file()) else own)
        if pairs and not found.is_cmsc:
            raise FairseqFolderError(
                f"{found.path} lists segments; pretraining needs pairs: a CMSC manifest, expected {cmsc}"
            )
        return found

    def recordings(self, split: str, pairs: bool = False, check: bool = True) -> Iterator[pa.Table]:
        """
        Yield the recordings of a split, in the manifest's order, some at a time.

        The columns: `recording_id` (from `meta.csv`, else the name of the files), `patient_id`, `source`, `age`, `sex`
        (null where unknown), `path` (below the root), `sampling_rate`, `num_samples`, `segment_files`, `idx` and the
        labels (int8; null where the recording is not labelled; none for pairs).

        Args:
            split: The split.
            pairs: Read the CMSC manifest.
            check: Whether a missing file is an error at once. Otherwise it is one when it is read.

        Raises:
            `FairseqFolderError`: a damaged line, a missing file, contradicting tables.
        """
        manifest = self.manifest(split, pairs)
        every = _recordings_of(manifest)
        if not len(every):
            return
        root = self._segments_root(manifest, every)
        tables, listing, first = self._read_tables(root, every["name"]), _Listing(root), _first_segment(root, every)
        prefix, all_names = f"{root.absolute()}/", pc.replace_substring_regex(every["name"], r"^.*/", "")
        # Sources may have files of one name in their folders.
        are_unique = pc.count_distinct(all_names).as_py() == len(every)
        for start in range(0, len(every), _ROWS):
            rows = every.slice(start, _ROWS).combine_chunks()
            names, files = rows["name"].combine_chunks(), _segment_files(rows)
            if check:
                listing.check(manifest, rows, files)
            columns = _looked_up(tables, names)
            if self._needs_files(manifest, columns, first, len(every), pairs):
                columns |= _facts_of_files(root, rows, manifest)
            plain = all_names.slice(start, _ROWS).combine_chunks() if are_unique else names
            columns["recording_id"] = pc.coalesce(columns["recording_id"], plain)
            columns["path"] = names
            columns["sampling_rate"] = pa.array(np.full(len(names), first.sampling_rate))
            counts = pc.list_value_length(rows["segments"]).combine_chunks().cast("int64")
            columns["num_samples"] = pc.multiply(counts, rows["samples"].combine_chunks().cast("int64"))
            paths = pc.binary_join_element_wise(prefix, files.values, "")
            columns[SEGMENT_FILES] = pa.ListArray.from_arrays(files.offsets, paths)
            if not pairs:
                columns |= self._label_columns(manifest, rows, columns[IDX])
            yield pa.table(columns)

    def digest(self, splits: Sequence[str], pairs: bool = False) -> str:
        """Return a digest of the manifests and labels. To hash the segments would take as long as an epoch."""
        digest = hashlib.sha256()
        files = [self.manifest(split, pairs).path for split in splits]
        if self._label_folder is not None:
            files += [self._label_folder / name for name in ("y.npy", "label_def.csv", LABELED_SPLITS_FILE)]
        for file in files:
            if file.is_file():
                with open(file, "rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    # Labels

    def _find_labels(self, given: str | Path | None) -> Path | None:
        if given is not None:
            folder = Path(given).parent if Path(given).suffix == ".npy" else Path(given)
            if Path(given).suffix == ".npy" and Path(given).name != "y.npy":
                raise FairseqFolderError(f"{given}: labels are expected in a file y.npy")
            if not (folder / "y.npy").is_file():
                raise FairseqFolderError(f"{folder / 'y.npy'}: no such file")
            return folder
        candidates = [folder / name for folder in self._homes for name in ("labels", ".")]
        return next((folder for folder in candidates if (folder / "y.npy").is_file()), None)

    def _read_labels(self) -> None:
        folder = self._label_folder
        self.label_names: tuple[str, ...] = ()
        self.pos_weight: np.ndarray | None = None
        self._values: np.ndarray = np.empty((0, 0))
        if folder is None:
            return
        file = folder / "y.npy"
        try:
            self._values = np.load(file, mmap_mode="r", allow_pickle=False)
            if self._values.ndim != 2 or self._values.dtype.kind not in "fiub":
                raise ValueError(f"found {self._values.dtype} of shape {self._values.shape}, expected (rows, labels)")
        except (ValueError, EOFError, OSError) as error:
            raise FairseqFolderError(f"{file} is not an array of labels: {error}") from None
        count = self._values.shape[1]
        self.label_names = tuple(f"LABEL_{number}" for number in range(count))
        try:
            if (folder / "label_def.csv").is_file():
                self.label_names = read_labels(folder / "label_def.csv").names
        except SettingsError as error:
            raise FairseqFolderError(str(error)) from error
        if (folder / "pos_weight.txt").is_file():
            self.pos_weight = read_pos_weight(folder / "pos_weight.txt")
        weights = count if self.pos_weight is None else len(self.pos_weight)
        if not count == len(self.label_names) == weights:
            raise FairseqFolderError(
                f"{folder}: y.npy has {count} labels, label_def.csv {len(self.label_names)}, pos_weight.txt {weights}"
            )

    def _label_columns(self, manifest: Manifest, rows: pa.Table, idx: pa.Array) -> dict[str, pa.Array]:
        if not self.label_names:
            return {}
        numbers = idx.cast(pa.int64())
        outside = pc.fill_null(pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, len(self._values))), True)
        if pc.any(outside).as_py():
            row = pc.index(outside, True).as_py()
            raise FairseqFolderError(
                f"{manifest.path}, line {rows['line'][row]}: idx is {idx[row]}, but y.npy has rows 0 to "
                f"{len(self._values) - 1}"
            )
        values = np.asarray(self._values[numbers.to_numpy()], dtype=np.float64)
        unknown = np.isnan(values)
        labelled = self._labelled()
        if labelled is not None:
            unknown |= ~np.isin(numbers.to_numpy(), labelled)[:, None]
        if not np.isin(values[~unknown], (0, 1)).all():
            row, column = np.argwhere(~unknown & ~np.isin(values, (0, 1)))[0]
            raise FairseqFolderError(
                f"{self._label_folder}/y.npy, row {idx[int(row)]}, {self.label_names[column]}: found "
                f"{values[row, column]:g}, expected 0 or 1"
            )
        return {
            name: pa.array(np.where(unknown[:, number], 0, values[:, number]).astype(np.int8), mask=unknown[:, number])
            for number, name in enumerate(self.label_names)
        }

    def _labelled(self) -> np.ndarray | None:
        """Return the rows of `y.npy` that hold labels; None for all."""
        file = None if self._label_folder is None else self._label_folder / LABELED_SPLITS_FILE
        if file is None or not file.is_file():
            return None
        return np.unique(_read_table(file, ("idx",))["idx"].cast(pa.int64()).to_numpy())

    # Tables

    def _read_tables(self, root: Path, names: pa.ChunkedArray) -> dict[str, pa.Array]:
        """Read what tables beside the manifests, labels and segments know of recordings, by the name of their files."""
        folders = [*self._homes, root, root.parent]
        if self._label_folder is not None:
            folders += [self._label_folder, self._label_folder.parent]
        sources = pc.unique(pc.struct_field(pc.extract_regex(names, r"^(?P<source>[^/]+)/"), "source")).drop_null()
        folders += [root / source for source in sources.to_pylist()]
        facts = {"save_file": "name", "idx": IDX, self._patient_column: "patient_id"}
        facts |= {name: name for name in _FACTS if name != "patient_id"}
        parts: list[tuple[Path, dict[str, pa.Array]]] = []
        seen = set[Path]()
        for file in (folder / name for name in _TABLES for folder in folders):
            if (parts and file.name != parts[0][0].name) or file.resolve() in seen or not file.is_file():
                continue
            seen.add(file.resolve())
            parts.append((file, _read_table(file, list(facts))))
        columns = {
            ours: pa.concat_arrays([part[theirs] for _, part in parts] or [pa.array([], pa.string())])
            for theirs, ours in facts.items()
        }
        pairs = pa.table({name: columns[name] for name in ("name", IDX)}).group_by(["name", IDX]).aggregate([])
        if len(pairs) > pc.count_distinct(columns["name"]).as_py():
            twice = next(one["values"] for one in pc.value_counts(pairs["name"]).to_pylist() if one["counts"] > 1)
            listed = ", ".join(str(file) for file, _ in parts)
            raise FairseqFolderError(f"{listed}: {twice} has two numbers (idx), expected one")
        return columns

    def _needs_files(
        self, manifest: Manifest, columns: dict[str, pa.Array], first: Segment, recordings: int, pairs: bool
    ) -> bool:
        """Return whether recordings' own files must be opened for their rows in `y.npy` or their patients."""
        if pairs or not (
            (self.label_names and columns[IDX].null_count)
            or (first.patient_id is not None and columns["patient_id"].null_count)
        ):
            return False
        if recordings > _MANY:
            logger.warning(
                "%s: no table (%s) has all recordings: a file of each is opened for its idx and patient_id, which "
                "takes a while",
                manifest.path,
                ", ".join(_TABLES),
            )
        return True

    # Segments

    def _segments_root(self, manifest: Manifest, rows: pa.Table) -> Path:
        """Return the folder that the names in a manifest are relative to."""
        if self.root is not None:
            return self.root
        last = manifest.root.replace("\\", "/").rstrip("/").rpartition("/")[2]
        below = [] if last in ("", ".", "..") else [last]
        folders = [home / name for home in self._homes for name in dict.fromkeys(("segmented", *below, "."))]
        folders += [manifest.path.parent / name for name in (*below, ".")]
        if os.path.isabs(manifest.root):
            folders.append(Path(manifest.root))
        names = [files[0] for files in _segment_files(rows.slice(0, _TRIED_ROWS)).to_pylist()]
        for folder in folders:
            if any((folder / name).is_file() for name in names):
                return folder
        tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        raise FairseqFolderError(
            f"{manifest.path}: {names[0]} is in none of {tried}; pass the folder of segments (root=FOLDER)"
        )


def is_fairseq_folder(path: str | Path) -> bool:
    """Return whether a folder has manifests of fairseq-signals."""
    folder = Path(path)
    for place in (folder / "manifests", folder, folder / "manifests" / "cmsc", folder / "cmsc"):
        for file in sorted(place.glob("*.tsv"))[:1]:
            try:
                with open(file, encoding="utf-8-sig") as stream:
                    stream.readline(4096)
                    second = stream.readline(4096).rstrip()
            except (OSError, UnicodeDecodeError):
                continue
            if place.name in ("manifests", "cmsc") or second == "mat" or second.partition("\t")[0].endswith(".mat"):
                return True
    return False


def read_segments(files: Sequence[str], row: Mapping[str, Any], extractor: ECGFMFeatureExtractor) -> np.ndarray:
    """
    Read segments of one recording as the model's input, (segments, leads, samples) float32.

    They were standardised over their whole recording when the folder was made, and stay as they are.

    Args:
        files: Some of the row's `segment_files`.
        row: The recording, as [`FairseqFolder.recordings`] has it.
        extractor: Whose leads, rate and length the segments must have.

    Raises:
        `ECGReadError`: a file that is missing, damaged, or contradicts the manifest, the tables or the extractor.
    """
    if unknown := [name for name in extractor.lead_names if name not in STANDARD_LEADS]:
        raise ECGReadError(f"{files[0]} has no lead {', '.join(unknown)}: segments have the twelve standard leads")
    leads = [STANDARD_LEADS.index(name) for name in extractor.lead_names]
    samples, idx = row["num_samples"] // len(row[SEGMENT_FILES]), row[IDX]
    found = []
    for file in files:
        number = segment_number(file)
        name = f"{row['path']}_{number}.mat"
        try:
            segment = read_segment(path_below(file.removesuffix(name) or ".", name))
        except FairseqFolderError as error:
            raise ECGReadError(str(error)) from None
        length = segment.values.shape[1]
        for value, expected, called in (
            (f"{length} samples", f"{samples} samples", ""),
            (f"{length} samples", f"{extractor.segment_samples} samples", ""),
            (f"{segment.sampling_rate:g} Hz", f"{extractor.sampling_rate:g} Hz", ""),
            (number if segment.number is None else segment.number, number, "segment_i "),
            (idx if segment.idx is None or idx is None else str(segment.idx), idx, "idx "),
        ):
            if value != expected:
                raise ECGReadError(f"{file} has {called}{value}, expected {expected}")
        found.append(segment.values if len(leads) == len(segment.values) else segment.values[leads])
    return np.stack(found)


def record_from_segments(row: Mapping[str, Any]) -> ECGRecord:
    """
    Return a recording in mV from its segments, by the mean and standard deviation in their files.

    A tail that was cut off when the folder was made is missing.

    Raises:
        `ECGReadError`: a file that is missing, damaged, without mean and std; segments that are not adjacent.
    """
    files = row[SEGMENT_FILES]
    numbers = [segment_number(file) for file in files]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ECGReadError(f"{files[0]}: the manifest has segments {numbers}, expected adjacent ones", "gap")
    try:
        parts = [read_ecg(path_below(file.removesuffix(name) or ".", name), units="mV") for file, name in _names(row)]
    except FairseqFolderError as error:
        raise ECGReadError(str(error)) from None
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        if part.sampling_rate != first.sampling_rate or not np.allclose(part.gain, first.gain, rtol=1e-6):
            raise ECGReadError(f"{file}: found another sampling rate, mean or std than in {files[0]}")
    return dataclasses.replace(
        first,
        recording_id=row["recording_id"],
        path=row["path"],
        samples=np.concatenate([part.samples for part in parts], axis=1),
        patient_id=row["patient_id"],
        age=row["age"],
        sex=row["sex"],
    )


def _names(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each segment's file with its name below the root."""
    return [(file, f"{row['path']}_{segment_number(file)}.mat") for file in row[SEGMENT_FILES]]


def segment_number(file: str) -> int:
    """Return the number of a segment in its recording, by its file's name."""
    return int(file.removesuffix(".mat").rpartition("_")[2])


def _splits(folder: Path) -> tuple[str, ...]:
    found = sorted(path.stem for path in folder.glob("*.tsv"))
    return tuple(sorted(found, key=lambda name: _FIRST_SPLITS.index(name) if name in _FIRST_SPLITS else 3))


def _recordings_of(manifest: Manifest) -> pa.Table:
    """Return a manifest's recordings, each once; lines of one recording may be apart."""
    table = pa.Table.from_batches(manifest.batches(), ROWS)
    if pc.count_distinct(table["name"]).as_py() == len(table):
        return table
    joined: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        first = joined.setdefault(row["name"], row)
        if first is not row:
            if first["samples"] != row["samples"]:
                raise FairseqFolderError(
                    f"{manifest.path}, line {row['line']}: {row['name']} has segments of {row['samples']} samples, "
                    f"expected {first['samples']} as in its other lines"
                )
            first["segments"] += row["segments"]
            first["line"] = None  # no longer one line
    return pa.Table.from_pylist(list(joined.values()), ROWS)


def _segment_files(rows: pa.Table) -> pa.ListArray:
    """Return the names below the root of each recording's segments."""
    segments = rows["segments"].combine_chunks()
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(segments).to_numpy())]).astype(np.int32)
    names = rows["name"].combine_chunks().take(pc.list_parent_indices(segments))
    numbers = pc.list_flatten(segments).cast(pa.string())
    return pa.ListArray.from_arrays(offsets, pc.binary_join_element_wise(names, "_", numbers, ".mat", ""))


def _first_segment(root: Path, rows: pa.Table) -> Segment:
    """Return the first segment that can be read; the first error where none can."""
    first = None
    for files in _segment_files(rows.slice(0, _TRIED_ROWS)).to_pylist():
        try:
            return read_segment(path_below(root, files[0]))
        except (ECGReadError, FairseqFolderError) as error:
            first = first or error
    raise FairseqFolderError(str(first))


class _Listing:
    """The files below a root, by listing folders: much faster than a look at each file."""

    def __init__(self, root: Path):
        self._root = root
        self._folders: dict[str, pa.ChunkedArray] = {}  # of the last check, so that memory does not grow with it

    def check(self, manifest: Manifest, rows: pa.Table, files: pa.ListArray) -> None:
        """Raise `FairseqFolderError` with the line of the first file that is missing."""
        folders = pc.unique(pc.replace_substring_regex(files.values, r"[^/]*$", "")).to_pylist()
        self._folders = {name: self._folders[name] if name in self._folders else self._list(name) for name in folders}
        listed = pa.chunked_array([part for names in self._folders.values() for part in names.chunks], pa.string())
        # A folder may have many more files than this table.
        there = pc.is_in(files.values, value_set=listed.filter(pc.is_in(listed, value_set=files.values)))
        position = pc.index(there, False).as_py()
        if position < 0:
            return
        offsets = files.offsets.to_numpy()
        row = int(np.searchsorted(offsets, position, side="right")) - 1
        line = rows["line"][row].as_py()
        if line is not None and not manifest.is_cmsc:
            line += position - int(offsets[row])
        where = str(manifest.path) if line is None else f"{manifest.path}, line {line}"
        raise FairseqFolderError(f"{where}: {self._root / files.values[position].as_py()}: no such file")

    def _list(self, folder: str) -> pa.ChunkedArray:
        """Return the names of a folder's segments below the root."""
        parts: list[pa.Array] = []
        if (self._root / folder).is_dir():
            with os.scandir(self._root / folder) as found:
                names = (folder + one.name for one in found if one.name.endswith(".mat") and one.name.isprintable())
                while some := list(islice(names, _ROWS)):
                    parts.append(pa.array(some, pa.string()))
        return pa.chunked_array(parts, pa.string())


def _looked_up(tables: dict[str, pa.Array], names: pa.Array) -> dict[str, pa.Array]:
    """Return what tables know of recordings, null where unknown."""
    index = pc.index_in(pc.replace_substring_regex(names, r"^.*/", ""), value_set=tables["name"])
    found = {name: column.take(index) for name, column in tables.items() if name != "name"}
    ages = pc.if_else(pc.match_substring_regex(found["age"], r"^\d{1,3}(\.\d*)?$"), found["age"], None)
    found["age"] = ages.cast(pa.float32())
    found["sex"] = pc.if_else(pc.is_in(found["sex"], value_set=pa.array(["F", "M"])), found["sex"], None)
    return found


def _facts_of_files(root: Path, rows: pa.Table, manifest: Manifest) -> dict[str, pa.Array]:
    """Return numbers and patients as the first segment of each recording has them."""

    def read(files: list[str]) -> tuple[str | None, str | None]:
        try:
            segment = read_segment(path_below(root, files[0]))
        except (ECGReadError, FairseqFolderError) as error:
            raise FairseqFolderError(f"{manifest.path}: {error}") from error
        return None if segment.idx is None else str(segment.idx), segment.patient_id

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(read, _segment_files(rows).to_pylist()))
    return {
        name: pa.array(column, pa.string())
        for name, column in zip((IDX, "patient_id"), zip(*found, strict=True), strict=True)
    }


def _read_table(file: Path, wanted: Sequence[str]) -> dict[str, pa.Array]:
    """Return columns of a CSV as text, null where they are empty or missing; ids in their one form."""
    options = pyarrow.csv.ConvertOptions(
        include_columns=list(wanted),
        include_missing_columns=True,
        column_types=dict.fromkeys(wanted, pa.string()),
        strings_can_be_null=True,
    )
    try:
        table = pyarrow.csv.read_csv(
            file, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=options
        )
    except pa.ArrowInvalid as error:
        raise FairseqFolderError(f"{file} is not a table: {error}") from None
    columns = {name: table[name].combine_chunks() for name in wanted}
    for name in columns.keys() - {"save_file", "age", "sex", "source"}:
        encoded = columns[name].dictionary_encode()
        ids = [canonical_id(value) for value in encoded.dictionary.to_pylist()]
        columns[name] = pa.array(ids, pa.string()).take(encoded.indices)
    if "save_file" in columns:
        columns["save_file"] = pc.replace_substring_regex(columns["save_file"], r"\.mat$", "")
    if "idx" in columns:
        wrong = pc.invert(pc.fill_null(pc.match_substring_regex(columns["idx"], r"^\d{1,9}$"), False))
        if pc.any(wrong).as_py():
            found = columns["idx"].filter(wrong)[0].as_py()
            raise FairseqFolderError(f"{file}: found idx {found!r}, expected whole numbers from 0")
    return columns


def read_pos_weight(path: str | Path) -> np.ndarray:
    """
    Read the weights of a `pos_weight.txt`, (L,) float64.

    Raises:
        `FairseqFolderError`: the file is not a list of numbers such as `[1.5,2.0]`.
    """
    text = Path(path).read_text(encoding="utf-8").strip()
    try:
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError("no list in brackets")
        return np.array([float(part) for part in text[1:-1].split(",")])
    except ValueError as error:
        raise FairseqFolderError(f"{path} is not a list of weights such as [1.5,2.0]: {error}") from None


__all__ = [
    "IDX",
    "LABELED_SPLITS_FILE",
    "SEGMENT_FILES",
    "FairseqFolder",
    "is_fairseq_folder",
    "read_pos_weight",
    "read_segments",
    "record_from_segments",
    "segment_number",
]
