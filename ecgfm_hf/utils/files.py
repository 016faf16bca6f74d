"""The one way to write a file or a folder: whole or not at all, and over nothing but what the same command wrote."""

import atexit
import contextlib
import errno
import functools
import io
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OutputExistsError

if TYPE_CHECKING:
    from filelock import FileLock

# Locked in each folder of unfinished files while its process lives. It has the machine's name, as some network file
# systems have locks that other machines do not see: each machine removes what its own processes left.
_LOCK_FILE = f".lock-{platform.node()}"
_UNFINISHED, _REPLACED = ".partial", "replaced"
_LONGEST_NAME = 40  # characters of a target's name in that of its unfinished files; systems allow 255 bytes
_TEMPORARY = "ecgfm-"  # begins the names of folders for temporary files
_LOCK_ATTEMPTS, _LOCK_SECONDS = 10, 10.0
# Of file systems without locks, such as Lustre mounted without `flock`, or NFS without its lock service.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_WRITING = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EPIPE)
_searched: set[Path] = set()  # folders in which this process has looked for what killed ones left


def check_output(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    *,
    overwrite: bool | None = None,
    is_own: Callable[[Path], bool] | None = None,
) -> None:
    """
    Check that writing `path` replaces nothing but an earlier output of the same command.

    An input is never replaced, nor is anything in an input folder that the command did not make itself. All else that
    exists is replaced only with `overwrite`. Links, relative paths and letter case do not matter: files are compared as
    the file system knows them. Devices and pipes may always be written.

    Args:
        path: The file or folder to write.
        inputs: What the same command reads; what does not exist, such as a name on the Hub, counts for nothing.
        overwrite: Whether the user agreed to replace what exists; None where the command has no such option.
        is_own: Returns whether an existing file or folder is the output of an earlier run of the same command.

    Raises:
        [`OutputExistsError`]: `path` exists and must not be replaced.
    """
    target = Path(path)
    is_folder = target.is_dir()
    if not (is_folder or target.is_file()):
        return
    if is_folder:
        remove_abandoned(target, ".", _UNFINISHED)
    real = os.path.realpath(target)
    # An input may be a store at an address of fsspec.
    paths = [os.fspath(given).removeprefix("file://") for given in inputs if given is not None]
    found = [(given, os.path.realpath(given)) for given in paths if os.path.exists(given)]
    for given, _ in found:
        if os.path.samefile(target, given):
            raise OutputExistsError(f"{target} is an input ({given}), which is never overwritten: give another path")
    if not (any(target.iterdir()) if is_folder else target.stat().st_size):
        return
    own = is_own is not None and is_own(target)
    for given, source in found:
        if is_folder and _contains(target, source) and (overwrite or not own):
            raise OutputExistsError(f"{target} contains an input ({given}), so it is not replaced: give another path")
        if not own and os.path.isdir(source) and _contains(source, real):
            raise OutputExistsError(
                f"{target} is a part of an input ({given}), which is never overwritten: give another path"
            )
    if not own and not overwrite:
        what = "is not empty" if is_folder else "exists"
        advice = "" if overwrite is None else ", or replace it with overwrite=True"
        raise OutputExistsError(f"{target} {what}, and this command did not write it: give another path{advice}")


def _contains(folder: str | os.PathLike[str], path: str) -> bool:
    """Return whether a folder is one of those above `path`, as the file system knows them."""
    return any(os.path.samefile(folder, parent) for parent in Path(path).parents)


def begins_with(*openings: str) -> Callable[[Path], bool]:
    """Return a function that returns whether a file begins with one of these texts: for `is_own`."""
    encoded = [opening.encode() for opening in openings]

    def is_own(path: Path) -> bool:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(max(map(len, encoded)))
        return any(start.startswith(opening) for opening in encoded)

    return is_own


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to errors of writing, such as of a full disk, which name none."""
    try:
        yield
    except OSError as error:
        if isinstance(error, io.UnsupportedOperation) or error.errno == errno.ESPIPE:
            what = "this format cannot be written to a pipe or device, give a file"
            raise OSError(errno.ESPIPE, what, os.fspath(path)) from error
        if error.errno in _WRITING and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def unfinished_folder(folder: str | os.PathLike[str], name: str) -> Iterator[Path]:
    """
    Yield a new folder in `folder`, for files of this user only, and remove it at the end.

    A process that is killed leaves it. The next one on this machine that writes to `folder` removes it.
    """
    parent = Path(folder)
    remove_unfinished(parent)
    with locked_folder(lambda: tempfile.mkdtemp(_UNFINISHED, f".{name[:_LONGEST_NAME]}.", parent)) as made:
        yield made


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a folder where they wrote files, once in a process."""
    if folder not in _searched:
        remove_abandoned(folder, ".", _UNFINISHED)
        _searched.add(folder)


@contextlib.contextmanager
def locked_folder(make: Callable[[], str | Path], *, shared: bool = False) -> Iterator[Path]:
    """
    Yield the folder that `make` makes, and remove it at the end. Until then [`remove_abandoned`] leaves it there.

    Where the file system has no locks, nothing is taken for abandoned. A `shared` folder that another process has
    locked is yielded, too, and left to that process.

    Raises:
        `OSError`: the folder, or a file in it, cannot be made.
    """
    from filelock import Timeout

    for _ in range(_LOCK_ATTEMPTS):
        try:
            made = Path(make())
        except OSError as error:
            if error.filename is not None:  # a name that only this module has
                error.filename = os.path.dirname(error.filename)
            raise
        try:
            lock = lock_file(made / _LOCK_FILE, 0 if shared else _LOCK_SECONDS)
            break
        except FileNotFoundError:
            continue  # most likely it was taken for abandoned before it was locked
        except Timeout:
            if shared:
                yield made
                return
    else:
        raise OSError(errno.ENOLCK, "lock files cannot be made in this folder", str(made.parent))
    owner = os.getpid()
    try:
        yield made
    finally:
        if os.getpid() == owner:  # and not a process that was forked meanwhile
            _remove_locked(made)
            lock.release()


def _remove_locked(folder: Path) -> None:
    """Remove a folder, its lock last: what stays, as after a kill, is found by [`remove_abandoned`]."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):  # another process may remove a file of its own
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.name != _LOCK_FILE:
                    os.unlink(entry.path)
        if os.listdir(folder) == [_LOCK_FILE]:
            shutil.rmtree(folder)


def remove_abandoned(folder: Path, prefix: str, suffix: str = "") -> None:
    """Remove what [`locked_folder`] made for processes that were killed, once what they had moved aside is back."""
    with contextlib.suppress(PermissionError):  # a folder that may be written but not listed
        for entry in os.scandir(folder):
            if not (entry.name.startswith(prefix) and entry.name.endswith(suffix)) or entry.is_symlink():
                continue
            with contextlib.suppress(OSError):
                left, owner = Path(entry.path), entry.stat(follow_symlinks=False).st_uid
                if hasattr(os, "getuid") and owner != os.getuid():
                    continue
                if not (left / _LOCK_FILE).is_file():
                    if suffix == _UNFINISHED:
                        left.rmdir()  # unless it has files: made by a process that was killed at once
                    continue
                lock = lock_file(left / _LOCK_FILE, timeout=0)
                if not lock.is_locked:
                    return
                try:
                    for replaced in (left / _REPLACED).glob("*"):
                        if not os.path.lexists(folder / replaced.name):
                            replaced.rename(folder / replaced.name)
                    _remove_locked(left)
                finally:
                    lock.release()


def lock_file(path: str | os.PathLike[str], timeout: float = -1) -> "FileLock":
    """
    Lock a file until `release`, or the end of this process; wait for another process that has locked it.

    Args:
        path: Is made where it does not exist; its folder must.
        timeout: Seconds to wait; -1 for ever.

    Returns:
        The lock. Its `is_locked` is False where the file system has no locks.

    Raises:
        `filelock.Timeout`: another process has locked the file.
        `FileNotFoundError`: there is no folder, or the file was removed or replaced meanwhile: it locks nothing then.
        `OSError`: the file cannot be made.
    """
    from filelock import FileLock

    file = Path(path)
    file.touch()
    before = file.stat()
    # A file that exists instead of a lock would stop all others for ever where another machine's process was killed.
    lock = FileLock(path, timeout, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    if not (file.exists() and os.path.samestat(before, file.stat())):
        lock.release()
        raise FileNotFoundError(errno.ENOENT, "removed while it was being locked", str(file))
    return lock


@functools.cache
def private_folder() -> Path:
    """
    Return a folder for temporary files that only this user can read, removed when the process ends.

    The processes that one launcher started on this machine share it, so that one of them makes the copy that all read.
    What killed processes left is removed, too.
    """
    rank, root = os.environ.get("LOCAL_RANK"), Path(tempfile.gettempdir())
    if rank not in (None, "0"):
        return _shared_folder(root)
    remove_abandoned(root, _TEMPORARY)
    if rank is None:
        made = locked_folder(lambda: tempfile.mkdtemp(prefix=_TEMPORARY))
    else:
        made = locked_folder(lambda: _shared_folder(root), shared=True)
    # Files stay readable to processes that have them open. A forked child does not remove the folder.
    atexit.register(made.__exit__, None, None, None)
    return made.__enter__()


def _shared_folder(root: Path) -> Path:
    folder = root / f"{_TEMPORARY}{os.getuid()}-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700 or not stat.S_ISDIR(status.st_mode):
        raise PermissionError(errno.EACCES, "not private to this user: remove it, or set TMPDIR", str(folder))
    return folder


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, private: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """
    Yield a path beside `path` to write to; on success sync it and rename it over `path`, on any error remove it.

    A reader sees the old file or the new one, never a part. A full disk or a kill leaves the old file.

    Args:
        path: The file to write or replace. Its folder must exist. A symbolic link is followed. A device or pipe is
            written directly.
        private: Let only the owner read the file.
        overwrite: If False, an existing file stays as it is, also one that another process writes meanwhile.

    Raises:
        `FileExistsError`: `path` exists and `overwrite` is False.
        `OSError`: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        with _naming(path):
            yield Path(path)
        return
    with _naming(path), unfinished_folder(target.parent, target.name) as folder:
        scratch = folder / "new"
        scratch.touch()
        yield scratch
        if private:
            scratch.chmod(0o600)
        elif target.exists():
            scratch.chmod(target.stat().st_mode & 0o777)
        sync(scratch)
        if overwrite:
            scratch.replace(target)
        else:
            os.link(scratch, target)
    sync(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], check: Callable[[], None], *, keep: bool = True) -> Iterator[Path]:
    """
    Yield a new folder beside `path` to write to; on success sync it and rename it to `path`, on any error remove it.

    Args:
        path: The folder to write or replace. Missing parents are made. A symbolic link is followed.
        check: Raises an error if `path` must not be replaced. It runs again at the end, since the block may take long
            enough for others to write there.
        keep: If False, remove the new folder on success, too.

    Raises:
        `OSError`: the folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path), unfinished_folder(target.parent, target.name) as work:
        new, old = work / "new", work / _REPLACED / target.name
        new.mkdir()  # with the user's own permissions; those of `work` are private
        yield new
        if keep:
            for part in (*new.rglob("*"), new):
                sync(part)
            check()
            if target.is_dir() and any(target.iterdir()):
                old.parent.mkdir()
                target.rename(old)
            elif target.is_dir() and (os.path.ismount(target) or os.path.samefile(target, os.curdir)):
                for path in new.iterdir():  # a renamed folder would not be where the user is
                    shutil.move(path, target)
                return
            try:
                new.rename(target)  # to a missing or an empty folder: the system refuses any other
            except OSError:
                if old.is_dir():
                    old.rename(target)
                raise
            sync(target.parent)


@contextlib.contextmanager
def files_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield a new folder to write files to; on success sync and move each into `folder`, whose other files stay.

    An error before that leaves `folder` as it was, and a missing one appears with all of its files at once. Missing
    parents are made.

    Raises:
        `OSError`: a file cannot be written.
    """
    target = Path(os.path.realpath(folder))
    is_new = not target.is_dir()
    home = target.parent if is_new else target
    home.mkdir(parents=True, exist_ok=True)
    with _naming(folder), unfinished_folder(home, target.name if is_new else "files") as work:
        scratch = work / "new"
        scratch.mkdir()
        yield scratch
        # In the order in which they were written: a kill in between leaves none without those before it.
        files = sorted(
            (path for path in scratch.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns
        )
        for path in files:
            sync(path)
        if is_new:
            sync(scratch)
            with contextlib.suppress(OSError):  # another process has written to it meanwhile
                scratch.rename(target)
                files = []
        for path in files:
            goal = target / path.relative_to(scratch)
            goal.parent.mkdir(parents=True, exist_ok=True)
            path.replace(goal)
        sync(target)
        sync(home)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1, *, private: bool = False) -> None:
    """Write `content` to `path` as JSON, whole or not at all; `private` as of [`atomic_path`]."""
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    with atomic_path(path, private=private) as scratch:
        # File names need not be UTF-8. What is not is written as JSON's own escape, and read back as it was.
        scratch.write_bytes(text.encode("utf-8", "backslashreplace"))


def sync(path: str | os.PathLike[str]) -> None:
    """Have the kernel write a file's content, or a folder's entries, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "atomic_folder",
    "atomic_path",
    "begins_with",
    "check_output",
    "files_in",
    "lock_file",
    "locked_folder",
    "private_folder",
    "remove_abandoned",
    "remove_unfinished",
    "sync",
    "unfinished_folder",
    "write_json",
    "write_text",
]
