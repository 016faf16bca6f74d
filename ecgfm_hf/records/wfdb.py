"""
WFDB records: a header, and the signal files or segments that it names.

Both are decoded here and not by the `wfdb` package, for two reasons:

- its pattern for headers lets nearly every field be absent, so that a damaged field is taken for another one, and it
  fills gaps with defaults (250 Hz, a gain of 200). Here an unexpected field is an error, and nothing is guessed;
- formats of whole bytes are decoded several times faster than by `wfdb.rdrecord`.

MATLAB v4 files (`.mat`), as PhysioNet's challenges distribute them, are format 16 after 24 bytes that the header
declares; no MATLAB reader is involved.

Source: header(5) and signal(5) of the WFDB Applications Guide, https://physionet.org/physiotools/wag/header-5.htm and
signal-5.htm.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .channels import Channels, Fault
from .record import ECGReadError, file_stem, read_bytes, refuse_pointer, regular_file_size
from .wfdb_header import Header, SignalLine, is_plain_file_name, read_header

# A compressed file of a few bytes, or a gap, can declare any length. This is 12 leads at 500 Hz for three hours.
_MOST_VALUES = 1 << 26
_MISSING = -(2**31)  # marks a missing sample where signals of several formats meet


def read_wfdb(header_path: str, given: str, checksums: str = "verify") -> Channels:
    """
    Read the WFDB record whose header is at `header_path`; `given` is the path that the caller gave.

    The number of samples, each signal's first value and each signal's checksum are compared with the header. Signal
    files and segments are opened only in the header's own folder.

    Args:
        header_path: the header.
        given: the path for messages.
        checksums: "verify", or "ignore" to read signals that are not those that were written.

    Raises:
        ECGReadError: header and signal files are damaged, contradict each other or are of an unsupported kind.
    """
    header = read_header(header_path)
    if header.is_layout:
        raise ECGReadError(f"{given}: the layout header of a multi-segment record, which has no samples", "no samples")
    if header.segments:
        signals, warnings = _read_segments(header, checksums)
    else:
        names = [signal.file_name for signal in header.signals]
        if given not in (header_path, os.path.splitext(header_path)[0]) and os.path.basename(given) not in names:
            raise ECGReadError(f"{given}: the header beside it uses {_listed(names)}, not this file")
        signals, warnings = _read_signals(header, checksums)
    return Channels(
        path=given,
        recording_id=file_stem(header_path),
        names=[line.name for line in signals.lines],
        samples=signals.rows,
        gain=[line.gain or 1.0 for line in signals.lines],
        baseline=[line.baseline for line in signals.lines],
        units=[line.units for line in signals.lines],
        rates=[header.sampling_rate * line.samples_per_frame for line in signals.lines],
        faults=signals.faults if any(signals.faults) else (),
        warnings=warnings,
        missing_value=signals.missing_value,
        age=header.age,
        sex=header.sex,
        diagnoses=header.diagnoses,
        time=header.time,
    )


class _Signals(NamedTuple):
    """Decoded signals: a row each, as (signals, samples) where all are of one rate and type."""

    lines: Sequence[SignalLine]
    rows: np.ndarray | list[np.ndarray]
    missing_value: int | None
    faults: list[Fault | None]
    num_frames: int


# Signal files


class _Format(NamedTuple):
    """
    A signal format.

    Attributes:
        size: bytes that a number of values takes.
        count: values that a number of bytes holds.
        padding: bytes that a writer may add to fill its last word.
        decode: values from bytes, as int16 or int32.
        missing: the stored value that means "no sample here"; format 8 has none.
    """

    size: Callable[[int], int]
    count: Callable[[int], int]
    padding: int
    decode: Callable[[np.ndarray], np.ndarray]
    missing: int | None


def _whole_bytes(width: int, decode: Callable[[np.ndarray], np.ndarray]) -> _Format:
    return _Format(lambda count: count * width, lambda size: size // width, 0, decode, -(1 << (8 * width - 1)))


def _packed(bits: int, values: int, width: int, decode: Callable[[np.ndarray], np.ndarray]) -> _Format:
    """Return a format that packs `values` values of `bits` bits into `width` bytes."""
    return _Format(
        lambda count: -(-count * width // values),
        lambda size: size * values // width,
        width - 1 if width == 4 else 1,
        decode,
        -(1 << (bits - 1)),
    )


def _decode_24(content: np.ndarray) -> np.ndarray:
    low, middle, high = content.reshape(-1, 3).T.astype(np.int32)
    return low | (middle << 8) | (((high ^ 0x80) - 0x80) << 16)


def _decode_212(content: np.ndarray) -> np.ndarray:
    low, both, high = np.pad(content, (0, -len(content) % 3)).reshape(-1, 3).T.astype(np.int16)
    values = np.stack([low | (both & 0x0F) << 8, high | (both >> 4) << 8], axis=1)
    return ((values ^ 0x800) - 0x800).ravel()


def _decode_310(content: np.ndarray) -> np.ndarray:
    first, second = _words(content).view("<u2").reshape(-1, 2).T.astype(np.int32)
    values = np.stack([first >> 1 & 0x3FF, second >> 1 & 0x3FF, first >> 11 | (second >> 11) << 5], axis=1)
    return ((values ^ 0x200) - 0x200).astype(np.int16).ravel()


def _decode_311(content: np.ndarray) -> np.ndarray:
    words = _words(content).view("<u4").astype(np.int64)
    values = np.stack([words & 0x3FF, words >> 10 & 0x3FF, words >> 20 & 0x3FF], axis=1)
    return ((values ^ 0x200) - 0x200).astype(np.int16).ravel()


def _words(content: np.ndarray) -> np.ndarray:
    return np.pad(content, (0, -len(content) % 4))


_FORMATS = {
    "8": _Format(
        lambda count: count, lambda size: size, 0, lambda content: content.view(np.int8).astype(np.int32), None
    ),
    "16": _whole_bytes(2, lambda content: content.view("<i2").astype(np.int16, copy=False)),
    "24": _whole_bytes(3, _decode_24),
    "32": _whole_bytes(4, lambda content: content.view("<i4").astype(np.int32, copy=False)),
    "61": _whole_bytes(2, lambda content: content.view(">i2").astype(np.int16)),
    "80": _whole_bytes(1, lambda content: content.astype(np.int16) - np.int16(128)),
    "160": _whole_bytes(2, lambda content: (content.view("<u2").astype(np.int32) - 32768).astype(np.int16)),
    "212": _packed(12, 2, 3, _decode_212),
    "310": _packed(10, 3, 4, _decode_310),
    "311": _packed(10, 3, 4, _decode_311),
}
_FLAC_BITS = {"508": 8, "516": 16, "524": 24}


def _read_signals(header: Header, checksums: str) -> tuple[_Signals, list[str]]:
    """Read all signals of a header without segments, aligned in time, and compare them with it."""
    warnings: list[str] = []
    groups = _groups(header)
    lines = [line for _, group in groups for line in group]
    frames: list[int] = []
    parts = []
    for path, group in groups:
        rows, count = _read_group(header, path, group, warnings)
        parts.append(rows)
        frames.append(count)
    if len(set(frames)) > 1:
        raise ECGReadError(f"{header.path}: signal files of different lengths ({_listed(map(str, frames))} frames)")
    if header.num_samples is None:
        warnings.append("the header gives no number of samples, so that a truncated file cannot be recognised")
    missing = {_missing_value(line.format) for line in lines}
    skewed = any(line.skew for line in lines)
    if len(parts) == 1 and isinstance(parts[0], np.ndarray) and not skewed:
        faults = _verify(header.path, lines, parts[0], checksums, warnings)
        return _Signals(lines, parts[0], missing.pop(), faults, frames[0]), warnings
    rows = [row for part in parts for row in part]
    faults = _verify(header.path, lines, rows, checksums, warnings)
    common = missing.pop() if len(missing) == 1 else _MISSING
    if common is None and skewed:
        common = _MISSING
    aligned = [_aligned(row, line, common) for row, line in zip(rows, lines, strict=True)]
    if skewed:
        named = _listed(f"{line.name} by {line.skew}" for line in lines if line.skew)
        warnings.append(f"signals shifted earlier, as the header declares their skew in frames: {named}")
    return _Signals(lines, _as_matrix(aligned), common, faults, frames[0]), warnings


def _missing_value(format_: str) -> int | None:
    return -(1 << (_FLAC_BITS[format_] - 1)) if format_ in _FLAC_BITS else _FORMATS[format_].missing


def _aligned(row: np.ndarray, line: SignalLine, missing: int | None) -> np.ndarray:
    """Return a signal without its skew, its missing samples marked by `missing`."""
    own = _missing_value(line.format)
    if missing == _MISSING:
        row = row.astype(np.int32)
        if own is not None:
            row[row == own] = _MISSING
    shift = line.skew * line.samples_per_frame
    return row if shift == 0 else np.concatenate([row[shift:], np.full(min(shift, len(row)), missing, row.dtype)])


def _as_matrix(rows: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    if len({len(row) for row in rows}) > 1:
        return [row.astype(np.int32, copy=False) for row in rows]
    return np.stack(rows)


def _groups(header: Header) -> list[tuple[str, list[SignalLine]]]:
    """Return (path, signals in it) of each signal file, once it is safe to open."""
    groups: dict[str, list[SignalLine]] = {}
    last = None
    for signal in header.signals:
        if signal.is_empty:
            raise ECGReadError(f"{header.path}: signal {signal.name} has no signal file")
        if signal.file_name in groups and signal.file_name != last:
            raise ECGReadError(f"{header.path}: the signals of {signal.file_name} do not follow one another")
        groups.setdefault(signal.file_name, []).append(signal)
        last = signal.file_name
    for file_name, signals in groups.items():
        offsets = sorted({signal.byte_offset for signal in signals})
        formats = sorted({signal.format for signal in signals})
        if len(offsets) > 1:
            raise ECGReadError(
                f"{header.path}: several byte offsets ({_listed(map(str, offsets))}) into one file, {file_name}"
            )
        if len(formats) > 1:
            raise ECGReadError(f"{header.path}: several formats ({_listed(formats)}) in one file, {file_name}")
        if formats[0] not in _FORMATS and formats[0] not in _FLAC_BITS:
            code, supported = "unsupported format", _listed([*_FORMATS, *_FLAC_BITS])
            raise ECGReadError(f"{header.path}: found signal format {formats[0]}, expected one of {supported}", code)
    return [(_in_header_folder(header.path, file_name), signals) for file_name, signals in groups.items()]


def _in_header_folder(header_path: str, file_name: str, role: str = "signal file") -> str:
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
            code = "the path leads out of its folder"
            raise ECGReadError(f"{path}: the {role} is a link that leads out of the header's folder", code)
    return path


def _read_group(
    header: Header, path: str, signals: list[SignalLine], warnings: list[str]
) -> tuple[np.ndarray | list[np.ndarray], int]:
    """Return the signals of one file, as (signals, samples) or a row each, and how many frames they have."""
    if signals[0].format in _FLAC_BITS:
        return _read_flac(header, path, signals)
    format_, offset = _FORMATS[signals[0].format], signals[0].byte_offset
    per_frame = sum(signal.samples_per_frame for signal in signals)
    size = regular_file_size(path, "signal file")
    frames = format_.count(max(size - offset, 0)) // per_frame if header.num_samples is None else header.num_samples
    expected = offset + format_.size(frames * per_frame)
    surplus = size - expected
    declared = (
        f"found {size} bytes, expected {expected} ({len(signals)} signals of {frames} samples in format "
        f"{signals[0].format}, after {offset} bytes)"
    )
    if surplus < 0 and size < 1024:
        refuse_pointer(path, read_bytes(path, size, "signal file"))
    if surplus < 0 or frames == 0 or (header.num_samples is None and surplus > format_.padding):
        raise ECGReadError(f"{path}: truncated, {declared}", "truncated")
    if surplus > format_.padding:
        warnings.append(f"{os.path.basename(path)} is longer than its header declares: {declared}; the rest is ignored")
    content = np.frombuffer(read_bytes(path, size, "signal file", first=expected), np.uint8)[offset:]
    values = format_.decode(content)[: frames * per_frame].reshape(frames, per_frame)
    if per_frame == len(signals):
        rows: np.ndarray | list[np.ndarray] = np.ascontiguousarray(values.T)
    else:
        ends = np.cumsum([signal.samples_per_frame for signal in signals])
        pieces = [
            values[:, end - signal.samples_per_frame : end].ravel() for signal, end in zip(signals, ends, strict=True)
        ]
        rows = np.stack(pieces) if len({len(piece) for piece in pieces}) == 1 else pieces
    if signals[0].format == "8":  # differences, the first of them from the header's initial value
        rows = [
            np.cumsum(row, dtype=np.int32) + np.int32(signal.initial_value or 0)
            for row, signal in zip(rows, signals, strict=True)
        ]
        rows = _as_matrix(rows)
    return rows, frames


def _read_flac(header: Header, path: str, signals: list[SignalLine]) -> tuple[np.ndarray, int]:
    regular_file_size(path, "signal file")
    if signals[0].byte_offset:
        raise ECGReadError(f"{path}: a byte offset into a FLAC file is not supported")
    per_frame = {signal.samples_per_frame for signal in signals}
    if len(per_frame) > 1:
        raise ECGReadError(f"{path}: signals of several rates in one FLAC file are not supported")
    import soundfile

    bits = _FLAC_BITS[signals[0].format]
    try:
        info = soundfile.info(path)
        frames, rest = divmod(info.frames, per_frame.pop())
        if len(signals) * info.frames > _MOST_VALUES or len(signals) * (header.num_samples or 0) > _MOST_VALUES:
            raise ECGReadError(
                f"{path}: {len(signals)} signals of {header.num_samples or frames} samples, expected at most "
                f"{_MOST_VALUES} values in a compressed file"
            )
        expected = len(signals), frames if header.num_samples is None else header.num_samples
        if (info.channels, frames) != expected or rest:
            found = info.channels, frames
            raise ECGReadError(f"{path}: found (signals, samples) {found} in the FLAC file, expected {expected}")
        values, _ = soundfile.read(path, dtype="int32", always_2d=True)
    except ECGReadError:
        raise
    except Exception as error:  # soundfile's errors have no common type of their own
        raise ECGReadError(f"{path}: not a readable FLAC file ({error})") from error
    if values.shape != (info.frames, len(signals)):
        raise ECGReadError(f"{path}: found {values.shape[0]} samples, expected {info.frames}: a damaged FLAC file")
    return np.ascontiguousarray((values >> (32 - bits)).T, dtype=np.int32 if bits > 16 else np.int16), frames


def _verify(
    path: str,
    lines: Sequence[SignalLine],
    rows: np.ndarray | list[np.ndarray],
    checksums: str,
    warnings: list[str],
) -> list[Fault | None]:
    """
    Compare signals with their first values and checksums in the header: the sum of the samples in 16 bits.

    Returns:
        Of each signal, why it cannot be used, or None.
    """
    faults: list[Fault | None] = [
        None
        if line.gain
        else ("gain", "uncalibrated (a gain of 0, or none, in the header); its voltage is never guessed")
        for line in lines
    ]
    if isinstance(rows, np.ndarray):
        sums, firsts = (rows.sum(axis=1, dtype=np.int64) & 0xFFFF).tolist(), rows[:, 0].tolist()
    else:
        sums, firsts = [int(row.sum(dtype=np.int64)) & 0xFFFF for row in rows], [int(row[0]) for row in rows]
    unchecked = [line.name for line in lines if line.checksum is None]
    if unchecked and len(unchecked) < len(lines):
        raise ECGReadError(f"{path}: the lines of some signals ({_listed(unchecked)}) end before their checksum")
    if unchecked:
        warnings.append(f"the header has no checksum of {_listed(unchecked)}: damaged samples cannot be recognised")
    elif not any(line.checksum for line in lines) and any(sums):
        warnings.append("all checksums in the header are 0, so that damaged samples cannot be recognised")
        sums = [0] * len(lines)
    for index, (line, first, total) in enumerate(zip(lines, firsts, sums, strict=True)):
        fault, code = None, "initial value does not match"
        if line.initial_value not in (None, first) and first != _missing_value(line.format):
            fault = f"it begins with {first}, expected {line.initial_value} by the header"
        elif line.checksum is not None and total != line.checksum & 0xFFFF:
            code = "checksum does not match"
            fault = (
                f"found the checksum {total}, expected {line.checksum & 0xFFFF} by the header: the samples are not "
                "those that were written"
            )
        if fault is not None and checksums == "ignore":
            warnings.append(f"lead {line.name}: {fault}")
        elif fault is not None:
            advice = "get the file again, or read it with checksums='ignore'"
            faults[index] = faults[index] or (code, f"{fault}; {advice}")
    return faults


# Segments


@dataclass
class _Track:
    """A signal through all segments: its pieces by their first sample, each with its header line."""

    line: SignalLine
    pieces: list[tuple[int, np.ndarray, SignalLine, int | None]] = field(default_factory=list)
    fault: Fault | None = None


def _read_segments(header: Header, checksums: str) -> tuple[_Signals, list[str]]:
    """Read a multi-segment record, of fixed or variable layout. Samples in gaps are missing."""
    total = sum(length for _, length in header.segments)
    if header.num_samples not in (None, total):
        raise ECGReadError(
            f"{header.path}: the segments have {total} samples, expected {header.num_samples} by the record line"
        )
    name, length = header.segments[0]
    is_variable = length == 0
    tracks: dict[str, _Track] = {}
    if is_variable:
        layout = _segment_header(header, name)
        if not layout.is_layout:
            raise ECGReadError(f"{layout.path}: expected a layout of signals without samples (a file name ~)")
        tracks = _tracks(layout)
    warnings: list[str] = []
    start = 0
    gaps = []
    for name, length in header.segments[is_variable:]:
        if name == "~":
            gaps.append(f"{length / header.sampling_rate:g} s at {start / header.sampling_rate:g} s")
            start += length
            continue
        segment = _segment_header(header, name)
        signals, notes = _read_signals(segment, checksums)
        if signals.num_frames != length:
            raise ECGReadError(
                f"{segment.path}: found {signals.num_frames} samples, expected {length} by {header.path}"
            )
        warnings += [f"segment {name}: {note}" for note in notes]
        tracks = tracks or _tracks(segment)
        if not is_variable and [line.name for line in signals.lines] != list(tracks):
            raise ECGReadError(f"{segment.path}: other signals than in the first segment, in a record of fixed layout")
        for line, row, fault in zip(signals.lines, signals.rows, signals.faults, strict=True):
            if line.name not in tracks:
                raise ECGReadError(f"{segment.path}: signal {line.name} is not in the record's layout")
            track = tracks[line.name]
            if not track.pieces:
                track.line = line
            if line.samples_per_frame != track.line.samples_per_frame or line.units != track.line.units:
                track.fault = track.fault or ("unsupported format", "segments of different sampling rates or units")
            track.fault = track.fault or fault
            track.pieces.append((start * line.samples_per_frame, row, line, signals.missing_value))
        start += length
    if gaps:
        warnings.append(f"between segments nothing was recorded: {', '.join(gaps)}")
    values = total * sum(track.line.samples_per_frame for track in tracks.values())
    stored = sum(len(row) for track in tracks.values() for _, row, _, _ in track.pieces)
    if not tracks or not stored:
        raise ECGReadError(f"{header.path}: no segment has samples")
    if values > max(_MOST_VALUES, 2 * stored):
        raise ECGReadError(f"{header.path}: {values} samples, nearly all of them in gaps; read the segments one by one")
    return _joined(list(tracks.values()), total), list(dict.fromkeys(warnings))


def _segment_header(header: Header, name: str) -> Header:
    if not is_plain_file_name(name):
        raise ECGReadError(f"{header.path}: found the segment {name!r}, expected a record in the header's own folder")
    segment = read_header(_in_header_folder(header.path, f"{name}.hea", "segment"))
    if segment.segments:
        raise ECGReadError(f"{segment.path}: a segment that has segments itself")
    if segment.sampling_rate != header.sampling_rate:
        raise ECGReadError(
            f"{segment.path}: found {segment.sampling_rate:g} frames a second, expected {header.sampling_rate:g} as in "
            f"{os.path.basename(header.path)}"
        )
    return segment


def _tracks(header: Header) -> dict[str, _Track]:
    tracks = {line.name: _Track(line) for line in header.signals}
    if len(tracks) < len(header.signals):
        raise ECGReadError(f"{header.path}: several signals of one name in a multi-segment record")
    return tracks


def _joined(tracks: list[_Track], num_frames: int) -> _Signals:
    """Join segments: stored integers where every signal keeps its calibration, else physical values."""
    lines = [track.line for track in tracks]
    changing = any(
        (line.gain, line.baseline) != (track.line.gain, track.line.baseline)
        for track in tracks
        for _, _, line, _ in track.pieces
    )
    rows = []
    for track in tracks:
        length = num_frames * track.line.samples_per_frame
        joined = np.full(length, np.nan) if changing else np.full(length, _MISSING, np.int32)
        for start, row, line, missing in track.pieces:
            piece = (row - np.float64(line.baseline)) / (line.gain or 1.0) if changing else row.astype(np.int32)
            if missing is not None:
                piece[row == missing] = np.nan if changing else _MISSING
            joined[start : start + len(piece)] = piece[: max(0, length - start)]
        rows.append(joined)
    if changing:
        lines = [_physical(line) for line in lines]
    matrix = np.stack(rows) if len({len(row) for row in rows}) == 1 else rows
    return _Signals(lines, matrix, None if changing else _MISSING, [track.fault for track in tracks], num_frames)


def _physical(line: SignalLine) -> SignalLine:
    return line._replace(gain=1.0, baseline=0)


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
