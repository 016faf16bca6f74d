"""Uploaded files: checked, moved to their own folder under harmless names, and removed."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..records.wfdb_header import read_header
from ..utils.errors import ECGFMError

MEGABYTE = 1 << 20  # bytes, as browsers and Gradio's own messages count
READING = "reading-"  # prefix of the folders in which uploads are read
MOST_FILES = 8  # a WFDB header, and signal files as it may name several

# How archives and compressed files begin (offset, bytes). They are recognised to give a clear message; nothing is ever
# unpacked.
_ARCHIVES = (
    (0, b"PK\x03\x04"), (0, b"PK\x05\x06"), (0, b"PK\x07\x08"), (0, b"\x1f\x8b\x08"), (0, b"BZh"),
    (0, b"\xfd7zXZ\x00"), (0, b"7z\xbc\xaf\x27\x1c"), (0, b"Rar!\x1a\x07"), (0, b"\x28\xb5\x2f\xfd"),
    (0, b"\x04\x22\x4d\x18"), (257, b"ustar"),
)  # fmt: skip
_ARCHIVE_NAME = re.compile(
    r"\.(zip|npz|jar|gz|tgz|bz2|tbz2?|xz|txz|lzma|zst|lz4|7z|rar|tar|cab|ar|iso|z)$", re.IGNORECASE
)
# A single file keeps nothing but its suffix. sniffing.py decides which formats are recognised by their suffix.
_SUFFIXES = (".csv", ".tsv", ".dat", ".mat", ".dcm", ".dicom", ".edf", ".xml", ".scp", ".npy", ".h5", ".hdf5")
# A header names its signal files, so these keep their names, which must be plain.
_PLAIN_NAME = re.compile(r"\w[\w.+-]{0,99}")


class UploadError(ECGFMError, ValueError):
    """An upload that is refused. The message is shown on the page."""


@dataclass(frozen=True)
class Upload:
    """
    An uploaded recording.

    Attributes:
        path: The file to read, in its own folder. Of the names that the visitor chose it contains only a plain file
            name.
        title: The visitor's name for the recording, for display only.
    """

    path: Path
    title: str


@contextlib.contextmanager
def take_upload(paths: Sequence[str], incoming: Path, max_bytes: int) -> Iterator[Upload]:
    """
    Yield the recording that the uploaded files make up. The files are removed afterwards in any case.

    Args:
        paths: As Gradio stored them.
        incoming: The folder that they must be in.
        max_bytes: Largest size of all files together.

    Raises:
        [`UploadError`]: too many or too large files, an archive, more than one recording, names that are not plain.
        ECGReadError: a WFDB header that is damaged or names a file outside its folder.
    """
    incoming = Path(os.path.realpath(incoming))
    files = [Path(path) for path in dict.fromkeys(paths)]
    if not all(incoming in Path(os.path.realpath(file)).parents for file in files):
        raise UploadError("only files that were dropped on the page are read")
    with tempfile.TemporaryDirectory(prefix=READING, dir=incoming) as own:
        try:
            _check(files, max_bytes)
            yield _lay_out(files, Path(own))
        finally:
            for file in files:
                _remove(file)


def sweep(folder: Path, seconds: float, now: float) -> None:
    """Remove what was put into `folder` more than `seconds` before `now`: uploads that were never read."""
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if now - entry.stat(follow_symlinks=False).st_mtime <= seconds:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def stored_bytes(folder: Path) -> int:
    """Return the size of all files in `folder`, in bytes."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _check(files: Sequence[Path], max_bytes: int) -> None:
    if not files:
        raise UploadError("there is no file")
    if len(files) > MOST_FILES:
        raise UploadError(f"{len(files)} files, expected the files of one recording, at most {MOST_FILES}")
    total = 0
    for file in files:
        try:
            status = file.lstat()
        except OSError:
            raise UploadError("the upload is no longer there: drop the file again") from None
        if not stat.S_ISREG(status.st_mode):
            raise UploadError(f"{file.name} is not a regular file")
        total += status.st_size
    if total > max_bytes:
        raise UploadError(f"{_megabytes(total)} is too large, expected at most {_megabytes(max_bytes)}")
    for file in files:
        if _is_archive(file):
            raise UploadError(f"{file.name}: archives and compressed files are not accepted: unpack it first")


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.3g} MB"


def _is_archive(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(512)
    return bool(_ARCHIVE_NAME.search(file.name)) or any(start[at : at + len(mark)] == mark for at, mark in _ARCHIVES)


def _lay_out(files: Sequence[Path], own: Path) -> Upload:
    headers = [file for file in files if file.suffix.lower() == ".hea"]
    if len(headers) > 1 or (len(files) > 1 and not headers):
        listed = ", ".join(file.name for file in files)
        raise UploadError(f"one recording at a time; found {len(files)} files: {listed}")
    if not headers:
        suffix = files[0].suffix.lower()
        path = own / f"recording{suffix if suffix in _SUFFIXES else ''}"
        os.rename(files[0], path)
        return Upload(path, files[0].stem)
    names = [file.name for file in files]
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise UploadError(f"{name}: names of WFDB files may contain only letters, digits, dots and _ + -")
    if len({name.casefold() for name in names}) < len(names):
        raise UploadError(f"two files have the same name: {', '.join(names)}")
    for file in files:
        os.rename(file, own / file.name)
    header = own / headers[0].name
    named = {signal.file_name for signal in read_header(str(header)).signals}
    surplus, missing = sorted({*names} - {header.name} - named), sorted(named - {*names})
    if missing:
        raise UploadError(f"{header.name} names the signal file {missing[0]}: drop both together")
    if surplus:
        raise UploadError(f"{header.name} does not name {', '.join(surplus)}; one recording at a time")
    return Upload(header, header.stem)


def _remove(file: Path) -> None:
    """Remove a file, and the folder that Gradio made for it if it is empty."""
    with contextlib.suppress(OSError):
        file.unlink()
    with contextlib.suppress(OSError):
        file.parent.rmdir()


__all__ = ["MEGABYTE", "MOST_FILES", "READING", "Upload", "UploadError", "stored_bytes", "sweep", "take_upload"]
