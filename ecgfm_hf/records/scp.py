"""
SCP-ECG (EN 1064, ISO 11073-91064): the rhythm of an electrocardiograph's binary file.

Only sections that carry signal are parsed: 2 (Huffman tables), 3 (leads), 4 and 5 (reference beat), 6 (rhythm). Of
section 1 the age, sex and time are used; other sections may be empty or damaged without consequence.
"""

import binascii
import math
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from ..feature_extraction_ecgfm import STANDARD_LEADS
from .channels import Channels
from .record import ECGReadError, read_whole_file

_LARGEST = 1 << 24
_SECTION_HEADER, _SIGNAL_SECTIONS = 16, (2, 3, 4, 5, 6)
_MOST_LEADS, _MOST_SAMPLES = 64, 1 << 21
_DEFAULT_TABLE = 19999

# Lead codes of EN 1064 with a name that this package has.
LEADS = dict(zip((1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), STANDARD_LEADS, strict=True))
LEADS |= {9: "V7", 10: "V2R", 11: "V3R", 12: "V4R", 13: "V5R", 14: "V6R", 15: "V7R", 16: "X", 17: "Y", 18: "Z"}
LEADS |= {65: "-aVR", 66: "V8", 67: "V9", 68: "V8R", 69: "V9R"}
_AGE_YEARS = {1: 1.0, 2: 1 / 12, 3: 7 / 365.25, 4: 1 / 365.25, 5: 1 / 8766}
_OLDEST = 150


def read_scp(path: str, checksums: str = "verify") -> Channels:
    """
    Read the leads of an SCP-ECG file as they are stored; none is computed from others.

    Args:
        path: the file.
        checksums: "verify", or "ignore" to read sections that are not those that were written.

    Raises:
        ECGReadError: a section that carries signal is missing, damaged, or of a kind that is not supported.
    """
    content = read_whole_file(path, _LARGEST, "SCP-ECG")
    try:
        return _Reader(path, content, checksums).channels()
    except (struct.error, IndexError) as error:
        raise ECGReadError(f"{path}: cannot read SCP-ECG: truncated ({error})") from error


class _Lead(NamedTuple):
    start: int
    end: int
    code: int


_PATIENT_DAMAGED = "section 1 (patient and time) is damaged and not used"


class _Signal(NamedTuple):
    """A section of signals: nanovolts of a step, microseconds between samples, and a row per lead."""

    nanovolts: int
    interval: int
    rows: list[np.ndarray]


class _Reader:
    def __init__(self, path: str, content: bytes, checksums: str) -> None:
        self.path, self.content, self.warnings = path, content, list[str]()
        size = int.from_bytes(content[2:6], "little")
        if size > len(content):
            raise self.error(f"truncated, found {len(content)} bytes, expected {size}")
        self.sections = self._sections()
        wrong = [number for number in sorted(self.sections) if not self._crc_agrees(number)]
        if 1 in wrong:  # of the patient only
            self.warnings.append(_PATIENT_DAMAGED)
            del self.sections[1]
            wrong.remove(1)
        if wrong:
            message = f"the CRC of section {', '.join(map(str, wrong))} does not agree with its content"
            if checksums != "ignore":
                raise self.error(f"{message}; get the file again, or read it with checksums='ignore'")
            self.warnings.append(message)

    def error(self, message: str) -> ECGReadError:
        return ECGReadError(f"{self.path}: cannot read SCP-ECG: {message}")

    def channels(self) -> Channels:
        leads = self._leads()
        if any(lead.start == 0 for lead in leads):
            self.warnings.append("the leads' samples are counted from 0, where the standard counts from 1")
        tables = self._huffman_tables()
        rhythm = self._signal(6, leads, [lead.end - lead.start + 1 for lead in leads], tables)
        is_subtracted = bool(self._body(3)[1] & 1)
        is_bimodal = self._body(6)[5] and self.content[15] < 30  # a reserved byte since version 3
        if is_bimodal and not (5 in self.sections and self._body(5)[2:4] == self._body(6)[2:4]):
            raise self.error("bimodal compression (rhythm at a lower rate between beats) is not supported")
        nanovolts = rhythm.nanovolts
        if is_subtracted:
            rhythm, nanovolts = self._with_reference_beats(leads, rhythm, tables)
        if nanovolts == 0:
            raise self.error("the amplitude multiplier is 0, which gives no voltage")
        if len({lead.start for lead in leads}) > 1:
            raise self.error("leads that begin at different times are not supported")
        age, sex, time = self._patient()
        return Channels(
            path=self.path,
            names=[LEADS.get(lead.code, f"SCP lead {lead.code}") for lead in leads],
            samples=[_narrow(row) for row in rhythm.rows],
            gain=[1000 / nanovolts] * len(leads),
            baseline=[0.0] * len(leads),
            units=["uV"] * len(leads),
            rates=1e6 / rhythm.interval,
            warnings=self.warnings,
            age=age,
            sex=sex,
            time=time,
        )

    # The file

    def _sections(self) -> dict[int, tuple[int, int]]:
        """Return (offset, length) of section 1 and of those that carry signal, by their numbers."""
        content, found = self.content, dict[int, tuple[int, int]]()
        end = min(6 + int.from_bytes(content[10:14], "little"), len(content))
        for at in range(22, end - 9, 10):
            number, length, index = struct.unpack_from("<HII", content, at)
            if number not in (1, *_SIGNAL_SECTIONS) or length <= _SECTION_HEADER:
                continue
            offset, is_inside = index - 1, 0 < index <= len(content) - length + 1
            stated, own_length = struct.unpack_from("<HI", content, offset + 2) if is_inside else (None, 0)
            if stated != number:
                if number == 1:
                    self.warnings.append(_PATIENT_DAMAGED)
                    continue
                if not is_inside:
                    raise self.error(f"section {number} ({length} bytes at byte {index}) lies outside of the file")
                raise self.error(f"found section {stated} where the table has section {number}")
            found[number] = (offset, min(length, own_length) if own_length > _SECTION_HEADER else length)
        for number, what in ((3, "definition of leads"), (6, "rhythm data")):
            if number not in found:
                raise self.error(f"section {number} ({what}) is missing")
        return found

    def _crc_agrees(self, number: int) -> bool:
        offset, length = self.sections[number]
        section = self.content[offset : offset + length]
        return binascii.crc_hqx(section[2:], 0xFFFF) == int.from_bytes(section[:2], "little")

    def _body(self, number: int) -> bytes:
        offset, length = self.sections[number]
        return self.content[offset + _SECTION_HEADER : offset + length]

    # Signals

    def _leads(self) -> list[_Lead]:
        body = self._body(3)
        leads = [_Lead(*struct.unpack_from("<IIB", body, 2 + 9 * number)) for number in range(body[0])]
        # The standard counts from 1; some devices count from 0.
        if not leads:
            raise self.error("section 3 defines no leads")
        counts = [lead.end - lead.start + 1 for lead in leads]
        size = len(self._body(6))
        if len(leads) > _MOST_LEADS or min(counts) < 1 or max(counts) > 8 * size or sum(counts) > _MOST_SAMPLES:
            raise self.error(
                f"section 3 declares {len(leads)} leads of {min(counts)} to {max(counts):g} samples, expected at most "
                f"{_MOST_LEADS} leads and what {size} bytes can hold"
            )
        return leads

    def _signal(
        self, number: int, leads: Sequence[_Lead], counts: Sequence[int], tables: "list[_Table] | None"
    ) -> _Signal:
        body = self._body(number)
        nanovolts, interval, differences = struct.unpack_from("<HHB", body)
        if interval == 0:
            raise self.error(f"the sample interval is 0 in section {number}")
        if differences > 2:
            raise self.error(f"section {number} has differences of order {differences}, expected 0 to 2")
        sizes = struct.unpack_from(f"<{len(leads)}H", body, 6)
        at, rows = 6 + 2 * len(leads), []
        for index, (size, count) in enumerate(zip(sizes, counts, strict=True), start=1):
            data = body[at : at + size]
            at += size
            if tables is None and leads[index - 1].start == 0 and size == 2 * (count - 1):
                count -= 1  # a device that counts from 0 and declares one sample more than it stores
            if len(data) != size or (tables is None and 2 * count > size):
                raise self.error(f"lead {index} of section {number} has {len(data)} bytes, too few for {count} samples")
            if tables is None:
                values = np.frombuffer(data, "<i2", count=count).astype(np.int64)
            else:
                values = self._decoded(data, count, tables)
            for order in range(differences, 0, -1):  # the first samples stand before the differences
                values[order - 1 :] = np.cumsum(values[order - 1 :]) if order == 1 else _undone(values, order)
            rows.append(values.astype(np.int16).astype(np.int64))  # 16 bits, in which encoders may wrap around
        return _Signal(nanovolts, interval, rows)

    def _with_reference_beats(
        self, leads: Sequence[_Lead], rhythm: _Signal, tables: "list[_Table] | None"
    ) -> tuple[_Signal, int]:
        """Return the rhythm with the reference beat added where it was subtracted, and the nanovolts of a step."""
        if not {4, 5} <= self.sections.keys():
            raise self.error("a reference beat was subtracted, and section 4 or 5, which have it, is missing")
        body = self._body(4)
        milliseconds, fiducial, count = struct.unpack_from("<HHH", body)
        interval = struct.unpack_from("<H", self._body(5), 2)[0]
        length = round(milliseconds * 1000 / interval) if interval else 0
        if interval != rhythm.interval:
            raise self.error("the reference beat and the rhythm have different sampling rates, which is not supported")
        if not 1 <= length <= 8 * len(self._body(5)) or length * len(leads) > _MOST_SAMPLES:
            raise self.error(f"found a reference beat of {length} samples, expected what section 5 can hold")
        beat = self._signal(5, leads, [length] * len(leads), tables)
        step = math.gcd(beat.nanovolts, rhythm.nanovolts)
        if not beat.nanovolts or not rhythm.nanovolts:
            raise self.error("the amplitude multiplier is 0, which gives no voltage")
        rows = []
        for lead, residual, shape in zip(leads, rhythm.rows, beat.rows, strict=True):
            row, shape = residual * (rhythm.nanovolts // step), shape * (beat.nanovolts // step)
            for number in range(count):
                kind, start, peak, end = struct.unpack_from("<HIII", body, 6 + 14 * number)
                if kind != 0:  # of another type than the reference beat
                    continue
                origin = peak - fiducial + 1  # of the reference beat's first sample
                first, last = max(start, lead.start, origin), min(end, lead.end, origin + length - 1)
                if first <= last:
                    row[first - lead.start : last - lead.start + 1] += shape[first - origin : last - origin + 1]
            rows.append(row)
        return _Signal(step, rhythm.interval, rows), step

    # Huffman codes

    def _huffman_tables(self) -> "list[_Table] | None":
        if 2 not in self.sections:
            return None
        body = self._body(2)
        count, at = int.from_bytes(body[:2], "little"), 2
        if count == _DEFAULT_TABLE:
            return [_default_table()]
        tables: list[_Table] = []
        for _ in range(count):
            size = struct.unpack_from("<H", body, at)[0]
            at += 2
            table: _Table = {}
            for _ in range(size):
                prefix, total, mode, value, code = struct.unpack_from("<BBBhI", body, at)
                at += 9
                if not 1 <= prefix <= 32 or not prefix <= total <= prefix + 32:
                    raise self.error(f"section 2 has a Huffman code of {prefix} to {total} bits")
                bits = format(code & ((1 << prefix) - 1), f"0{prefix}b")[::-1]  # the first bit is the lowest
                table[bits] = _Code(total - prefix, mode == 1, value)
            tables.append(table)
        if not tables:
            raise self.error("section 2 has no Huffman table")
        return tables

    def _decoded(self, data: bytes, count: int, tables: "list[_Table]") -> np.ndarray:
        bits = format(int.from_bytes(data, "big"), f"0{8 * len(data)}b") if data else ""
        values = np.empty(count, dtype=np.int64)
        table, at, number = tables[0], 0, 0
        longest = max(map(len, table), default=0)
        while number < count:
            for end in range(at + 1, at + longest + 1):
                code = table.get(bits[at:end])
                if code is not None:
                    break
            else:
                raise self.error(f"unknown Huffman code at bit {at}")
            if end + code.extra > len(bits):
                raise self.error(f"Huffman data end after {number} of {count} samples")
            at = end + code.extra
            if not code.is_value:
                if not 1 <= code.value <= len(tables):
                    raise self.error(f"a switch to Huffman table {code.value} of {len(tables)}")
                table = tables[code.value - 1]
                longest = max(map(len, table), default=0)
                continue
            value = code.value
            if code.extra:
                extra = int(bits[end:at], 2)
                value += extra - (1 << code.extra if extra >> (code.extra - 1) else 0)
            values[number] = value
            number += 1
        return values

    # The patient

    def _patient(self) -> tuple[float | None, str | None, datetime | None]:
        """Return age, sex and time, where section 1 has them in good order."""
        found: dict[int, bytes] = {}
        body, at = self._body(1) if 1 in self.sections else b"", 0
        while at + 3 <= len(body) and body[at] != 255:
            size = int.from_bytes(body[at + 1 : at + 3], "little")
            found.setdefault(body[at], body[at + 3 : at + 3 + size])
            at += 3 + size
        age = sex = time = None
        if len(stated := found.get(4, b"")) >= 3:
            years = int.from_bytes(stated[:2], "little") * _AGE_YEARS.get(stated[2], 0)
            age = years if 0 < years <= _OLDEST else None
        if stated := found.get(8, b""):
            sex = {1: "M", 2: "F"}.get(stated[0])
        day, clock = found.get(25, b""), found.get(26, b"")
        if len(day) >= 4 and len(clock) >= 3:
            try:
                time = datetime(int.from_bytes(day[:2], "little"), day[2], day[3], clock[0], clock[1], clock[2])
            except ValueError:
                time = None
        return age, sex, time


class _Code(NamedTuple):
    extra: int  # bits behind the code, whose number is added to the value
    is_value: bool  # or a switch to another table
    value: int


_Table = dict[str, _Code]


def _default_table() -> _Table:
    """Return the table of EN 1064: small differences in few bits, and two escapes of 8 and 16 bits."""
    table = {"0": _Code(0, True, 0), "1" * 9 + "0": _Code(8, True, 0), "1" * 10: _Code(16, True, 0)}
    for size in range(1, 9):
        table["1" * size + "00"] = _Code(0, True, size)
        table["1" * size + "01"] = _Code(0, True, -size)
    return table


def _undone(values: np.ndarray, order: int) -> np.ndarray:
    """Return values[order - 1:] with second differences undone once: each is the slope that leads to it."""
    slopes = values[1:].copy()
    slopes[0] = values[1] - values[0] if len(values) > 1 else 0
    return np.cumsum(slopes)


def _narrow(row: np.ndarray) -> np.ndarray:
    fits = -(2**15) <= row.min() <= row.max() < 2**15
    return row.astype(np.int16 if fits else np.int32)


__all__ = ["LEADS", "read_scp"]
