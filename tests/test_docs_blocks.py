"""Every code block of README and docs runs, or says why it cannot."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
from doc_blocks import (
    PAGES,
    blocks_of,
    check_arguments,
    command_lines,
    extras,
    make_targets,
    our_arguments,
    run_bash,
    run_python,
    stand_ins_of,
)
from doc_stand_ins import StandIns

import ecgfm_hf

# How many blocks of each page are not run. A block more has to be written here, where somebody looks at it.
NOT_RUN = {
    "README.md": 3,
    "benchmark.md": 1,
    "cluster.md": 6,
    "convert.md": 2,
    "hub.md": 3,
    "inference.md": 1,
    "labeler.md": 1,
    "pretraining.md": 4,
    "quickstart.md": 1,
    "study.md": 3,
    "transformers.md": 2,
}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CODE = [block for block in BLOCKS if block.language in ("bash", "python")]


def _name(block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    return StandIns(tmp_path_factory.mktemp("stand_ins"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_a_page_run_in_their_order(page: Path, stand_ins, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("captum")
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    for name in stand_ins_of(page):
        stand_ins.put(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "a_page"}
    for block in blocks_of(page):
        if block.not_run is None and block.language == "bash":
            run_bash(block, tmp_path)
        if block.not_run is None and block.language == "python":
            run_python(block, names)


@pytest.mark.parametrize("block", [block for block in CODE if block.not_run is not None], ids=_name)
def test_a_block_that_is_not_run_is_parsed(block, monkeypatch):
    if block.language == "python":
        compile(block.text, _name(block), "exec")
        return
    for line in command_lines(block):
        arguments = our_arguments(line)
        if arguments is not None:
            check_arguments(arguments)
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in make_targets(), line
        for found in re.findall(r"\.\[([\w,]+)\]", line):
            assert set(found.split(",")) <= extras(), line


def test_blocks_that_are_not_run_are_these_and_say_why():
    found: dict[str, int] = {}
    for block in CODE:
        if block.not_run is not None:
            assert len(block.not_run) > 10, f"{_name(block)} gives no reason: {block.not_run!r}"
            found[block.page] = found.get(block.page, 0) + 1
    assert found == NOT_RUN


def test_every_block_says_its_language():
    known = {"bash", "python", "yaml", "text", "{eval-rst}", "{toctree}", "{image}", "{include}"}
    strange = [f"{_name(block)}: {block.language!r}" for block in BLOCKS if block.language not in known]
    assert not strange


def test_examples_in_docstrings_of_the_classes_run():
    names = ("Config", "FeatureExtractor", "Model", "ForPreTraining", "ForMultiLabelClassification")
    for name in names:
        found = doctest.DocTestFinder().find(getattr(ecgfm_hf, f"ECGFM{name}"), name, globs={})
        results = [doctest.DocTestRunner().run(test) for test in found if test.examples]
        assert results, f"ECGFM{name} has no example"
        assert sum(result.failed for result in results) == 0, name


def test_extras_that_pages_name_exist():
    for page in PAGES:
        for found in re.findall(r"pip install '[\w.-]*\[([\w,]+)\]'", page.read_text()):
            assert set(found.split(",")) <= extras(), f"{page.name}: [{found}]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_that_a_page_names_exist(page):
    from ecgfm_hf.cli.main import COMMANDS, load_command

    for command, rest in re.findall(r"`ecgfm ([\w-]+)([^`]*)`", page.read_text()):
        assert command in COMMANDS, f"{page.name}: ecgfm {command}"
        flags = {"--help", *(flag for parameter in load_command(command).params for flag in parameter.opts)}
        assert set(re.findall(r"--[\w-]+", rest)) <= flags, f"{page.name}: ecgfm {command}{rest}"
