"""
What a release must pass: wheel and sdist are built, and each works in an environment that has nothing else in it.

    python scripts/check_release.py [--output dist] [--constraint constraints.txt]

For each of the two: an empty virtual environment, the file installed with what it requires, `ecgfm --help`, and the
quick start: a classifier folder from a checkpoint, and a prediction of a real recording (pydicom's). Nothing is
imported from this checkout. The checkpoint is a tiny one of the tests' fixtures: its answer means nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_INPUT = ("--sampling-rate", "500", "--segment-seconds", "5", "--standardize", "recording")
CHECKPOINT = REPOSITORY / "tests" / "fixtures" / "checkpoints" / "finetune.pt"
QUICK_START = """
import ecgfm_hf
from pydicom.data import get_testdata_file

pipe = ecgfm_hf.load_pipeline("model")
answer = pipe(get_testdata_file("waveform_ecg.dcm", download=False))
assert len(answer["scores"]) == 8, answer
print(f"   {len(answer['scores'])} scores for {answer['segments']} segments, from {ecgfm_hf.__version__}")
"""


def main() -> int:
    """Runs the check. 0 all passed, 1 something did not."""
    parser = argparse.ArgumentParser(description="Build wheel and sdist, and try each in an empty environment.")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", help="folder of the two (default: dist)")
    parser.add_argument("--constraint", type=Path, help="versions to install, as for pip")
    options = parser.parse_args()
    for file in distributions(options.output):
        file.unlink()
    try:
        _run(sys.executable, "-m", "build", "--outdir", options.output, REPOSITORY)
        for file in distributions(options.output):
            try_installed(file, options.constraint)
    except subprocess.CalledProcessError as error:
        print(f"check_release: failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    print("\nboth install and work")
    return 0


def distributions(folder: Path) -> list[Path]:
    """Return the distributions of this package in a folder."""
    return sorted(folder.glob("ecgfm_hf-*.whl")) + sorted(folder.glob("ecgfm_hf-*.tar.gz"))


def try_installed(file: Path, constraint: Path | None) -> None:
    """Installs a distribution in an environment of its own and uses it; `CalledProcessError` where that fails."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "env", with_pip=True)
        python, ecgfm = folder / "env" / "bin" / "python", folder / "env" / "bin" / "ecgfm"
        constraints = [] if constraint is None else ["--constraint", constraint.resolve()]
        print(f"\n{file.name}", flush=True)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints, file.resolve())
        for command in (
            (ecgfm, "--version"),
            (ecgfm, "--help"),
            (ecgfm, "convert", CHECKPOINT, "model", *_INPUT),
            (python, "-c", QUICK_START),
        ):
            _run(*command, cwd=folder)


def _run(*command: object, cwd: Path | None = None) -> None:
    print(f"   $ {' '.join(str(part) for part in command if part is not QUICK_START)}", flush=True)
    # Of this checkout nothing may be found.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
