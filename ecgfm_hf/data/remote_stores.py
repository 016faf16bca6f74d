"""
Stores at addresses of fsspec, such as `s3://bucket/store`.

On this machine, a folder for temporary files stands for such a store:

    FOLDER/checksums.json, report.json, ...     as in the store
    FOLDER/data/train-00000-of-00004.parquet    the file's footer only, which lists its row groups

The rows of a file are fetched when they are read. The file is then on this machine in whole, so that its digest is
compared before its first row; but only the file that is being read, with at most 4,096 recordings.
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
from filelock import FileLock

from ..utils.files import private_folder
from ..utils.integrity import CHECKSUMS_FILE, changed_files, file_checksum, read_checksums
from ..utils.text import without_secrets
from .store import DATA_FOLDER, DataError, check_files

# Of the end of a Parquet file: enough for the footer of a store with some labels.
_END_BYTES = 1 << 16
_THREADS = 8


def is_address(store: str | Path) -> bool:
    """Return whether a store is given as an address of fsspec."""
    return "://" in os.fspath(store)


def local_store(store: str | Path) -> Path:
    """
    Return a folder of this machine for a store: itself, or what stands for a store at an address of fsspec.

    The processes that one launcher started on this machine share what stands for a store.

    Raises:
        `DataError`: no store at the address, or a damaged one; no library for this kind of address.
    """
    return _stand_in(os.fspath(store)) if is_address(store) else Path(store)


def open_store_file(path: Path, address: str | None = None) -> pq.ParquetFile:
    """
    Open a Parquet file of a store, once all of the file is checked.

    Args:
        path: In the store's folder, or in the folder that stands for it.
        address: Of the store, where it has one.

    Raises:
        `DataError`: the file has changed, or cannot be fetched.
    """
    # Fetching ahead would fill the memory with the whole file.
    if address is not None:
        return pq.ParquetFile(_fetched(path, address), pre_buffer=False)
    check_files(path.parent.parent, [path])
    return pq.ParquetFile(path, memory_map=True, pre_buffer=False)


@functools.cache
def _stand_in(address: str) -> Path:
    import fsspec

    folder = private_folder() / f"store-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
    with FileLock(f"{folder}.lock"), _errors_of(address):
        if folder.exists():  # made by another process of the same launcher
            return folder
        scratch = folder.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / DATA_FOLDER).mkdir(parents=True)
        system, root = fsspec.core.url_to_fs(address)
        _fetch_small_files(system, root, scratch, address)
        scratch.rename(folder)
    return folder


def _fetch_small_files(system: Any, root: str, folder: Path, address: str) -> None:
    """Fetch and check all but the rows."""
    system.get_file(f"{root}/{CHECKSUMS_FILE}", str(folder / CHECKSUMS_FILE))
    checksums = read_checksums(folder)
    footers: dict[str, str] = checksums.get("footers", {})
    for name in (*checksums["files"], *footers):
        if Path(name).parent.as_posix() not in (".", DATA_FOLDER) or Path(name).name in ("", ".."):
            raise DataError(f"{without_secrets(address)}: {CHECKSUMS_FILE} names {name}, which is no file of a store")
    small = [name for name in checksums["files"] if name not in footers]
    for name in small:
        system.get_file(f"{root}/{name}", str(folder / name))
    changed = changed_files(folder, small)
    with ThreadPoolExecutor(_THREADS) as pool:
        contents = pool.map(lambda name: _footer(system, f"{root}/{name}"), footers)
        for name, content in zip(footers, contents, strict=True):
            (folder / name).write_bytes(content)
            if file_checksum(folder / name, checksums["algorithm"]) != footers[name]:
                changed.append(f"the footer of {name} has changed")
    if changed:
        raise _damaged(address, "; ".join(changed[:3]))


def _footer(system: Any, path: str) -> bytes:
    end: bytes = system.cat_file(path, start=-_END_BYTES)
    length = int.from_bytes(end[-8:-4], "little") + 8
    if length > len(end):
        end = system.cat_file(path, start=-length)
    return end[-length:]


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
        raise DataError(without_secrets(f"{address}: {error}")) from None
    except FileNotFoundError as error:
        raise DataError(without_secrets(f"{address} is no store, or not a whole one: {error} is missing")) from None
    except Exception as error:  # each kind of address has a library with errors of its own
        problem = without_secrets(f"{address} cannot be read ({str(error) or type(error).__name__})")
        raise DataError(
            f"{problem}: check the address and its access; if the disk of this machine is full, set TMPDIR to another "
            "folder"
        ) from None


def _damaged(address: str, problem: str) -> DataError:
    return DataError(f"{without_secrets(address)} is damaged: {problem}. Copy it there again")


__all__ = ["is_address", "local_store", "open_store_file"]
