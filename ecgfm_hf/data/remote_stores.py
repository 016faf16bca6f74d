"""
Stores at addresses of fsspec, such as `s3://bucket/store`.

Such a store has a folder for temporary files on this machine:

    FOLDER/checksums.json, report.json, ...     as in the store
    FOLDER/data/train-00000-of-00004.parquet    the file's footer only, which lists its row groups

The rows of a file are fetched when they are read. The file is then on this machine in whole, so that its digest is
compared before its first row: one file at a time, of at most 4,096 recordings, until the next one is fetched.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..utils.files import lock_file, private_folder
from ..utils.integrity import CHECKSUMS_FILE, changed_files, file_checksum, read_checksums
from ..utils.text import without_secrets
from .store import DATA_FOLDER, DataError, map_checked

# Of the end of a Parquet file: enough for the footer of a store with some labels.
_END_BYTES = 1 << 16
_THREADS = 8  # for file systems whose connections may be shared


def is_address(store: str | Path) -> bool:
    """Return whether a store is given as an address of fsspec."""
    return "://" in os.fspath(store)


def local_store(store: str | Path) -> Path:
    """
    Return a folder of this machine for a store: itself, or the local folder of a store at an address of fsspec.

    The processes that one launcher started on this machine share that folder.

    Raises:
        `DataError`: no store at the address, or a damaged one; no library for this kind of address.
    """
    return _local_folder(os.fspath(store)) if is_address(store) else Path(store)


def open_store_file(path: Path, address: str | None = None) -> pq.ParquetFile:
    """
    Open a Parquet file of a store, once all of the file is checked.

    Args:
        path: In the store's folder, or in the local folder of a remote store.
        address: Of the store, where it has one.

    Raises:
        `DataError`: the file has changed, or cannot be fetched.
    """
    file = map_checked(path) if address is None else _fetched(path, address)
    return pq.ParquetFile(file, pre_buffer=False)  # fetching ahead would fill the memory with the whole file


@functools.cache
def _local_folder(address: str) -> Path:
    import fsspec

    folder = private_folder() / f"store-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
    with _errors_of(address):
        lock = lock_file(f"{folder}.lock")
        try:
            if folder.exists():  # made by another process of the same launcher
                return folder
            scratch = folder.with_suffix(".partial")
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / DATA_FOLDER).mkdir(parents=True)
            system, root = fsspec.core.url_to_fs(address)
            _fetch_small_files(system, root, scratch, address)
            scratch.rename(folder)
        finally:
            lock.release()
    return folder


def _fetch_small_files(system: Any, root: str, folder: Path, address: str) -> None:
    """Fetch and check all but the rows."""
    system.get_file(f"{root}/{CHECKSUMS_FILE}", str(folder / CHECKSUMS_FILE))
    try:
        checksums = read_checksums(folder)
    except ValueError as error:
        raise _damaged(address, f"{CHECKSUMS_FILE} ({error})") from None
    footers: dict[str, str] = checksums.get("footers", {})
    for name in (*checksums["files"], *footers):
        if Path(name).parent.as_posix() not in (".", DATA_FOLDER) or Path(name).name in ("", ".."):
            raise DataError(f"{without_secrets(address)}: {CHECKSUMS_FILE} names {name}, which is no file of a store")
    if not footers:
        raise DataError(f"{without_secrets(address)} is no store: {CHECKSUMS_FILE} names no Parquet files")
    small = [name for name in checksums["files"] if name not in footers]
    for name in small:
        system.get_file(f"{root}/{name}", str(folder / name))
    changed = changed_files(folder, small)
    with ThreadPoolExecutor(_THREADS if system.async_impl else 1) as pool:
        contents = pool.map(lambda name: _footer(system, f"{root}/{name}"), footers)
        for name, content in zip(footers, contents, strict=True):
            (folder / name).write_bytes(content)
            if file_checksum(folder / name, checksums["algorithm"]) != footers[name]:
                changed.append(f"the footer of {name} has changed")
    if changed:
        raise _damaged(address, "; ".join(changed[:3]))


def _footer(system: Any, path: str) -> bytes:
    size: int | None = system.info(path)["size"]  # which some web servers do not give

    def end_of(count: int) -> bytes:
        # FTP has no negative start.
        start = -count if size is None else max(0, size - count)
        content: bytes = system.cat_file(path, start=start, end=size)
        return content

    end = end_of(_END_BYTES)
    length = int.from_bytes(end[-8:-4], "little") + 8
    return end_of(length)[-length:] if length > len(end) else end[-length:]


# The last one only, for streams that read a file in several goes, such as after `reshard()`.
@functools.lru_cache(maxsize=1)
def _fetched(path: Path, address: str) -> pa.MemoryMappedFile:
    """Fetch and check a file; return its memory map, which needs no name on the disk."""
    import fsspec

    name, checksums = f"{DATA_FOLDER}/{path.name}", read_checksums(path.parent.parent)
    handle, scratch = tempfile.mkstemp(dir=private_folder())
    os.close(handle)
    try:
        with _errors_of(address):
            # Opened anew: connections do not survive a fork.
            system, root = fsspec.core.url_to_fs(address)
            system.get_file(f"{root}/{name}", scratch)
            if file_checksum(scratch, checksums["algorithm"]) != checksums["files"][name]:
                raise _damaged(address, f"{name} has changed")
            return pa.memory_map(scratch)
    finally:
        os.unlink(scratch)


@contextlib.contextmanager
def _errors_of(address: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # Not `from error`, which may have a password.
    except ImportError as error:
        raise DataError(without_secrets(f"{address}: {error}", address)) from None
    except FileNotFoundError as error:
        problem = f"{address} is no store, or not a whole one: {error} is missing"
        raise DataError(without_secrets(problem, address)) from None
    except Exception as error:  # each kind of address has a library with errors of its own
        problem = without_secrets(f"{address} cannot be read ({str(error) or type(error).__name__})", address)
        raise DataError(
            f"{problem}: check the address and its access; if the disk of this machine is full, set TMPDIR to another "
            "folder"
        ) from None


def _damaged(address: str, problem: str) -> DataError:
    return DataError(f"{without_secrets(address)} is damaged: {problem}. Copy it there again")


__all__ = ["is_address", "local_store", "open_store_file"]
