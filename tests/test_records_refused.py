"""What `read_ecg` refuses: files that are missing, of another kind, contradict their header or point elsewhere."""

import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from wfdb_files import checksums, edit, encode, random_samples, write_by_wfdb, write_record

from ecgfm_hf.records import ECGReadError, read_ecg

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # of wfdb's own use of pandas

FORMATS = ("8", "16", "24", "32", "61", "80", "160", "212", "310", "311")


def refused(path, *messages):
    """The error of reading `path`, which names the folder's file and says each of `messages`."""
    with pytest.raises(ECGReadError) as caught:
        read_ecg(path)
    assert type(caught.value) is ECGReadError
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


def test_paths_that_are_no_recording_are_refused(tmp_path):
    (tmp_path / "empty.hea").touch()
    (tmp_path / "empty.bin").touch()
    (tmp_path / "folder.hea").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "image.dcm").write_text("hello")
    (tmp_path / "alone.mat").write_bytes(b"x" * 200)
    (tmp_path / "blank.hea").write_text("# nothing\n\n")
    os.mkfifo(tmp_path / "pipe.hea")
    refused(tmp_path / "none.hea", "none.hea: no such header")
    refused(tmp_path / "none", "none: no such file")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "folder.hea", "is a folder")
    refused(tmp_path / "empty.hea", "is empty")
    refused(tmp_path / "empty.bin", "is empty")
    refused(tmp_path / "pipe.hea", "device or pipe")
    refused("/dev/zero", "device or pipe")
    refused(tmp_path / "notes.txt", "notes.txt", "unknown format", ".hea", ".dcm")
    refused(tmp_path / "image.dcm", "not a DICOM file")
    refused(tmp_path / "alone.mat", "needs its header beside it", "alone.hea")
    refused(tmp_path / "blank.hea", "no record line")
    refused("a\0b.hea", "null")
    refused("https://example.org/rec.hea", "no such")
    refused("x" * 5000 + ".hea", "cannot open this header")
    with pytest.raises(TypeError):
        read_ecg(None)


def test_header_without_data_and_data_of_another_header(tmp_path):
    path, _ = write_record(tmp_path)
    (tmp_path / "rec.mat").write_bytes(b"x" * 200)
    refused(tmp_path / "rec.mat", "rec.mat", "uses rec.dat, not this file")
    (tmp_path / "rec.dat").unlink()
    refused(path, "rec.dat: no such signal file")
    (tmp_path / "rec.dat").touch()
    refused(path, "rec.dat: is empty")
    (tmp_path / "rec.dat").unlink()
    os.mkfifo(tmp_path / "rec.dat")
    refused(path, "device or pipe")


@pytest.mark.parametrize("format_", [*FORMATS, "mat"])
def test_signal_file_of_another_length_is_refused(tmp_path, format_):
    kind = {"suffix": ".mat", "offset": 24} if format_ == "mat" else {"format_": format_}
    path, samples = write_record(tmp_path, **kind)
    data = tmp_path / f"rec{kind.get('suffix', '.dat')}"
    whole = data.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 24, 1):
        data.write_bytes(whole[:length])
        refused(path, data.name, "truncated", f"found {length} bytes", f"{samples.shape[1]} samples")
    data.write_bytes(whole + whole[-24:])
    assert np.array_equal(read_ecg(path).samples, samples)
    assert ["longer than its header declares" in warning for warning in read_ecg(path).warnings] == [True]


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("rec 12", "rec 13", ["declares 13 signals, found 12"]),
        ("rec 12", "rec 11", ["declares 11 signals, found 12"]),
        ("rec 12", "rec 0", ["no signals"]),
        ("rec 12", "rec twelve", ["expected a record name and a number of signals"]),
        ("rec 12", "rec/3 12", ["declares 3 segments, found 12 segment lines"]),
        ("rec 12 500 500", "rec 12", ["no sampling rate"]),
        ("rec 12 500 500", "rec 12 0 500", ["sampling rate '0'"]),
        ("rec 12 500 500", "rec 12 -500 500", ["sampling rate '-500'"]),
        ("rec 12 500 500", "rec 12 nan 500", ["sampling rate 'nan'"]),
        ("rec 12 500 500", "rec 12 1e400 500", ["sampling rate '1e400'"]),
        ("rec 12 500 500", "rec 12 5e8 500", ["5e+08 Hz"]),
        ("rec 12 500 500", "rec 12 500 -5", ["number of samples '-5'"]),
        ("rec 12 500 500", "rec 12 500 499", ["lead I: found the checksum"]),
        ("rec 12 500 500", "rec 12 500 501", ["rec.dat: truncated", "expected 12024"]),
        (" 0 aVR", " 0 V1", ["lead V1 occurs twice"]),
        ("mV", "mmHg", ["lead I", "'mmHg'"]),
        ("mV", "MV", ["lead I", "'MV'"]),
        ("1000.0(0)/mV", "0(0)/mV", ["lead I", "gain of 0", "uncalibrated"]),
        ("1000.0(0)/mV ", "", ["found the block size 'I'"]),
        ("1000.0(0)/mV", "nan(0)/mV", ["signal 1 (I)", "no readable gain"]),
        ("1000.0(0)/mV", "1e999/mV", ["signal 1 (I)", "gain 1e999"]),
        (" 16 1000", " 16x2 1000", ["rec.dat: truncated"]),
        (" 16 1000", " sixteen 1000", ["expected a signal format"]),
        (" 16 1000", " 61 1000", ["several formats (16, 61) in one file"]),
        ("rec.dat 16 1000", "rec.dat", ["signal 1"]),
    ],
)
def test_header_that_states_something_impossible_is_refused(tmp_path, old, new, messages):
    path, _ = write_record(tmp_path)
    edit(path, old, new)
    refused(path, "rec", *messages)


def test_unknown_format_names_the_known_ones(tmp_path):
    path, _ = write_record(tmp_path)
    edit(path, " 16 1000", " 17 1000", count=12)
    refused(path, "found signal format 17", "8, 16, 24, 32, 61, 80, 160, 212, 310, 311, 508, 516, 524")


def test_samples_that_are_not_those_of_the_header_are_refused(tmp_path):
    path, samples = write_record(tmp_path)
    data = tmp_path / "rec.dat"
    changed = samples.copy()
    changed[7, 100] ^= 1
    data.write_bytes(encode(changed.T, "16"))
    refused(path, "lead V2: found the checksum", "not those that were written", "checksums='ignore'")
    changed = samples.copy()
    changed[3, [0, 1]] = changed[3, [1, 0]]
    data.write_bytes(encode(changed.T, "16"))
    refused(path, f"lead aVR: it begins with {samples[3, 1]}, expected {samples[3, 0]} by the header")
    data.write_bytes(encode(samples[::-1].T, "16"))
    refused(path, "lead I: it begins with")


def test_checksums_may_be_written_without_a_sign(tmp_path):
    path, samples = write_record(tmp_path)
    sums = checksums(samples)
    text = path.read_text()
    for row, total in zip(samples, sums, strict=True):
        text = text.replace(f" {row[0]} {total} 0 ", f" {row[0]} {total % 65536} 0 ")
    path.write_text(text)
    assert min(sums) < 0
    assert np.array_equal(read_ecg(path).samples, samples)


@pytest.mark.parametrize("length", [10**6, 10**12, 10**15 - 1, 10**40])
@pytest.mark.parametrize("format_", ["16", "32", "212", "516"])
def test_an_enormous_length_is_refused_without_memory(tmp_path, length, format_):
    if format_ == "516":
        write_by_wfdb(tmp_path, random_samples(leads=3, samples=500), format_)
    else:
        write_record(tmp_path, random_samples(leads=3, samples=500), format_=format_)
    path = tmp_path / "rec.hea"
    path.write_text(re.sub(r"\A(rec 3 \d+) 500", rf"\1 {length}", path.read_text()))
    message = refused(path, "rec", str(length))  # once unmeasured, for what this imports
    if format_ == "516" and 10**9 < length < 10**15:
        assert "values in a compressed file" in message
    tracemalloc.start()
    try:
        refused(path, "rec", str(length))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_enormous_header_is_refused_without_reading_it(tmp_path):
    with open(tmp_path / "rec.hea", "wb") as file:
        file.truncate(10**9)
    refused(tmp_path / "rec.hea", "expected at most 1048576 in a WFDB header file")


@pytest.mark.parametrize(
    "name",
    ["/secret.dat", "../secret.dat", "sub/secret.dat", "sub\\secret.dat", "C:secret.dat", "..", ".", "-", "~rec"],
)
@pytest.mark.parametrize("format_", ["16", "212"])
def test_a_header_that_points_outside_its_folder_is_refused(tmp_path, name, format_):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    path, samples = write_record(folder, format_=format_)
    for directory in (tmp_path, folder / "sub"):
        (directory / "secret.dat").write_bytes(encode(samples.T, format_))
    edit(path, "rec.dat", f"{tmp_path}{name}" if name == "/secret.dat" else name, count=12)
    refused(path, "signal 1", "header's own folder")


@pytest.mark.parametrize("format_", ["16", "212", "516"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, format_):
    folder = tmp_path / "folder"
    folder.mkdir()
    path, samples = write_record(folder)
    edit(path, " 16 1000", f" {format_} 1000", count=12)
    (folder / "rec.dat").rename(tmp_path / "secret.dat")
    for target in (tmp_path / "secret.dat", Path("../secret.dat"), Path("/dev/zero"), tmp_path / "nothing"):
        (folder / "rec.dat").symlink_to(target)
        refused(path, "rec.dat", "link that leads out")
        (folder / "rec.dat").unlink()
    (tmp_path / "secret.dat").rename(folder / "real.dat")
    (folder / "rec.dat").symlink_to("real.dat")
    if format_ == "16":
        assert np.array_equal(read_ecg(path).samples, samples)


def test_a_path_that_fsspec_would_chain_is_read_from_the_disk(tmp_path):
    folder = tmp_path / "simplecache::http:"
    folder.mkdir()
    path, samples = write_record(folder, format_="212")
    assert np.array_equal(read_ecg(path).samples, samples)
