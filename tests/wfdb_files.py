"""WFDB files made for tests: every sample format encoded from its description, with no reader's code involved.

signal(5) and header(5) of the WFDB Applications Guide say how the bytes lie.
"""

from pathlib import Path

import numpy as np
import wfdb

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
BITS = {"8": 7, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}


def random_samples(format_="16", leads=12, samples=500, seed=0):
    """(leads, samples) over the format's whole range but its lowest value, which marks a missing sample."""
    rng = np.random.default_rng(seed)
    limit = 2 ** (BITS[format_] - 1)
    values = rng.integers(-limit + 1, limit, (leads, samples))
    return np.cumsum(values, axis=1) if format_ == "8" else values


def encode(frames: np.ndarray, format_: str) -> bytes:
    """Bytes of a signal file: `frames` is (samples, leads), laid out one frame after another."""
    flat = frames.astype(np.int64).ravel()
    if format_ == "8":
        return np.diff(frames, axis=0, prepend=frames[:1]).astype(np.int8).tobytes()
    if format_ in ("16", "61", "32"):
        return flat.astype({"16": "<i2", "61": ">i2", "32": "<i4"}[format_]).tobytes()
    if format_ == "24":
        return flat.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    if format_ == "80":
        return (flat + 128).astype(np.uint8).tobytes()
    if format_ == "160":
        return (flat + 32768).astype("<u2").tobytes()
    if format_ == "212":
        first, second = np.pad(flat, (0, len(flat) % 2)).reshape(-1, 2).T & 0xFFF
        packed = np.stack([first & 0xFF, first >> 8 | (second >> 8) << 4, second & 0xFF], axis=1)
        return packed.astype(np.uint8).tobytes()[: (len(flat) * 3 + 1) // 2]
    first, second, third = np.pad(flat, (0, -len(flat) % 3)).reshape(-1, 3).T & 0x3FF
    if format_ == "310":
        words = np.stack([first << 1 | (third & 0x1F) << 11, second << 1 | (third >> 5) << 11], axis=1)
        return words.astype("<u2").tobytes()
    return (first | second << 10 | third << 20).astype("<u4").tobytes()  # 311


def checksums(samples: np.ndarray) -> list[int]:
    """The sum of each lead in 16 bits, signed, as header files have it."""
    return [int(total) for total in samples.sum(axis=1).astype(np.int16)]


def header_lines(samples, name="rec", format_="16", suffix=".dat", calibration="1000.0(0)/mV", leads=LEADS, rate="500"):
    sums = checksums(np.asarray(samples))
    lines = [f"{name} {len(samples)} {rate} {len(samples[0])}"]
    for lead, row, total in zip(leads, samples, sums, strict=False):
        lines.append(f"{name}{suffix} {format_} {calibration} 16 0 {row[0]} {total} 0 {lead}")
    return lines


def write_record(folder, samples=None, *, name="rec", format_="16", offset=0, suffix=".dat", comments=(), **header):
    """Write a header and its signal file, and return the header's path and the (leads, samples) in them."""
    folder = Path(folder)
    samples = random_samples(format_) if samples is None else np.asarray(samples)
    declared = f"{format_}x1+{offset}" if offset else format_
    lines = header_lines(samples, name, declared, suffix, **header)
    path = folder / f"{name}.hea"
    path.write_text("\n".join([*lines, *comments]) + "\n")
    (folder / f"{name}{suffix}").write_bytes(bytes(range(offset)) + encode(samples.T, format_))
    return path, samples


def write_by_wfdb(folder, samples, format_, baseline=0):
    """The same by wfdb itself, which is the only way to FLAC (formats 508, 516, 524)."""
    leads = len(samples)
    wfdb.wrsamp(
        "rec", 250, ["mV"] * leads, list(LEADS[:leads]), d_signal=samples.T, fmt=[format_] * leads,
        adc_gain=[200.0] * leads, baseline=[baseline] * leads, write_dir=str(folder),
    )  # fmt: skip


def edit(path, old: str, new: str, count: int = 1):
    """Replace text in a header, making sure that it was there."""
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, count))
