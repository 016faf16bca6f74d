"""
Headers of WFDB records: the record line, a line for each signal or segment, and comments.

Source: header(5) of the WFDB Applications Guide, https://physionet.org/physiotools/wag/header-5.htm.
"""

import math
import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from .record import ECGReadError, file_stem, read_whole_file, refuse_pointer

_LARGEST_HEADER = 1 << 20  # bytes; the largest real ones hold a few kilobytes
_MOST_PER_FRAME = 10_000

_NUMBER = r"[+-]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?"
_INTEGER = r"[+-]?\d{1,10}"
_SAMPLING = re.compile(rf"({_NUMBER})(?:/{_NUMBER}(?:\({_NUMBER}\))?)?", re.ASCII)  # rate/counter rate(base counter)
# format x samples per frame : skew + byte offset
_FORMAT = re.compile(r"(\d{1,4})(?:x(\d{1,6}))?(?::(\d{1,6}))?(?:\+(\d{1,12}))?", re.ASCII)
_WHOLE_NUMBERS = re.compile(rf"{_INTEGER}(?: {_INTEGER})*", re.ASCII)
_NUMBERS = ("ADC resolution", "ADC zero", "initial value", "checksum", "block size")
_NO_PLAIN_NAME = re.compile(r"[/\\:\0]")
_SNOMED_CODE = re.compile(r"\d{6,18}", re.ASCII)
_GAIN = re.compile(rf"({_NUMBER})(?:\(({_INTEGER})\))?(?:/(\S{{1,40}}))?", re.ASCII)  # gain(baseline)/units
_COMMENT = re.compile(r"#\s*(age|sex|dx)\s*:(.*)", re.IGNORECASE)

# PTB-XL writes 300 years for patients of 90 and more, and a damaged age can be anything.
_OLDEST = 130


class SignalLine(NamedTuple):  # a dataclass takes three times as long to make
    """One signal's line of a header: where its samples are, and how they become voltages."""

    file_name: str
    format: str
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float  # 0 where the signal is not calibrated
    baseline: int
    units: str
    initial_value: int | None
    checksum: int | None
    name: str

    @property
    def is_empty(self) -> bool:
        """Return whether the signal has no samples, as in a layout header."""
        return self.file_name == "~"


@dataclass(frozen=True)
class Header:
    """A header: `signals` in file order and `num_samples` frames of them (None if unknown), or `segments`."""

    path: str
    sampling_rate: float
    num_samples: int | None
    time: datetime | None
    signals: tuple[SignalLine, ...] = ()
    segments: tuple[tuple[str, int], ...] = ()  # (name, frames); "~" is a gap
    age: float | None = None
    sex: str | None = None
    diagnoses: tuple[str, ...] = ()

    @property
    def is_layout(self) -> bool:
        """Return whether this is the layout of a multi-segment record: signals without samples."""
        return bool(self.signals) and all(signal.is_empty for signal in self.signals)


def read_header(path: str) -> Header:
    """Read the header file at `path`. `ECGReadError`, quoting the line, where anything is wrong with it."""
    content = read_whole_file(path, _LARGEST_HEADER, "WFDB header", role="header")
    refuse_pointer(path, content)
    try:
        text = content.decode("utf-8-sig")
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

    record = _record_line(path, specification[0])
    others = specification[1:]
    known = _from_comments(comments)
    if record.num_segments is not None:
        if len(others) != record.num_segments:
            raise ECGReadError(
                f"{path}: the header declares {record.num_segments} segments, found {len(others)} segment lines"
            )
        segments = tuple(_segment_line(path, line) for line in others)
        return Header(path, record.rate, record.num_samples, record.time, (), segments, **known)
    if len(others) != record.num_signals:
        raise ECGReadError(
            f"{path}: the header declares {record.num_signals} signals, found {len(others)} signal lines"
        )
    signals = tuple(_signal_line(path, number, line, record.folder) for number, line in enumerate(others, start=1))
    return Header(path, record.rate, record.num_samples, record.time, signals, (), **known)


class _RecordLine(NamedTuple):
    folder: str  # before the record's name; mostly ""
    num_segments: int | None
    num_signals: int
    rate: float
    num_samples: int | None
    time: datetime | None


def _record_line(path: str, line: str) -> _RecordLine:
    def wrong(message: str, code: str = "damaged header") -> ECGReadError:
        return ECGReadError(f"{path}: {message}, in the record line {_quoted(line)}", code)

    fields = line.split()
    folder, num_segments = _folder_or_segments(path, fields[0])
    if len(fields) < 2 or not re.fullmatch(r"\d{1,4}", fields[1], re.ASCII):
        raise wrong("expected a record name and a number of signals")
    num_signals = int(fields[1])
    if num_segments == 0 or (num_signals == 0 and num_segments is None):
        raise wrong("the record has no signals")
    if len(fields) < 3:
        raise wrong("no sampling rate, which is never guessed", "sampling rate")
    sampling = _SAMPLING.fullmatch(fields[2])
    rate = float(sampling[1]) if sampling else math.nan
    if not 0 < rate < math.inf:
        raise wrong(f"found the sampling rate {fields[2]!r}, expected a number of Hz above 0", "sampling rate")
    num_samples = None
    if len(fields) > 3:
        if not re.fullmatch(r"\d{1,15}", fields[3], re.ASCII):
            raise wrong(f"found the number of samples {fields[3]!r}, expected a whole number", "number of samples")
        num_samples = int(fields[3]) or None  # 0 means unknown
    return _RecordLine(folder, num_segments, num_signals, rate, num_samples, _time(fields[4:]))


def _folder_or_segments(path: str, name: str) -> tuple[str, int | None]:
    """Return the folder before a slash in a record's name, or the number of segments after it."""
    front, slash, back = name.rpartition("/")
    if not slash:
        return "", None
    stem = file_stem(path)
    if re.fullmatch(r"\d{1,6}", back, re.ASCII) and (front.rpartition("/")[2] == stem or back != stem):
        return front.rpartition("/")[0], int(back)
    return front, None


def _segment_line(path: str, line: str) -> tuple[str, int]:
    fields = line.split()
    if len(fields) != 2 or not re.fullmatch(r"\d{1,15}", fields[1], re.ASCII):
        raise ECGReadError(f"{path}: expected a segment's name and length, in the line {_quoted(line)}")
    return fields[0], int(fields[1])


def _time(fields: list[str]) -> datetime | None:
    # Real files have other spellings and impossible dates here, which are no reason to refuse a recording.
    for pattern in ("%H:%M:%S %d/%m/%Y", "%H:%M:%S.%f %d/%m/%Y"):
        try:
            return datetime.strptime(" ".join(fields), pattern)
        except ValueError:
            continue
    return None


def _signal_line(path: str, number: int, line: str, folder: str = "") -> SignalLine:
    fields = line.split(None, 8)
    name = fields[8] if len(fields) > 8 else ""

    def wrong(message: str, code: str = "damaged header") -> ECGReadError:
        lead = f"signal {number} ({name})" if name else f"signal {number}"
        return ECGReadError(f"{path}: {lead}: {message}, in the line {_quoted(line)}", code)

    # A folder before the record's name also stands before its files' names: all are beside the header.
    file_name = fields[0].removeprefix(f"{folder}/") if folder else fields[0]
    if file_name != "~" and not is_plain_file_name(file_name):
        raise wrong(
            f"found the signal file {file_name!r}, expected the name of a file in the header's own folder",
            "the path leads out of its folder",
        )
    found = _format_groups(fields[1]) if len(fields) > 1 else None
    if not found:
        raise wrong("expected a signal format such as 16 or 16+24 after the file name")
    format_, per_frame, skew, offset = found
    if per_frame and not 1 <= int(per_frame) <= _MOST_PER_FRAME:
        raise wrong(f"{per_frame} samples per frame, expected 1 to {_MOST_PER_FRAME}")
    gain, baseline, units = 0.0, None, None
    if len(fields) > 2:
        calibration = _gain_groups(fields[2])
        if not calibration:
            raise wrong("no readable gain; an uncalibrated signal has no voltage", "gain")
        gain, baseline, units = calibration
        if not math.isfinite(gain):
            raise wrong(f"found the gain {fields[2]}, expected a number", "gain")
    given = fields[3:8]
    if given and not _WHOLE_NUMBERS.fullmatch(" ".join(given)):
        what, text = next(pair for pair in zip(_NUMBERS, given, strict=False) if not _WHOLE_NUMBERS.fullmatch(pair[1]))
        raise wrong(f"found the {what} {text!r}, expected a whole number")
    numbers: list[int | None] = [*map(int, given), *[None] * (len(_NUMBERS) - len(given))]
    _, adc_zero, initial_value, checksum, _ = numbers
    if format_ == "8" and initial_value is None:
        raise wrong("no initial value, which format 8 begins at")
    return SignalLine(
        file_name=file_name,
        format=format_,
        samples_per_frame=int(per_frame or 1),
        skew=int(skew or 0),
        byte_offset=int(offset or 0),
        gain=gain,
        # Both defaults are the standard's: the baseline is the ADC's zero, and the unit is the millivolt.
        baseline=adc_zero or 0 if baseline is None else int(baseline),
        units=units or "mV",
        initial_value=initial_value,
        checksum=checksum,
        name=name,
    )


# A data set has few formats and gains, for millions of signals.
@lru_cache(maxsize=1024)
def _format_groups(text: str) -> tuple[str, str | None, str | None, str | None] | None:
    found = _FORMAT.fullmatch(text)
    return found and (found[1], found[2], found[3], found[4])


@lru_cache(maxsize=1024)
def _gain_groups(text: str) -> tuple[float, str | None, str | None] | None:
    found = _GAIN.fullmatch(text)
    return found and (float(found[1]), found[2], found[3])


@lru_cache(maxsize=1024)
def is_plain_file_name(name: str) -> bool:
    # Backslash and colon mean folders and drives on Windows, "-" the standard input and "~" no file at all.
    return name not in (".", "..", "-") and name[0] != "~" and not _NO_PLAIN_NAME.search(name)


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
        "diagnoses": tuple(code for code in diagnoses if _SNOMED_CODE.fullmatch(code)),
    }


def _age(text: str) -> float | None:
    age = float(text) if re.fullmatch(_NUMBER, text, re.ASCII) else math.nan
    return age if 0 <= age <= _OLDEST else None


def _quoted(line: str) -> str:
    return repr(line if len(line) <= 120 else line[:117] + "...")


__all__ = ["Header", "SignalLine", "is_plain_file_name", "read_header"]
