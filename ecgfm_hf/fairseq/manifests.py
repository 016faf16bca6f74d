"""
Segments of a processed folder: their `.mat` files, and the manifests that list them.

There are two kinds of manifests. Classification (`manifests/train.tsv`): the root folder after a tab, then
`file<TAB>samples` of each segment. CMSC (`manifests/cmsc/train.tsv`): the root, the files' extension, then
`name<TAB>samples<TAB>group of leads<TAB>0,1` of each recording, whose files are `name_0.mat` and `name_1.mat`.

A manifest may have millions of lines. It is read in batches of Arrow arrays, a row a recording.
"""

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..feature_extraction_ecgfm import STANDARD_LEADS
from ..records.matlab import feats_of, number_of, read_mat
from ..records.record import ECGReadError
from ..utils.errors import ECGFMError

# A line in order, for Arrow (RE2); what does not match is examined again for the message.
_SEGMENT_LINE = r"^(?P<name>[^\t]+)_(?P<segment>0|[1-9][0-9]{0,5})\.mat\t(?P<samples>[0-9]{1,9})\r?\n?$"
_RECORDING_LINE = r"^(?P<name>[^\t]+)\t(?P<samples>[0-9]{1,9})\t[^\t]*\t(?P<segments>[0-9]{1,9}(?:,[0-9]{1,9})*)\r?\n?$"
_PLAIN_NAME = r"^[A-Za-z0-9_][\w.\-]*(?:/[A-Za-z0-9_][\w.\-]*)*$"  # certainly below the folder
_LONGEST_LINE = 4096
_LONGEST_EXTENSION = 6
_BLOCK = 1 << 20  # characters that are read at a time
# A recording of a manifest: the line that names it first, its name below the root, its segments' numbers, the samples
# of each segment.
ROWS = pa.schema(
    [("line", pa.int32()), ("name", pa.string()), ("segments", pa.list_(pa.int32())), ("samples", pa.int32())]
)
# Variables of a segment's file; `patient_id` is in older files only.
_VARIABLES = ("feats", "curr_sample_rate", "mean", "std", "segment_i", "idx", "patient_id")
_MAT_TEXT = b"MATLAB 5.0 MAT-file, a segment in the format of fairseq-signals"
# Numbers of element types and array classes in MATLAB files of level 5.
_INT32, _UINT32, _INT8, _DOUBLE, _INT64, _MATRIX = 5, 6, 1, 9, 12, 14
_CLASSES = {"f8": (6, _DOUBLE), "i8": (14, _INT64)}


class FairseqFolderError(ECGFMError, ValueError):
    """
    A processed folder of fairseq-signals that cannot be read or written. The message names the file and the line.
    """


class Manifest:
    """
    A manifest of either kind, opened: only its first lines are read.

    Attributes:
        path (`Path`): The file.
        root (`str`): Its root folder, as the file has it.
        is_cmsc (`bool`): Whether each line is a recording with its segments' numbers.

    Raises:
        `FairseqFolderError`: no such file, no root, another extension than `mat`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FairseqFolderError(f"{path}: no such manifest")
        with self._open() as file:
            first, second = self._text(file), self._text(file)
        self.root = first.strip()
        cells = second.rstrip("\r\n").split("\t")
        in_cmsc = self.path.absolute().parent.name == "cmsc"
        self.is_cmsc = in_cmsc or (len(cells) == 1 and 0 < len(second.strip()) < _LONGEST_EXTENSION)
        if not self.root or "\t" in self.root:
            raise FairseqFolderError(
                f"{path}, line 1: found {first.rstrip()[:80]!r}, expected the segments' root folder"
            )
        if self.is_cmsc and second.strip() != "mat":
            raise FairseqFolderError(f"{path}, line 2: found {second.strip()[:80]!r}, expected the extension mat")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """
        Yield the recordings in order, with columns as [`ROWS`]. Lines of one recording must follow one another.

        Raises:
            `FairseqFolderError`: a line of another form, a name that leads out of the folder.
        """
        yield from self._recordings() if self.is_cmsc else self._grouped_segments()

    def _recordings(self) -> Iterator[pa.RecordBatch]:
        for numbers, cells in self._matches(_RECORDING_LINE, header=2):
            lists = pc.split_pattern(cells["segments"], ",")
            segments = pa.ListArray.from_arrays(lists.offsets, lists.values.cast(pa.int32()))
            columns = [numbers, cells["name"], segments, cells["samples"].cast(pa.int32())]
            yield pa.record_batch(columns, schema=ROWS)

    def _grouped_segments(self) -> Iterator[pa.RecordBatch]:
        last: pa.Table | None = None  # the recording at the end of a block, which the next block may continue
        for numbers, cells in self._matches(_SEGMENT_LINE, header=1):
            lines = pa.table({"line": numbers, **cells})
            lines = lines if last is None else pa.concat_tables([last, lines]).combine_chunks()
            starts = _group_starts(lines)
            yield _segments_of(lines, starts)
            last = lines.slice(int(starts[-1]))
        if last is not None:
            yield _segments_of(last, np.array([0, len(last)]))

    def _matches(self, pattern: str, header: int) -> Iterator[tuple[pa.Array, dict[str, pa.Array]]]:
        """Yield the numbers of some lines, and what the groups of a pattern match in them."""
        with self._open() as file:
            for _ in range(header):
                file.readline()
            number = header + 1
            while lines := self._block(file):
                text, numbers = pa.array(lines, pa.string()), np.arange(number, number + len(lines), dtype=np.int32)
                number += len(lines)
                is_blank = pc.utf8_is_space(text).to_numpy(zero_copy_only=False)
                if is_blank.any():
                    text, numbers = text.filter(pa.array(~is_blank)), numbers[~is_blank]
                found = pc.extract_regex(text, pattern)
                names = pc.struct_field(found, "name")
                wrong = pc.or_(pc.is_null(names), pc.greater(pc.utf8_length(text), _LONGEST_LINE))
                unusual = pc.invert(pc.fill_null(pc.match_substring_regex(names, _PLAIN_NAME), True))
                for row in np.flatnonzero(pc.or_(wrong, unusual).to_numpy(zero_copy_only=False)).tolist():
                    if wrong[row].as_py() or not _is_inside(names[row].as_py()):
                        raise self._refused_line(int(numbers[row]), text[row].as_py())
                if len(text):
                    fields = [field.name for field in found.type]
                    yield pa.array(numbers), {name: pc.struct_field(found, name) for name in fields}

    def _block(self, file: IO[str]) -> list[str]:
        try:
            return file.readlines(_BLOCK)
        except UnicodeDecodeError as error:
            raise FairseqFolderError(f"{self.path} is not text in UTF-8: {error}") from None

    def _open(self) -> IO[str]:
        return open(self.path, encoding="utf-8-sig", newline="\n")

    def _text(self, file: IO[str]) -> str:
        try:
            return file.readline(_LONGEST_LINE)
        except UnicodeDecodeError as error:
            raise FairseqFolderError(f"{self.path} is not text in UTF-8: {error}") from None

    def _refused_line(self, number: int, line: str) -> FairseqFolderError:
        count = 4 if self.is_cmsc else 2
        cells = line.rstrip("\r\n").split("\t")
        found, expected = line.rstrip()[:80], f"{count} cells between tabs"
        if len(cells) == count and len(line) <= _LONGEST_LINE:
            numbers = [cells[1], *(cells[3].split(",") if self.is_cmsc else ())]
            wrong = [cell for cell in numbers if not re.fullmatch(r"\d{1,9}", cell, re.ASCII)]
            if not _is_inside(cells[0]):
                found, expected = cells[0], "a file below the segments' folder"
            elif wrong:
                found, expected = wrong[0][:40], "a whole number"
            else:
                found, expected = cells[0][:80], "a segment's file (RECORDING_0.mat)"
        return FairseqFolderError(f"{self.path}, line {number}: found {found!r}, expected {expected}")


def _group_starts(lines: pa.Table) -> np.ndarray:
    """Return the rows where another recording, or another length, begins."""
    differs = np.zeros(len(lines), dtype=bool)
    differs[0] = True
    for name in ("name", "samples"):
        column = lines[name].combine_chunks()
        differs[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(differs)


def _segments_of(lines: pa.Table, starts: np.ndarray) -> pa.RecordBatch:
    """Return a row for each recording but the last that begins."""
    first, offsets = pa.array(starts[:-1]), pa.array(starts, pa.int32())
    numbers = lines["segment"].combine_chunks()[: int(starts[-1])].cast(pa.int32())
    columns = {name: lines[name].combine_chunks().take(first) for name in ("line", "name", "samples")}
    segments = pa.ListArray.from_arrays(offsets, numbers)
    return pa.record_batch(
        [columns["line"], columns["name"], segments, columns["samples"].cast(pa.int32())], schema=ROWS
    )


def _is_inside(name: str) -> bool:
    """Return whether a name is a path below a folder, by its text."""
    parts = name.split("/")
    outside = name.startswith("~") or ".." in parts or "\\" in name or ":" in parts[0]
    return not outside and "" not in parts and name.isprintable()


def write_manifest(path: str | Path, root: str, segments: Iterable[tuple[str, int]]) -> None:
    """Write a classification manifest from (file below `root`, samples) of each segment."""
    lines = [f"\t{_with_slash(root)}", *(f"{_printable(name)}\t{samples}" for name, samples in segments)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_cmsc_manifest(path: str | Path, root: str, recordings: Iterable[tuple[str, int, Sequence[int]]]) -> None:
    """Write a CMSC manifest from (name, samples of a segment, numbers of its segments) of each recording."""
    lines = [_with_slash(root), "mat"]
    lines += [
        f"{_printable(name)}\t{samples}\t0\t{','.join(map(str, numbers))}" for name, samples, numbers in recordings
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def path_below(root: str | Path, name: str) -> str:
    """
    Return the path of a manifest's file.

    Raises:
        `FairseqFolderError`: a link in it leads out of `root`.
    """
    path, base = os.path.join(root, name), os.path.realpath(root)
    if os.path.commonpath([base, os.path.realpath(path)]) != base:
        raise FairseqFolderError(f"{path} leads out of {root}, which is not followed")
    return path


def _with_slash(root: str) -> str:
    return root if root.endswith("/") else f"{root}/"


def _printable(name: str) -> str:
    if not name.isprintable():
        raise FairseqFolderError(f"{name!r} cannot be written to a manifest: it has control characters")
    return name


# The .mat files


class Segment(NamedTuple):
    """
    The content of a segment's file.

    Args:
        values: (12, samples) float32, standardised as in the file.
        sampling_rate: Hz.
        idx: The recording's row in `y.npy`; None if the file has none.
        number: The segment's number in its recording, from 0; None if the file has none.
        patient_id: None if the file has none.
    """

    values: np.ndarray
    sampling_rate: float
    idx: int | None
    number: int | None
    patient_id: str | None


def read_segment(path: str) -> Segment:
    """
    Read a standardised segment. Its values are the model's input: they must not be standardised again.

    Raises:
        `ECGReadError`: the file is missing, damaged, or not of 12 leads; it has no `mean` and `std`, so it was not
            standardised; a sample is not finite.
    """
    variables = read_mat(path, _VARIABLES)
    feats = feats_of(path, variables)
    for name in ("mean", "std"):
        if name not in variables:
            raise ECGReadError(f"{path}: no {name}, so it was not standardised; expected a segment's file")
    bad = ~np.isfinite(feats).all(axis=1)
    if bad.any():
        raise ECGReadError(f"{path}: lead {STANDARD_LEADS[int(bad.argmax())]} has samples that are not finite numbers")
    patient = _whole_number(path, variables, "patient_id")
    return Segment(
        np.ascontiguousarray(feats, dtype=np.float32),
        number_of(path, variables, "curr_sample_rate"),
        _whole_number(path, variables, "idx"),
        _whole_number(path, variables, "segment_i"),
        None if patient is None else str(patient),
    )


def _whole_number(path: str, variables: Mapping[str, np.ndarray], name: str) -> int | None:
    if name not in variables:
        return None
    number = number_of(path, variables, name)
    if number != int(number):
        raise ECGReadError(f"{path}: found {name} {number}, expected a whole number")
    return int(number)


def write_mat(path: str | Path, variables: Mapping[str, np.ndarray]) -> None:
    """
    Write matrices to an uncompressed MATLAB file of level 5. The same values give the same bytes.

    Args:
        path: The file to write.
        variables: Two-dimensional arrays of float64 or int64, by name.
    """
    with open(path, "wb") as file:
        file.write(_MAT_TEXT.ljust(124) + struct.pack("<H2s", 0x0100, b"IM"))
        for name, values in variables.items():
            kind, stored = _CLASSES[values.dtype.str.lstrip("<>|=")]
            parts = _element(_UINT32, struct.pack("<II", kind, 0))
            parts += _element(_INT32, struct.pack("<ii", *values.shape))
            parts += _element(_INT8, name.encode("ascii"))
            parts += _element(stored, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(order="F"))
            file.write(_element(_MATRIX, parts))


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


__all__ = [
    "ROWS",
    "FairseqFolderError",
    "Manifest",
    "Segment",
    "path_below",
    "read_segment",
    "write_cmsc_manifest",
    "write_manifest",
    "write_mat",
]
