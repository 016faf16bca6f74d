"""Folders in which sound recordings lie among damaged ones, made for tests: every kind of damage, seeded.

Beside each folder lies another, `outside`, with a recording that must never be read: what refers to it leads out.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from wfdb_files import LEADS, header_lines, write_record

COMMENTS = ("#Age: 61", "#Sex: Female", "#Dx: 426783006,164889003")
CANARY_VALUE = 12_345


@dataclass
class DamagedFolder:
    """
    What was written.

    Attributes:
        root, outside: the dataset's folder, and the one beside it that nothing may read.
        samples: (leads, samples) int16 of every recording before it was damaged, by id.
        damage: what was done to which, by id; the others are sound.
        lost: ids that leave no trace in the folder, so that nobody can account for them.
    """

    root: Path
    outside: Path
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    damage: dict[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> list[str]:
        return [name for name in self.samples if name not in self.damage]


def write_folder(base: Path, sound: int, damaged: int, num_samples: int = 250, seed: int = 0) -> DamagedFolder:
    """Writes `sound` and `damaged` recordings in PhysioNet 2021's layout, in turns, all kinds of damage in turn."""
    folder = DamagedFolder(base / "data", base / "outside")
    folder.outside.mkdir(parents=True)
    canary = np.full((12, num_samples), CANARY_VALUE)
    write_record(folder.outside, canary, name="canary", suffix=".mat", offset=24)
    kinds = list(DAMAGE)
    rng = np.random.default_rng(seed)
    number = 0
    while sound or damaged:
        is_damaged = bool(damaged) and (not sound or bool(rng.random() < damaged / (sound + damaged)))
        directory = folder.root / "training" / ("georgia" if number % 2 else "ptb-xl") / f"g{number // 500 + 1}"
        directory.mkdir(parents=True, exist_ok=True)
        name = f"E{number:06d}"
        samples = rng.integers(-2000, 2000, (12, num_samples)).astype(np.int16)
        write_record(directory, samples, name=name, suffix=".mat", offset=24, comments=COMMENTS)
        folder.samples[name] = samples
        if is_damaged:
            kind = kinds[len(folder.damage) % len(kinds)]
            DAMAGE[kind](directory / name, rng, folder.outside)
            folder.damage[name] = kind
        sound, damaged = sound - (not is_damaged), damaged - is_damaged
        number += 1
    return folder


def _header(stem: Path) -> Path:
    return stem.with_suffix(".hea")


def _signal(stem: Path) -> Path:
    return stem.with_suffix(".mat")


def _flip(content: bytes, rng: np.random.Generator, first: int = 0) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        damaged[int(rng.integers(first, len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _cut(path: Path, rng: np.random.Generator) -> None:
    _rewrite(path, lambda content: content[: int(rng.integers(1, len(content)))])


def _edit(stem: Path, pattern: bytes, new: bytes, count: int = 0) -> None:
    def change(content: bytes) -> bytes:
        changed, times = re.subn(pattern, lambda _: new, content, count=count)
        assert times
        return changed

    _rewrite(_header(stem), change)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_link(path: Path, target: Path | str) -> None:
    path.unlink()
    path.symlink_to(target)


def _name_canary(stem: Path, how: str, outside: Path) -> None:
    """A header that is right in all but the folder of its signal file."""
    there = outside / "canary.mat"
    path = str(there) if how == "absolute" else os.path.relpath(there, stem.parent)
    lines = header_lines(np.full((12, 250), CANARY_VALUE), stem.name, "16x1+24", ".mat")
    lines = [lines[0], *(line.replace(f"{stem.name}.mat", path) for line in lines[1:])]
    _header(stem).write_text("\n".join([*lines, *COMMENTS]) + "\n")


def _zero(path: Path, rng: np.random.Generator) -> None:
    def change(content: bytes) -> bytes:
        at = int(rng.integers(24, len(content) - 64))
        return content[:at] + bytes(64) + content[at + 64 :]

    _rewrite(path, change)


def _swap(path: Path) -> None:
    _rewrite(path, lambda content: content[:24] + content[24 + 1024 : 24 + 2048] + content[24:1048] + content[2072:])


DAMAGE: dict[str, Callable[[Path, np.random.Generator, Path], object]] = {
    "signal cut off": lambda stem, rng, _: _cut(_signal(stem), rng),
    "header cut off": lambda stem, rng, _: _cut(_header(stem), rng),
    "bits flipped in the signal": lambda stem, rng, _: _rewrite(_signal(stem), lambda c: _flip(c, rng, 24)),
    "bits flipped in the header": lambda stem, rng, _: _rewrite(_header(stem), lambda c: _flip(c, rng)),
    "too many signals declared": lambda stem, rng, _: _edit(stem, rb" 12 500 ", b" 13 500 ", 1),
    "too few signals declared": lambda stem, rng, _: _edit(stem, rb" 12 500 ", b" 8 500 ", 1),
    "too few samples declared": lambda stem, rng, _: _edit(stem, rb" 500 \d+\n", b" 500 100\n", 1),
    "too many samples declared": lambda stem, rng, _: _edit(stem, rb" 500 \d+\n", b" 500 7000\n", 1),
    "enormous length declared": lambda stem, rng, _: _edit(stem, rb" 500 \d+\n", b" 500 999999999999999\n", 1),
    "enormous length, compressed": lambda stem, rng, _: (
        _edit(stem, rb" 500 \d+\n", b" 500 999999999999\n", 1),
        _edit(stem, rb" 16x1\+24 ", b" 516 "),
    ),
    "a lead's line lost": lambda stem, rng, _: _edit(stem, rb"\n[^\n]* V3\n", b"\n", 1),
    "two leads' lines swapped": lambda stem, rng, _: _edit(stem, rb"(\n[^\n]* )V3(\n[^\n]* )V4\n", b"\n", 1),
    "two leads of one name": lambda stem, rng, _: _edit(stem, rb" V3\n", b" V4\n", 1),
    "nonsense unit": lambda stem, rng, _: _edit(stem, rb"/mV", b"/furlong", 3),
    "no gain": lambda stem, rng, _: _edit(stem, rb"1000\.0\(0\)/mV", b"0(0)/mV", 1),
    "gain that is no number": lambda stem, rng, _: _edit(stem, rb"1000\.0\(0\)/mV", b"nan(0)/mV", 1),
    "absurd rate": lambda stem, rng, _: _edit(stem, rb" 12 500 ", b" 12 5e9 ", 1),
    "another offset": lambda stem, rng, _: _edit(stem, rb"16x1\+24", b"16x1+22"),
    "another format": lambda stem, rng, _: _edit(stem, rb"16x1\+24", b"61x1+24"),
    "signal missing": lambda stem, rng, _: _signal(stem).unlink(),
    "header missing": lambda stem, rng, _: _header(stem).unlink(),
    "signal empty": lambda stem, rng, _: _signal(stem).write_bytes(b""),
    "header empty": lambda stem, rng, _: _header(stem).write_bytes(b""),
    "header of noise": lambda stem, rng, _: _header(stem).write_bytes(rng.bytes(600)),
    "header of blanks": lambda stem, rng, _: _header(stem).write_bytes(b" \n\t\n#\n"),
    "header of NULs": lambda stem, rng, _: _rewrite(_header(stem), lambda content: bytes(len(content))),
    "huge header": lambda stem, rng, _: _rewrite(_header(stem), lambda content: content + b"#" * 2**21),
    "signal with a stretch of zeros": lambda stem, rng, _: _zero(_signal(stem), rng),
    "signal with blocks swapped": lambda stem, rng, _: _swap(_signal(stem)),
    "path out of the folder": lambda stem, rng, out: _name_canary(stem, "relative", out),
    "absolute path": lambda stem, rng, out: _name_canary(stem, "absolute", out),
    "folder for header": lambda stem, rng, _: _replace_by_folder(_header(stem)),
    "folder for signal": lambda stem, rng, _: _replace_by_folder(_signal(stem)),
    "pipe for header": lambda stem, rng, _: _replace_by_pipe(_header(stem)),
    "pipe for signal": lambda stem, rng, _: _replace_by_pipe(_signal(stem)),
    "link to a header outside": lambda stem, rng, out: _replace_by_link(_header(stem), out / "canary.hea"),
    "link to a signal outside": lambda stem, rng, out: _replace_by_link(_signal(stem), out / "canary.mat"),
    "link to nothing for header": lambda stem, rng, _: _replace_by_link(_header(stem), "nowhere.hea"),
    "link to itself for signal": lambda stem, rng, _: _replace_by_link(_signal(stem), _signal(stem).name),
    "link to a device for signal": lambda stem, rng, _: _replace_by_link(_signal(stem), "/dev/zero"),
}


def same_facts(row: dict) -> bool:
    """Whether all that turns samples into millivolts at times is as `write_folder` wrote it."""
    return (
        row["gain"] == [1000.0] * 12
        and row["baseline"] == [0.0] * 12
        and row["units"] == ["mV"] * 12
        and row["lead_names"] == list(LEADS)
        and row["sampling_rate"] == 500.0
    )


def samples_of(row: dict) -> np.ndarray:
    return np.frombuffer(row["signal"], row["dtype"]).reshape(len(row["lead_names"]), -1)
