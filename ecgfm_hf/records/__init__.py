"""Recordings as their files hold them: `read_ecg(path)` gives an `ECGRecord` or an `ECGReadError`.

`read_code_15(path)` iterates over the exams of a CODE-15% file. Nothing is imported until it is asked for, and a
format's library (wfdb, pydicom, h5py, ecgdatakit) only when a file needs it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import ECGReadError
    from .hdf5_reader import read_code_15
    from .reading import read_ecg
    from .record import ECGRecord

_HOMES = {
    "ECGReadError": ".errors",
    "ECGRecord": ".record",
    "read_code_15": ".hdf5_reader",
    "read_ecg": ".reading",
}

__all__ = ["ECGReadError", "ECGRecord", "read_code_15", "read_ecg"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
