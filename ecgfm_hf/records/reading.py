"""Find the format of a file and read it: `read_ecg(path)`.

To add a format, write a module with a function `read(path, **arguments) -> Channels` and a line in `FORMATS`. The
module is imported when a file of the format comes, and its library by the module.
"""

import importlib
import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..utils.errors import SettingsError
from ..utils.text import names
from .channels import Channels, record_of
from .record import ECGReadError, ECGRecord, missing_arguments, refuse_pointer, regular_file_size

_START_BYTES = 4096  # enough to recognise every format

Checksums = Literal["verify", "ignore"]


class Format(NamedTuple):
    """
    A kind of file.

    Attributes:
        name: as messages have it.
        reader: `module.function` of this package.
        recognises: whether a file with this suffix (lower case) and these first bytes is of the format.
        needs: arguments that the file cannot provide.
        takes: arguments that the caller may add.
        exams: `module.function` that lists the exams of a file which may hold several.
    """

    name: str
    reader: str
    recognises: Callable[[str, bytes], bool]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    exams: str = ""


def _mark(offset: int, mark: bytes) -> Callable[[str, bytes], bool]:
    return lambda suffix, start: start[offset : offset + len(mark)] == mark


def _suffix(*suffixes: str) -> Callable[[str, bytes], bool]:
    return lambda suffix, start: suffix in suffixes


def _xml_root(name: str) -> Callable[[str, bytes], bool]:
    return lambda suffix, start: xml_root_name(start).lower() == name


def xml_root_name(start: bytes) -> str:
    """Return the name of the root element of XML, without its namespace; "" for anything else."""
    is_utf_16 = start[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = (start.decode("utf-16", "ignore") if is_utf_16 else start.decode("latin-1")).lstrip(
        "\ufeff\u00ef\u00bb\u00bf \t\r\n"
    )
    if text[:1] != "<":
        return ""
    found = re.search(r"<([A-Za-z_][^\s>/]*)[\s>/]", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    return found[1].rpartition(":")[2] if found else ""


def _is_edf(suffix: str, start: bytes) -> bool:
    return start[:8] == b"0       " and re.fullmatch(rb" *-?\d+ *", start[236:244]) is not None and len(start) >= 256


def _is_scp(suffix: str, start: bytes) -> bool:
    table = int.from_bytes(start[10:14], "little")  # length of the table of sections
    return len(start) >= 32 and start[8:10] == b"\0\0" and start[28:32] == b"\x07\0\0\0" and 26 <= table < 1 << 16


def _is_watch_export(suffix: str, start: bytes) -> bool:
    lines = start.decode("utf-8-sig", "ignore").splitlines()[:20]
    return all(any(line.startswith(f"{key},") for line in lines) for key in ("Sample Rate", "Lead", "Unit"))


_HDF5_MARK = b"\x89HDF\r\n\x1a\n"
# The first that recognises a file reads it. WFDB is found by its header before any file is opened.
FORMATS = (
    Format("DICOM", "dicom.read_dicom", _mark(128, b"DICM")),
    Format("MATLAB 5 .mat", "matlab.read_mat_recording", _mark(0, b"MATLAB 5.0 MAT-file"), takes=("units",)),
    Format("HDF5", "hdf5.read_hdf5", _mark(0, _HDF5_MARK), (), ("exam_id", "units"), "hdf5.exam_ids_in"),
    Format(
        ".npy",
        "csv_and_npy.read_npy",
        _mark(0, b"\x93NUMPY"),
        needs=("sampling_rate", "lead_names", "units"),
        takes=("exam_id",),
        exams="csv_and_npy.exams_of_npy",
    ),
    Format("watch export", "csv_and_npy.read_watch_export", _is_watch_export),
    Format(
        ".csv or .tsv",
        "csv_and_npy.read_text_table",
        _suffix(".csv", ".tsv"),
        ("sampling_rate", "units"),
        ("lead_names",),
    ),
    Format("EDF", "binary_formats.read_edf", _is_edf),
    Format("ISHNE", "binary_formats.read_ishne", _mark(0, b"ISHNE1.0"), takes=("checksums",)),
    Format("SCP-ECG", "scp.read_scp", _is_scp, takes=("checksums",)),
    Format("Sierra XML", "xml_formats.read_sierra", _xml_root("restingecgdata")),
    Format("CardioSoft XML", "xml_formats.read_cardiosoft", _xml_root("cardiologyxml")),
    Format("Schiller XML", "xml_formats.read_schiller", _xml_root("com.xiriuz.sema.xml.schilleredi.schilleredi")),
    Format("MUSE XML", "devices.read_muse", _xml_root("restingecg"), takes=("checksums",)),
    Format("aECG", "devices.read_aecg", _xml_root("annotatedecg")),
    Format("Mortara XML", "devices.read_el250", _xml_root("ecg")),
)
_WFDB = Format("WFDB", "wfdb.read_wfdb", _suffix(".hea"), takes=("checksums",))
# Files that hold what the caller has to describe: in a folder they are recordings only where it does.
_DESCRIBED = (".npy", ".csv or .tsv")

# Files that are recognised but not supported, and their error messages.
_REFUSED = (
    (_mark(0, b"\xffBIOSEMI"), "a BDF file of 24-bit samples, which is not supported; convert it to EDF"),
    (
        _mark(0, b"MATLAB 7.3"),
        "a MATLAB 7.3 file, which is not supported; save it with -v7, or as .npy or CSV (see the formats' page)",
    ),
    (_mark(0, b"@ MFR"), "an MFER file, which is not supported; export it as DICOM, aECG or EDF"),
    (_suffix(".mwf", ".mfer"), "an MFER file, which is not supported; export it as DICOM, aECG or EDF"),
    (_mark(0, b"ANN  1.0"), "ISHNE annotations without samples, expected the .ecg file beside it"),
    (
        _suffix(".scp"),
        "a .scp file that is not by EN 1064 (Heal Force and others write their own); export it as DICOM, aECG or EDF",
    ),
    (
        _suffix(".ecg"),
        "a .ecg file without the mark ISHNE1.0 (Contec and others write their own); export it as DICOM, aECG or EDF",
    ),
    (_suffix(".dcm", ".dicom"), "not a DICOM file, expected the mark 'DICM' at byte 128"),
)
_SUPPORTED = (
    "WFDB (a header .hea with its signal file .dat or .mat beside it; give either, or both without suffix), DICOM "
    "waveforms (.dcm, or any file with the DICOM mark), EDF, ISHNE, SCP-ECG, and XML of MUSE, Sierra, CardioSoft, "
    "Schiller, Mortara and aECG; with arguments for what they do not contain, HDF5 of CODE-15% and others, "
    "fairseq-signals .mat, .csv, .tsv and .npy"
)


def read_ecg(
    path: str | os.PathLike[str],
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
    exam_id: int | None = None,
    rename_leads: Mapping[str, str] | str | None = None,
    leads: Sequence[str] | None = None,
    checksums: Checksums | None = None,
) -> ECGRecord:
    """
    Read one recording from the local disk.

    Most formats are complete and take no argument but the path: WFDB (a header `.hea`, the signal file beside it, or
    the record's name without suffix), DICOM waveforms, EDF, ISHNE, SCP-ECG, XML of Sierra, CardioSoft and Schiller, and
    with `pip install ecgfm-hf[formats]` MUSE XML, HL7 aECG and Mortara XML. The others need arguments:

    | format | needs | may have |
    | --- | --- | --- |
    | fairseq-signals `.mat` | `units` | |
    | HDF5 of CODE-15%, CODE-test, SaMi-Trop (extra `[formats]`) | `exam_id` | `units`, by default mV |
    | HDF5 of SPH (extra `[formats]`) | | `units`, by default mV |
    | `.csv`, `.tsv`: a column a lead, named in the first line | `sampling_rate`, `units` | `lead_names`: which |
    | `.csv`, `.tsv` without names in the first line | `sampling_rate`, `units`, `lead_names` | |
    | `.npy`: (leads, samples), or (recordings, leads, samples) | `sampling_rate`, `lead_names`, `units` | `exam_id` |

    Channels that are no ECG leads (another unit than a voltage, another sampling rate than most leads, respiration and
    the like) are excluded, and so is a calibration pulse at an end; the record's `warnings` list them.

    Args:
        path: the file. Its content decides on the format; only `.csv` and `.tsv` are recognised by their suffix.
        sampling_rate: Hz.
        lead_names: one per lead, in the order of the rows.
        units: unit of the samples, one for all leads or, for tables, one per lead ("mV", "uV").
        exam_id: which exam of a file with many.
        rename_leads: leads by the names that the file has for them: `{"ECG": "I", "MLII": "II"}` or "ECG=I,MLII=II".
        leads: which leads to read, after renaming; by default all.
        checksums: "ignore" to read samples that do not agree with the checksums in the file; by default "verify".

    Returns:
        The recording as stored: samples (leads, samples) with gain, baseline, units, lead names and sampling rate.
        `.signal` has it in mV.

    Raises:
        ECGReadError: (a ValueError) the file is missing, damaged, contradicts itself or has an unsupported format; an
            argument is missing that the format needs, or given that the format does not take, since two sources of one
            value may differ. A file that is readable only in part is an error too: a recording is never shortened.
    """
    given = {"sampling_rate": sampling_rate, "lead_names": lead_names, "units": units, "exam_id": exam_id}
    given["checksums"] = checksums
    return _read(os.fsdecode(path), given, rename_leads, leads, ignore_surplus=False)


def read_with_defaults(
    path: str | os.PathLike[str],
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
    exam_id: int | None = None,
    rename_leads: Mapping[str, str] | str | None = None,
    leads: Sequence[str] | None = None,
    checksums: Checksums | None = None,
) -> ECGRecord:
    """Read as [`read_ecg`], for files of several formats at once: arguments that a format does not take are ignored."""
    given = {"sampling_rate": sampling_rate, "lead_names": lead_names, "units": units, "exam_id": exam_id}
    given["checksums"] = checksums
    return _read(os.fsdecode(path), given, rename_leads, leads, ignore_surplus=True)


def _read(
    path: str,
    arguments: Mapping[str, Any],
    rename_leads: Mapping[str, str] | str | None,
    leads: Sequence[str] | None,
    ignore_surplus: bool,
) -> ECGRecord:
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if arguments.get("checksums", "verify") not in ("verify", "ignore"):
        raise ECGReadError(f"{path}: found checksums={arguments['checksums']!r}, expected 'verify' or 'ignore'")
    header = wfdb_header(path)
    format_, paths = (_format_of(path), [path]) if header is None else (_WFDB, [header, path])
    # Most formats have no checksums; the wish to ignore them is met.
    if ignore_surplus or "checksums" not in format_.takes:
        taken = (*format_.needs, *format_.takes)
        arguments = {
            name: value
            for name, value in arguments.items()
            if name in taken or not (ignore_surplus or name == "checksums")
        }
    _check_arguments(path, format_, arguments)
    read: Callable[..., Channels] = _imported(format_.reader)
    return record_of(read(*paths, **arguments), _renaming(path, rename_leads), leads)


def _imported(name: str) -> Any:  # any reader or lister
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f".{module}", __package__), function)


def exam_ids(path: str, arguments: Mapping[str, Any]) -> list[int | None]:
    """
    Return the exams in a file of several recordings, for `exam_id` of [`read_ecg`]; `[None]` for files of one.

    Also `[None]` for a file that cannot be read with these `arguments`: reading it raises the error.
    """
    if arguments.get("exam_id") is not None or wfdb_header(path) is not None:
        return [None]
    try:
        format_ = _format_of(path)
        if not format_.exams or any(arguments.get(name) is None for name in format_.needs):
            return [None]
        found: list[int | None] = _imported(format_.exams)(path)
        return found or [None]
    except ECGReadError:
        return [None]


def _renaming(path: str, given: Mapping[str, str] | str | None) -> Mapping[str, str] | None:
    if not isinstance(given, str):
        if given is not None and not all(isinstance(name, str) for pair in given.items() for name in pair):
            raise ECGReadError(f"{path}: found rename_leads={given!r}, expected names by names")
        return given
    try:
        pairs = [pair.partition("=") for pair in names(given)]
    except SettingsError as error:
        raise ECGReadError(f"{path}: rename_leads: {error}") from error
    if not all(theirs.strip() and sign and lead.strip() for theirs, sign, lead in pairs):
        raise ECGReadError(f"{path}: found rename_leads={given!r}, expected pairs such as ECG=I,MLII=II")
    return {theirs.strip(): lead.strip() for theirs, _, lead in pairs}


def recognise(path: str) -> str | None:
    """
    Return the name of the format of a file that holds a recording by itself, by its content; None for other files.

    A signal file of WFDB is part of its header's recording, and the layout header of a multi-segment record is none.
    Formats that are recognised but not supported have a name too: reading them raises an error that explains this. CSV,
    TSV and `.npy` files can contain anything, so they have no name here.
    """
    stem, suffix = os.path.splitext(path)
    suffix = suffix.lower()
    if suffix in (".dat", ".mat") and os.path.isfile(f"{stem}.hea"):
        return None
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return "unreadable file" if suffix == ".hea" else None
    if suffix == ".hea":
        lines = [line for line in start.split(b"\n")[1:] if line.strip() and not line.startswith(b"#")]
        return None if lines and all(line.startswith(b"~ ") for line in lines) and start.count(b"\n") else "WFDB"
    if start.startswith(b"version https://git-lfs.github.com/spec/") and suffix != ".dat":
        return "Git LFS pointer"
    for format_ in FORMATS:
        if format_.recognises(suffix, start):
            if format_.name in _DESCRIBED or (format_.name == "DICOM" and not _is_dicom_waveform(start)):
                return None
            return format_.name
    return next((message.split(",")[0] for found, message in _REFUSED if found(suffix, start)), None)


def _is_dicom_waveform(start: bytes) -> bool:
    """Return whether the class in a DICOM file's meta information is of waveforms, or is not there."""
    found = re.search(rb"\x02\x00\x02\x00UI(..)([0-9.]{1,64})", start, re.DOTALL)
    return found is None or found[2].startswith(b"1.2.840.10008.5.1.4.1.1.9.")


def wfdb_header(path: str) -> str | None:
    """Return the header that `path` means, or None if it means no WFDB record."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() == ".hea":
        return path
    if os.path.isfile(path):
        return f"{stem}.hea" if suffix.lower() in (".dat", ".mat") and os.path.isfile(f"{stem}.hea") else None
    return f"{path}.hea" if os.path.isfile(f"{path}.hea") else None


def format_name(path: str) -> str:
    """Return the name of a recording's format. `ECGReadError` for files of none that is supported."""
    return (_WFDB if wfdb_header(path) is not None else _format_of(path)).name


def _format_of(path: str) -> Format:
    regular_file_size(path)
    try:
        with open(path, "rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise ECGReadError(f"{path}: cannot read this file ({error})") from error
    refuse_pointer(path, start)
    stem, suffix = os.path.splitext(path)
    suffix = suffix.lower()
    for format_ in FORMATS:
        if format_.recognises(suffix, start):
            return format_
    for recognises, message in _REFUSED:
        if recognises(suffix, start):
            raise ECGReadError(f"{path}: {message}", "unsupported format")
    if suffix in (".dat", ".mat"):
        raise ECGReadError(f"{path}: a signal file needs its header beside it, expected {stem}.hea", "no such header")
    root = xml_root_name(start)
    if root:
        raise ECGReadError(
            f"{path}: XML whose root element {root[:60]!r} is of no known ECG format; supported are {_SUPPORTED}",
            "unknown format",
        )
    raise ECGReadError(f"{path}: unknown format; supported are {_SUPPORTED}", "unknown format")


def _check_arguments(path: str, format_: Format, arguments: Mapping[str, Any]) -> None:
    """Raise `ECGReadError` unless `arguments` are those that the format needs, or may have, and of the right type."""
    missing = [name for name in format_.needs if name not in arguments]
    if missing:
        raise missing_arguments(path, format_.name, missing)
    surplus = [f"{name}=" for name in arguments if name not in format_.needs + format_.takes]
    if surplus:
        raise ECGReadError(
            f"{path}: found {', '.join(surplus)}, which files of this format ({format_.name}) do not take"
        )
    rate = arguments.get("sampling_rate", 1)
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or not math.isfinite(rate):
        raise ECGReadError(f"{path}: found sampling_rate={rate!r}, expected a number of Hz")
    units = arguments.get("units", "")
    one_per_lead = "lead_names" in format_.needs + format_.takes and isinstance(units, Sequence)
    if not isinstance(units, str) and not (one_per_lead and all(isinstance(unit, str) for unit in units)):
        raise ECGReadError(f"{path}: found units={units!r}, expected a unit" + " or one per lead" * one_per_lead)


__all__ = ["Checksums", "exam_ids", "format_name", "read_ecg", "read_with_defaults", "recognise", "wfdb_header"]
