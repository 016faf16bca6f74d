"""
Fetches transformers' own common model and configuration tests, which `tests/test_transformers_common.py` runs against
our classes. A wheel has no tests, so they come from the source distribution of the installed version, through pip and
with its settings (mirrors, proxies, certificates). They land in `.cache/`, which git ignores.

    python scripts/fetch_transformers_tests.py
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# A name of its own: as `tests` it would collide with ours.
PACKAGE = "transformers_common_tests"
MODULES = ("test_modeling_common.py", "test_configuration_common.py")

# pip builds the metadata of a source distribution even where it only downloads. This stands in for setuptools there, so
# that no foreign setup.py runs and no build tools are fetched.
STAND_IN_BACKEND = """
import os, sys

__legacy__ = sys.modules[__name__]

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "transformers-{version}.dist-info"
    os.makedirs(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: transformers\\nVersion: {version}\\n")
    return name
"""


class FetchError(Exception):
    """An error that is printed."""


def download_sdist(version: str, folder: Path) -> Path:
    """Downloads the source distribution of transformers `version` into `folder` and returns its path."""
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(STAND_IN_BACKEND.format(version=version))
    options = ["--no-deps", "--no-build-isolation", "--use-pep517", "--no-binary", "transformers", "--quiet"]
    # A message in the log is no use for a person who waits; a short time-out and one retry are.
    patience = ["--retries", "1", "--timeout", "30", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience]
    result = subprocess.run(
        [*command, "--dest", str(folder), f"transformers=={version}"],
        env={**os.environ, "PYTHONPATH": str(backend.parent)},
        capture_output=True,
        text=True,
    )
    archives = sorted(folder.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        complaint = (result.stderr or result.stdout).strip().splitlines()
        raise FetchError(
            f"pip could not download the source distribution of transformers {version} (no network?): "
            + (complaint[-1] if complaint else "no output")
        )
    return archives[0]


def extract(archive: Path, package: Path) -> None:
    """Copies the test modules and the licence out of the archive; nothing else of it is unpacked."""
    package.mkdir(parents=True)
    # The configuration tests look for a package's __init__.py beside them.
    (package / "__init__.py").touch()
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as sdist:
        for name in (*(f"tests/{module}" for module in MODULES), "LICENSE"):
            try:
                content = sdist.extractfile(f"{root}/{name}").read()
            except (KeyError, AttributeError):
                raise FetchError(f"{archive.name} has no file {name}") from None
            (package / Path(name).name).write_bytes(content)


def fetch(repository: Path = REPOSITORY) -> tuple[Path, bool]:
    """Returns the folder to import `transformers_common_tests` from, and whether it had to be fetched."""
    version = importlib.metadata.version("transformers")
    target = repository / ".cache" / f"transformers-tests-{version}"
    if all((target / PACKAGE / name).is_file() for name in ("__init__.py", *MODULES)):
        return target, False
    target.parent.mkdir(exist_ok=True)
    # Beside the target, so that one rename puts the finished folder in place.
    with tempfile.TemporaryDirectory(prefix="transformers-tests-", dir=target.parent) as folder:
        work = Path(folder)
        extract(download_sdist(version, work), work / "ready" / PACKAGE)
        if target.exists():
            shutil.rmtree(target)
        os.replace(work / "ready", target)
    return target, True


def main() -> int:
    try:
        target, fetched = fetch()
    except (FetchError, OSError) as error:
        print(f"fetch_transformers_tests: {error}", file=sys.stderr)
        return 1
    print(f"transformers' common tests {'fetched into' if fetched else 'are already in'} {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
