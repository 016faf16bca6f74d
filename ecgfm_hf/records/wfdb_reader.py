"""WFDB records: a header, and the signal files that it names.

Sample formats of whole bytes are decoded here, several times faster than `wfdb.rdrecord`; the packed, differential and
FLAC formats are decoded by `wfdb`, after this module has checked what it will be given. Formats: signal(5) of the WFDB
Applications Guide (https://physionet.org/physiotools/wag/signal-5.htm).

MATLAB v4 files (`.mat`), as PhysioNet's challenges distribute them, are format 16 behind 24 bytes that the header
declares; nothing in them is MATLAB's to interpret.
"""

import os

import numpy as np

from .errors import ECGReadError, read_bytes, regular_file_size
from .record import ECGRecord
from .wfdb_header import Header, SignalLine, read_header

# Bytes per sample, and the stored value that means "no sample here".
_WHOLE_BYTES = {
    "16": (2, -(2**15)),
    "24": (3, -(2**23)),
    "32": (4, -(2**31)),
    "61": (2, -(2**15)),
    "80": (1, -(2**7)),
    "160": (2, -(2**15)),
}
# For wfdb: the type that holds every value, and the missing value (the differential format 8 has none).
_BY_WFDB = {
    "8": (np.int32, None),
    "212": (np.int16, -(2**11)),
    "310": (np.int16, -(2**9)),
    "311": (np.int16, -(2**9)),
    "508": (np.int16, -(2**7)),
    "516": (np.int16, -(2**15)),
    "524": (np.int32, -(2**23)),
}
_FLAC = ("508", "516", "524")

# A compressed file of a few bytes can declare any length. This is 12 leads at 500 Hz for three hours.
_MOST_COMPRESSED_VALUES = 1 << 26


def read_wfdb(header_path: str, given: str | None = None) -> ECGRecord:
    """Read the WFDB record whose header is at `header_path`; `given` is the path as the caller named it.

    The number of samples, each lead's first value and each lead's checksum are compared with what the header says.
    Signal files are opened only in the header's own folder. Raises `ECGReadError`.
    """
    given = header_path if given is None else given
    header = read_header(header_path)
    names = [signal.file_name for signal in header.signals]
    if given not in (header_path, os.path.splitext(header_path)[0]) and os.path.basename(given) not in names:
        raise ECGReadError(f"{given}: the header beside it does not use this file but {_listed(names)}")
    formats = sorted({signal.format for signal in header.signals})
    if len(formats) > 1:
        raise ECGReadError(f"{header_path}: signals in several formats ({_listed(formats)}) are not supported")
    if formats[0] not in _WHOLE_BYTES and formats[0] not in _BY_WFDB:
        supported = _listed(sorted([*_WHOLE_BYTES, *_BY_WFDB], key=int))
        raise ECGReadError(f"{header_path}: found signal format {formats[0]}, expected one of {supported}")

    if formats[0] in _WHOLE_BYTES:
        parts = [_read_whole_bytes(header, *group) for group in _groups(header)]
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        missing_value = _WHOLE_BYTES[formats[0]][1]
    else:
        samples = _read_by_wfdb(header, formats[0])
        missing_value = _BY_WFDB[formats[0]][1]
    _verify(header, samples)
    return ECGRecord(
        recording_id=os.path.splitext(os.path.basename(header_path))[0],
        path=given,
        samples=samples,
        gain=np.array([signal.gain for signal in header.signals]),
        baseline=np.array([signal.baseline for signal in header.signals]),
        units=tuple(signal.units for signal in header.signals),
        sampling_rate=header.sampling_rate,
        lead_names=tuple(signal.name for signal in header.signals),
        missing_value=missing_value,
        age=header.age,
        sex=header.sex,
        diagnoses=header.diagnoses,
        time=header.time,
    )


def _groups(header: Header) -> list[tuple[str, list[SignalLine]]]:
    """Signals that share a file, as (path of the file, signals in it); the files are known to be safe to open."""
    groups: dict[str, list[SignalLine]] = {}
    last = None
    for signal in header.signals:
        if signal.file_name in groups and signal.file_name != last:
            raise ECGReadError(f"{header.path}: the signals of {signal.file_name} do not follow one another")
        groups.setdefault(signal.file_name, []).append(signal)
        last = signal.file_name
    for file_name, signals in groups.items():
        offsets = sorted({signal.byte_offset for signal in signals})
        if len(offsets) > 1:
            raise ECGReadError(f"{header.path}: several byte offsets ({_listed(offsets)}) into one file, {file_name}")
    return [(_in_header_folder(header.path, file_name), signals) for file_name, signals in groups.items()]


def _in_header_folder(header_path: str, file_name: str) -> str:
    """Path of a signal file, refused if it is a link that leads out of the header's folder.

    A cache that stores every file as a link (the Hub's, git-annex's) still works as long as header and signal file lie
    in one folder in truth too.
    """
    folder = os.path.dirname(header_path)
    path = os.path.join(folder, file_name)
    if os.path.islink(path):
        target = os.path.dirname(os.path.realpath(path))
        if target not in (os.path.realpath(folder), os.path.dirname(os.path.realpath(header_path))):
            raise ECGReadError(f"{path}: the signal file is a link that leads out of the header's folder")
    return path


def _read_whole_bytes(header: Header, path: str, signals: list[SignalLine]) -> np.ndarray:
    """(leads, samples) of one signal file in a format of whole bytes."""
    format_, offset = signals[0].format, signals[0].byte_offset
    width, _ = _WHOLE_BYTES[format_]
    count = len(signals) * header.num_samples
    _check_size(header, path, signals, exactly=offset + count * width)
    content = memoryview(read_bytes(path, offset + count * width, "signal file"))[offset:]
    frames = _decode(content, format_).reshape(header.num_samples, len(signals))
    return np.ascontiguousarray(frames.T)


def _decode(content: memoryview, format_: str) -> np.ndarray:
    if format_ == "16":
        return np.frombuffer(content, "<i2").astype(np.int16, copy=False)
    if format_ == "61":
        return np.frombuffer(content, ">i2").astype(np.int16)
    if format_ == "32":
        return np.frombuffer(content, "<i4").astype(np.int32, copy=False)
    if format_ == "80":
        return np.frombuffer(content, np.uint8).astype(np.int16) - np.int16(128)
    if format_ == "160":
        return (np.frombuffer(content, "<u2").astype(np.int32) - 32768).astype(np.int16)
    low, middle, high = np.frombuffer(content, np.uint8).reshape(-1, 3).T.astype(np.int32)  # format 24
    return low | (middle << 8) | (((high ^ 0x80) - 0x80) << 16)


def _check_size(header: Header, path: str, signals: list[SignalLine], exactly: int, padding: int = 0):
    size = regular_file_size(path, "signal file")
    if not exactly <= size <= exactly + padding:
        kind = "truncated" if size < exactly else "longer than its header says"
        raise ECGReadError(
            f"{path}: {kind}, found {size} bytes, expected {exactly} ({len(signals)} signals of {header.num_samples} "
            f"samples in format {signals[0].format}, after {signals[0].byte_offset} bytes)"
        )


def _read_by_wfdb(header: Header, format_: str) -> np.ndarray:
    """(leads, samples) in a format that `wfdb` decodes, once it has been made sure that it will read the same files."""
    stem = os.path.abspath(header.path).removesuffix(".hea")
    if "::" in stem:  # wfdb opens files through fsspec, where this chains to other file systems, remote ones included
        raise ECGReadError(f"{header.path}: '::' in a path is not supported for signal format {format_}")
    for path, signals in _groups(header):
        if format_ in _FLAC:
            _check_flac(header, path, signals)
        else:
            exactly, padding = _packed_size(format_, len(signals) * header.num_samples)
            _check_size(header, path, signals, signals[0].byte_offset + exactly, padding)

    import wfdb

    try:
        parsed = wfdb.rdheader(stem)
        expected = [(s.file_name, s.format, s.byte_offset, s.initial_value) for s in header.signals]
        offsets = [offset or 0 for offset in parsed.byte_offset]
        found = list(zip(parsed.file_name, parsed.fmt, offsets, parsed.init_value, strict=True))
        if found != expected or parsed.sig_len != header.num_samples or set(parsed.samps_per_frame) - {None, 1}:
            raise ValueError("wfdb reads this header in another way")
        samples = wfdb.rdrecord(stem, physical=False, return_res=32).d_signal
        if samples.shape != (header.num_samples, len(header.signals)):
            raise ValueError(f"wfdb found samples of shape {samples.shape}")
    except Exception as error:  # wfdb and the libraries below it raise errors of every type on damaged files
        raise ECGReadError(f"{header.path}: cannot decode signal format {format_} ({error})") from error
    return np.ascontiguousarray(samples.T, dtype=_BY_WFDB[format_][0])


def _packed_size(format_: str, count: int) -> tuple[int, int]:
    """Bytes that `count` values take, and how many more a writer may add to fill its last word."""
    if format_ == "8":
        return count, 0
    if format_ == "212":  # two values in three bytes
        return (count * 3 + 1) // 2, 1
    return (count * 4 + 2) // 3, 3  # 310 and 311: three values in four bytes


def _check_flac(header: Header, path: str, signals: list[SignalLine]):
    regular_file_size(path, "signal file")
    if signals[0].byte_offset:
        raise ECGReadError(f"{path}: a byte offset into a FLAC file is not supported")
    if len(signals) * header.num_samples > _MOST_COMPRESSED_VALUES:
        raise ECGReadError(
            f"{path}: {len(signals)} signals of {header.num_samples} samples is more than the "
            f"{_MOST_COMPRESSED_VALUES} values that are read from a compressed file"
        )
    import soundfile

    try:
        info = soundfile.info(path)
    except Exception as error:  # soundfile's errors have no common type of their own
        raise ECGReadError(f"{path}: not a readable FLAC file ({error})") from error
    found, expected = (info.channels, info.frames), (len(signals), header.num_samples)
    if found != expected:
        raise ECGReadError(f"{path}: found (signals, samples) {found} in the FLAC file, expected {expected}")


def _verify(header: Header, samples: np.ndarray):
    """Compare each lead with its first value and its checksum: the sum of its samples in 16 bits."""
    sums = samples.sum(axis=1, dtype=np.int64) & 0xFFFF
    for signal, first, total in zip(header.signals, samples[:, 0].tolist(), sums.tolist(), strict=True):
        if first != signal.initial_value:
            raise ECGReadError(
                f"{header.path}: lead {signal.name} begins with {first}, the header says {signal.initial_value}"
            )
        if total != signal.checksum & 0xFFFF:
            raise ECGReadError(
                f"{header.path}: lead {signal.name} has checksum {total}, the header says {signal.checksum & 0xFFFF}: "
                "the samples are not those that were written"
            )


def _listed(values) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
