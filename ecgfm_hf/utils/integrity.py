"""
Digests of a folder's files, written beside them: what damage on a disk or in a copy changes is found when it is read.

    FOLDER/checksums.json
        {"format": 1, "algorithm": "sha256", "files": {"model.safetensors": "9f86...", ...}, "digest": "60ba..."}

`digest` is of the other keys. Only a model's files may change. Further keys, a store's or a checkpoint's, mean that its
files never do.

Stores use XXH3 (128 bits), which takes a twentieth of the time of reading them; SHA-256 would take a quarter. Either
notices every accident. Neither protects against someone who writes new digests as well.
"""

import contextlib
import functools
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import xxhash

from .files import lock_file, write_json, write_text

CHECKSUMS_FILE = "checksums.json"
_FORMAT = 1
_KEYS = {"format", "algorithm", "files", "footers", "is_checkpoint", "digest"}
_THREADS = min(4, os.cpu_count() or 1)  # more would wait for one another
# Read into one buffer that fits in the processor's cache: twice as fast as new blocks of 1 MB.
_BLOCK_BYTES = 1 << 18
# Linux 5.14's MADV_POPULATE_READ, which Python has no name for: read all pages, and report one that cannot be read.
_POPULATE_READ = 22


class _Hash(Protocol):
    def update(self, data: bytes | memoryview | mmap.mmap, /) -> object: ...
    def hexdigest(self) -> str: ...


def _new_hash(algorithm: str) -> _Hash:
    if algorithm == "xxh3_128":
        return xxhash.xxh3_128()
    if algorithm == "sha256":
        return hashlib.sha256()
    raise ValueError(f"unknown algorithm {algorithm!r}, expected sha256 or xxh3_128")


def file_checksum(path: str | os.PathLike[str], algorithm: str = "sha256", start: int = 0) -> str:
    """Return the digest of a file's bytes from `start` on, in hexadecimal digits."""
    digest = _new_hash(algorithm)
    block = memoryview(bytearray(_BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def mapped_checksum(path: str | os.PathLike[str], content: mmap.mmap, algorithm: str = "sha256") -> str:
    """
    Return the digest of a file by its memory map, whose pages are there afterwards, in hexadecimal digits.

    Raises:
        `OSError`: it cannot be read. Reading the map alone would end the process by a signal.
    """
    try:
        content.madvise(_POPULATE_READ)
    except (AttributeError, OSError):  # another system, an older Linux, or a page that cannot be read
        return file_checksum(path, algorithm)
    digest = _new_hash(algorithm)
    digest.update(content)
    return digest.hexdigest()


_shared: Path | None = None  # a folder for digests


def share_checksums(folder: Path) -> None:
    """Have this process, and those forked from it, share digests in a folder of theirs: see [`checksum_once`]."""
    global _shared
    _shared = folder


def file_state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return a file's inode, size and times: on one machine, not all of them can be set back after it is written."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def checksum_once(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """
    Return the digest of a file, computed again only once its [`file_state`] has changed.

    Processes that share digests wait for the one that computes a file's.
    """
    return _checksum_of(os.fspath(path), algorithm, file_state(path))


@functools.cache
def _checksum_of(path: str, algorithm: str, state: tuple[int, ...]) -> str:
    if _shared is None or not _shared.is_dir():
        return file_checksum(path, algorithm)
    key = repr((path, algorithm, state)).encode("utf-8", "backslashreplace")
    known = _shared / hashlib.sha256(key).hexdigest()
    try:
        lock = lock_file(f"{known}.lock")
        try:
            if not known.is_file():
                write_text(known, file_checksum(path, algorithm))
            return known.read_text()
        finally:
            lock.release()
    except OSError:  # the folder was removed, or its disk is full
        return file_checksum(path, algorithm)


def write_checksums(
    folder: str | os.PathLike[str], names: Iterable[str], algorithm: str = "sha256", **more: Mapping[str, str] | bool
) -> None:
    """Write `checksums.json` with the digests of these files (paths within the folder), and with further keys."""
    names = sorted(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda name: file_checksum(Path(folder) / name, algorithm), names)
        files = dict(zip(names, digests, strict=True))
    _write(folder, {"format": _FORMAT, "algorithm": algorithm, "files": files, **more})


def add_checksum(folder: str | os.PathLike[str], name: str) -> None:
    """Add or replace the digest of one file. Without a readable `checksums.json` nothing is written."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = read_checksums(folder)
        content["files"][name] = file_checksum(Path(folder) / name, content["algorithm"])
        _write(folder, content)


def _write(folder: str | os.PathLike[str], content: dict[str, Any]) -> None:
    write_with_digest(Path(folder) / CHECKSUMS_FILE, content)


def write_with_digest(path: str | os.PathLike[str], content: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a mapping as JSON, whole or not at all, with a `digest` of it that [`read_with_digest`] compares."""
    write_json(path, {**content, "digest": _digest_of(content)}, private=private)


def read_with_digest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return what [`write_with_digest`] wrote.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: it has changed since it was written.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.pop("digest", None) != _digest_of(content):
        raise ValueError("it has changed since it was written")
    return content


def _digest_of(content: Mapping[str, Any]) -> str:
    others = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def read_checksums(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return the content of `checksums.json`.

    Raises:
        `FileNotFoundError`: there is none.
        `ValueError`: it is damaged.
    """
    path = Path(folder) / CHECKSUMS_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        is_whole = content["format"] == _FORMAT and all(
            isinstance(text, str) for pair in content["files"].items() for text in pair
        )
        _new_hash(content["algorithm"])
        # Without a digest, as the first stores were written, only known keys.
        is_whole = is_whole and content.keys() <= _KEYS and content.pop("digest", None) in (None, _digest_of(content))
    except (KeyError, TypeError, AttributeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"expected format {_FORMAT}, a known algorithm, a mapping of files to digests, and a digest of these three"
        )
    return content


def changed_files(
    folder: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    checksum: Callable[[Path, str], str] = file_checksum,
) -> list[str]:
    """
    Return, of the files with digests, those that are missing or changed, with what was found.

    Args:
        folder: With a `checksums.json`.
        names: Check these files only; one without a digest counts as changed.
        checksum: Such as [`checksum_once`].

    Raises:
        `FileNotFoundError`, `ValueError`: as [`read_checksums`].
    """
    content = read_checksums(folder)
    expected: dict[str, str] = content["files"]
    wanted = sorted(expected) if names is None else list(names)

    def problem(name: str) -> str | None:
        if name not in expected:
            return f"{name} has no digest"
        try:
            found = checksum(Path(folder) / name, content["algorithm"])
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if found == expected[name] else f"{name} has changed"

    with ThreadPoolExecutor(_THREADS) as pool:
        return [text for text in pool.map(problem, wanted) if text is not None]


def find_checksums(folder: str | os.PathLike[str]) -> list[Path]:
    """Return a folder and those below it that have a `checksums.json`, sorted."""
    return sorted(path.parent for path in Path(folder).rglob(CHECKSUMS_FILE))


def update_checksums(folder: str | os.PathLike[str]) -> None:
    """Write new digests of the same files; missing ones are dropped. `ValueError` for a store or checkpoint."""
    content = read_checksums(folder)
    if content.keys() - {"format", "algorithm", "files"}:
        raise ValueError(
            "its digests are never updated: prepare a damaged store again, or remove a damaged checkpoint, so that the "
            "run is resumed from the checkpoint before"
        )
    names = [name for name in content["files"] if (Path(folder) / name).is_file()]
    write_checksums(folder, names, content["algorithm"])


__all__ = [
    "CHECKSUMS_FILE",
    "add_checksum",
    "changed_files",
    "checksum_once",
    "file_checksum",
    "file_state",
    "find_checksums",
    "mapped_checksum",
    "read_checksums",
    "read_with_digest",
    "share_checksums",
    "update_checksums",
    "write_checksums",
    "write_with_digest",
]
