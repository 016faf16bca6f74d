"""The site builds without a warning, and the API reference is whole."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
from doc_blocks import PAGES, ROOT

import ecgfm_hf

DOCS = ROOT / "docs"
PICTURES_AND_PAGES = re.compile(r"\]\(([^)\s]+)\)")


def _packages() -> list[str]:
    """Packages with public names, which the reference has a page of."""
    found = ["ecgfm_hf"]
    for module in pkgutil.walk_packages(ecgfm_hf.__path__, "ecgfm_hf."):
        if module.ispkg and getattr(importlib.import_module(module.name), "__all__", None):
            found.append(module.name)
    return found


PACKAGES = _packages()
# They hold definitions of the room above them, which shows what is public of them.
INNER = {"ecgfm_hf.labeler.presets"}


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in INNER])
def test_the_reference_has_a_page_of_every_package(package):
    pages = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    assert re.search(rf"automodule:: {re.escape(package)}$", pages, re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    module = importlib.import_module(package)
    bare = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        # A dataclass without a docstring is given its signature for one.
        text = (thing.__doc__ or "").strip()
        if not text or text.startswith(f"{name}("):
            bare.append(f"{package}.{name}")
    assert not bare


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_method_has_a_docstring(package):
    module = importlib.import_module(package)
    bare = [
        f"{package}.{name}.{method}"
        for name in module.__all__
        if inspect.isclass(thing := getattr(module, name))
        for method, function in vars(thing).items()
        if not method.startswith("_")
        and (inspect.isfunction(function) or isinstance(function, (property, classmethod, staticmethod)))
        and not (inspect.getdoc(getattr(thing, method)) or "").strip()
    ]
    assert not bare


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"(?s)```.*?```", "", page.read_text())
    for target in PICTURES_AND_PAGES.findall(text):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    run = subprocess.run([*command, "-d", tmp_path / "trees", DOCS, tmp_path / "site"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "site" / "api" / "training.html").is_file()
