"""WFDB header files, read strictly.

Follows header(5) of the WFDB Applications Guide (https://physionet.org/physiotools/wag/header-5.htm). The `wfdb`
package reads headers by a pattern in which nearly every field may be absent, so that a damaged field is taken for
another one; here a field that is not what its place calls for is an error. Where the standard falls back on a default
(250 Hz, a gain of 200), this package asks: a guessed number would not show in the result.
"""

import math
import re
from dataclasses import dataclass, field
from datetime import datetime

from .errors import ECGReadError, read_bytes, regular_file_size

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
    """One lead's line: where its samples are, and what they mean."""

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
    """A whole header: `signals` in file order, `num_samples` per lead."""

    path: str
    sampling_rate: float
    num_samples: int
    time: datetime | None
    signals: tuple[SignalLine, ...]
    age: float | None = None
    sex: str | None = None
    diagnoses: tuple[str, ...] = field(default=())


def read_header(path: str) -> Header:
    """Read the header file at `path`; whatever is wrong with it is an `ECGReadError` that quotes the line."""
    size = regular_file_size(path, "header")
    if size > _LARGEST_HEADER:
        raise ECGReadError(f"{path}: {size} bytes is too much for a WFDB header")
    content = read_bytes(path, size, "header")
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
            raise ECGReadError(f"{path}: not a WFDB header, found the line {_quoted(line)}")

    num_signals, sampling_rate, num_samples, time = _record_line(path, specification[0])
    signal_lines = specification[1:]
    if len(signal_lines) != num_signals:
        raise ECGReadError(f"{path}: the header declares {num_signals} signals, found {len(signal_lines)} signal lines")
    signals = tuple(_signal_line(path, number, line) for number, line in enumerate(signal_lines, start=1))
    return Header(path, sampling_rate, num_samples, time, signals, **_from_comments(comments))


def _record_line(path: str, line: str) -> tuple[int, float, int, datetime | None]:
    def wrong(message: str) -> ECGReadError:
        return ECGReadError(f"{path}: {message}, in the record line {_quoted(line)}")

    fields = line.split()
    if "/" in fields[0]:
        raise wrong("multi-segment records are not supported; read their segments one by one")
    if len(fields) < 2 or not re.fullmatch(r"\d{1,4}", fields[1], re.ASCII):
        raise wrong("expected a record name and a number of signals")
    num_signals = int(fields[1])
    if num_signals == 0:
        raise wrong("the record has no signals")
    if len(fields) < 3:
        raise wrong("no sampling rate, and it is never guessed")
    sampling = _SAMPLING.fullmatch(fields[2])
    rate = float(sampling[1]) if sampling else math.nan
    if not 0 < rate < math.inf:
        raise wrong(f"found the sampling rate {fields[2]!r}, expected a number of Hz above 0")
    if len(fields) < 4:
        raise wrong("no number of samples, without which a truncated file cannot be told from a whole one")
    if not re.fullmatch(r"\d{1,15}", fields[3], re.ASCII):
        raise wrong(f"found the number of samples {fields[3]!r}, expected a whole number")
    num_samples = int(fields[3])
    if num_samples == 0:
        raise wrong("the record has 0 samples")
    return num_signals, rate, num_samples, _time(fields[4:])


def _time(fields: list[str]) -> datetime | None:
    # Files in circulation have other spellings and impossible dates here; a recording is not refused for those.
    for pattern in ("%H:%M:%S %d/%m/%Y", "%H:%M:%S.%f %d/%m/%Y"):
        try:
            return datetime.strptime(" ".join(fields), pattern)
        except ValueError:
            continue
    return None


def _signal_line(path: str, number: int, line: str) -> SignalLine:
    fields = line.split(None, 8)
    name = fields[8] if len(fields) > 8 else ""

    def wrong(message: str) -> ECGReadError:
        lead = f"signal {number} ({name})" if name else f"signal {number}"
        return ECGReadError(f"{path}: {lead}: {message}, in the line {_quoted(line)}")

    file_name = fields[0]
    if not _is_plain_file_name(file_name):
        raise wrong(f"found the signal file {file_name!r}, expected the name of a file in the header's own folder")
    found = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if not found:
        raise wrong("expected a signal format such as 16 or 16+24 after the file name")
    format_, per_frame, skew, offset = found.groups()
    if per_frame and int(per_frame) != 1:
        raise wrong(f"{per_frame} samples per frame; signals at several sampling rates are not supported")
    if skew and int(skew) != 0:
        raise wrong(f"a skew of {skew} samples between signals is not supported")
    found = _GAIN.fullmatch(fields[2]) if len(fields) > 2 else None
    if not found:
        raise wrong("no readable gain; an uncalibrated signal has no voltage")
    gain, baseline, units = found.groups()
    if not math.isfinite(float(gain)) or float(gain) == 0:
        raise wrong(f"found the gain {gain}, which marks an uncalibrated signal; its voltage is never guessed")
    numbers = []
    names = ("ADC resolution", "ADC zero", "initial value", "checksum", "block size")
    for index, what in enumerate(names, start=3):
        if len(fields) > index and not re.fullmatch(_INTEGER, fields[index], re.ASCII):
            raise wrong(f"found {fields[index]!r} in the place of the {what}, expected a whole number")
        numbers.append(int(fields[index]) if len(fields) > index else None)
    if not name:
        raise wrong("no lead name; leads are never told by position")
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


def _from_comments(comments: list[str]) -> dict:
    """Age, sex and diagnoses as PhysioNet 2021 writes them. Other comments may hold names and are not looked at."""
    values = {}
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
