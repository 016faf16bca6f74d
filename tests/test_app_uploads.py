"""What may be dropped on the page: checked, moved under harmless names, read in confinement, and removed."""

import io
import os
import signal
import tarfile
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wfdb_files import random_samples, write_record

from ecgfm_hf.app.reader_process import ReaderProcess, SessionReaders
from ecgfm_hf.app.uploads import MEGABYTE, MOST_FILES, UploadError, stored_bytes, sweep, take_upload
from ecgfm_hf.records import ECGReadError

LIMIT = MEGABYTE
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><AnnotatedECG>&i;</AnnotatedECG>"
)


@pytest.fixture
def incoming(tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def put(incoming, name, content, under="a" * 64):
    """As Gradio stores an upload: in a folder by its content, under its name."""
    (incoming / under).mkdir(exist_ok=True)
    path = incoming / under / name
    path.write_bytes(content)
    return str(path)


def put_record(incoming, tmp_path, header=None, **settings):
    """A WFDB pair, its header changed by `header`."""
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    write_record(source, random_samples(), **settings)
    (hea,) = source.glob("*.hea")
    (dat,) = source.glob("*.dat")
    text = hea.read_text()
    return [
        put(incoming, hea.name, (text if header is None else header(text)).encode(), "1" * 64),
        put(incoming, dat.name, dat.read_bytes(), "2" * 64),
    ]


def files_below(folder):
    return [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]


def refused(paths, incoming, limit=LIMIT):
    with pytest.raises((UploadError, ECGReadError)) as error, take_upload(paths, incoming, limit):
        pass
    assert not files_below(incoming), "what was refused must be gone too"
    return str(error.value)


def test_a_pair_is_laid_out_together_and_gone_afterwards(incoming, tmp_path):
    with take_upload(put_record(incoming, tmp_path), incoming, LIMIT) as upload:
        assert upload.title == "rec"
        assert sorted(os.listdir(upload.path.parent)) == ["rec.dat", "rec.hea"]
        assert upload.path.parent.stat().st_mode & 0o077 == 0
    assert os.listdir(incoming) == []


def test_a_file_on_its_own_keeps_nothing_of_its_name_but_a_known_suffix(incoming):
    for name, kept in {
        "Zweistein.CSV": "recording.csv",
        "x\u202egpj.exe": "recording",
        "a b;c&d.edf": "recording.edf",
    }.items():
        with take_upload([put(incoming, name, b"x")], incoming, LIMIT) as upload:
            assert upload.path.name == kept
        assert not files_below(incoming)


def archive(kind):
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("bomb", bytes(10**6))
    else:
        with tarfile.open(fileobj=stream, mode=f"w:{kind}") as file:
            file.addfile(tarfile.TarInfo("../../bomb"), io.BytesIO(b""))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz", ""])
@pytest.mark.parametrize("name", ["rec.edf", "rec.dat", "rec"])
def test_archives_are_refused_whatever_they_are_called(incoming, kind, name):
    assert "archives" in refused([put(incoming, name, archive(kind))], incoming)


@pytest.mark.parametrize("name", ["rec.zip", "rec.tar.GZ", "rec.npz", "rec.7z", "rec.dcm.xz"])
def test_archives_are_refused_by_their_names_too(incoming, name):
    assert "archives" in refused([put(incoming, name, b"anything")], incoming)


def test_too_much_is_refused_with_both_sizes(incoming):
    paths = [put(incoming, f"{i}.dat", bytes(2 * MEGABYTE // 5)) for i in range(3)]
    assert refused(paths, incoming) == "1.2 MB is too large, expected at most 1 MB"


def test_too_many_files_are_refused(incoming):
    assert "9 files" in refused([put(incoming, f"{i}.dat", b"x") for i in range(MOST_FILES + 1)], incoming)


def test_several_recordings_are_refused(incoming, tmp_path):
    assert "one recording at a time" in refused([put(incoming, n, b"x") for n in ("a.edf", "b.edf")], incoming)
    surplus = [*put_record(incoming, tmp_path), put(incoming, "other.edf", b"x")]
    assert "does not name other.edf" in refused(surplus, incoming)


def test_a_header_alone_says_what_is_missing(incoming, tmp_path):
    header, _ = put_record(incoming, tmp_path)
    os.unlink(_)
    assert refused([header], incoming) == "rec.hea names the signal file rec.dat: drop both together"


@pytest.mark.parametrize(
    "foreign", ["../../../etc/passwd.dat", "/etc/passwd", "..", "sub/rec.dat", "..\\rec.dat", "C:rec.dat", "~root", "-"]
)
def test_a_header_that_names_a_file_elsewhere_is_refused(incoming, tmp_path, foreign):
    paths = put_record(incoming, tmp_path, header=lambda text: text.replace("rec.dat", foreign))
    assert "the header's own folder" in refused(paths, incoming)


def test_links_are_never_followed(incoming, tmp_path):
    secret = tmp_path / "secret.dat"
    secret.write_bytes(b"secret")
    link = incoming / "link.dat"
    link.symlink_to(secret)
    assert "dropped on the page" in refused_but_kept([str(link)], incoming)
    inner = incoming / "inner.dat"
    target = put(incoming, "target.dat", b"x")
    inner.symlink_to(target)
    with pytest.raises(UploadError, match="not a regular file"), take_upload([str(inner)], incoming, LIMIT):
        pass
    assert secret.read_bytes() == b"secret"


def refused_but_kept(paths, incoming):
    with pytest.raises(UploadError) as error, take_upload(paths, incoming, LIMIT):
        pass
    return str(error.value)


def test_files_elsewhere_are_neither_read_nor_removed(incoming, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("x")
    for path in (str(other), f"{incoming}/../other.csv", "/etc/passwd", str(incoming)):
        assert "dropped on the page" in refused_but_kept([path], incoming)
    assert other.exists()


def test_an_upload_that_is_gone_reports_it(incoming):
    assert "no longer there" in refused_but_kept([str(incoming / "gone.edf")], incoming)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_name_is_harmless(incoming, name):
    if name in (".", "..") or len(name.encode()) > 200:
        return
    try:
        with take_upload([put(incoming, name, b"x")], incoming, LIMIT) as upload:
            assert upload.path.parent.parent == incoming.resolve()
            assert upload.path.name.isascii()
    except (UploadError, ECGReadError):
        pass
    assert not files_below(incoming)


def test_what_nobody_asked_about_is_swept(incoming):
    put(incoming, "old.edf", b"old")
    (incoming / "tmp123").write_bytes(b"")
    sweep(incoming, 60, time.time())
    assert stored_bytes(incoming) == 3
    sweep(incoming, 60, time.time() + 120)
    assert os.listdir(incoming) == []


# The process that reads


@pytest.fixture(scope="module")
def reader():
    reader = ReaderProcess()
    reader.start()
    yield reader
    reader.close()


def test_a_recording_comes_back_whole(reader, tmp_path):
    samples = random_samples()
    write_record(tmp_path, samples)
    record = reader.read(tmp_path / "rec.hea", units="mV")
    np.testing.assert_array_equal(record.samples, samples)


def test_facts_that_a_file_lacks_are_asked_for(reader, tmp_path):
    (tmp_path / "r.csv").write_text("I,II\n" + "1,2\n" * 600)
    with pytest.raises(ECGReadError, match="does not contain its sampling rate, units"):
        reader.read(tmp_path / "r.csv")
    assert reader.read(tmp_path / "r.csv", sampling_rate=100.0, units="uV").units == ("uV", "uV")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("laughs.xml", LAUGHS, "entities"),
        ("deep.xml", "<AnnotatedECG>" * 5000, "levels"),
        (
            "outside.xml",
            '<!DOCTYPE x SYSTEM "file:///etc/passwd"><AnnotatedECG></AnnotatedECG>',
            "cannot read aECG|no leads",
        ),
        ("huge.hea", "huge 1 500 999999999999999\nhuge.dat 16 1000/mV 16 0 0 0 0 I\n", "truncated"),
        ("crowd.hea", "crowd 9999 500 1\n", "declares 9999 signals"),
        ("flac.hea", "flac 1 500 99999999999\nflac.dat 516 1000/mV 16 0 0 0 0 I\n", "not a readable FLAC file"),
        ("empty.edf", "", "is empty"),
        ("text", "just text", "unknown format"),
    ],
)
def test_hostile_files_are_refused_by_the_readers(reader, tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    (tmp_path / name).with_suffix(".dat").write_bytes(b"ab")
    with pytest.raises(ECGReadError, match=expected):
        reader.read(tmp_path / name)


def test_a_recording_of_hours_is_refused(reader, tmp_path):
    write_record(tmp_path, np.zeros((1, 20 * 700), int), leads=("I",), rate="20")
    with pytest.raises(ECGReadError, match=r"14000 samples \(700 s\) are too many"):
        reader.read(tmp_path / "rec.hea")


def test_a_file_that_kills_or_holds_its_reader_is_refused_and_the_next_one_read(reader, tmp_path):
    write_record(tmp_path, random_samples())
    reader._process.kill()
    reader._process.join()
    assert reader.read(tmp_path / "rec.hea").samples.shape == (12, 500)  # a new process had been started
    os.kill(reader._process.pid, signal.SIGSTOP)  # as one that never comes to an end
    reader._seconds, before = 0.2, reader._seconds
    try:
        with pytest.raises(ECGReadError, match=r"not read within 0\.2 s"):
            reader.read(tmp_path / "rec.hea")
    finally:
        reader._seconds = before
    assert reader._process is None


def test_memory_is_limited(tmp_path):
    """A reader that may take next to nothing refuses what another reads, and lives on or is replaced."""
    np.save(tmp_path / "x.npy", np.zeros((12, 600_000)))
    reader = ReaderProcess(memory=8 << 20)
    try:
        with pytest.raises(ECGReadError, match=r"memory|died|cannot"):
            reader.read(tmp_path / "x.npy", sampling_rate=5000.0, units="mV", lead_names=[f"L{i}" for i in range(12)])
    finally:
        reader.close()


def test_each_session_has_a_process_of_its_own_that_ends_with_it(tmp_path, monkeypatch):
    class Fake:
        def __init__(self):
            self.started = self.closed = False

        def start(self):
            self.started = True

        def read(self, path, **arguments):
            assert not self.closed
            return self

        def close(self):
            self.closed = True

    monkeypatch.setattr("ecgfm_hf.app.reader_process.ReaderProcess", Fake)
    readers = SessionReaders(most=2)
    readers.start()
    first = readers.read("one", "a.edf")
    assert first.started, "it was started in advance"
    second = readers.read("two", "b.edf")
    assert second is not first
    assert readers.read("one", "c.edf") is first
    third = readers.read("three", "d.edf")
    assert (first.closed, second.closed, third.closed) == (False, True, False), "the one unused for longest ends"
    readers.end("one")
    assert first.closed
    assert readers.read("one", "a.edf") is not first
    assert readers.read("", "a.edf").closed, "without a session it ends at once"
    readers._seconds = 0.0
    readers.read("four", "a.edf")
    assert third.closed
    readers.close()
    assert readers.read("four", "a.edf").started is False
