"""One door for every file format: `read_ecg(path)`."""

import os

from .errors import ECGReadError, regular_file_size
from .record import ECGRecord

SUPPORTED = (
    "WFDB (a header .hea with its signal file .dat or .mat beside it; name either, or both without suffix) and "
    "DICOM waveforms (.dcm, or any file with the DICOM mark)"
)

_DICOM_MARK_AT, _DICOM_MARK = 128, b"DICM"


def read_ecg(path: str | os.PathLike) -> ECGRecord:
    """Read one recording, from the local disk only.

    Args:
        path: a WFDB header (`.hea`), the signal file beside it, the record's name without suffix, or a DICOM file.

    Returns:
        The recording as stored: samples (leads, samples) with gain, baseline, units, lead names and sampling rate.
        `.signal` has it in mV.

    Raises:
        ECGReadError: (a ValueError) the file is missing, damaged, contradicts itself or is of an unsupported kind.
            A file that is readable only in part is an error too: a recording never comes out shorter than it went in.
    """
    path = os.fsdecode(path)
    header = _wfdb_header_for(path)
    if header is not None:
        from .wfdb_reader import read_wfdb

        return read_wfdb(header, given=path)

    regular_file_size(path)
    if _has_dicom_mark(path):
        from .dicom_reader import read_dicom

        return read_dicom(path)

    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".dat", ".mat"):
        raise ECGReadError(f"{path}: a signal file needs its header beside it, expected {_beside(path)}")
    if suffix in (".dcm", ".dicom"):
        raise ECGReadError(f"{path}: not a DICOM file, expected the mark 'DICM' at byte {_DICOM_MARK_AT}")
    raise ECGReadError(f"{path}: unknown kind of file; supported are {SUPPORTED}")


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


def _has_dicom_mark(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(_DICOM_MARK_AT + len(_DICOM_MARK))
    except OSError as error:
        raise ECGReadError(f"{path}: cannot read this file ({error})") from error
    return start[_DICOM_MARK_AT:] == _DICOM_MARK
