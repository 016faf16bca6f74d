"""One door for every file format: `read_ecg(path)`."""

import math
import numbers
import os
from collections.abc import Sequence

from .errors import ECGReadError, regular_file_size
from .record import ECGRecord
from .sniffing import format_of

SUPPORTED = (
    "WFDB (a header .hea with its signal file .dat or .mat beside it; name either, or both without suffix), "
    "DICOM waveforms (.dcm, or any file with the DICOM mark), EDF, MUSE XML, Sierra XML, aECG and SCP-ECG; and with "
    "what they do not say themselves: CODE-15% HDF5, fairseq-signals .mat, .csv, .tsv and .npy"
)

_START = 4096  # bytes that tell a format

# What each format cannot say and the caller must, and what the caller may say.
_ARGUMENTS = {
    "fairseq-signals .mat": (("units",), ()),
    "CODE-15% HDF5": (("exam_id",), ("units",)),
    ".csv or .tsv": (("sampling_rate", "units"), ("lead_names",)),
    ".npy": (("sampling_rate", "lead_names", "units"), ()),
}


def read_ecg(
    path: str | os.PathLike,
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    units: str | Sequence[str] | None = None,
    exam_id: int | None = None,
) -> ECGRecord:
    """Read one recording, from the local disk only.

    Most formats say everything themselves, and take no argument but the path: WFDB (a header `.hea`, the signal file
    beside it, or the record's name without suffix), DICOM waveforms, and with `pip install ecgfm-hf[formats]` EDF,
    MUSE XML, Sierra XML, HL7 aECG and SCP-ECG. The others need what they lack:

    | format | needs | may have |
    | --- | --- | --- |
    | fairseq-signals `.mat` | `units` | |
    | CODE-15% `.hdf5` (extra `[formats]`) | `exam_id` | `units`, by default mV |
    | `.csv`, `.tsv`: a column a lead, named in the first line | `sampling_rate`, `units` | `lead_names`: which |
    | `.npy`: (leads, samples) | `sampling_rate`, `lead_names`, `units` | |

    Args:
        path: the file. Its format is told from what is in it; only `.csv` and `.tsv` are told by their suffix.
        sampling_rate: Hz.
        lead_names: one per lead, in the order of the rows.
        units: unit of the samples, one for all leads or, for tables, one per lead ("mV", "uV").
        exam_id: which exam of a file that has many.

    Returns:
        The recording as stored: samples (leads, samples) with gain, baseline, units, lead names and sampling rate.
        `.signal` has it in mV.

    Raises:
        ECGReadError: (a ValueError) the file is missing, damaged, contradicts itself or is of an unsupported kind; an
            argument is missing that the format needs, or given that the format does not, since two sources of one fact
            may differ. A file that is readable only in part is an error too: a recording never comes out shorter than
            it went in.
    """
    said = {"sampling_rate": sampling_rate, "lead_names": lead_names, "units": units, "exam_id": exam_id}
    return _read(os.fsdecode(path), {name: value for name, value in said.items() if value is not None})


def read_with_defaults(path: str | os.PathLike, **defaults) -> ECGRecord:
    """As [`read_ecg`], for files of several formats at once: each takes of the arguments what its format lacks."""
    return _read(
        os.fsdecode(path), {name: value for name, value in defaults.items() if value is not None}, surplus=True
    )


def _read(path: str, said: dict, surplus: bool = False) -> ECGRecord:
    header = _wfdb_header_for(path)
    if header is not None:
        from .wfdb_reader import read_wfdb

        _check_arguments(path, "WFDB", said, surplus)
        return read_wfdb(header, given=path)

    regular_file_size(path)
    start = _first_bytes(path)
    kind = format_of(path, start)
    if kind is None:
        raise _unknown(path, start)
    said = _check_arguments(path, kind, said, surplus)
    # Each reader is imported when a file needs it, and its library by the reader.
    if kind == "DICOM":
        from .dicom_reader import read_dicom

        return read_dicom(path)
    if kind == "fairseq-signals .mat":
        from .mat_reader import read_fairseq_mat

        return read_fairseq_mat(path, **said)
    if kind == "CODE-15% HDF5":
        from .hdf5_reader import read_code_15_exam

        return read_code_15_exam(path, **said)
    if kind == ".npy":
        from .table_reader import read_npy

        return read_npy(path, **said)
    if kind == ".csv or .tsv":
        from .table_reader import read_text_table

        return read_text_table(path, **said)
    from .ecgdatakit_reader import read_device_file

    return read_device_file(path, kind)


def _check_arguments(path: str, kind: str, said: dict, surplus_is_dropped: bool) -> dict:
    """`said`, if it is what this kind of file needs and no more."""
    needed, allowed = _ARGUMENTS.get(kind, ((), ()))
    if surplus_is_dropped:
        said = {name: value for name, value in said.items() if name in needed + allowed}
    missing = [name for name in needed if name not in said]
    if missing:
        raise ECGReadError(
            f"{path}: a {kind} file does not say its {_as_arguments(missing)}; pass {_as_calls(missing)} "
            f"({_as_options(missing)})"
        )
    surplus = [name for name in said if name not in needed + allowed]
    if surplus:
        raise ECGReadError(f"{path}: found {_as_calls(surplus)}, which this kind of file ({kind}) does not take")
    rate = said.get("sampling_rate", 1)
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool) or not math.isfinite(rate):
        raise ECGReadError(f"{path}: found sampling_rate={rate!r}, expected a number of Hz")
    units = said.get("units", "")
    several = kind in (".csv or .tsv", ".npy") and isinstance(units, Sequence)
    if not isinstance(units, str) and not (several and all(isinstance(unit, str) for unit in units)):
        raise ECGReadError(f"{path}: found units={units!r}, expected a unit" + " or one per lead" * several)
    return said


def _as_arguments(names: list[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _as_calls(names: list[str]) -> str:
    return ", ".join(f"{name}=" for name in names)


def _as_options(names: list[str]) -> str:
    """As the commands take them."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _unknown(path: str, start: bytes) -> ECGReadError:
    suffix = os.path.splitext(path)[1].lower()
    if start.startswith(b"MATLAB 7.3"):
        return ECGReadError(f"{path}: a MATLAB 7.3 file, which is not supported; fairseq-signals writes version 5")
    if suffix in (".dat", ".mat"):
        return ECGReadError(f"{path}: a signal file needs its header beside it, expected {_beside(path)}")
    if suffix in (".dcm", ".dicom"):
        return ECGReadError(f"{path}: not a DICOM file, expected the mark 'DICM' at byte 128")
    return ECGReadError(f"{path}: unknown kind of file; supported are {SUPPORTED}")


def _wfdb_header_for(path: str) -> str | None:
    """The header that `path` means, or None where it means no WFDB record."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".hea":
        return path
    if os.path.isfile(path):
        return _beside(path) if suffix in (".dat", ".mat") and os.path.isfile(_beside(path)) else None
    return path + ".hea" if os.path.isfile(path + ".hea") else None


def _beside(path: str) -> str:
    return os.path.splitext(path)[0] + ".hea"


def _first_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_START)
    except OSError as error:
        raise ECGReadError(f"{path}: cannot read this file ({error})") from error
