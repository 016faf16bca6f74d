"""Damaged recordings by the hundred: each is refused with an `ECGReadError`, or comes out with its samples unharmed.

All damage is seeded. While a damaged file is read, what Python opens is watched, and so are memory and time.
"""

import os
import re
import sys
import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from wfdb_files import random_samples, write_by_wfdb, write_record

from ecgfm_hf.records import ECGReadError, read_ecg

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The inplace keyword")

_watched: list[str] | None = None


def _note(event, arguments):
    if _watched is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        _watched.append(os.fsdecode(arguments[0]))
    elif event.startswith(("socket.", "urllib.", "subprocess.", "os.system")):
        _watched.append(event)


@contextmanager
def only_within(folder):
    """Fail if anything but the files of `folder` is opened, a network or process used, or 20 MB of memory taken."""
    global _watched
    if not getattr(sys, "_ecgfm_test_hook", False):  # an audit hook stays for good, so it is set once
        sys.addaudithook(_note)
        sys._ecgfm_test_hook = True
    tracemalloc.start()
    _watched = []
    try:
        yield
        outside = {path for path in _watched if os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder)}
        assert not outside
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        _watched = None
        tracemalloc.stop()


def outcome(path):
    """The record, or None where it was refused; any other error, or ten seconds of silence, fails the test."""
    start = time.perf_counter()
    try:
        record = read_ecg(path)
        record.signal  # noqa: B018
    except ECGReadError:
        record = None
    assert time.perf_counter() - start < 10
    return record


def damage(content: bytes, rng) -> bytes:
    """`content` with one thing wrong: bits flipped, a piece cut out, doubled, overwritten or cut off."""
    at, length = int(rng.integers(len(content))), int(rng.integers(1, 40))
    kind = rng.integers(7)
    if kind <= 1:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        return bytes(damaged)
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content[:at] + content[at + length :]
    if kind == 4:
        return content[:at] + content[at : at + length] + content[at:]
    if kind == 5:
        return content[:at] + rng.bytes(length) + content[at + length :]
    return content[:at] + bytes(length) + content[at + length :]


def damage_header(content: bytes, rng) -> bytes:
    """A header with a number replaced, or a number, word or line lost, doubled or swapped; or as `damage` does it."""
    kind = rng.integers(6)
    if kind == 0:
        return damage(content, rng)
    separator = rb"(\n)" if kind == 1 else rb"(\d+)" if kind <= 3 else rb"([ \n/()+x]+)"
    pieces = re.split(separator, content)
    first, second = (int(i) for i in rng.integers(len(pieces), size=2))
    if kind == 3:
        numbers = [
            b"",
            b"0",
            b"-1",
            b"1e9",
            b"999999999999999",
            b"9" * 5000,
            b"nan",
            b"../../etc/passwd",
            b"\0",
            b"24",
            b"16",
        ]
        first |= 1
        pieces[min(first, len(pieces) - 2)] = numbers[rng.integers(len(numbers))]
    elif rng.integers(3) == 0:
        del pieces[first]
    elif rng.integers(2):
        pieces[first] = pieces[second]
    else:
        pieces[first], pieces[second] = pieces[second], pieces[first]
    return b"".join(pieces)


KINDS = {
    "dat": {},
    "mat": {"suffix": ".mat", "offset": 24},
    **{format_: {"format_": format_} for format_ in ("8", "24", "32", "61", "80", "160", "212", "310", "311")},
    "flac": None,
}


def written(folder, kind):
    if KINDS[kind] is None:
        samples = random_samples(leads=3, samples=200)
        write_by_wfdb(folder, samples, "516")
    else:
        samples = random_samples(KINDS[kind].get("format_", "16"), leads=3, samples=100)
        write_record(folder, samples, **KINDS[kind])
    header, data = folder / "rec.hea", folder / f"rec{'.mat' if kind == 'mat' else '.dat'}"
    assert np.array_equal(read_ecg(header).samples, samples)
    return header, data, samples


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_headers_never_give_other_samples(tmp_path, kind):
    header, _, samples = written(tmp_path, kind)
    whole = header.read_bytes()
    rng = np.random.default_rng(list(kind.encode()))
    refused = 0
    number = 250 if kind in ("dat", "mat") else 40
    with only_within(tmp_path):
        for case in range(number):
            header.write_bytes(damage_header(whole, rng))
            record = outcome(header)
            refused += record is None
            if record is not None and len(record.samples) < len(samples):  # a channel that damage made no lead
                assert any("is excluded" in warning for warning in record.warnings)
                assert all((row == samples).all(axis=1).any() for row in record.samples)
                continue
            assert record is None or np.array_equal(record.samples, samples), f"case {case}: {header.read_bytes()}"
    assert 0.3 * number < refused < number


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_signal_files_never_give_other_samples(tmp_path, kind):
    header, data, samples = written(tmp_path, kind)
    whole = data.read_bytes()
    rng = np.random.default_rng([1, *kind.encode()])
    with only_within(tmp_path):
        for case in range(250 if kind in ("dat", "mat") else 60):
            data.write_bytes(damage(whole, rng))
            record = outcome(header)
            if record is None or np.array_equal(record.samples, samples):
                continue
            # A checksum of 16 bits is blind to what is above them; every shorter format is covered in full.
            assert kind in ("24", "32"), f"case {case}"
            assert not ((record.samples - samples).astype(np.int64).sum(axis=1) & 0xFFFF).any()


def test_each_bit_of_a_16_bit_signal_file_is_covered(tmp_path):
    header, data, samples = written(tmp_path, "mat")
    whole = data.read_bytes()
    for bit in range(0, 8 * len(whole), 11):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        data.write_bytes(damaged)
        record = outcome(header)
        if bit < 24 * 8:  # what lies before the offset is no sample
            assert np.array_equal(record.samples, samples)
        else:
            assert record is None


def test_damaged_dicom_files_are_refused_or_read(tmp_path):
    dataset = pydicom.dcmread(get_testdata_file("waveform_ecg.dcm", download=False))
    for keyword in [element.keyword for element in dataset if element.keyword != "WaveformSequence"]:
        if keyword not in ("SOPClassUID", "SOPInstanceUID", "PatientAge", "PatientSex", "AcquisitionDateTime"):
            delattr(dataset, keyword) if keyword else None
    dataset.remove_private_tags()
    del dataset.WaveformSequence[1]
    group = dataset.WaveformSequence[0]
    group.NumberOfWaveformSamples = 50
    group.WaveformData = group.WaveformData[: 50 * 24]
    path = tmp_path / "small.dcm"
    dataset.save_as(path)
    whole, samples = path.read_bytes(), read_ecg(path).samples
    rng = np.random.default_rng(5)
    read = 0
    with only_within(tmp_path):
        for _ in range(150):
            path.write_bytes(damage(whole, rng))
            record = outcome(path)
            if record is not None:  # DICOM has no checksum, so only the shape is known to be right
                read += 1
                excluded = sum("is excluded" in warning for warning in record.warnings)
                assert record.samples.shape == (len(samples) - excluded, samples.shape[1])
    assert 15 < read < 135
