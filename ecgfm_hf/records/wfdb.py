"""
WFDB records: a header, and the signal files that it names.

Both are decoded here and not by the `wfdb` package, for two reasons:

- its pattern for headers lets nearly every field be absent, so that a damaged field is taken for another one, and it
  fills gaps with defaults (250 Hz, a gain of 200). Here an unexpected field is an error, and nothing is guessed;
- formats of whole bytes are decoded several times faster than by `wfdb.rdrecord`.

The packed, differential and FLAC formats are left to `wfdb`, once this module has checked what it will be given.
MATLAB v4 files (`.mat`), as PhysioNet's challenges distribute them, are format 16 after 24 bytes that the header
declares; no MATLAB reader is involved.

Source: header(5) and signal(5) of the WFDB Applications Guide, https://physionet.org/physiotools/wag/header-5.htm and
signal-5.htm.
"""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from .record import ECGReadError, ECGRecord, file_stem, read_bytes, read_whole_file, regular_file_size

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

_LARGEST_HEADER = 1 << 20  # bytes; the largest real ones hold a few kilobytes

_NUMBER = r"[+-]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?"
_INTEGER = r"[+-]?\d{1,10}"
_SAMPLING = re.compile(rf"({_NUMBER})(?:/{_NUMBER}(?:\({_NUMBER}\))?)?", re.ASCII)  # rate/counter rate(base counter)
_FORMAT = re.compile(
    r"(\d{1,4})(?:x(\d{1,6}))?(?::(\d{1,6}))?(?:\+(\d{1,12}))?", re.ASCII
)  # format x frame : skew + offset
_GAIN = re.compile(rf"({_NUMBER})(?:\(({_INTEGER})\))?(?:/(\S{{1,40}}))?", re.ASCII)  # gain(baseline)/units
_COMMENT = re.compile(r"#\s*(age|sex|dx)\s*:(.*)", re.IGNORECASE)

# PTB-XL writes 300 years for patients of 90 and more, and a damaged age can be anything.
_OLDEST = 130


@dataclass(frozen=True)
class SignalLine:
    """One lead's line of a header: where its samples are, and how they become voltages."""

    file_name: str
    format: str
    byte_offset: int
    gain: float
    baseline: int
    units: str
    initial_value: int
    checksum: int
    name: str


@dataclass(frozen=True)
class Header:
    """A header: `signals` in file order, `num_samples` per lead."""

    path: str
    sampling_rate: float
    num_samples: int
    time: datetime | None
    signals: tuple[SignalLine, ...]
    age: float | None = None
    sex: str | None = None
    diagnoses: tuple[str, ...] = ()


def read_wfdb(header_path: str, given: str) -> ECGRecord:
    """
    Read the WFDB record whose header is at `header_path`; `given` is the path that the caller gave.

    The number of samples, each lead's first value and each lead's checksum are compared with the header. Signal files
    are opened only in the header's own folder.

    Raises:
        ECGReadError: header and signal files are damaged, contradict each other or are of an unsupported kind.
    """
    header = read_header(header_path)
    names = [signal.file_name for signal in header.signals]
    if given not in (header_path, os.path.splitext(header_path)[0]) and os.path.basename(given) not in names:
        raise ECGReadError(f"{given}: the header beside it uses {_listed(names)}, not this file")
    formats = sorted({signal.format for signal in header.signals})
    if len(formats) > 1:
        raise ECGReadError(
            f"{header_path}: signals in several formats ({_listed(formats)}) are not supported", "unsupported format"
        )
    if formats[0] not in _WHOLE_BYTES and formats[0] not in _BY_WFDB:
        supported = _listed(sorted([*_WHOLE_BYTES, *_BY_WFDB], key=int))
        raise ECGReadError(
            f"{header_path}: found signal format {formats[0]}, expected one of {supported}", "unsupported format"
        )

    if formats[0] in _WHOLE_BYTES:
        parts = [_read_whole_bytes(header, *group) for group in _groups(header)]
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        missing_value: int | None = _WHOLE_BYTES[formats[0]][1]
    else:
        samples = _read_by_wfdb(header, formats[0])
        missing_value = _BY_WFDB[formats[0]][1]
    _verify(header, samples)
    return ECGRecord(
        recording_id=file_stem(header_path),
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
    """Return (path, signals in it) of each signal file, once it is safe to open."""
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
            raise ECGReadError(
                f"{header.path}: several byte offsets ({_listed(map(str, offsets))}) into one file, {file_name}"
            )
    return [(_in_header_folder(header.path, file_name), signals) for file_name, signals in groups.items()]


def _in_header_folder(header_path: str, file_name: str) -> str:
    """
    Return the path of a signal file; a link that leads out of the header's folder is refused.

    A cache that stores every file as a link (the Hub's, git-annex's) works if its header and signal file are links to
    files of one folder.
    """
    folder = os.path.dirname(header_path)
    path = os.path.join(folder, file_name)
    if os.path.islink(path):
        target = os.path.dirname(os.path.realpath(path))
        if target not in (os.path.realpath(folder), os.path.dirname(os.path.realpath(header_path))):
            raise ECGReadError(
                f"{path}: the signal file is a link that leads out of the header's folder",
                "the path leads out of its folder",
            )
    return path


def _read_whole_bytes(header: Header, path: str, signals: list[SignalLine]) -> np.ndarray:
    """Return the samples (leads, samples) of one signal file in a format of whole bytes."""
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


def _check_size(header: Header, path: str, signals: list[SignalLine], exactly: int, padding: int = 0) -> None:
    size = regular_file_size(path, "signal file")
    if not exactly <= size <= exactly + padding:
        kind = "truncated" if size < exactly else "longer than its header declares"
        raise ECGReadError(
            f"{path}: {kind}, found {size} bytes, expected {exactly} ({len(signals)} signals of {header.num_samples} "
            f"samples in format {signals[0].format}, after {signals[0].byte_offset} bytes)",
            kind,
        )


def _read_by_wfdb(header: Header, format_: str) -> np.ndarray:
    """Return (leads, samples) as `wfdb` decodes them, after checking that it will open the same files."""
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
    """Return how many bytes `count` values take, and how many more a writer may add to fill its last word."""
    if format_ == "8":
        return count, 0
    if format_ == "212":  # two values in three bytes
        return (count * 3 + 1) // 2, 1
    return (count * 4 + 2) // 3, 3  # 310 and 311: three values in four bytes


def _check_flac(header: Header, path: str, signals: list[SignalLine]) -> None:
    regular_file_size(path, "signal file")
    if signals[0].byte_offset:
        raise ECGReadError(f"{path}: a byte offset into a FLAC file is not supported")
    if len(signals) * header.num_samples > _MOST_COMPRESSED_VALUES:
        raise ECGReadError(
            f"{path}: {len(signals)} signals of {header.num_samples} samples, expected at most "
            f"{_MOST_COMPRESSED_VALUES} values in a compressed file"
        )
    import soundfile

    try:
        info = soundfile.info(path)
    except Exception as error:  # soundfile's errors have no common type of their own
        raise ECGReadError(f"{path}: not a readable FLAC file ({error})") from error
    found, expected = (info.channels, info.frames), (len(signals), header.num_samples)
    if found != expected:
        raise ECGReadError(f"{path}: found (signals, samples) {found} in the FLAC file, expected {expected}")


def _verify(header: Header, samples: np.ndarray) -> None:
    """Compare each lead with its first value and its checksum in the header: the sum of its samples in 16 bits."""
    sums = samples.sum(axis=1, dtype=np.int64) & 0xFFFF
    for signal, first, total in zip(header.signals, samples[:, 0].tolist(), sums.tolist(), strict=True):
        if first != signal.initial_value:
            raise ECGReadError(
                f"{header.path}: lead {signal.name} begins with {first}, expected {signal.initial_value} by the header",
                "initial value does not match",
            )
        if total != signal.checksum & 0xFFFF:
            raise ECGReadError(
                f"{header.path}: lead {signal.name} has checksum {total}, expected {signal.checksum & 0xFFFF} by the "
                "header: the samples are not those that were written",
                "checksum does not match",
            )


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


# The header


def read_header(path: str) -> Header:
    """Read the header file at `path`. `ECGReadError`, quoting the line, where anything is wrong with it."""
    content = read_whole_file(path, _LARGEST_HEADER, "WFDB header", role="header")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # older files; every byte means something there

    # Not str.splitlines: it would also cut at characters that only damage puts into a header.
    lines = [line.strip(" \t\r") for line in text.split("\n")]
    specification = [line for line in lines if line and not line.startswith("#")]
    comments = [line for line in lines if line.startswith("#")]
    if not specification:
        raise ECGReadError(f"{path}: the header has no record line")
    for line in specification:
        if not line.replace("\t", " ").isprintable():
            raise ECGReadError(f"{path}: not a WFDB header, found the line {_quoted(line)}", "not a WFDB header")

    num_signals, sampling_rate, num_samples, time = _record_line(path, specification[0])
    signal_lines = specification[1:]
    if len(signal_lines) != num_signals:
        raise ECGReadError(f"{path}: the header declares {num_signals} signals, found {len(signal_lines)} signal lines")
    signals = tuple(_signal_line(path, number, line) for number, line in enumerate(signal_lines, start=1))
    return Header(path, sampling_rate, num_samples, time, signals, **_from_comments(comments))


def _record_line(path: str, line: str) -> tuple[int, float, int, datetime | None]:
    def wrong(message: str, code: str = "damaged header") -> ECGReadError:
        return ECGReadError(f"{path}: {message}, in the record line {_quoted(line)}", code)

    fields = line.split()
    if "/" in fields[0]:
        raise wrong("multi-segment records are not supported; read their segments one by one", "unsupported format")
    if len(fields) < 2 or not re.fullmatch(r"\d{1,4}", fields[1], re.ASCII):
        raise wrong("expected a record name and a number of signals")
    num_signals = int(fields[1])
    if num_signals == 0:
        raise wrong("the record has no signals")
    if len(fields) < 3:
        raise wrong("no sampling rate, which is never guessed", "sampling rate")
    sampling = _SAMPLING.fullmatch(fields[2])
    rate = float(sampling[1]) if sampling else math.nan
    if not 0 < rate < math.inf:
        raise wrong(f"found the sampling rate {fields[2]!r}, expected a number of Hz above 0", "sampling rate")
    if len(fields) < 4:
        raise wrong(
            "no number of samples, without which a truncated file would pass for a whole one", "number of samples"
        )
    if not re.fullmatch(r"\d{1,15}", fields[3], re.ASCII):
        raise wrong(f"found the number of samples {fields[3]!r}, expected a whole number", "number of samples")
    num_samples = int(fields[3])
    if num_samples == 0:
        raise wrong("the record has 0 samples", "number of samples")
    return num_signals, rate, num_samples, _time(fields[4:])


def _time(fields: list[str]) -> datetime | None:
    # Real files have other spellings and impossible dates here, which are no reason to refuse a recording.
    for pattern in ("%H:%M:%S %d/%m/%Y", "%H:%M:%S.%f %d/%m/%Y"):
        try:
            return datetime.strptime(" ".join(fields), pattern)
        except ValueError:
            continue
    return None


def _signal_line(path: str, number: int, line: str) -> SignalLine:
    fields = line.split(None, 8)
    name = fields[8] if len(fields) > 8 else ""

    def wrong(message: str, code: str = "damaged header") -> ECGReadError:
        lead = f"signal {number} ({name})" if name else f"signal {number}"
        return ECGReadError(f"{path}: {lead}: {message}, in the line {_quoted(line)}", code)

    file_name = fields[0]
    if not _is_plain_file_name(file_name):
        raise wrong(
            f"found the signal file {file_name!r}, expected the name of a file in the header's own folder",
            "the path leads out of its folder",
        )
    found = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if not found:
        raise wrong("expected a signal format such as 16 or 16+24 after the file name")
    format_, per_frame, skew, offset = found.groups()
    if per_frame and int(per_frame) != 1:
        raise wrong(
            f"{per_frame} samples per frame; signals at several sampling rates are not supported", "unsupported format"
        )
    if skew and int(skew) != 0:
        raise wrong(f"a skew of {skew} samples between signals is not supported", "unsupported format")
    found = _GAIN.fullmatch(fields[2]) if len(fields) > 2 else None
    if not found:
        raise wrong("no readable gain; an uncalibrated signal has no voltage", "gain")
    gain, baseline, units = found.groups()
    if not math.isfinite(float(gain)) or float(gain) == 0:
        raise wrong(f"found the gain {gain}, which marks an uncalibrated signal; its voltage is never guessed", "gain")
    numbers = []
    names = ("ADC resolution", "ADC zero", "initial value", "checksum", "block size")
    for what, text in zip(names, fields[3:8], strict=False):
        if not re.fullmatch(_INTEGER, text, re.ASCII):
            raise wrong(f"found the {what} {text!r}, expected a whole number")
        numbers.append(int(text))
    if not name:
        raise wrong("no lead name; a position does not identify a lead", "lead names")
    _, adc_zero, initial_value, checksum, _ = numbers
    return SignalLine(
        file_name=file_name,
        format=format_,
        byte_offset=int(offset or 0),
        gain=float(gain),
        # Both defaults are the standard's: the baseline is the ADC's zero, and the unit is the millivolt.
        baseline=adc_zero if baseline is None else int(baseline),
        units=units or "mV",
        initial_value=initial_value,
        checksum=checksum,
        name=name,
    )


def _is_plain_file_name(name: str) -> bool:
    # Backslash and colon mean folders and drives on Windows, "-" the standard input and "~" no file at all.
    return name not in (".", "..", "-") and name[0] != "~" and not re.search(r"[/\\:\0]", name)


def _from_comments(comments: list[str]) -> dict[str, Any]:
    """Return age, sex and diagnoses as PhysioNet 2021 writes them. Other comments may hold names and stay unread."""
    values: dict[str, str] = {}
    for comment in comments:
        found = _COMMENT.fullmatch(comment)
        if found:
            values.setdefault(found[1].lower(), found[2].strip())
    diagnoses = (code.strip() for code in values.get("dx", "").split(","))
    return {
        "age": _age(values.get("age", "")),
        "sex": {"male": "M", "m": "M", "female": "F", "f": "F"}.get(values.get("sex", "").lower()),
        "diagnoses": tuple(code for code in diagnoses if re.fullmatch(r"\d{6,18}", code, re.ASCII)),
    }


def _age(text: str) -> float | None:
    age = float(text) if re.fullmatch(_NUMBER, text, re.ASCII) else math.nan
    return age if 0 <= age <= _OLDEST else None


def _quoted(line: str) -> str:
    return repr(line if len(line) <= 120 else line[:117] + "...")
