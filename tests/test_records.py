"""`read_ecg` on sound WFDB files, and `ECGRecord`. Other kinds of file have their own test_records_*.py."""

import os
import pickle
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import wfdb
from wfdb_files import LEADS, checksums, edit, encode, header_lines, random_samples, write_by_wfdb, write_record

from ecgfm_hf import records
from ecgfm_hf.records import ECGReadError, ECGRecord, read_ecg

SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared"))
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # of wfdb's own use of pandas

FORMATS = ("8", "16", "24", "32", "61", "80", "160", "212", "310", "311")


def real_headers():
    headers = sorted((SHARED / "data" / "physionet2021" / "training").glob("*/g1/*.hea"))
    if not headers:
        pytest.skip(f"no PhysioNet 2021 recordings under {SHARED} (set ECGFM_SHARED)")
    return headers


# What is read


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(("leads", "length"), [(12, 500), (1, 1), (5, 101), (3, 7)])
def test_every_format_gives_back_the_samples_that_were_written(tmp_path, format_, leads, length):
    path, samples = write_record(tmp_path, random_samples(format_, leads, length), format_=format_)
    record = read_ecg(path)
    assert np.array_equal(record.samples, samples)
    assert record.samples.dtype in (np.int16, np.int32)
    assert record.lead_names == LEADS[:leads]


@pytest.mark.parametrize("format_", ["16", "24", "32", "61", "80", "160", "212", "310", "311"])
def test_own_decoding_and_wfdb_agree(tmp_path, format_):
    path, _ = write_record(tmp_path, format_=format_, offset=24, calibration="200.5(-7)/uV")
    record, other = read_ecg(path), wfdb.rdrecord(str(path.with_suffix("")), physical=False)
    assert np.array_equal(record.samples, other.d_signal.T)
    physical = wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T
    assert np.allclose(record.signal, physical * 1e-3, rtol=1e-15, atol=0)


@pytest.mark.parametrize("format_", ["16", "24", "32", "80", "212", "508", "516", "524"])
def test_records_written_by_wfdb_are_read(tmp_path, format_):
    width = {"508": "80", "516": "16", "524": "24"}.get(format_, format_)
    samples = random_samples(width, samples=301)
    write_by_wfdb(tmp_path, samples, format_, baseline=3)
    record = read_ecg(tmp_path / "rec.hea")
    assert np.array_equal(record.samples, samples)
    assert np.allclose(record.signal, (samples - 3) / 200)
    assert record.sampling_rate == 250


def test_all_real_recordings_are_read_as_wfdb_reads_them():
    headers = real_headers()
    for header in headers:
        record, other = read_ecg(header), wfdb.rdrecord(str(header.with_suffix("")), physical=False)
        assert np.array_equal(record.samples, other.d_signal.T)
        assert (record.samples.dtype, record.sampling_rate, record.lead_names) == (np.int16, 500.0, LEADS)
        assert checksums(record.samples) == other.checksum
        one, two, three = record.signal[:3]
        assert np.abs(one + three - two).max() < 0.01 * np.ptp(two)
        assert record.sex in ("M", "F")
        assert record.diagnoses
    assert len(headers) == 40


def test_own_decoding_is_several_times_faster_than_wfdb():
    stems = [str(header.with_suffix("")) for header in real_headers()]

    def seconds(read):
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            for stem in stems:
                read(stem)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(read_ecg) * 3 < seconds(lambda stem: wfdb.rdrecord(stem, physical=False))


def test_matlab_file_behind_24_bytes_with_the_comments_of_physionet_2021(tmp_path):
    comments = ["# Age: 84", "#Sex: Female", "# Dx: 284470004,427084000", "# Rx: Dr Somebody", "# Sx: Unknown"]
    path, samples = write_record(tmp_path, name="JS1", suffix=".mat", offset=24, comments=comments)
    record = read_ecg(path)
    assert np.array_equal(record.samples, samples)
    assert (record.recording_id, record.path) == ("JS1", str(path))
    assert (record.age, record.sex, record.diagnoses) == (84.0, "F", ("284470004", "427084000"))
    assert (record.report, record.patient_id, record.time) == (None, None, None)
    assert "Somebody" not in repr(record)


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        (["#Age: NaN", "#Sex: NaN", "#Dx: "], (None, None, ())),
        (["#Age: -1", "#Sex: Unknown", "#Dx: Unknown"], (None, None, ())),
        (["#Age: 300", "#Sex: male", "#Dx:  426783006 , 39732003"], (None, "M", ("426783006", "39732003"))),
        (["#Age: 0", "#Sex: F", "#Dx: 426783006", "#Age: 7"], (0.0, "F", ("426783006",))),
        (["# a comment of another kind", "#"], (None, None, ())),
    ],
)
def test_age_sex_and_diagnoses_are_none_where_they_say_nothing(tmp_path, comments, expected):
    path, _ = write_record(tmp_path, comments=comments)
    record = read_ecg(path)
    assert (record.age, record.sex, record.diagnoses) == expected


@pytest.mark.parametrize("given", ["rec", "rec.hea", "rec.mat"])
def test_header_stem_or_signal_file_may_be_named(tmp_path, monkeypatch, given):
    _, samples = write_record(tmp_path, suffix=".mat", offset=24)
    for path in (tmp_path / given, str(tmp_path / given), os.fsencode(tmp_path / given)):
        record = read_ecg(path)
        assert np.array_equal(record.samples, samples)
        assert (record.recording_id, record.path) == ("rec", str(tmp_path / given))
    monkeypatch.chdir(tmp_path)
    assert read_ecg(given).path == given


def test_leads_in_several_files_come_in_the_order_of_the_header(tmp_path):
    for format_ in ("16", "212"):
        samples = random_samples(format_, leads=5)
        path, _ = write_record(tmp_path, samples, format_=format_)
        text = path.read_text().splitlines()
        path.write_text("\n".join(text[:3] + [line.replace("rec.dat", "rec.xyz") for line in text[3:]]))
        (tmp_path / "rec.dat").write_bytes(encode(samples[:2].T, format_))
        (tmp_path / "rec.xyz").write_bytes(encode(samples[2:].T, format_))
        assert np.array_equal(read_ecg(path).samples, samples)


@pytest.mark.parametrize(
    ("calibration", "adc_zero", "millivolts"),
    [
        ("1000.0(0)/mV", 0, lambda x: x / 1000),
        ("1000/mv", 0, lambda x: x / 1000),
        ("2.5(100)/uV", 0, lambda x: (x - 100) / 2.5e3),
        ("200", 1024, lambda x: (x - 1024) / 200),  # MIT-BIH's way: the standard's defaults for baseline and unit
        ("-200(5)/mV", 0, lambda x: (x - 5) / -200),
        ("1e3/mV", 0, lambda x: x / 1000),
    ],
)
def test_signal_is_in_millivolts(tmp_path, calibration, adc_zero, millivolts):
    path, samples = write_record(tmp_path, calibration=calibration)
    edit(path, " 16 0 ", f" 16 {adc_zero} ", count=12)
    record = read_ecg(path)
    assert record.signal.dtype == np.float64
    assert np.allclose(record.signal, millivolts(samples), rtol=1e-14, atol=0)
    assert not np.isnan(record.signal).any()


@pytest.mark.parametrize("format_", ["16", "24", "32", "61", "80", "160", "212", "310", "311"])
def test_missing_samples_are_nan_in_the_signal_and_kept_in_the_samples(tmp_path, format_):
    samples = random_samples(format_)
    bits = {"24": 24, "32": 32, "80": 8, "212": 12, "310": 10, "311": 10}.get(format_, 16)
    samples[3, 10:20] = samples[11, -1] = -(2 ** (bits - 1))
    path, _ = write_record(tmp_path, samples, format_=format_)
    record = read_ecg(path)
    assert np.array_equal(record.samples, samples)
    assert np.array_equal(np.isnan(record.signal), samples == record.missing_value)
    assert np.isnan(record.signal).sum() == 11


def test_names_are_canonical_where_standard_and_the_files_own_otherwise(tmp_path):
    leads = ("i", "II", "AVR", "avf", "v1", "belt", "V7", "ECG_v2", "EKG III")
    path, _ = write_record(tmp_path, random_samples(leads=9), leads=leads)
    assert read_ecg(path).lead_names == ("I", "II", "aVR", "aVF", "V1", "belt", "V7", "V2", "III")


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (" 12:42:00 23/11/2180", datetime(2180, 11, 23, 12, 42)),
        (" 12:42:00.250 23/11/2180", datetime(2180, 11, 23, 12, 42, 0, 250_000)),
        (" 12:42:00", None),
        (" 00:00:00 00/00/0000", None),
        (" 05-Feb-2020 11:39:16", None),
    ],
)
def test_time_is_read_where_it_is_whole(tmp_path, rest, expected):
    path, _ = write_record(tmp_path)
    edit(path, "rec 12 500 500", f"rec 12 500/360(0.5) 500{rest}")
    assert read_ecg(path).time == expected


def test_windows_line_ends_blank_lines_and_latin_1_comments(tmp_path):
    path, samples = write_record(tmp_path)
    path.write_bytes(b"#M\xfcller\r\n\r\n" + path.read_bytes().replace(b"\n", b"\r\n").replace(b" 16 0 ", b"\t16  0 "))
    assert np.array_equal(read_ecg(path).samples, samples)


def test_a_cache_of_links_to_one_other_folder_is_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    _, samples = write_record(tmp_path / "blobs")
    for suffix, blob in ((".hea", "a1"), (".dat", "b2")):
        (tmp_path / "blobs" / f"rec{suffix}").rename(tmp_path / "blobs" / blob)
        (tmp_path / "snapshot" / f"rec{suffix}").symlink_to(Path("..") / "blobs" / blob)
    assert np.array_equal(read_ecg(tmp_path / "snapshot" / "rec.hea").samples, samples)


# The record itself


def a_record(**changes):
    fields = {
        "recording_id": "r", "path": "r.hea", "samples": np.ones((2, 4), np.int16), "gain": [1.0, 1.0],
        "baseline": [0, 0], "units": ["mV", "uV"], "sampling_rate": 500, "lead_names": ["I", "ii"],
    }  # fmt: skip
    return ECGRecord(**(fields | changes))


def test_record_settles_its_fields_and_cannot_be_changed():
    samples = np.ones((2, 4), np.int16)
    record = a_record(samples=samples)
    assert (record.lead_names, record.units) == (("I", "II"), ("mV", "uV"))
    assert record.gain.dtype == record.baseline.dtype == np.float64
    assert np.array_equal(record.signal, [[1.0] * 4, [1e-3] * 4])
    with pytest.raises(AttributeError):
        record.sampling_rate = 1
    with pytest.raises(ValueError, match="read-only"):
        record.samples[0, 0] = 2
    samples[0, 0] = 1  # the caller's array is the caller's still
    record.signal[0, 0] = 2
    assert record.signal[0, 0] == 1
    copy = pickle.loads(pickle.dumps(record))
    assert np.array_equal(copy.samples, record.samples)


def test_float_samples_are_missing_where_nan():
    record = a_record(samples=np.array([[1, np.nan], [2, 3]], np.float32))
    assert np.array_equal(record.signal, [[1, np.nan], [2e-3, 3e-3]], equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": np.ones(4, np.int16)}, r"shape \(4,\), expected \(leads, samples\)"),
        ({"samples": np.ones((2, 0), np.int16)}, r"found samples of shape \(2, 0\)"),
        ({"samples": np.ones((2, 4), np.int64)}, "found samples of type int64"),
        ({"lead_names": ["I"]}, "1 lead names for 2 leads"),
        ({"lead_names": ["I", " "]}, "lead 2 of 2 has no name"),
        ({"lead_names": ["I", "i"]}, "lead I occurs twice"),
        ({"gain": [1.0]}, r"found gain of shape \(1,\), expected \(2,\)"),
        ({"gain": [1.0, 0.0]}, "lead II has gain 0"),
        ({"gain": [1.0, np.inf]}, "lead II has gain inf"),
        ({"gain": [1e-200, 1.0]}, "lead I has gain 1e-200"),
        ({"baseline": [0, np.nan]}, "lead II has baseline nan"),
        ({"units": ["mV"]}, "1 units for 2 leads"),
        ({"units": ["mV", "mmHg"]}, "lead II: unknown unit 'mmHg'"),
        ({"sampling_rate": 0}, "sampling rate of 0 Hz"),
        ({"sampling_rate": np.nan}, "sampling rate of nan Hz"),
        ({"sampling_rate": 1e9}, r"sampling rate of 1e\+09 Hz"),
        ({"sex": "male"}, "sex must be"),
        ({"age": -1}, "age must be"),
        ({"samples": np.ones((2, 4)), "missing_value": -1}, "missing_value is for stored integers"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ECGReadError, match=message) as caught:
        a_record(**changes)
    assert str(caught.value).startswith("r.hea: ")


def test_importing_records_is_cheap_and_reading_needs_no_other_format(tmp_path):
    path, _ = write_record(tmp_path)
    # The room by itself: a bare package around it, and a stand-in for the feature extractor's two functions.
    code = """if True:
        import sys, types
        package = sys.modules["ecgfm_hf"] = types.ModuleType("ecgfm_hf")
        package.__path__ = [sys.argv[1]]
        from ecgfm_hf import records
        assert "numpy" not in sys.modules
        assert {"ECGReadError", "ECGRecord", "read_ecg"} <= set(dir(records))
        extractor = sys.modules["ecgfm_hf.feature_extraction_ecgfm"] = types.ModuleType("stand_in")
        extractor.STANDARD_LEADS = ("I", "II")
        extractor.canonical_lead_name, extractor.millivolts_per_unit = str, lambda unit: 1.0
        records.read_ecg(sys.argv[2]).signal
        heavy = {"wfdb", "soundfile", "pydicom", "pandas", "scipy", "matplotlib", "datasets", "torch"}
        print(*heavy & set(sys.modules))
    """
    package = Path(records.__file__).parents[1]
    command = [sys.executable, "-c", code, str(package), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    with pytest.raises(AttributeError, match="attribute nothing"):
        records.nothing  # noqa: B018


def test_header_lines_of_the_tests_are_those_of_a_real_header():
    lines = header_lines(np.array([[5, -3], [1, 2]]), leads=("I", "II"))
    assert lines == ["rec 2 500 2", "rec.dat 16 1000.0(0)/mV 16 0 5 2 0 I", "rec.dat 16 1000.0(0)/mV 16 0 1 3 0 II"]
