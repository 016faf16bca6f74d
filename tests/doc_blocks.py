"""The code blocks of README and docs: how they are found, and how they are run."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(not run|smaller|stands in):\s*(.*?)\s*-->", re.DOTALL)
# How a command line of ours may be started.
_STARTS = {"scripts/pretrain.py": "pretrain", "scripts/finetune.py": "finetune"}


@dataclass(frozen=True)
class Block:
    """
    Args:
        page: File name.
        line: Of the fence, from 1.
        language: What stands behind the fence.
        text: What stands within.
        not_run: The reason given in `<!-- not run: REASON -->` just above, if any.
        smaller: Arguments by command, to put behind those of the page: `<!-- smaller: pretrain seed=1; ... -->`.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    smaller: dict[str, list[str]]


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file, in order."""
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        above = text[: fence.start()].rstrip()
        comment = above[above.rfind("<!--") :] if above.endswith("-->") else ""
        found = _COMMENT.fullmatch(comment)
        kind, reason = found.groups() if found else (None, "")
        smaller = {}
        if kind == "smaller":
            for part in reason.split(";"):
                command, *arguments = shlex.split(part)
                smaller[command] = arguments
        line = text.count("\n", 0, fence.start()) + 1
        yield Block(page.name, line, fence[1], fence[2], reason if kind == "not run" else None, smaller)


def stand_ins_of(page: Path) -> list[str]:
    """What `<!-- stands in: A, B -->` says that a reader of the page has."""
    found = [reason for kind, reason in _COMMENT.findall(page.read_text(encoding="utf-8")) if kind == "stands in"]
    return [name.strip() for reason in found for name in reason.split(",")]


def command_lines(block: Block) -> list[str]:
    """The block's commands, continued lines joined, comments left out."""
    joined = block.text.replace("\\\n", " ").split("\n")
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def our_arguments(line: str) -> list[str] | None:
    """What follows `ecgfm` in a command line, however `ecgfm` is started; None where it is another program's."""
    words = shlex.split(line, comments=True)
    if not words:
        return None
    if words[0] == "ecgfm":
        return words[1:]
    if "ecgfm_hf.cli" in words:
        return words[words.index("ecgfm_hf.cli") + 1 :]
    for script, command in _STARTS.items():
        if script in words:
            return [command, *words[words.index(script) + 1 :]]
    return None


def run_bash(block: Block, folder: Path) -> None:
    """Runs a block's lines in `folder`, `ecgfm` in this process: starting Python for each would take minutes."""
    from ecgfm_hf.cli.main import main

    for line in command_lines(block):
        if not re.match(r"ecgfm\s", line):
            _in_shell(line, folder)
            continue
        # The shell says what its quotes and stars mean.
        tell = f"ecgfm() {{ printf '%s\\0' \"$@\"; }}; {line}"
        arguments = _in_shell(tell, folder).split("\0")[:-1]
        arguments += block.smaller.get(arguments[0], [])
        status = main(arguments)
        assert status == 0, f"{block.page}:{block.line}: status {status} of: ecgfm {shlex.join(arguments)}"


def _in_shell(line: str, folder: Path) -> str:
    run = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, f"status {run.returncode} of: {line}\n{run.stderr}"
    return run.stdout


def run_python(block: Block, names: dict) -> None:
    """Runs a block with the names of the page's earlier ones."""
    source = "\n" * block.line + block.text
    exec(compile(source, str(ROOT / block.page), "exec"), names)


def check_arguments(arguments: list[str]) -> None:
    """Parses a command line that cannot be run here; settings of training are read as well."""
    from ecgfm_hf.cli.main import load_command
    from ecgfm_hf.training import FinetuneSettings, PretrainSettings, read_recipe

    name, *rest = arguments
    options = load_command(name).make_context(name, rest).params
    if name in ("pretrain", "finetune"):
        settings = PretrainSettings if name == "pretrain" else FinetuneSettings
        read_recipe(options["config"], options["changes"] or [], settings)


def extras() -> set[str]:
    """Those of pyproject.toml."""
    import tomllib

    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def make_targets() -> set[str]:
    """Those of the Makefile."""
    found = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(found[1].split())


def yaml_of(path: Path) -> dict:
    """A YAML file's mapping."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


__all__ = [
    "PAGES",
    "ROOT",
    "Block",
    "blocks_of",
    "check_arguments",
    "command_lines",
    "extras",
    "make_targets",
    "our_arguments",
    "run_bash",
    "run_python",
    "stand_ins_of",
    "yaml_of",
]
