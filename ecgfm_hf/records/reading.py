"""Find the format of a file and read it: `read_ecg(path)`.

To add a format, write a module with a function `read(path, **arguments) -> ECGRecord` and a line in `FORMATS`. The
module is imported when a file of the format comes, and its library by the module.
"""

import importlib
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .record import ECGReadError, ECGRecord, regular_file_size

_START_BYTES = 4096  # enough to recognise every format


class Format(NamedTuple):
    """
    A kind of file.

    Attributes:
        name: as messages have it.
        reader: `module.function` of this package.
        recognises: whether a file with this suffix (lower case) and these first bytes is of the format.
        needs: arguments that the file cannot provide.
        takes: arguments that the caller may add.
    """

    name: str
    reader: str
    recognises: Callable[[str, bytes], bool]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def _mark(offset: int, mark: bytes) -> Callable[[str, bytes], bool]:
    return lambda suffix, start: start[offset : offset + len(mark)] == mark


def _suffix(*suffixes: str) -> Callable[[str, bytes], bool]:
    return lambda suffix, start: suffix in suffixes


def _xml_root(name: str) -> Callable[[str, bytes], bool]:
    element = re.compile(rf"<(?:[a-z_][\w.-]*:)?{name}[\s>/]", re.IGNORECASE)

    def recognises(suffix: str, start: bytes) -> bool:
        utf_16 = start[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = start.decode("utf-16", "ignore") if utf_16 else start.decode("latin-1")
        return text.lstrip("\ufeff\u00ef\u00bb\u00bf \t\r\n")[:1] == "<" and element.search(text) is not None

    return recognises


def _is_edf(suffix: str, start: bytes) -> bool:
    return start[:8] == b"0       " and re.fullmatch(rb" *-?\d+ *", start[236:244]) is not None and len(start) >= 256


def _is_scp(suffix: str, start: bytes) -> bool:
    table = int.from_bytes(start[10:14], "little")  # length of the table of sections
    return len(start) >= 32 and start[8:10] == b"\0\0" and start[28:32] == b"\x07\0\0\0" and 26 <= table < 1 << 16


# The first that recognises a file reads it. WFDB is found by its header before any file is opened.
FORMATS = (
    Format("DICOM", "dicom.read_dicom", _mark(128, b"DICM")),
    Format("fairseq-signals .mat", "mat.read_fairseq_mat", _mark(0, b"MATLAB 5.0 MAT-file"), needs=("units",)),
    Format("CODE-15% HDF5", "hdf5.read_code_15_exam", _mark(0, b"\x89HDF\r\n\x1a\n"), ("exam_id",), ("units",)),
    Format(".npy", "tables.read_npy", _mark(0, b"\x93NUMPY"), needs=("sampling_rate", "lead_names", "units")),
    Format(
        ".csv or .tsv", "tables.read_text_table", _suffix(".csv", ".tsv"), ("sampling_rate", "units"), ("lead_names",)
    ),
    Format("EDF", "devices.read_edf", _is_edf),
    Format("SCP-ECG", "devices.read_scp", _is_scp),
    Format("Sierra XML", "devices.read_sierra", _xml_root("restingecgdata")),
    Format("MUSE XML", "devices.read_muse", _xml_root("restingecg")),
    Format("aECG", "devices.read_aecg", _xml_root("annotatedecg")),
)
_WFDB = Format("WFDB", "wfdb.read_wfdb", _suffix(".hea"))

# Files that are recognised and not supported, and what their error says.
_REFUSED = (
    (_mark(0, b"\xffBIOSEMI"), "a BDF file of 24-bit samples, which is not supported; expected EDF"),
    (_mark(0, b"MATLAB 7.3"), "a MATLAB 7.3 file, which is not supported; expected version 5, as of fairseq-signals"),
    (_suffix(".dcm", ".dicom"), "not a DICOM file, expected the mark 'DICM' at byte 128"),
)
_SUPPORTED = (
    "WFDB (a header .hea with its signal file .dat or .mat beside it; give either, or both without suffix), DICOM "
    "waveforms (.dcm, or any file with the DICOM mark), EDF, MUSE XML, Sierra XML, aECG and SCP-ECG; with arguments "
    "for what they do not contain, CODE-15% HDF5, fairseq-signals .mat, .csv, .tsv and .npy"
)


def read_ecg(
    path: str | os.PathLike[str],
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
    exam_id: int | None = None,
) -> ECGRecord:
    """
    Read one recording from the local disk.

    Most formats are complete and take no argument but the path: WFDB (a header `.hea`, the signal file beside it, or
    the record's name without suffix), DICOM waveforms, and with `pip install ecgfm-hf[formats]` EDF, MUSE XML, Sierra
    XML, HL7 aECG and SCP-ECG. The others need arguments:

    | format | needs | may have |
    | --- | --- | --- |
    | fairseq-signals `.mat` | `units` | |
    | CODE-15% `.hdf5` (extra `[formats]`) | `exam_id` | `units`, by default mV |
    | `.csv`, `.tsv`: a column a lead, named in the first line | `sampling_rate`, `units` | `lead_names`: which |
    | `.npy`: (leads, samples) | `sampling_rate`, `lead_names`, `units` | |

    Args:
        path: the file. Its content decides on the format; only `.csv` and `.tsv` are recognised by their suffix.
        sampling_rate: Hz.
        lead_names: one per lead, in the order of the rows.
        units: unit of the samples, one for all leads or, for tables, one per lead ("mV", "uV").
        exam_id: which exam of a file with many.

    Returns:
        The recording as stored: samples (leads, samples) with gain, baseline, units, lead names and sampling rate.
        `.signal` has it in mV.

    Raises:
        ECGReadError: (a ValueError) the file is missing, damaged, contradicts itself or has an unsupported format; an
            argument is missing that the format needs, or given that the format does not take, since two sources of one
            value may differ. A file that is readable only in part is an error too: a recording is never shortened.
    """
    given = {"sampling_rate": sampling_rate, "lead_names": lead_names, "units": units, "exam_id": exam_id}
    return _read(os.fsdecode(path), given, ignore_surplus=False)


def read_with_defaults(
    path: str | os.PathLike[str],
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
    exam_id: int | None = None,
) -> ECGRecord:
    """Read as [`read_ecg`], for files of several formats at once: arguments that a format does not take are ignored."""
    given = {"sampling_rate": sampling_rate, "lead_names": lead_names, "units": units, "exam_id": exam_id}
    return _read(os.fsdecode(path), given, ignore_surplus=True)


def _read(path: str, arguments: Mapping[str, Any], ignore_surplus: bool) -> ECGRecord:
    arguments = {name: value for name, value in arguments.items() if value is not None}
    header = _wfdb_header(path)
    if header is not None:
        format_, paths = _WFDB, [header, path]
    else:
        format_, paths = _format_of(path), [path]
    if ignore_surplus:
        arguments = {name: arguments[name] for name in format_.needs + format_.takes if name in arguments}
    _check_arguments(path, format_, arguments)
    module, _, function = format_.reader.partition(".")
    read: Callable[..., ECGRecord] = getattr(importlib.import_module(f".{module}", __package__), function)
    return read(*paths, **arguments)


def _wfdb_header(path: str) -> str | None:
    """Return the header that `path` means, or None if it means no WFDB record."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() == ".hea":
        return path
    if os.path.isfile(path):
        return f"{stem}.hea" if suffix.lower() in (".dat", ".mat") and os.path.isfile(f"{stem}.hea") else None
    return f"{path}.hea" if os.path.isfile(f"{path}.hea") else None


def _format_of(path: str) -> Format:
    regular_file_size(path)
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise ECGReadError(f"{path}: cannot read this file ({error})") from error
    stem, suffix = os.path.splitext(path)
    suffix = suffix.lower()
    for format_ in FORMATS:
        if format_.recognises(suffix, start):
            return format_
    for recognises, message in _REFUSED:
        if recognises(suffix, start):
            raise ECGReadError(f"{path}: {message}")
    if suffix in (".dat", ".mat"):
        raise ECGReadError(f"{path}: a signal file needs its header beside it, expected {stem}.hea", "no such header")
    raise ECGReadError(f"{path}: unknown format; supported are {_SUPPORTED}", "unknown format")


def _check_arguments(path: str, format_: Format, arguments: Mapping[str, Any]) -> None:
    """Raise `ECGReadError` unless `arguments` are those that the format needs, or may have, and of the right type."""
    missing = [name for name in format_.needs if name not in arguments]
    if missing:
        names = ", ".join(name.replace("_", " ") for name in missing)
        in_python = ", ".join(f"{name}=" for name in missing)
        raise ECGReadError(
            f"{path}: a {format_.name} file does not contain its {names}; pass {in_python}",
            f"no {names}: pass {in_python}",
        )
    surplus = [f"{name}=" for name in arguments if name not in format_.needs + format_.takes]
    if surplus:
        raise ECGReadError(
            f"{path}: found {', '.join(surplus)}, which files of this format ({format_.name}) do not take"
        )
    rate = arguments.get("sampling_rate", 1)
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or not math.isfinite(rate):
        raise ECGReadError(f"{path}: found sampling_rate={rate!r}, expected a number of Hz")
    units = arguments.get("units", "")
    one_per_lead = format_.reader.startswith("tables.") and isinstance(units, Sequence)
    if not isinstance(units, str) and not (one_per_lead and all(isinstance(unit, str) for unit in units)):
        raise ECGReadError(f"{path}: found units={units!r}, expected a unit" + " or one per lead" * one_per_lead)


__all__ = ["read_ecg", "read_with_defaults"]
