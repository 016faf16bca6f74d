"""Which format a file has, told from its first bytes; only tables in plain text are told by their suffix."""

import os
import re

from .errors import ECGReadError

TEXT_SUFFIXES = {".csv": ",", ".tsv": "\t"}

# Where a mark is, the mark, and the format that has it.
_MARKS = (
    (128, b"DICM", "DICOM"),
    (0, b"MATLAB 5.0 MAT-file", "fairseq-signals .mat"),
    (0, b"\x89HDF\r\n\x1a\n", "CODE-15% HDF5"),
    (0, b"\x93NUMPY", ".npy"),
)
_ROOTS = {"restingecgdata": "sierra", "restingecg": "muse", "annotatedecg": "aecg"}
_ROOT = re.compile(r"<(?:[a-z_][\w.-]*:)?(restingecgdata|restingecg|annotatedecg)[\s>/]", re.IGNORECASE)


def format_of(path: str, start: bytes) -> str | None:
    """The format of a file that begins with `start` (some thousand bytes), or None."""
    for at, mark, name in _MARKS:
        if start[at : at + len(mark)] == mark:
            return name
    if os.path.splitext(path)[1].lower() in TEXT_SUFFIXES:
        return ".csv or .tsv"
    return _device_format(path, start)


def _device_format(path: str, start: bytes) -> str | None:
    """Which of the formats of `ecgdatakit_reader` it is."""
    if start[:8] == b"0       " and re.fullmatch(rb" *-?\d+ *", start[236:244]) and len(start) >= 256:
        return "edf"
    if start[:8] == b"\xffBIOSEMI":
        raise ECGReadError(f"{path}: a BDF file of 24-bit samples, which is not supported; expected EDF")
    table = int.from_bytes(start[10:14], "little")
    if len(start) >= 32 and start[8:10] == b"\0\0" and start[28:32] == b"\x07\0\0\0" and 26 <= table < 1 << 16:
        return "scp"
    wide = start[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = start.decode("utf-16", "ignore") if wide else start.decode("latin-1")
    root = _ROOT.search(text) if text.lstrip("\ufeff\u00ef\u00bb\u00bf \t\r\n")[:1] == "<" else None
    return _ROOTS[root[1].lower()] if root else None
