"""`read_ecg` on formats that need arguments: fairseq-signals .mat, CODE-15% HDF5, CSV and npy."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from device_files import LEADS, NAME
from format_files import feats, write_code_15, write_csv, write_mat
from wfdb_files import write_record

from ecgfm_hf.feature_extraction_ecgfm import resample
from ecgfm_hf.records import ECGReadError, read_code_15, read_ecg

CODE_15 = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "code_15"
TABLE = {"sampling_rate": 500, "units": "uV"}
MV = {"units": "mV"}

needs_h5py = pytest.mark.usefixtures("_h5py")


@pytest.fixture
def _h5py():
    pytest.importorskip("h5py", reason="needs the extra [formats]: pip install ecgfm-hf[formats]")


def refused(path, *messages, **arguments):
    with pytest.raises(ECGReadError) as caught:
        read_ecg(path, **arguments)
    assert str(caught.value).startswith(f"{path}: ")
    for message in messages:
        assert message in str(caught.value)
    assert NAME not in str(caught.value)


def put(path, content):
    path.write_bytes(content)
    return path


# CPSC 2018 .mat


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("sex", "age", "expected"),
    [
        ("Male", 74, ("M", 74.0)),
        ("Female", 0, ("F", 0.0)),
        ("Unknown", 150, (None, 150.0)),
        ("Male", 151, ("M", None)),
        ("Male", -1, ("M", None)),
        ("Male", [[30, 40]], ("M", None)),
    ],
)
def test_a_cpsc_2018_recording_has_its_voltages_sex_and_age(tmp_path, compress, sex, age, expected):
    x = feats()
    scipy.io.savemat(tmp_path / "A0001.mat", {"ECG": {"sex": sex, "age": age, "data": x}}, do_compression=compress)
    record = read_ecg(tmp_path / "A0001.mat")
    assert (record.recording_id, record.lead_names, record.sampling_rate) == ("A0001", LEADS, 500.0)
    assert (record.sex, record.age) == expected
    assert np.array_equal(record.signal, x)
    assert np.allclose(read_ecg(tmp_path / "A0001.mat", units="uV").signal, x / 1000, rtol=1e-12)


def test_cpsc_2018_files_of_another_layout_are_refused(tmp_path):
    for content, message in (
        ({"ECG": {"data": feats()[:11]}}, "found ECG.data of shape (11, 300), expected (12, samples)"),
        ({"ECG": {"sex": "Male"}}, "found ECG.sex"),
        ({"ECG": feats()}, "without feats (fairseq-signals) or ECG (CPSC 2018)"),
        ({"ECG": np.array([(1.0,), (2.0,)], dtype=[("data", "O")])}, "without feats"),
    ):
        scipy.io.savemat(tmp_path / "A0002.mat", content)
        refused(tmp_path / "A0002.mat", message)
    scipy.io.savemat(tmp_path / "A0003.mat", {"ECG": {"data": feats()}})
    assert read_ecg(tmp_path / "A0003.mat").sex is None


# fairseq-signals .mat


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", ">f4", "i2", "i4", "u1", "u2"])
def test_mat_gives_what_scipy_gives(tmp_path, compress, dtype):
    x = (feats() * 20).clip(0 if dtype[0] == "u" else -99, 99).astype(dtype)
    path = write_mat(
        tmp_path / "a.mat", feats=x, age=61, patient_id="77", curr_sample_size=300, do_compression=compress
    )
    record = read_ecg(path, units="mV")
    assert np.array_equal(record.samples, scipy.io.loadmat(path)["feats"])
    assert record.samples.dtype == {"u1": np.int16, "u2": np.int32}.get(dtype, np.dtype(dtype).newbyteorder("="))
    assert (record.recording_id, record.lead_names, record.sampling_rate) == ("a", LEADS, 500.0)
    assert np.array_equal(record.signal, x)
    assert (record.age, record.patient_id) == (None, None)


def test_whole_doubles_that_matlab_stores_in_fewer_bytes_are_doubles(tmp_path):
    x = np.round(feats() * 20).astype(np.int16)
    path = write_mat(tmp_path / "a.mat", feats=x)
    content = path.read_bytes()
    flags = content.index(b"feats") - 32  # the matrix's class is the first byte behind the tag of its flags
    assert content[flags] == 10  # int16
    put(path, content[:flags] + b"\x06" + content[flags + 1 :])
    record = read_ecg(path, units="mV")
    assert record.samples.dtype == np.float64
    assert np.array_equal(record.signal, x)


def test_a_standardised_mat_comes_back_in_volts(tmp_path):
    x = feats() * 300 + 50
    x[3] = 1.5
    mean, std = x.mean(1, keepdims=True), x.std(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        path = write_mat(tmp_path / "a.mat", feats=(x - mean) / std, mean=mean, std=std, segment_i=0)
    signal = read_ecg(path, units="uV").signal * 1000
    live = [i for i in range(12) if i != 3]
    assert np.allclose(signal[live], x[live], rtol=0, atol=1e-10)
    assert np.isnan(signal[3]).all()  # 0 / 0 in the file
    z = np.where(std > 0, (x - mean) / np.where(std > 0, std, 1), 0.25)
    signal = read_ecg(write_mat(tmp_path / "b.mat", feats=z, mean=mean, std=std), units="uV").signal * 1000
    assert np.allclose(signal, x, rtol=0, atol=1e-10)


def test_real_segments_are_pieces_of_the_real_recordings():
    segments = sorted((CODE_15 / "segmented").glob("*.mat"))
    if not segments:
        pytest.skip(f"no CODE-15 files in {CODE_15} (set ECGFM_SHARED)")
    for path in segments:
        stem, _, number = path.stem.rpartition("_")
        whole, segment = read_ecg(CODE_15 / "org" / f"{stem}.mat", **MV), read_ecg(path, **MV)
        assert (whole.sampling_rate, segment.sampling_rate) == (400.0, 500.0)
        assert whole.samples.dtype == np.float32
        assert np.array_equal(whole.samples, scipy.io.loadmat(whole.path)["feats"])
        one, two, three, right = whole.signal[:4]
        # The order is the one it should be; this recorder's leads keep Einthoven's law only roughly.
        assert np.corrcoef(one + three, two)[0, 1] > 0.98
        assert np.corrcoef(-one - two, right)[0, 1] > 0.98
        start = int(number) * 2500
        expected = resample(whole.signal, 400, 500)[:, start : start + 2500]
        assert np.allclose(segment.signal, expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"feats": np.ones((5000, 12))}, "feats of shape (5000, 12), expected (12, samples)"),
        ({"feats": "text"}, "feats is no matrix of real numbers"),
        ({"feats": np.ones((12, 9)) * 1j}, "feats is no matrix of real numbers"),
        ({"feats": np.ones((12, 3, 4))}, "feats is no matrix of two dimensions"),
        ({"feats": np.ones((12, 9), np.int64)}, "feats of type int64"),
        ({"feats": np.full((12, 9), np.inf)}, "lead I has infinite samples"),
        ({"curr_sample_rate": 0}, "sampling rate of 0 Hz"),
        ({"curr_sample_rate": [1, 2]}, "curr_sample_rate of shape (1, 2), expected one finite number"),
        ({"curr_sample_size": 301}, "300 samples, expected 301 by curr_sample_size"),
        ({"segment_i": 1}, "without mean and std"),
        ({"feats": np.tile([1.0, -1.0], (12, 50))}, "without mean and std"),
        ({"mean": np.zeros(12)}, "no std"),
        ({"mean": np.zeros(12), "std": np.zeros(11)}, "std of shape (1, 11), expected 12 numbers"),
        ({"mean": np.zeros(12), "std": np.zeros(12)}, "lead I varies although its std is 0"),
        ({"mean": np.full(12, np.nan), "std": np.ones(12)}, "lead I has mean nan"),
    ],
)
def test_a_mat_that_contradicts_itself_is_refused(tmp_path, variables, message):
    refused(write_mat(tmp_path / "a.mat", **variables), message, units="mV")


def test_other_mat_files_are_distinguished(tmp_path):
    scipy.io.savemat(tmp_path / "other.mat", {"x": 1})
    refused(tmp_path / "other.mat", "without feats (fairseq-signals) or ECG (CPSC 2018)", units="mV")
    refused(write_mat(tmp_path / "a.mat"), "does not contain its units", "units=")
    write_record(tmp_path, name="JS1", suffix=".mat", offset=24)
    assert read_ecg(tmp_path / "JS1.mat").recording_id == "JS1"
    refused(tmp_path / "JS1.mat", "units=", "WFDB", units="mV")
    (tmp_path / "JS1.hea").unlink()
    refused(tmp_path / "JS1.mat", "needs its header beside it")
    scipy.io.savemat(tmp_path / "v4.mat", {"val": np.ones((12, 50), np.int16)}, format="4")
    refused(tmp_path / "v4.mat", "needs its header beside it")
    refused(put(tmp_path / "v7.mat", b"MATLAB 7.3 MAT-file".ljust(600)), "MATLAB 7.3")


def test_a_compressed_mat_does_not_unpack_without_bounds(tmp_path):
    path = write_mat(tmp_path / "a.mat", bomb=np.zeros((8200, 8200), np.uint8), do_compression=True)
    assert path.stat().st_size < 500_000
    refused(path, "unpacks to more than", units="mV")


# CODE-15 HDF5


@needs_h5py
@pytest.mark.parametrize("settings", [{}, {"compression": "gzip", "chunks": (1, 4096, 12)}, {"dtype": "f8"}])
def test_code_15_exams_are_read_without_their_padding(tmp_path, settings):
    path, tracings = write_code_15(tmp_path / "exams_part0.hdf5", **settings)
    records = list(read_code_15(path))
    assert [record.recording_id for record in records] == ["100", "101", "102"]
    for row, (record, length) in enumerate(zip(records, (4096, 2934, 1), strict=True)):
        start = (4096 - length) // 2
        assert np.array_equal(record.samples, tracings[row, start : start + length].T)
        assert record.samples.dtype == settings.get("dtype", "f4")
        assert (record.sampling_rate, record.lead_names, set(record.units)) == (400.0, LEADS, {"mV"})
        assert np.array_equal(record.signal, record.samples)
        one = read_ecg(path, exam_id=100 + row)
        assert np.array_equal(one.samples, record.samples)
        assert one.path == str(path)
    assert read_ecg(path, exam_id=np.int64(100), units="uV").units[0] == "uV"
    assert len(list(read_code_15(write_code_15(tmp_path / "b.hdf5", dummy=False)[0]))) == 3


@needs_h5py
def test_code_15_exams_that_cannot_be_read_are_reported(tmp_path):
    path, _ = write_code_15(tmp_path / "a.hdf5", lengths=(3000, 0, 3000))
    with pytest.raises(ECGReadError, match="exam 101 is all zeros"):
        list(read_code_15(path))
    errors = {}
    assert [r.recording_id for r in read_code_15(path, on_error=errors.__setitem__)] == ["100", "102"]
    assert list(errors) == [101]
    refused(path, "does not contain its exam id; pass exam_id=")
    refused(path, "exam_id 7 0 times", "100 to 102", exam_id=7)
    refused(path, "exam_id '100' 0 times", exam_id="100")
    refused(path, "last row", exam_id=0)


@needs_h5py
def test_hdf5_of_another_kind_is_refused(tmp_path):
    import h5py

    path, other = tmp_path / "a.hdf5", write_code_15(tmp_path / "other.hdf5")[0]
    ids = np.arange(3)
    layout = h5py.VirtualLayout((3, 4096, 12), "f4")
    layout[:] = h5py.VirtualSource(str(other), "tracings", (4, 4096, 12))[:3]
    huge = {"shape": (3, 4096, 12), "chunks": (3, 4096, 12), "maxshape": (None, None, None), "dtype": "f4"}
    cases = [
        (lambda file: file.create_dataset("ecg", data=ids), "expected exam_id and tracings (CODE-15%)"),
        (lambda file: file.create_dataset("tracings", data=np.zeros((3, 12, 4096), "f4")), "expected (3, 4096, 12)"),
        (lambda file: file.create_dataset("tracings", data=np.zeros((3, 4096, 12), "i2")), "of floats"),
        (lambda file: file.__setitem__("tracings", h5py.ExternalLink(str(other), "tracings")), "within the file"),
        (lambda file: file.__setitem__("tracings", h5py.SoftLink("/exam_id")), "within the file"),
        (lambda file: file.create_virtual_dataset("tracings", layout), "within the file"),
        (lambda file: file.create_dataset("tracings", (3, 4096, 12), "f4", external=str(other)), "within the file"),
        (lambda file: file.create_dataset("tracings", **huge | {"chunks": (9000, 4096, 12)}), "too large"),
    ]
    for make, message in cases:
        with h5py.File(path, "w") as file:
            file["exam_id"] = ids
            make(file)
        refused(path, message, exam_id=1)


# CSV, TSV, npy


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_text_tables_have_a_column_a_lead(tmp_path, suffix, separator):
    x = feats(50)
    record = read_ecg(write_csv(tmp_path / f"a{suffix}", x, separator=separator), **TABLE)
    assert np.array_equal(record.samples, x)
    assert (record.lead_names, record.units, record.sampling_rate) == (LEADS, ("uV",) * 12, 500.0)
    path = write_csv(tmp_path / f"b{suffix}", x[:3], ["time", "lead ii", "V1"], separator)
    refused(path, "'time' is no known lead", "lead_names=", **TABLE)
    record = read_ecg(path, **TABLE | {"units": ["mV", "uV"]}, lead_names=["V1", "lead ii"])
    assert (record.lead_names, record.units) == (("V1", "II"), ("mV", "uV"))
    assert np.array_equal(record.samples, x[[2, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I,II\n1,2\n3\n", "line 3: found 1 fields, expected 2"),
        ("I,II\n1,2\n3,4,5\n", "line 3: found 3 fields, expected 2"),
        ("I,II\n1,2\n3,x\n", "line 3: lead II: found 'x', expected a number"),
        ("I,II\n1,1_0\n", "found '1_0', expected a number"),
        ("I,II\n1,\uff11\n", "found '\uff11', expected a number"),
        ("I,II\n1,inf\n", "lead II has infinite samples"),
        ("1,2\n3,4\n", "does not contain its lead names; pass lead_names="),
        ("I,i\n3,4\n", "lead I occurs twice"),
        ("I;II\n3;4\n", "'I;II' is no known lead"),
        ("I,II\n", "found samples of shape (2, 0)"),
        ("\nI,II\n", "first line is empty"),
        ('I,II\n1,"2\n', "not a table"),
        ("I,II\n1,2\n3,4\n\n5,6\n7,8\n", "line 4 is empty, and samples follow"),
        ("0,1,2\n.1,.2,.3\n", "the first line counts the columns (0, 1, 2, ...)"),
        ("1,2,3,4\n.1,.2,.3,.4\n", "the first line counts the columns (1, 2, 3, ...)"),
        ("I,II\n1,\0\n", "line 2"),
        ("I,II\n1," + "9" * 200_000, "line 2"),
    ],
)
def test_a_damaged_text_table_is_refused(tmp_path, text, message):
    refused(put(tmp_path / "a.csv", text.encode()), message, **TABLE)
    refused(put(tmp_path / "b.csv", b"I,II\n1,\xff\n"), "not text in UTF-8", **TABLE)


def test_a_table_and_an_array_may_have_a_unit_per_lead(tmp_path):
    write_csv(tmp_path / "a.csv", np.array([[1.0, 2.0], [3.0, 4.0]]), names=("I", "II"))
    record = read_ecg(tmp_path / "a.csv", sampling_rate=500, units=["mV", "uV"])
    assert record.units == ("mV", "uV")
    np.save(tmp_path / "a.npy", np.ones((2, 5)))
    record = read_ecg(tmp_path / "a.npy", sampling_rate=500, units=["mV", "uV"], lead_names=["I", "II"])
    assert record.units == ("mV", "uV")


def test_an_empty_field_is_a_missing_sample(tmp_path):
    record = read_ecg(put(tmp_path / "a.csv", b"I,II\r\n1,\r\n\r\n 2 ,nan\r\n"), **TABLE)
    assert np.array_equal(record.samples, [[1, 2], [np.nan, np.nan]], equal_nan=True)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_leads_by_samples(tmp_path, dtype, order):
    x = np.asarray(np.arange(24).reshape(2, 12), dtype, order=order)
    np.save(tmp_path / "a.npy", x)
    record = read_ecg(tmp_path / "a.npy", lead_names=["V2", "I"], **TABLE)
    assert np.array_equal(record.samples, x)
    assert (record.lead_names, record.units, record.recording_id) == (("V2", "I"), ("uV", "uV"), "a")


def test_an_npy_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    named = TABLE | {"lead_names": ["I", "II"]}
    for x, message in [
        (np.ones((9, 2)), "shape (9, 2), expected (2 leads, samples); the dimensions look swapped"),
        (np.ones((3, 9)), "shape (3, 9), expected (2 leads, samples)"),
        (np.ones((3, 2, 9)), "no exam_id for a stack of 3 recordings"),
        (np.ones((2, 9), complex), "array of <c16"),
        (np.array([["a"], ["b"]]), "array of <U1"),
        (np.array([[1], [None]]), "array of |O"),
        (np.full((2, 9), 2**40), "more than 32 bits"),
        (np.full((2, 9), np.inf), "lead I has infinite"),
        (np.ones((2, 0)), "found 0 bytes"),
    ]:
        np.save(path, x, allow_pickle=True)
        refused(path, message, **named)
    np.save(path, np.ones((2, 9)))
    whole = path.read_bytes()
    refused(put(path, whole[:-1]), "found 143 bytes of samples, expected 144", **named)
    refused(put(path, whole.replace(b"(2, 9)", b"(2, 9999999999)")), "expected 159999999984", **named)
    refused(put(path, whole.replace(b"(2, 9)", b"(2, nine)")), "damaged npy header", **named)
    refused(put(path, whole), "expected a list of names", **named | {"lead_names": "I"})
    refused(path, "unknown unit 'furlong'", **named | {"units": "furlong"})
    refused(path, "2 leads", **named | {"units": ["mV"]})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "a.npy",
            {},
            "does not contain its sampling rate, lead names, units; pass sampling_rate=, lead_names=, units=",
        ),
        ("a.npy", TABLE, "does not contain its lead names; pass lead_names="),
        ("a.csv", {"units": "mV"}, "does not contain its sampling rate; pass sampling_rate="),
        ("a.csv", TABLE | {"exam_id": 3}, "found exam_id=, which"),
        ("a.csv", TABLE | {"sampling_rate": "500"}, "sampling_rate='500', expected a number"),
        ("a.csv", TABLE | {"sampling_rate": 5}, "sampling rate of 5 Hz"),
        ("a.csv", TABLE | {"units": 3}, "units=3"),
        ("a.mat", TABLE, "found sampling_rate=, which"),
        ("a.mat", {"units": ["mV"] * 12}, "expected a unit"),
        ("rec.hea", {"sampling_rate": 500}, "found sampling_rate=, which"),
    ],
)
def test_arguments_are_what_the_format_cannot_say(tmp_path, name, arguments, message):
    np.save(tmp_path / "a.npy", feats())
    write_csv(tmp_path / "a.csv", feats())
    write_mat(tmp_path / "a.mat")
    write_record(tmp_path)
    refused(tmp_path / name, message, **arguments)


@needs_h5py
@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "gzip", "shuffle": True},
        {"compression": "gzip", "fletcher32": True},
        {"compression": "lzf", "shuffle": True},
        {"compression": "lzf", "chunks": (1, 1000, 12)},
        {"fletcher32": True, "chunks": (3, 700, 5)},
        {"compression": "gzip", "chunks": (2, 4096, 1), "dtype": ">f8"},
    ],
)
def test_chunks_are_unpacked_as_hdf5_does(tmp_path, settings):
    path, tracings = write_code_15(tmp_path / "a.hdf5", lengths=(4096, 4096, 4096), **settings)
    for record, expected in zip(read_code_15(path), tracings, strict=False):
        assert np.array_equal(record.samples, expected[expected.any(axis=1).argmax() :].T)


@needs_h5py
@pytest.mark.parametrize("numbers", [0, 1000, 20_000, 4096 * 12 - 1, 4096 * 12 + 1])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_chunk_of_another_size_is_refused(tmp_path, numbers, shuffle):
    import h5py

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["exam_id"] = np.arange(1, 3)
        settings = {"chunks": (1, 4096, 12), "compression": "gzip", "shuffle": shuffle}
        tracings = file.create_dataset("tracings", (2, 4096, 12), "f4", **settings)
        for row, count in enumerate((numbers, 4096 * 12)):
            tracings.id.write_direct_chunk((row, 0, 0), zlib.compress(np.ones(count, "f4").tobytes()))
    refused(tmp_path / "a.hdf5", "chunk of /tracings at (0, 0, 0)", f"expected {4096 * 12 * 4} bytes", exam_id=1)
    assert read_ecg(tmp_path / "a.hdf5", exam_id=2).samples.shape == (12, 4096)


@needs_h5py
def test_samples_that_were_never_written_are_refused(tmp_path):
    import h5py

    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.arange(1, 4)
        tracings = file.create_dataset("tracings", (3, 4096, 12), "f4", chunks=(1, 1024, 12))
        tracings[1] = 1
        tracings[0, :2048] = tracings[0, 3072:] = 1
    refused(path, "the chunk of /tracings at (0, 2048, 0) was never written", exam_id=1)
    refused(path, "last row", exam_id=3)
    assert [record.recording_id for record in read_code_15(path, on_error=lambda *_: None)] == ["2"]
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.arange(1, 4)
        file.create_dataset("tracings", (3, 4096, 12), "f4")
    refused(path, "/tracings was never written", exam_id=1)


def test_a_watch_export_with_decimal_commas_is_refused_also_where_its_last_line_is_cut(tmp_path):
    head = b"Sample Rate,512 hertz\nLead,Lead I\nUnit,\xc2\xb5V\n\n"
    assert read_ecg(put(tmp_path / "a.csv", head + b"-1.5\n2.5\n")).samples.tolist() == [[-1.5, 2.5]]
    refused(put(tmp_path / "b.csv", head + b"-1,5\n2,5\n-7"), "found lines of two numbers")
