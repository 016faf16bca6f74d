"""
Segments of a processed folder: their `.mat` files, and the manifests that list them.

There are two kinds of manifests. Classification (`manifests/train.tsv`): the root folder after a tab, then
`file<TAB>samples` of each segment. CMSC (`manifests/cmsc/train.tsv`): the root, the files' extension, then
`name<TAB>samples<TAB>group of leads<TAB>0,1` of each recording, whose files are `name_0.mat` and `name_1.mat`.

The root is an absolute path on the machine that wrote the file. Only its last part is used, and no file is opened by
it.
"""

import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from ..records.matlab import feats_of, number_of, read_mat
from ..records.record import ECGReadError
from ..utils.errors import ECGFMError

_SEGMENT_FILE = re.compile(r"(?P<recording>.+)_(?P<segment>0|[1-9]\d{0,5})\.mat")
_LONGEST_LINE = 4096
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


class ManifestEntry(NamedTuple):
    """One item of a manifest: a segment, or the two segments of a pair."""

    line: int
    files: tuple[str, ...]
    recording: str
    segments: tuple[int, ...]
    samples: int


class Manifest(NamedTuple):
    """
    A manifest.

    Args:
        path: The file.
        root_name: The last part of its root folder.
        entries: Its items in order.
        unpaired: Segments without a partner in a CMSC manifest.
    """

    path: Path
    root_name: str
    entries: list[ManifestEntry]
    unpaired: int = 0


def read_manifest(path: str | Path) -> Manifest:
    """
    Read a classification manifest.

    Raises:
        `FairseqFolderError`: no such file, a line of another form, a name that leads out of the folder.
    """
    path = Path(path)
    root, lines = _lines(path, header=1)
    entries = []
    for number, line in lines:
        name, samples = _cells(path, number, line, 2)
        _check_name(path, number, name)
        match = _SEGMENT_FILE.fullmatch(PurePosixPath(name).name)
        if match is None:
            raise FairseqFolderError(
                f"{path}, line {number}: found {name!r}, expected a segment's file (RECORDING_0.mat)"
            )
        segments = (int(match["segment"]),)
        entries.append(ManifestEntry(number, (name,), match["recording"], segments, _count(path, number, samples)))
    return Manifest(path, _last_part(root), entries)


def read_cmsc_manifest(path: str | Path) -> Manifest:
    """
    Read a CMSC manifest. A recording's segments form pairs two by two, as in fairseq-signals; an odd one is skipped.

    Raises:
        `FairseqFolderError`: as [`read_manifest`]; another extension than `mat`.
    """
    path = Path(path)
    root, lines = _lines(path, header=2)
    entries, unpaired = [], 0
    for number, line in lines:
        if number == 2:
            if line.strip() != "mat":
                raise FairseqFolderError(f"{path}, line 2: found {line.strip()!r}, expected the extension mat")
            continue
        name, samples, _, numbers = _cells(path, number, line, 4)
        _check_name(path, number, name)
        segments = [_count(path, number, cell) for cell in numbers.split(",")]
        unpaired += len(segments) % 2
        for pair in zip(segments[::2], segments[1::2], strict=False):
            files = tuple(f"{name}_{segment}.mat" for segment in pair)
            recording = PurePosixPath(name).name
            entries.append(ManifestEntry(number, files, recording, pair, _count(path, number, samples)))
    return Manifest(path, _last_part(root), entries, unpaired)


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


def _lines(path: Path, header: int) -> tuple[str, list[tuple[int, str]]]:
    """Return the root, and the other lines with their numbers."""
    if not path.is_file():
        raise FairseqFolderError(f"{path}: no such manifest")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FairseqFolderError(f"{path} is not text in UTF-8: {error}") from None
    lines = text.split("\n")
    root = lines[0].strip()
    if len([line for line in lines if line.strip()]) < header or not root or "\t" in root:
        raise FairseqFolderError(f"{path}, line 1: found {lines[0][:80]!r}, expected the segments' root folder")
    return root, [(number, line) for number, line in enumerate(lines[1:], 2) if line.strip()]


def _cells(path: Path, number: int, line: str, count: int) -> list[str]:
    cells = line.rstrip("\r").split("\t")
    if len(cells) != count or len(line) > _LONGEST_LINE:
        raise FairseqFolderError(f"{path}, line {number}: found {line[:80]!r}, expected {count} cells between tabs")
    return cells


def _check_name(path: Path, number: int, name: str) -> None:
    parts = name.split("/")
    outside = name.startswith(("/", "~")) or ".." in parts or "\\" in name or ":" in parts[0]
    if outside or "" in parts or not name.isprintable():
        raise FairseqFolderError(f"{path}, line {number}: found {name!r}, expected a file below the segments' folder")


def _count(path: Path, number: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise FairseqFolderError(f"{path}, line {number}: found {text[:40]!r}, expected a whole number")
    return int(text)


def _last_part(root: str) -> str:
    return root.replace("\\", "/").rstrip("/").rpartition("/")[2]


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
    "FairseqFolderError",
    "Manifest",
    "ManifestEntry",
    "Segment",
    "path_below",
    "read_cmsc_manifest",
    "read_manifest",
    "read_segment",
    "write_cmsc_manifest",
    "write_manifest",
    "write_mat",
]
