"""Recordings as their files hold them: `read_ecg(path)` gives an `ECGRecord` or an `ECGReadError`.

`read_code_15(path)` iterates over the exams of a CODE-15% file. Nothing is imported until it is asked for, and a
format's library (wfdb, pydicom, h5py, ecgdatakit) only when a file needs it.
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".hdf5": ("read_code_15",),
        ".reading": ("read_ecg",),
        ".record": ("ECGReadError", "ECGRecord"),
    },
)
