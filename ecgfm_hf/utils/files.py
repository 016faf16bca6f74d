"""The one way to write a file or a folder: whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, private: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """
    Yield a path beside `path` to write to; on success sync it and rename it over `path`, on any error remove it.

    A reader sees the old file or the new one, never a part. A full disk or a kill leaves the old file.

    Args:
        path: The file to write or replace. Its folder must exist. A symbolic link is followed.
        private: Let only the owner read the file.
        overwrite: If False, an existing file stays as it is, also one that another process writes meanwhile.

    Raises:
        `FileExistsError`: `path` exists and `overwrite` is False.
        `OSError`: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    os.close(descriptor)
    scratch = Path(name)
    try:
        yield scratch
        # mkstemp makes files that only the owner can read; a result has the permissions that any new file has.
        if not private:
            scratch.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        sync(scratch)
        if overwrite:
            scratch.replace(target)
        else:
            os.link(scratch, target)
            scratch.unlink()
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], check: Callable[[], None], *, keep: bool = True) -> Iterator[Path]:
    """
    Yield a new folder beside `path` to write to; on success rename it to `path`, on any error remove it.

    Args:
        path: The folder to write or replace. Missing parents are made.
        check: Raises an error if `path` must not be replaced. It runs again at the end, since the block may take long
            enough for others to write there.
        keep: If False, remove the new folder on success, too.

    Raises:
        `OSError`: the folder cannot be written.
    """
    target = Path(os.path.abspath(path))
    check()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()  # with the user's own permissions; mkdtemp's are private
        yield new
        if keep:
            check()
            if target.is_dir() and any(target.iterdir()):
                target.rename(old)
            try:
                new.rename(target)  # to a missing or an empty folder: the system refuses any other
            except OSError:
                if old.is_dir():
                    old.rename(target)
                raise
            sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1) -> None:
    """Write `content` to `path` as JSON, whole or not at all."""
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    with atomic_path(path) as scratch:
        # File names need not be UTF-8. What is not is written as JSON's own escape, and read back as it was.
        scratch.write_bytes(text.encode("utf-8", "backslashreplace"))


def sync(path: str | os.PathLike[str]) -> None:
    """Have the kernel write a file's content, or a folder's entries, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The only way to read it is to set it.
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


__all__ = ["atomic_folder", "atomic_path", "sync", "write_json", "write_text"]
