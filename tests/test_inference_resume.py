"""A run that is killed goes on where it was: no row lost, none doubled, none of another model's."""

import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from inference_cases import recordings, write_model, write_store
from killed_runs import damage_file, start, wait
from wfdb_files import write_record

from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.inference import ParquetRun
from ecgfm_hf.inference.recording_sources import StoreSource
from ecgfm_hf.utils.resumable_parts import Task

PART = 3  # of 10 recordings: four parts


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made") / "store", recordings())


@pytest.fixture
def embed(model_dir, store):
    """Runs `ecgfm embed`; recordings 3 and 6 are too short."""

    def run(output, *options, model=model_dir, data=store):
        given = ["embed", str(data), "--model", str(model), "--output", str(output), "--part-size", str(PART)]
        return ecgfm([*given, "--precision", "float32", *options])

    return run


@pytest.fixture
def read(monkeypatch):
    """The indices that are read."""
    indices = []

    def noting(self, given, original=StoreSource.read):
        indices.extend(given)
        return original(self, given)

    monkeypatch.setattr(StoreSource, "read", noting)
    return indices


def killed_at(change, embed, folder):
    """Kills a run before its n-th change to the disk. Returns whether it was still running."""

    def run():
        torch.set_num_threads(1)  # no threads survive a fork
        assert embed(folder / "out.parquet") == 1

    status = wait(start(run, folder, kill_at=change))
    assert status in (0, -9)
    return status != 0


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_change_it_continues_to_the_same_rows(step, embed, tmp_path):
    assert embed(tmp_path / "expected.parquet") == 1
    expected = pq.read_table(tmp_path / "expected.parquet")
    failures = (tmp_path / "expected.failures.csv").read_text()
    change = 0
    while True:
        folder = tmp_path / f"at-{change}"
        folder.mkdir()
        if not killed_at(change, embed, folder):
            break
        assert embed(folder / "out.parquet") == 1
        found = pq.read_table(folder / "out.parquet")
        assert found["recording_id"].to_pylist() == expected["recording_id"].to_pylist()
        assert found["segments"].equals(expected["segments"])
        for one, other in zip(found["embedding"].to_pylist(), expected["embedding"].to_pylist(), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert (folder / "out.failures.csv").read_text() == failures
        assert {path.name for path in folder.iterdir()} == {"out.parquet", "out.failures.csv"}, change
        change += step
    assert change > 4 * 4


def test_finished_parts_are_not_run_again(embed, tmp_path, read, capsys):
    change = 0
    while True:  # until the second part's account is there
        (tmp_path / f"at-{change}").mkdir()
        assert killed_at(change, embed, tmp_path / f"at-{change}")
        if list((tmp_path / f"at-{change}" / "out.parquet.parts").glob("parts-*/part-00001.json")):
            break
        change += 3
    output = tmp_path / f"at-{change}" / "out.parquet"
    assert embed(output) == 1
    assert read == list(range(2 * PART, 10))
    read.clear()
    assert embed(output) == 1, "the failures count although nothing was run"
    assert read == []
    printed = capsys.readouterr().err
    assert "complete already" in printed
    assert f" written to {output}" not in printed[printed.index("complete already") :]
    assert embed(output, "--overwrite") == 1
    assert read == list(range(10))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "change", ["model", "weights", "data", "layer", "policy", "per segment", "precision", "part size"]
)
def test_a_run_with_another_model_data_or_setting_is_refused(
    embed, model_dir, tiny_config, tmp_path, capsys, finished, change
):
    output = tmp_path / "out.parquet"
    if finished:
        assert embed(output) == 1
    else:
        (tmp_path / "killed").mkdir()
        assert killed_at(20, embed, tmp_path / "killed")
        output = tmp_path / "killed" / "out.parquet"
        assert (output.parent / "out.parquet.parts" / "plan.json").exists()
    changed, options = {}, []
    if change == "model":
        changed["model"] = write_model(tmp_path / "model", tiny_config(layer_norm_eps=1e-4))
    elif change == "weights":
        changed["model"] = write_model(tmp_path / "model", tiny_config(), seed=4)
    elif change == "data":
        changed["data"] = write_store(tmp_path / "other", recordings(seed=1))
    else:
        options = {
            "layer": ["--layer", "1"],
            "policy": ["--short-recordings", "pad"],
            "per segment": ["--per-segment"],
            "precision": ["--precision", "bfloat16"],
            "part size": ["--part-size", "4"],
        }[change]
    before = output.read_bytes() if finished else None
    assert embed(output, *options, **changed) == 2
    expected = {
        "data": "recordings",
        "weights": "differs in: model",
        "policy": "short_recordings (error, now pad)",
        "layer": "layer (None, now 1)",
    }
    assert expected.get(change, change.replace(" ", "_")) in capsys.readouterr().err
    if finished:
        assert output.read_bytes() == before
    assert embed(output, *options, "--overwrite", **changed) == (0 if change == "policy" else 1)


def test_of_runs_that_begin_in_the_same_moment_the_second_is_refused(embed, tmp_path, monkeypatch, capsys):
    assert embed(tmp_path / "expected.parquet", "--layer", "1") == 1
    output, look = tmp_path / "out.parquet", ParquetRun._earlier

    def interrupted(self):
        raise KeyboardInterrupt

    def look_before_another_begins(self):
        found = look(self)
        monkeypatch.setattr(ParquetRun, "_earlier", look)
        with monkeypatch.context() as other:
            other.setattr(ParquetRun, "_join", interrupted)
            assert embed(output, "--layer", "1") == 130, "all of its parts are there"
        return found

    monkeypatch.setattr(ParquetRun, "_earlier", look_before_another_begins)
    assert embed(output) == 2
    assert "layer (1, now None)" in capsys.readouterr().err
    assert embed(output, "--layer", "1") == 1
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "expected.parquet"))


def test_parts_of_a_run_that_another_discarded_do_not_mix_with_its_own(embed, tmp_path, monkeypatch):
    assert embed(tmp_path / "expected.parquet", "--layer", "1") == 1
    output, write = tmp_path / "out.parquet", ParquetRun._write_parts

    def interrupted(self):
        raise KeyboardInterrupt

    def write_after_another_began_anew(self):
        monkeypatch.setattr(ParquetRun, "_write_parts", write)
        with monkeypatch.context() as other:
            other.setattr(ParquetRun, "_join", interrupted)
            assert embed(output, "--layer", "1", "--overwrite") == 130, "all of its parts are there"
        write(self)

    monkeypatch.setattr(ParquetRun, "_write_parts", write_after_another_began_anew)
    assert embed(output) == 2
    assert embed(output, "--layer", "1") == 1
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "expected.parquet"))


@pytest.mark.parametrize("other", [[], ["--layer", "1", "--overwrite"]])
def test_a_run_that_another_overtakes_says_what_is_there(embed, tmp_path, monkeypatch, capsys, other):
    output, write = tmp_path / "out.parquet", ParquetRun._write_parts

    def write_after_another(self):
        monkeypatch.setattr(ParquetRun, "_write_parts", write)
        assert embed(output, *other) == 1
        capsys.readouterr()
        write(self)

    monkeypatch.setattr(ParquetRun, "_write_parts", write_after_another)
    assert embed(output) == (2 if other else 1)
    assert ("layer (1, now None)" if other else "complete already") in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "out.failures.csv"}
    schema = pq.read_schema(output)
    assert (b'"layer": 1' if other else b'"layer": null') in schema.metadata[b"ecgfm_inference"]


def test_a_changed_signal_file_is_another_recording(model_dir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for name in ("e0", "e1"):
        write_record(tmp_path / "files", rng.integers(-2000, 2000, (12, 2500)).astype(np.int16), name=name)
    given = ["embed", str(tmp_path / "files"), "--model", str(model_dir), "--output", str(tmp_path / "out.parquet")]
    assert ecgfm(given) == 0
    path = tmp_path / "files" / "e1.dat"
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # neither size nor time say that it has changed
    assert ecgfm(given) == 2
    assert "the content of one of the 2 recordings from" in (error := capsys.readouterr().err)
    assert "has changed" in error


@pytest.mark.parametrize("changed", ["e1.hea", "e1.dat", "e7.hea"])
def test_a_file_that_changed_after_a_kill_is_noticed_in_finished_parts_only(model_dir, tmp_path, capsys, changed):
    rng = np.random.default_rng(0)
    (tmp_path / "files").mkdir()
    for name in [f"e{number}" for number in range(8)]:
        write_record(tmp_path / "files", rng.integers(-2000, 2000, (12, 2500)).astype(np.int16), name=name)
    output = tmp_path / "out.parquet"
    given = ["embed", str(tmp_path / "files"), "--model", str(model_dir), "--output", str(output), "--part-size", "4"]

    def killed():
        torch.set_num_threads(1)
        finish = Task.finish

        def finish_first(task, write):
            if task.number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return finish(task, write)

        Task.finish = finish_first
        ecgfm(given)

    assert wait(start(killed, tmp_path)) == -signal.SIGKILL
    path = tmp_path / "files" / changed
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"1000.0(0)/mV", b"2000.0(0)/mV") if changed.endswith("hea") else content[::-1])
    assert path.stat().st_size == before.st_size
    assert path.read_bytes() != content
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if changed == "e7.hea":  # not read yet
        assert ecgfm(given) == 0
        return
    assert ecgfm(given) == 2
    error = capsys.readouterr().err
    assert f"one of the 4 recordings from {tmp_path / 'files' / 'e0'}" in error
    assert "has changed since" in error
    assert not output.exists()
    path.write_bytes(content)
    assert ecgfm(given) == 0


def test_a_stamp_goes_by_the_content_of_all_files_of_a_recording(tmp_path):
    from ecgfm_hf.data.sources.base import recording_stamp

    samples = np.random.default_rng(0).integers(-2000, 2000, (12, 250)).astype(np.int16)
    for name in ("s_1", "s_2"):
        write_record(tmp_path, samples, name=name)
    (tmp_path / "whole.hea").write_text("whole/2 12 500 500\ns_1 250\ns_2 250\n")
    (tmp_path / "exams.hdf5").write_bytes(bytes(1000))
    given = [str(tmp_path / name) for name in ("whole", "whole.hea", "s_2.dat", "exams.hdf5")]

    def stamps():
        return [recording_stamp(path) for path in given]

    first = stamps()
    for path, changed in (("s_2.dat", [0, 1, 2]), ("s_1.hea", [0, 1]), ("whole.hea", [0, 1]), ("exams.hdf5", [3])):
        file = tmp_path / path
        before, content = file.stat(), file.read_bytes()
        damage_file(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert [number for number in range(len(given)) if stamps()[number] != first[number]] == changed
        file.write_bytes(content)
        assert stamps() == first  # at another time


def test_a_header_that_was_mended_is_another_recording_by_any_name(model_dir, tmp_path, capsys):
    samples = np.random.default_rng(0).integers(-2000, 2000, (12, 2500)).astype(np.int16)
    write_record(tmp_path, samples, name="e0")
    for number, name in enumerate(("e0", "e0.hea", "e0.dat")):
        output = str(tmp_path / f"{number}.parquet")
        given = ["embed", str(tmp_path / name), "--model", str(model_dir), "--output", output]
        assert ecgfm(given) == 0
        header = (tmp_path / "e0.hea").read_text()
        (tmp_path / "e0.hea").write_text(header.replace("1000.0(0)/mV", "2000.0(0)/mV"))
        assert (tmp_path / "e0.hea").read_text() != header
        assert ecgfm(given) == 2
        assert "the content of" in (error := capsys.readouterr().err)
        assert "has changed since" in error
        (tmp_path / "e0.hea").write_text(header)


def test_a_moved_model_is_the_same_model(embed, model_dir, tmp_path):
    import shutil

    assert embed(tmp_path / "out.parquet") == 1
    shutil.copytree(model_dir, tmp_path / "moved")
    assert embed(tmp_path / "out.parquet", "--batch-size", "2", model=tmp_path / "moved") == 1


def test_a_file_of_somebody_else_is_not_replaced(embed, tmp_path, capsys):
    (tmp_path / "out.parquet").write_text("precious")
    assert embed(tmp_path / "out.parquet") == 2
    assert "this command did not write it" in capsys.readouterr().err
    assert (tmp_path / "out.parquet").read_text() == "precious"
