"""No command writes over an input or a file that it did not make; what it prints or writes acts on nothing."""

import csv
import dataclasses
import errno
import fcntl
import functools
import inspect
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import typing
from pathlib import Path

import killed_runs
import numpy as np
import pytest
from inference_cases import write_model
from wfdb_files import write_record

from ecgfm_hf.cli.main import COMMANDS, load_command, main
from ecgfm_hf.cli.outputs import Reads, Writes, companions, roles_of, with_checked_outputs
from ecgfm_hf.training import FinetuneSettings, PretrainSettings
from ecgfm_hf.training.run_folder import RunFolder
from ecgfm_hf.utils.errors import OutputExistsError, SettingsError
from ecgfm_hf.utils.files import (
    atomic_folder,
    atomic_path,
    check_output,
    files_in,
    locked_folder,
    private_folder,
    remove_abandoned,
    remove_unfinished,
    write_text,
)
from ecgfm_hf.utils.resumable_parts import exclusive, try_lock
from ecgfm_hf.utils.text import from_cell, printable, to_cell

# Text that names no path. A new option must be listed here, or be marked as Reads or Writes.
NO_PATH = set(
    re.findall(
        r"\w+",
        """
    allow arms base_model binarise budget card changes class_column columns dataset_name developers device drop
    drop_sources encoding finetuning fractions host intended_use keep keep_leads keep_sources label labels
    lead_names leads license limitations message name negative plot_saliency positive published ray rename_leads repo
    repo_id revision separator shard sheet sizes split split_column test_split text_column thresholds training_data
    units unknown valid_split config_name
    """,
    )
)
SETTINGS_WITHOUT_PATH = set(
    re.findall(
        r"\w+",
        """
    architecture augmentations calibration classes cmsc_positives eval_strategy feature_extractor freeze_encoder
    label_aggregation labels lora lr_scheduler_type model optim pooling pos_weight prepare problem_type project
    report_to run_name save_strategy source test_split thresholds train_split training_args untrainable_labels
    valid_split
    """,
    )
)


def function_of(command):
    """The function of a command, with all its options, without the checks around it."""
    return load_command(command).callback.__wrapped__.__wrapped__


def names_text(annotation):
    return annotation in (str, Path) or any(map(names_text, typing.get_args(annotation)))


OUTPUTS = [
    (command, name, mark)
    for command in COMMANDS
    for name, mark in roles_of(function_of(command)).items()
    if isinstance(mark, Writes)
]
PAIRS = [
    (command, output, mark, given)
    for command, output, mark in OUTPUTS
    for given, other in roles_of(function_of(command)).items()
    if isinstance(other, Reads)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_may_name_a_path_is_marked_as_input_or_output(command):
    function = function_of(command)
    parameters = inspect.signature(function, eval_str=True).parameters
    texts = {name for name, one in parameters.items() if names_text(typing.get_args(one.annotation)[0])}
    assert texts - roles_of(function).keys() - NO_PATH == set()


@pytest.mark.parametrize("settings", [PretrainSettings, FinetuneSettings])
def test_every_setting_that_may_name_a_path_is_checked(settings):
    texts = {field.name for field in dataclasses.fields(settings) if "str" in str(field.type)}
    targets = {"targets"} if settings is FinetuneSettings else set()
    expected = {"data", "init_from", "output_dir", "resume_from_checkpoint", "root", *targets}
    assert texts - SETTINGS_WITHOUT_PATH == expected


def run_checks(command, **given):
    """Run a command's checks and nothing else; return whether it would have begun."""
    function, begun = function_of(command), []
    stub = functools.wraps(function)(lambda **values: begun.append(values) or 0)
    parameters = inspect.signature(function, eval_str=True).parameters
    known = {name: value for name, value in given.items() if name in parameters}
    with_checked_outputs(stub)(**{**dict.fromkeys(parameters), **known})
    return bool(begun)


@pytest.mark.parametrize(("command", "output", "mark", "given"), PAIRS)
def test_an_output_is_never_an_input_nor_in_one(command, output, mark, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / (mark.names[0] if mark.names else "input.csv")
    file.write_text("precious")
    (tmp_path / "link").symlink_to(folder)
    os.link(file, tmp_path / "hard.csv")
    in_folder = mark.names is not None
    same = [(folder, folder), (folder, tmp_path / "link"), (folder, Path("folder"))]
    if mark.names != ():
        same += (
            [(file, folder), (file, Path("link"))] if in_folder else [(file, file), (file, Path("folder/input.csv"))]
        )
        same += (
            [] if in_folder else [(file, tmp_path / "hard.csv"), (folder, file), (folder, tmp_path / "link/input.csv")]
        )
    for read, written in same:
        for overwrite in (False, True):
            with pytest.raises(OutputExistsError):
                run_checks(command, overwrite=overwrite, **{given: [str(read)], output: written})
    assert file.read_text() == "precious"


@pytest.mark.parametrize(("command", "output", "mark"), [one for one in OUTPUTS if one[2].names != ()])
def test_a_file_of_others_is_replaced_only_when_asked_to(command, output, mark, tmp_path):
    path = tmp_path / "out.parquet"
    if mark.names:
        path.mkdir()
        (path / mark.names[0]).write_text("precious")
    else:
        path.write_text("precious")
    with pytest.raises(OutputExistsError, match="this command did not write it"):
        run_checks(command, overwrite=False, **{output: path})
    assert run_checks(command, overwrite=False, **{output: tmp_path / "new.csv"})
    if "overwrite" in inspect.signature(function_of(command)).parameters:
        assert run_checks(command, overwrite=True, **{output: path})


def test_two_outputs_are_never_one_file_in_any_letter_case(tmp_path):
    for second in ("a.csv", "./a.csv", "A.CSV"):
        with pytest.raises(SettingsError, match="are the same file"):
            run_checks("label", output=tmp_path / "a.csv", unmatched=tmp_path / second)


@pytest.mark.parametrize("settings", [PretrainSettings, FinetuneSettings])
def test_a_run_never_writes_into_its_inputs_or_a_folder_of_others(settings, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("data", "init_from"):
        with pytest.raises(OutputExistsError, match="is an input"):
            RunFolder(settings(**{name: str(folder), "output_dir": str(folder)}))
    with pytest.raises(OutputExistsError, match="did not write it"):
        RunFolder(settings(output_dir=str(folder)))
    with pytest.raises(OutputExistsError, match="contains an input"):
        RunFolder(settings(init_from=str(folder), output_dir=str(tmp_path)))
    other = PretrainSettings if settings is FinetuneSettings else FinetuneSettings
    (folder / "settings.yaml").write_text(json.dumps(other(output_dir="x").to_dict()))
    with pytest.raises(OutputExistsError, match="did not write it"):
        RunFolder(settings(output_dir=str(folder)))
    (folder / "settings.yaml").write_text(json.dumps(settings(output_dir="x").to_dict()))
    RunFolder(settings(output_dir=str(folder)))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "slurm-1.out").write_text("queued")
    RunFolder(settings(output_dir=str(tmp_path / "logs")))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "records"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in ("e0", "=cmd"):
        write_record(root, rng.integers(-2000, 2000, (12, 2500)).astype("int16"), name=name)
    return root


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def test_the_suffix_gives_the_format_and_an_own_output_is_replaced(model_dir, folder, tmp_path, capsys):
    for suffix, start in ((".csv", "recording,A"), (".tsv", "recording\tA"), (".json", "[\n"), (".txt", "label ")):
        out = tmp_path / f"scores{suffix}"
        for _ in range(2):
            assert predict(folder / "e0.hea", "--model", model_dir, "--output", out) == 0
        assert out.read_text().startswith(start)
    out.write_text("mine")
    assert predict(folder / "e0.hea", "--model", model_dir, "--output", out) == 2
    assert out.read_text() == "mine"
    for name, message in (("x.xls", "names no format"), ("x.csv --format json", "contradicts --output")):
        assert predict(folder, "--model", model_dir, "--output", *name.split()) == 2
        assert message in capsys.readouterr().err


def test_a_listed_recordings_signal_file_is_never_replaced(model_dir, folder, tmp_path, capsys):
    signals = next(folder.glob("e0.[dm]at"))
    before = signals.read_bytes()
    (tmp_path / "list.txt").write_text(f"{folder / 'e0'}\n")
    command = ("--list", tmp_path / "list.txt", "--model", model_dir, "--format", "csv", "--output", signals)
    assert predict(*command, "--overwrite") == 2
    assert "is an input" in capsys.readouterr().err
    assert signals.read_bytes() == before


def test_a_list_of_failures_replaces_and_removes_only_its_own(model_dir, folder, tmp_path):
    own, notes = tmp_path / "s.failures.csv", tmp_path / "notes.csv"
    notes.write_text("mine")
    assert predict(folder, "--model", model_dir, "--output", tmp_path / "s.parquet", "--failures", notes) == 2
    own.write_text("mine")
    assert predict(folder, "--model", model_dir, "--output", tmp_path / "s.parquet") == 2
    assert (own.read_text(), notes.read_text()) == ("mine", "mine")
    own.write_text("recording_id,path,reason\n")
    assert predict(folder, "--model", model_dir, "--output", tmp_path / "s.parquet") == 0
    assert not own.exists()


def test_a_workbook_holds_numbers_and_text_and_no_formula(model_dir, folder, tmp_path, capsys, monkeypatch):
    command = ("=cmd.hea", "--model", model_dir, "--output", tmp_path / "scores.xlsx")
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert predict(*command) == 2
    assert "ecgfm-hf[excel]" in capsys.readouterr().err
    monkeypatch.undo()
    openpyxl = pytest.importorskip("openpyxl")
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert predict(*command) == 0
    header, row = openpyxl.load_workbook(tmp_path / "scores.xlsx")["scores"].iter_rows()
    assert [cell.value for cell in header][:2] == ["recording", "A"]
    assert (row[0].value, row[0].data_type, row[1].data_type) == ("=cmd.hea", "s", "n")


def test_no_cell_of_a_csv_is_a_formula_and_ids_come_back_exactly(model_dir, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert predict("=cmd.hea", "--model", model_dir, "--output", tmp_path / "scores.csv") == 0
    with open(tmp_path / "scores.csv", newline="") as file:
        name = list(csv.reader(file))[1][0]
    assert (name, from_cell(name)) == ("'=cmd.hea", "=cmd.hea")


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''-x", "＝x", "x", "'", "'x", "", "-0.5", "+1e3", "'-5"]
)
def test_cells_are_texts_that_come_back(text):
    cell = to_cell(text)
    assert from_cell(cell) == text
    assert cell[:1] not in tuple("=+-@\t\r＝") or float(cell) or cell == text == ""


def test_control_characters_are_printed_as_escapes(model_dir, tmp_path, capsys):
    evil = tmp_path / "e\x1b]0;title\x07\x9b2J\u202e.hea"
    assert predict(evil, "--model", model_dir) == 1
    assert predict("x", "--model", str(evil)) == 2
    shown = capsys.readouterr()
    assert not set("\x1b\x07\x9b\u202e") & set(shown.out + shown.err)
    assert r"e\x1b]0;title\x07\x9b2J\u202e.hea" in shown.err
    assert printable("Ärzte\t心電図\n") == "Ärzte\t心電図\n"


def test_a_failed_write_leaves_the_old_files(tmp_path):
    (tmp_path / "a").write_text("old")

    def fill(path):
        path.write_text("new")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), atomic_path(tmp_path / "a") as scratch:
        fill(scratch)
    with pytest.raises(OSError, match="no space"), files_in(tmp_path) as new:
        fill(new / "a")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
    with files_in(tmp_path) as new:
        (new / "b").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with atomic_path("/dev/null") as device:
        device.write_text("nothing is replaced")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), atomic_path("/dev/full") as device:
        device.write_text("full")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    refused = pytest.raises(OSError, match=r"cannot be written to a pipe or device, give a file: '.*pipe'")
    with refused, atomic_path(tmp_path / "pipe") as pipe, open(pipe, "wb") as stream:
        stream.seek(10)
    os.close(reader)


def test_a_new_folder_appears_with_all_of_its_files(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, files_in(tmp_path / "new" / "folder") as scratch:
        patch.setattr(Path, "replace", lambda *_: pytest.fail("a kill could come before the next file"))
        for name in "ab":
            (scratch / name).write_text(name)
        assert not (tmp_path / "new" / "folder").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder", "new"]
    # Another process was faster.
    with files_in(tmp_path / "other") as scratch:
        (scratch / "mine").write_text("mine")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "theirs").write_text("theirs")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["mine", "theirs"]


def test_what_could_not_be_removed_keeps_its_lock_for_the_next_process(tmp_path, monkeypatch):
    with locked_folder(lambda: tempfile.mkdtemp(prefix="ecgfm-", dir=tmp_path)) as made:
        for name in ("copy", "other"):
            (made / name).mkdir()
            (made / name / "rows").write_text("a patient's data")
        (made / "file").write_text("a patient's data")
        keep = shutil.rmtree
        # As of a process that still writes there, or a kill.
        monkeypatch.setattr(shutil, "rmtree", lambda path, **_: keep(path) if str(path).endswith("other") else None)
    monkeypatch.undo()
    assert sorted(path.name for path in made.iterdir() if not path.name.startswith(".lock")) == ["copy"]
    remove_abandoned(tmp_path, "ecgfm-")
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_process_removes_keeps_nothing_else_from_being_removed(tmp_path, monkeypatch):
    keep = os.unlink

    def unlink(path, **kwargs):
        keep(path, **kwargs)
        if str(path).endswith("theirs"):
            raise FileNotFoundError(path)

    with locked_folder(lambda: tempfile.mkdtemp(prefix="ecgfm-", dir=tmp_path)) as made:
        for name in ("a", "theirs", "z"):
            (made / name).write_text("a patient's data")
        monkeypatch.setattr(os, "unlink", unlink)
    assert not made.exists()


def test_a_shared_folder_that_another_process_has_locked_is_used_and_left_to_it(tmp_path):
    def make():
        (tmp_path / "shared").mkdir(exist_ok=True)
        return tmp_path / "shared"

    with locked_folder(make, shared=True) as first:
        (first / "copy").write_text("x")
        with locked_folder(make, shared=True) as second:
            assert second == first
        assert (first / "copy").exists()
    assert not first.exists()


def test_a_link_named_like_an_abandoned_folder_is_not_followed(tmp_path):
    with tempfile.TemporaryDirectory() as elsewhere:
        write_text(Path(elsewhere) / "precious", "x")
        (Path(elsewhere) / f".lock-{platform.node()}").touch()
        (tmp_path / "ecgfm-link").symlink_to(elsewhere)
        remove_abandoned(tmp_path, "ecgfm-")
        assert (Path(elsewhere) / "precious").exists()


def test_what_a_killed_process_was_writing_is_private_and_the_next_removes_it(tmp_path):
    def write():
        with (
            atomic_path(tmp_path / "a") as file,
            files_in(tmp_path / "files") as files,
            atomic_folder(tmp_path / "new", lambda: None) as folder,
        ):
            for path in (file, files / "b", folder / "c"):
                path.write_text("a patient's data")
            os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "a").write_text("old")
    (tmp_path / "files").mkdir()
    assert killed_runs.wait(killed_runs.start(write, tmp_path)) == -signal.SIGKILL
    left = list(tmp_path.rglob(".*.partial"))
    assert [path.stat().st_mode & 0o777 for path in left] == [0o700] * 3
    assert (tmp_path / "a").read_text() == "old"
    check_output(tmp_path / "files")  # is empty again
    with atomic_path(tmp_path / "a") as file:
        remove_abandoned(tmp_path, ".", ".partial")
        file.write_text("new")  # what a process is writing stays
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "files"]
    assert (tmp_path / "a").read_text() == "new"


def test_a_folder_is_on_the_disk_in_whole_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("ecgfm_hf.utils.files.sync", lambda path: synced.append((Path(path).name, target.exists())))
    target = tmp_path / "model"
    with atomic_folder(target, lambda: None) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "weights").write_text("new")
    assert sorted(synced[:3]) == [("data", False), ("new", False), ("weights", False)]
    assert synced[3:] == [(tmp_path.name, True)]


def test_a_folder_that_a_kill_left_aside_comes_back(tmp_path):
    def write():
        rename = Path.rename

        def killed(path, target):
            if path.name == "new":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(path, target)

        Path.rename = killed
        with atomic_folder(tmp_path / "model", lambda: None) as folder:
            (folder / "weights").write_text("new")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    assert killed_runs.wait(killed_runs.start(write, tmp_path)) == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_temporary_copies_of_a_killed_process_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    make = private_folder.__wrapped__  # without its cache

    def copy():
        (make() / "store.arrow").write_text("a patient's data")
        os.kill(os.getpid(), signal.SIGKILL)

    assert killed_runs.wait(killed_runs.start(copy, tmp_path)) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.stat().st_mode & 0o777 == 0o700
    folder = make()
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_on_a_file_system_without_locks_files_are_written_and_nothing_is_taken_for_abandoned(
    number, tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = tmp_path / ".scores.1.partial"
    left.mkdir()
    (left / f".lock-{platform.node()}").touch()
    write_text(tmp_path / "scores", "new")
    assert (tmp_path / "scores").read_text() == "new"
    assert left.exists()
    with exclusive(tmp_path):
        lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert f"{tmp_path} is on a file system without locks: start no second run" in caplog.text


def test_a_folder_in_which_no_lock_file_can_be_made_is_an_error(tmp_path):
    folders = [tmp_path / f"{number}" / "gone" for number in range(100)]  # as if removed by another process at once
    with pytest.raises(OSError, match="lock files cannot be made in this folder") as caught, locked_folder(folders.pop):
        pass
    assert caught.value.filename.startswith(str(tmp_path))


def test_the_longest_name_can_be_written(tmp_path):
    name = "é" * 124 + ".parquet"[:7]  # 255 bytes
    with atomic_path(tmp_path / name) as scratch:
        scratch.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pipe_is_no_parquet_file_and_may_take_failures(model_dir, folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.parquet")
    for more in ((), ("--overwrite",)):
        assert predict(folder, "--model", model_dir, "--output", tmp_path / "pipe.parquet", *more) == 2
        assert "pipe.parquet is a folder, device or pipe" in capsys.readouterr().err
    assert (tmp_path / "pipe.parquet").is_fifo()
    (folder / "bad.hea").write_text("nothing")
    assert predict(folder, "--model", model_dir, "--output", tmp_path / "s.parquet", "--failures", "/dev/null") == 1
    assert Path("/dev/null").is_char_device()


def test_the_segments_of_a_recording_are_inputs(tmp_path):
    (tmp_path / "whole.hea").write_text("whole/1 1 500 1000\npart 1000\n")
    (tmp_path / "part.hea").write_text("part 1 500 1000\npart.dat 16 1000/mV 16 0 0 0 0 I\n")
    (tmp_path / "part.dat").write_bytes(bytes(2000))
    assert {str(tmp_path / name) for name in ("part.hea", "part.dat")} <= set(companions(str(tmp_path / "whole")))


def test_a_name_that_is_not_utf8_is_refused(folder, tmp_path, capsys):
    output = tmp_path / os.fsdecode(b"a\xff\xfeb")
    assert main(["prepare", "table", str(folder), str(output)]) == 2
    assert "is not UTF-8: give another" in capsys.readouterr().err
    assert not output.exists()
