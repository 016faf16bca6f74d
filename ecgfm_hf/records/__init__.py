"""Recordings as their files hold them: `read_ecg(path)` gives an `ECGRecord` or an `ECGReadError`.

`read_code_15(path)` iterates over the exams of a CODE-15% file. Nothing is imported until it is asked for, and a
format's library (soundfile, pydicom, h5py, ecgdatakit) only when a file needs it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
