"""The command line as a whole: what starts fast, what help lists, how errors are reported."""

import logging
import os
import subprocess
import sys
from typing import get_args

import pytest

from ecgfm_hf import ECGFMError
from ecgfm_hf.cli import options, predict
from ecgfm_hf.cli.main import COMMANDS, in_options, load_command, main

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "numpy", "scipy", "huggingface_hub")


def fresh(*arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """Status, output, and the heavy libraries that a new process imported."""
    code = (
        "import sys\nfrom ecgfm_hf.cli.main import main\nstatus = main(sys.argv[1:])\n"
        f"print('\\nheavy:', *[name for name in {HEAVY} if name in sys.modules])\nsys.exit(status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    shown, _, heavy = run.stdout.rpartition("heavy:")
    return run.returncode, shown + run.stderr, heavy.split()


@pytest.mark.parametrize(
    ("arguments", "status", "shown"),
    [
        (("--version",), 0, "ecgfm-hf "),
        (("--help",), 0, "export-fairseq"),
        ((), 2, "export-fairseq"),
        (("nonsense",), 2, "No such command 'nonsense'"),
        (("predict", "--nonsense"), 2, "No such option: --nonsense"),
        (("predict",), 2, "Missing option '--model'"),
        (("predict", "x", "--model", "m", "--missing-leads", "guess"), 2, "'guess' is not one of"),
        (("predict", "x", "--model", "m", "--output", "no/such/folder.csv"), 2, "there is no folder no/such"),
        (("prepare", "table", "in", "out", "--columns", "age"), 2, "--columns: must look like"),
        (("finetune",), 2, "Missing option '--config'"),
    ],
)
def test_what_needs_no_model_imports_no_library_of_models(arguments, status, shown):
    found, output, heavy = fresh(*arguments)
    assert (found, heavy) == (status, [])
    assert shown in output
    assert "Traceback" not in output


def test_completion_imports_no_library_of_models():
    words = {"COMP_WORDS": "ecgfm pre", "COMP_CWORD": "1", "_ECGFM_COMPLETE": "complete_bash"}
    status, output, heavy = fresh(**words)
    assert {"predict", "prepare", "pretrain"} <= set(output.split())
    assert (status, heavy) == (0, [])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert "Exit status: 0" in capsys.readouterr().out
    for parameter in load_command(name).params:
        assert parameter.help, f"{name}: {parameter.name}"


def test_help_of_all_commands_imports_no_library_of_models():
    code = (
        "import sys\nfrom ecgfm_hf.cli.main import COMMANDS, main\n"
        "for name in COMMANDS:\n    assert main([name, '--help']) == 0\n"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.rpartition("heavy:")[2].split() == []


def test_choices_that_help_lists_are_the_librarys():
    from ecgfm_hf import feature_extraction_ecgfm as extractor
    from ecgfm_hf.cli.convert import Standardize
    from ecgfm_hf.labeler.presets import PRESETS, Preset

    policies = {
        "missing_leads": options.MissingLeads,
        "nan_samples": options.NanSamples,
        "constant_leads": options.ConstantLeads,
        "short_recordings": options.ShortRecordings,
    }
    assert {name: get_args(choices) for name, choices in policies.items()} == extractor.POLICIES
    assert tuple(policies) == options.POLICIES
    assert get_args(Standardize) == extractor.STANDARDIZATIONS
    assert get_args(Preset) == tuple(PRESETS)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (type("Unusable", (ECGFMError, ValueError), {})("bad input"), 2),
        (type("Failed", (ECGFMError, RuntimeError), {})("diverged"), 1),
        (ImportError("needs captum: pip install 'ecgfm-hf[saliency]'"), 2),
        (FileNotFoundError(2, "No such file or directory", "x.hea"), 2),
        (PermissionError(13, "Permission denied", "x.hea"), 1),
        (options.CommandFailed("interrupted", 130), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(error, status, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(predict, "_check_outputs", fails)
    assert main(["predict", "x", "--model", "m"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"ecgfm: {'interrupted' if status == 130 else error}\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("replace it with overwrite=True", "replace it with --overwrite"),
        ("give units='mV', or sampling_rate=", "give --units mV, or --sampling-rate"),
        ("columns={'sex': ''} ignores it", "--columns sex= ignores it"),
        ("try output='a b'.", "try --output 'a b'."),
        ("give batch_size=N, not attn=True", "give --batch-size N, not attn=True"),
        ("split=train/overwrite=True: damaged", "split=train/overwrite=True: damaged"),
    ],
)
def test_an_error_names_arguments_as_the_commands_options(message, shown):
    assert in_options(message, load_command("predict")) == shown


def test_verbose_adds_the_traceback_and_leaves_the_log_as_it_was(capsys):
    logger = logging.getLogger("ecgfm_hf")
    before = (logger.level, list(logger.handlers))
    assert main(["--verbose", "predict", "x", "--model", "m", "--output", "no/such/folder.csv"]) == 2
    printed = capsys.readouterr().err
    assert "ecgfm: there is no folder no/such" in printed
    assert "Traceback" in printed
    assert (logger.level, list(logger.handlers)) == before
    assert main(["-v", "-q", "predict", "x", "--model", "m"]) == 2
    assert main(["-v", "predict", "x", "--model", "m", "-q"]) == 2


def test_quiet_hides_progress(monkeypatch):
    seen = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(predict, "_check_outputs", lambda *_: seen.append(options.show_progress()))
    monkeypatch.setattr(predict, "_predict", lambda *_: 0)
    command = ["predict", "x", "--model", "m"]
    for arguments in (command, ["--quiet", *command], [*command, "-q"], command):
        assert main(arguments) == 0
    assert seen == [True, False, False, True]


@pytest.mark.parametrize("error", [ZeroDivisionError("division"), TypeError("no str"), KeyError("key")])
def test_a_defect_shows_its_traceback_and_how_to_report_it(error, monkeypatch, capsys):
    def fails(*_):
        raise error

    monkeypatch.setattr(predict, "_check_outputs", fails)
    assert main(["predict", "x", "--model", "m"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert "Please send its maintainers the traceback" in printed


def test_the_end_of_another_process_is_no_defect(monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2601")

    monkeypatch.setattr(predict, "_check_outputs", fails)
    monkeypatch.setenv("RANK", "1")
    assert main(["predict", "x", "--model", "m"]) == 1
    assert capsys.readouterr().err == "ecgfm: another process of this run has ended, and its error is the cause\n"


def test_a_library_value_error_is_a_defect_and_ours_is_a_message(monkeypatch, capsys):
    monkeypatch.setattr(predict, "_check_outputs", lambda *_: int("of a library's own"))
    assert main(["predict", "x", "--model", "m"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("left", [True, False])
def test_a_broken_pipe_is_silent_only_where_the_reader_of_the_output_has_left(left, monkeypatch, capsys):
    """A process of a run may end, too, and its pipe breaks: this once ended a study without a word."""

    def fails(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(predict, "_check_outputs", fails)
    reading, writing = os.pipe()
    if left:
        os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["predict", "x", "--model", "m"]) == 1
    assert ("a pipe was closed" in capsys.readouterr().err) is not left
