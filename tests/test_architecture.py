"""The package's layers: who may import whom, and that only the command line prints and parses arguments."""

import ast
from collections.abc import Iterator
from pathlib import Path

import ecgfm_hf

PACKAGE = Path(ecgfm_hf.__file__).parent
# From the ground floor up. A room imports only from rooms before it, and from itself.
ROOMS = [
    "utils",
    "configuration_ecgfm",
    "feature_extraction_ecgfm",
    "modeling_ecgfm",
    "pipeline_ecgfm",
    "auto_classes",
    "model_folder",
    "provenance",
    "records",
    "labeler",
    "synthetic",
    "fairseq",
    "data",
    "inference",
    "distributed",
    "evaluation",
    "recipes",
    "training",
    "interpretation",
    "study",
    "hub",
    "app",
    "cli",
]
# The pipeline reads files with `records` where the package is installed; as remote code it does without.
ALLOWED_UPWARD = {("pipeline_ecgfm", "records"), ("pipeline_ecgfm", "records.store_rows")}
# Lines that go above a progress bar must go through the bar, `tqdm.write`.
ALLOWED_PRINTING = {"training.monitoring"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name without `ecgfm_hf.`; a room's `__init__` has the room's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports_of(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, at its top or in a function; not for type checkers alone."""
    package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
    # Names that only annotations need bind no module to another at run time.
    unused = {
        node
        for branch in ast.walk(TREES[name])
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(TREES[name]):
        if node in unused:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [part for part in package[: len(package) - node.level + 1] if part]
            base += node.module.split(".") if node.module else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ecgfm_hf":
            base = node.module.split(".")[1:]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ecgfm_hf."):
                    yield alias.name.removeprefix("ecgfm_hf.")
            continue
        else:
            continue
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            yield inner if inner in MODULES else ".".join(base)


GRAPH = {name: {found for found in imports_of(name) if found} - {name} for name in MODULES if name}


def test_every_module_is_in_a_room():
    assert {name.split(".")[0] for name in GRAPH} <= set(ROOMS)


def test_no_import_runs_upward():
    upward = {
        (name, found)
        for name, imports in GRAPH.items()
        for found in imports
        if ROOMS.index(found.split(".")[0]) > ROOMS.index(name.split(".")[0])
    }
    assert not upward - ALLOWED_UPWARD


def test_no_import_runs_in_a_circle():
    def reachable(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for found in GRAPH.get(waiting.pop(), ()):
                if found not in seen:
                    seen.add(found)
                    waiting.append(found)
        return seen

    reach = {name: reachable(name) for name in GRAPH}
    circles = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in GRAPH
        if name in reach[name]
    }
    assert sorted(map(sorted, circles)) == []


def test_only_the_command_line_prints():
    printing = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "print" or called in ("sys.stdout.write", "sys.stderr.write", "tqdm.write", "typer.echo"):
                    printing.add(name)
    assert {name for name in printing if name.split(".")[0] != "cli"} == ALLOWED_PRINTING


def test_only_the_command_line_parses_arguments():
    parsing = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            if any(module.split(".")[0] in ("argparse", "typer", "click", "optparse", "getopt") for module in modules):
                parsing.add(name)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv":
                parsing.add(name)
    assert {name for name in parsing if name.split(".")[0] != "cli"} == set()
