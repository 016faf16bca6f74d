"""
Holter and exchange formats of plain binary samples: EDF, EDF+ and ISHNE.

Of their headers, the leads, calibrations, time, age and sex are used; names and identifiers are never looked at.
"""

import binascii
import math
import re
import struct
from datetime import datetime

import numpy as np

from .channels import Channels, Fault
from .record import ECGReadError, read_whole_file

_LARGEST_EDF, _LARGEST_ISHNE = 1 << 27, 1 << 27
_OLDEST = 150

# EDF

_FIXED = 256  # bytes of the header, and of the header of each signal
_FIELDS: tuple[tuple[str, int], ...] = (
    *(("label", 16), ("transducer", 80), ("unit", 8), ("lowest", 8), ("highest", 8)),
    *(("digital_lowest", 8), ("digital_highest", 8), ("filter", 80), ("samples", 8), ("reserved", 32)),
)
_MOST_SIGNALS = 512
_MOST_TIMED_RECORDS = 1 << 20
_ANNOTATIONS = "EDF Annotations"
_ONSET = re.compile(rb"([+-]\d{1,12}(?:\.\d{0,12})?)(?:\x15[^\x14]{0,30})?\x14\x14")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def read_edf(path: str) -> Channels:
    """Read the signals of an EDF or EDF+ file as they are stored."""
    content = read_whole_file(path, _LARGEST_EDF, "EDF")
    header = content[:_FIXED].decode("latin-1")

    def whole(what: str, text: str) -> int:
        if not re.fullmatch(r" *[+-]?\d{1,8} *", text, re.ASCII):
            raise ECGReadError(f"{path}: found the {what} {text.strip()!r}, expected a whole number")
        return int(text)

    def number(what: str, text: str) -> float:
        plain = re.fullmatch(r" *[-+0-9.eE]+ *", text, re.ASCII)
        try:
            return float(text if plain else "?")
        except ValueError:
            raise ECGReadError(f"{path}: found the {what} {text.strip()!r}, expected a number") from None

    count, records = whole("number of signals", header[252:256]), whole("number of data records", header[236:244])
    seconds = number("duration of a data record", header[244:252])
    if not 1 <= count <= _MOST_SIGNALS or len(content) < _FIXED * (count + 1):
        raise ECGReadError(f"{path}: truncated, found {len(content)} bytes, expected a header of {count} signals")
    if whole("header size", header[184:192]) != _FIXED * (count + 1):
        raise ECGReadError(f"{path}: found a header size of {header[184:192].strip()}, expected {_FIXED * (count + 1)}")
    if records < 1:
        raise ECGReadError(f"{path}: found {records} data records: the file was not closed by its recorder")
    if not 0 < seconds < math.inf:
        raise ECGReadError(f"{path}: found data records of {seconds:g} s, expected a duration above 0")
    fields: dict[str, list[str]] = {}
    at = _FIXED
    for name, width in _FIELDS:
        text = content[at : at + count * width].decode("latin-1")
        fields[name] = [text[start : start + width].replace("\0", " ") for start in range(0, count * width, width)]
        at += count * width
    labels = [label.strip() for label in fields["label"]]
    sizes = [
        whole(f"samples per record of {label}", text) for label, text in zip(labels, fields["samples"], strict=True)
    ]
    if min(sizes) < 1:
        raise ECGReadError(f"{path}: found a signal of {min(sizes)} samples per data record, expected 1 or more")
    expected = _FIXED * (count + 1) + 2 * records * sum(sizes)
    if len(content) < expected:
        raise ECGReadError(
            f"{path}: truncated, found {len(content)} bytes, expected {expected} ({records} data records)"
        )
    if len(content) > expected:
        raise ECGReadError(f"{path}: found {len(content) - expected} bytes after the last data record")
    frames = np.frombuffer(content, "<i2", offset=_FIXED * (count + 1)).reshape(records, sum(sizes))
    ends = np.cumsum(sizes).tolist()
    used = [index for index, label in enumerate(labels) if label != _ANNOTATIONS]
    if not used:
        raise ECGReadError(f"{path}: found annotations only, no leads")
    if len(used) < count and header[192:196] == "EDF+":
        clock = labels.index(_ANNOTATIONS)
        _check_continuous(path, frames[:, ends[clock] - sizes[clock] : ends[clock]], seconds)
    elif header[192:197] == "EDF+D":
        raise ECGReadError(f"{path}: data records with gaps between them (EDF+D) and without times are not supported")
    gains, baselines, faults = [], [], list[Fault | None]()
    for index in used:
        low, high, lowest, highest = (
            number(what.replace("_", " "), fields[what][index])
            for what in ("lowest", "highest", "digital_lowest", "digital_highest")
        )
        gain = (highest - lowest) / (high - low) if high != low else 0.0
        usable = math.isfinite(gain) and gain != 0
        faults.append(
            None if usable else ("gain", f"invalid range of {low:g} to {high:g} for {lowest:g} to {highest:g}")
        )
        gains.append(gain if usable else 1.0)
        baselines.append(lowest - low * gain if usable else 0.0)
    time, age, sex = _edf_patient(header)
    return Channels(
        path=path,
        names=[labels[index] for index in used],
        samples=[
            np.ascontiguousarray(frames[:, ends[index] - sizes[index] : ends[index]]).reshape(-1).astype(np.int16)
            for index in used
        ],
        gain=gains,
        baseline=baselines,
        units=[fields["unit"][index].strip() for index in used],
        rates=[sizes[index] / seconds for index in used],
        faults=faults if any(faults) else (),
        age=age,
        sex=sex,
        time=time,
    )


def _check_continuous(path: str, clock: np.ndarray, seconds: float) -> None:
    """Refuse an EDF+ file whose data records, by the times in them, do not follow one another."""
    if len(clock) > _MOST_TIMED_RECORDS:
        raise ECGReadError(
            f"{path}: found {len(clock)} data records, expected at most {_MOST_TIMED_RECORDS} with times"
        )
    first = None
    for number, row in enumerate(np.ascontiguousarray(clock)):
        found = _ONSET.match(row.tobytes())
        if not found:
            raise ECGReadError(f"{path}: data record {number + 1} has no time, which EDF+ needs")
        onset = float(found[1])
        first = onset if first is None else first
        if abs(onset - first - number * seconds) > 1e-3 + 1e-9 * abs(onset):
            raise ECGReadError(f"{path}: gaps between data records (record {number + 1}) are not supported")


def _edf_patient(header: str) -> tuple[datetime | None, float | None, str | None]:
    """Return time, age and sex. The date of birth is used for the age and not kept."""
    patient, recording = header[8:88].split(), header[88:168].split()
    clock = re.fullmatch(r"(\d\d)\.(\d\d)\.(\d\d)(\d\d)\.(\d\d)\.(\d\d)", header[168:184], re.ASCII)
    time = age = None
    if clock:
        day, month, year, hour, minute, second = map(int, clock.groups())
        started = _edf_date(recording[1]) if len(recording) > 1 and recording[0] == "Startdate" else None
        try:
            time = datetime(year + (1900 if year >= 85 else 2000), month, day, hour, minute, second)
            time = time if started is None else time.replace(year=started.year)
        except ValueError:
            time = None
    sex = patient[1] if len(patient) > 1 and patient[1] in ("M", "F") else None
    born = _edf_date(patient[2]) if len(patient) > 2 and sex else None
    if born is not None and time is not None:
        years = time.year - born.year - ((time.month, time.day) < (born.month, born.day))
        age = float(years) if 0 <= years <= _OLDEST else None
    return time, age, sex


def _edf_date(text: str) -> datetime | None:
    found = re.fullmatch(r"(\d\d)-([A-Za-z]{3})-(\d{4})", text, re.ASCII)
    try:
        return datetime(int(found[3]), _MONTHS.index(found[2].upper()) + 1, int(found[1])) if found else None
    except ValueError:
        return None


# ISHNE

_ISHNE_HEADER = 522
_ISHNE_MISSING = -(2**15)
_ISHNE_LEADS = (
    "X",
    "Y",
    "Z",
    "I",
    "II",
    "III",
    "aVR",
    "aVL",
    "aVF",
    "V1",
    "V2",
    "V3",
    "V4",
    "V5",
    "V6",
    "ES",
    "AS",
    "AI",
)


def read_ishne(path: str, checksums: str = "verify") -> Channels:
    """Read the leads of an ISHNE Holter file (version 1.0). Leads without a name in it have none here."""
    content = read_whole_file(path, _LARGEST_ISHNE, "ISHNE")
    if len(content) <= _ISHNE_HEADER:
        raise ECGReadError(f"{path}: truncated, found {len(content)} bytes, expected more than {_ISHNE_HEADER}")
    stored, variable, declared, _, data_at = struct.unpack_from("<H4i", content, 8)
    count, *codes = struct.unpack_from("<13h", content, 156)
    resolutions = struct.unpack_from("<12h", content, 206)
    rate = struct.unpack_from("<h", content, 272)[0]
    start = _ISHNE_HEADER + variable
    if not 1 <= count <= len(codes) or variable < 0 or start >= len(content) or data_at not in (0, start):
        raise ECGReadError(f"{path}: found {count} leads at byte {data_at}, expected 1 to {len(codes)} at byte {start}")
    warnings = []
    crc = binascii.crc_hqx(content[10:start], 0xFFFF)
    if stored == 0:
        warnings.append("the header has no checksum: damage cannot be recognised")
    elif stored not in (crc, (crc & 0xFF) << 8 | crc >> 8):  # the byte order is not fixed
        if checksums != "ignore":
            raise ECGReadError(
                f"{path}: found the checksum {crc:#06x} of the header, expected {stored:#06x}: it is damaged; get the "
                "file again, or read it with checksums='ignore'"
            )
        warnings.append("the header's checksum does not agree with it")
    rest = (len(content) - start) % (2 * count)
    if rest:
        raise ECGReadError(f"{path}: truncated, the last sample has {rest} bytes, expected {2 * count} ({count} leads)")
    samples = np.frombuffer(content, "<i2", offset=start).reshape(-1, count)
    # Recorders declare the samples of one lead, or of all.
    if declared not in (len(samples), samples.size):
        found = f"the header declares {declared} samples, found {len(samples)} of each lead"
        if declared > len(samples) and checksums != "ignore":
            raise ECGReadError(
                f"{path}: truncated, {found}; get the file again, or read what is there with checksums='ignore'"
            )
        warnings.append(found)
    sex = struct.unpack_from("<h", content, 128)[0]
    day, month, year = struct.unpack_from("<3h", content, 138)
    hour, minute, second = struct.unpack_from("<3h", content, 150)
    try:
        time = datetime(year, month, day, hour, minute, second)
    except ValueError:
        time = None
    steps = [float(resolution) for resolution in resolutions[:count]]
    faults = [
        None if step > 0 else ("gain", f"found a resolution of {step:g} nV, which gives no voltage") for step in steps
    ]
    return Channels(
        path=path,
        names=[_ISHNE_LEADS[code - 2] if 2 <= code < 2 + len(_ISHNE_LEADS) else "" for code in codes[:count]],
        samples=np.ascontiguousarray(samples.T, dtype=np.int16),
        gain=[1 / step if step > 0 else 1.0 for step in steps],
        baseline=[0.0] * count,
        units=["nV"] * count,
        rates=float(rate),
        faults=faults if any(faults) else (),
        warnings=warnings,
        missing_value=_ISHNE_MISSING,
        sex={1: "M", 2: "F"}.get(sex),
        time=time,
    )


__all__ = ["read_edf", "read_ishne"]
