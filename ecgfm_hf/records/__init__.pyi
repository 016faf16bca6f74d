from .hdf5 import read_code_15 as read_code_15
from .reading import read_ecg as read_ecg
from .record import ECGReadError as ECGReadError
from .record import ECGRecord as ECGRecord
