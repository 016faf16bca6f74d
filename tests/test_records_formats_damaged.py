"""Damaged files of every format beside WFDB and DICOM, by the hundred, and formats whose library is missing."""

import builtins
import time
import tracemalloc

import numpy as np
import pytest
import scipy.io
from device_files import DEVICES, LEADS, cardiosoft, ishne, samples, schiller
from format_files import feats, write_code_15, write_csv, write_mat
from wfdb_files import write_record

from ecgfm_hf.records import ECGReadError, read_ecg

MV, TABLE = {"units": "mV"}, {"sampling_rate": 500, "units": "uV"}


def put(path, content):
    path.write_bytes(content)
    return path


def a_device_file(kind):
    write, leads, *_ = DEVICES[kind]
    return write(samples(len(leads), 250 if kind == "edf" else 60))


@pytest.mark.parametrize(("library", "kind"), [("ecgdatakit", "muse"), ("h5py", "hdf5")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, library, kind):
    original = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == library:
            raise ImportError(f"No module named {name!r}")
        return original(name, *rest, **named)

    content = b"\x89HDF\r\n\x1a\n" + bytes(99) if kind == "hdf5" else a_device_file(kind)
    monkeypatch.setattr(builtins, "__import__", without)
    arguments = {"exam_id": 1} if kind == "hdf5" else {}
    with pytest.raises(ECGReadError, match=rf"{library}: pip install 'ecgfm-hf\[formats\]'"):
        read_ecg(put(tmp_path / "a", content), **arguments)


WRITTEN = {"ishne": ishne, "cardiosoft": cardiosoft, "schiller": schiller}
KINDS = ("edf", "aecg", "muse", "sierra", "xli", "scp", "scpTrue2", *WRITTEN)
KINDS += ("matFalse", "matTrue", "cpsc", "npy", "stack", "csv", "headless", "watch")
OWN = (*WRITTEN, "matFalse", "matTrue", "cpsc", "npy", "stack", "csv", "headless", "watch")  # without ecgdatakit


def _damaged_inputs(tmp_path):
    for kind in KINDS[:7]:
        yield kind, tmp_path / "a.bin", a_device_file(kind), {}
    for kind, write in WRITTEN.items():
        yield kind, tmp_path / "a.bin", write(samples(12, 60)), {}
    for compress in (False, True):
        path = write_mat(
            tmp_path / "b.mat", feats=feats(40), mean=np.zeros(12), std=np.ones(12), do_compression=compress
        )
        yield f"mat{compress}", path, path.read_bytes(), MV
    np.save(tmp_path / "c.npy", feats(30))
    yield "npy", tmp_path / "c.npy", (tmp_path / "c.npy").read_bytes(), TABLE | {"lead_names": LEADS}
    np.save(tmp_path / "s.npy", feats(90).reshape(3, 12, 30))
    stack = TABLE | {"lead_names": LEADS, "exam_id": 1}
    yield "stack", tmp_path / "s.npy", (tmp_path / "s.npy").read_bytes(), stack
    yield "csv", tmp_path / "d.csv", write_csv(tmp_path / "d.csv", feats(30)).read_bytes(), TABLE
    table = "\n".join(",".join(f"{value:.3f}" for value in row) for row in feats(30).T)
    yield "headless", tmp_path / "e.csv", table.encode(), TABLE | {"lead_names": LEADS}
    head = "Name,X\nRecorded Date,2020-01-15 20:11:34 +0100\nSample Rate,512 hertz\n\nLead,Lead I\nUnit,mV\n\n"
    yield "watch", tmp_path / "w.csv", (head + "\n".join(f"{value:.3f}" for value in feats(60)[0])).encode(), {}
    exam = {"sex": "Male", "age": 50, "data": feats(40)}
    scipy.io.savemat(tmp_path / "f.mat", {"ECG": exam}, do_compression=True)
    yield "cpsc", tmp_path / "f.mat", (tmp_path / "f.mat").read_bytes(), {}


def _outcome(path, arguments):
    start = time.perf_counter()
    try:
        record = read_ecg(path, **arguments)
        record.signal  # noqa: B018
    except ECGReadError:
        record = None
    assert time.perf_counter() - start < 5
    return record


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_harmless(tmp_path, kind):
    from test_records_damaged import damage, only_within

    if kind not in OWN:
        pytest.importorskip("ecgdatakit", reason="needs the extra [formats]: pip install ecgfm-hf[formats]")
    [(_, path, whole, arguments)] = [case for case in _damaged_inputs(tmp_path) if case[0] == kind]
    sound = _outcome(put(path, whole), arguments)
    rng = np.random.default_rng(list(kind.encode()))
    number, read = 120, 0
    with only_within(tmp_path):
        for _ in range(number):
            # Half of it where the format is declared, which is what damage does most by.
            head = int(rng.integers(2)) * min(len(whole), 1500) or len(whole)
            record = _outcome(put(path, damage(whole[:head], rng) + whole[head:]), arguments)
            if record is not None:
                read += 1
                if kind.startswith("scp"):  # the one format with checksums over all of it
                    assert np.array_equal(record.samples, sound.samples)
                assert (
                    kind in ("csv", "headless", "ishne")
                    or record.warnings
                    or record.samples.shape[0] == sound.samples.shape[0]
                )
    assert read < number


def test_damaged_hdf5_is_refused_or_read(tmp_path):
    from test_records_damaged import damage

    path, tracings = write_code_15(tmp_path / "a.hdf5", lengths=(300,), compression="gzip", chunks=(1, 4096, 12))
    whole = path.read_bytes()
    rng = np.random.default_rng(8)
    tracemalloc.start()
    try:
        for _ in range(150):
            head = int(rng.integers(2)) * 4000 or len(whole)
            record = _outcome(put(path, damage(whole[:head], rng) + whole[head:]), {"exam_id": 100})
            assert record is None or record.samples.shape[0] == tracings.shape[2]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_damaged_segments_never_lead_out_of_their_folder(tmp_path):
    from test_records_damaged import damage_header, only_within

    x = samples(2, 80)
    for number, part in enumerate((x[:, :50], x[:, 50:]), start=1):
        write_record(tmp_path, part, name=f"s_{number}", leads=("I", "II"))
    master = "rec/2 2 500 80\ns_1 50\ns_2 30\n"
    whole = master.encode()
    rng, read = np.random.default_rng(9), 0
    assert np.array_equal(_outcome(put(tmp_path / "rec.hea", whole), {}).samples, x)
    names = (b"../s_1", b"/etc/passwd", b"rec", b"~", b"s_2", b"")
    with only_within(tmp_path):
        for number in range(150):
            content = damage_header(whole, rng)
            if number % 3 == 0:
                content = content.replace(b"s_1", names[rng.integers(len(names))])
            read += _outcome(put(tmp_path / "rec.hea", content), {}) is not None
    assert read < 150
