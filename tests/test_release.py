"""What is released: wheel and sdist hold what they must and no more, and papers agree with one another."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ecgfm_hf

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Wheel and sdist, built with the tools that are here."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def _data_files():
    """Files of the package that are not code."""
    package = REPOSITORY / "ecgfm_hf"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(REPOSITORY).as_posix() for path in files}


def test_the_wheel_holds_the_whole_package_and_nothing_else(distributions):
    names = set(zipfile.ZipFile(distributions[0]).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == _data_files()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_tests_documents_and_scripts(distributions):
    with tarfile.open(distributions[1]) as archive:
        members = archive.getmembers()
    names = {member.name.split("/", 1)[1] for member in members if member.isfile()}
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"):
        assert name in names
    assert names > _data_files()
    assert {"scripts/demo.py", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".venv", ".cache", "dist/", "demo_output"))]


def test_an_installed_wheel_runs_outside_of_the_checkout(distributions, tmp_path):
    # Beside the dependencies that are here, ahead of the checkout.
    target = tmp_path / "installed"
    with zipfile.ZipFile(distributions[0]) as wheel:
        wheel.extractall(target)
    program = (
        "import sys, ecgfm_hf, ecgfm_hf.cli.main as cli\n"
        f"assert ecgfm_hf.__file__.startswith({str(target)!r}), ecgfm_hf.__file__\n"
        "from ecgfm_hf.labeler import Labeler\n"
        "from ecgfm_hf.training import find_recipe\n"
        "assert Labeler.from_preset('mimic17').row('Sinus rhythm')\n"
        "assert find_recipe('pretrain_tiny').is_file()\n"
        "sys.exit(cli.main(['--version']))\n"
    )
    environment = {"PYTHONPATH": str(target), "PATH": "", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"ecgfm-hf {ecgfm_hf.__version__}"


def test_version_changelog_and_citation_agree():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert newest[1] == ecgfm_hf.__version__ == str(citation["version"])


def test_the_model_is_cited_as_its_authors_work():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["McKeen", "Masood", "Toma", "Rubin", "Wang"]
    assert paper["doi"] == "10.1093/jamiaopen/ooaf122"


def test_the_workflow_tests_every_python_that_is_promised():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert tested == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".github/workflows/ci.yml"):
        text = (REPOSITORY / name).read_text()
        named = re.findall(r"(?:^|`|run: )make ([a-z-]+(?: [a-z-]+)*?)(?=`|\s+#|\s*$| PIP)", text, re.MULTILINE)
        assert {target for words in named for target in words.split()} <= targets, name


def test_every_dependency_is_pinned_for_the_tests():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted} - {"ecgfm-hf"}
    assert names <= pinned
