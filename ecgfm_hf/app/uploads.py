"""What was dropped on the page: looked at, moved to a folder of its own under harmless names, and removed."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..records.wfdb import read_header
from ..utils.errors import ECGFMError

MEGABYTE = 1 << 20  # bytes, as browsers and Gradio's own messages count
READING = "reading-"  # how folders begin in which uploads are laid out
MOST_FILES = 8  # a WFDB header, and signal files as it may name several

# The beginnings of archives and compressed files (at which byte, which bytes). Nothing here ever unpacks one; they are
# told apart for the sake of a clear answer.
_ARCHIVES = (
    (0, b"PK\x03\x04"), (0, b"PK\x05\x06"), (0, b"PK\x07\x08"), (0, b"\x1f\x8b\x08"), (0, b"BZh"),
    (0, b"\xfd7zXZ\x00"), (0, b"7z\xbc\xaf\x27\x1c"), (0, b"Rar!\x1a\x07"), (0, b"\x28\xb5\x2f\xfd"),
    (0, b"\x04\x22\x4d\x18"), (257, b"ustar"),
)  # fmt: skip
_ARCHIVE_NAME = re.compile(
    r"\.(zip|npz|jar|gz|tgz|bz2|tbz2?|xz|txz|lzma|zst|lz4|7z|rar|tar|cab|ar|iso|z)$", re.IGNORECASE
)
# Of a file on its own the suffix is all that is kept; which formats go by theirs, sniffing.py knows.
_SUFFIXES = (".csv", ".tsv", ".dat", ".mat", ".dcm", ".dicom", ".edf", ".xml", ".scp", ".npy", ".h5", ".hdf5")
# A header names its signal files, so these keep their names; which must be plain.
_PLAIN_NAME = re.compile(r"\w[\w.+-]{0,99}")


class UploadError(ECGFMError, ValueError):
    """What was dropped is not taken; says why, in words for the page."""


@dataclass(frozen=True)
class Upload:
    """
    A recording that was dropped.

    Attributes:
        path: To be read, in a folder of its own. Nothing that the sender named is part of it but a plain file name.
        title: What the sender calls the recording. For the eye only.
    """

    path: Path
    title: str


@contextlib.contextmanager
def taken_upload(paths: Sequence[str], incoming: Path, max_bytes: int) -> Iterator[Upload]:
    """
    The recording that files in `incoming` are. They are gone afterwards, whatever happens.

    Args:
        paths: As Gradio has stored them.
        incoming: The folder that they must lie in.
        max_bytes: Of all of them together.

    Raises:
        [`UploadError`]: too many, too large, an archive, more than one recording, names that are no plain names.
        ECGReadError: a WFDB header that is damaged or names a file outside of its folder.
    """
    incoming = Path(os.path.realpath(incoming))
    files = [Path(path) for path in dict.fromkeys(paths)]
    if not all(incoming in Path(os.path.realpath(file)).parents for file in files):
        raise UploadError("only files that were dropped on the page are read")
    with tempfile.TemporaryDirectory(prefix=READING, dir=incoming) as own:
        try:
            _check(files, max_bytes)
            yield _laid_out(files, Path(own))
        finally:
            for file in files:
                _remove(file)


def sweep(folder: Path, seconds: float, now: float) -> None:
    """Removes what was put into `folder` more than `seconds` before `now`: uploads that nobody asked an answer for."""
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if now - entry.stat(follow_symlinks=False).st_mtime <= seconds:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def stored_bytes(folder: Path) -> int:
    """How many bytes lie in `folder`."""
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
        raise UploadError(f"{len(files)} files, expected those of one recording, at most {MOST_FILES}")
    total = 0
    for file in files:
        try:
            status = file.lstat()
        except OSError:
            raise UploadError("the upload is no longer there: drop the file again") from None
        if not stat.S_ISREG(status.st_mode):
            raise UploadError(f"{file.name}: is not an ordinary file")
        total += status.st_size
    if total > max_bytes:
        raise UploadError(f"{_megabytes(total)} is too large, expected at most {_megabytes(max_bytes)}")
    for file in files:
        if _is_archive(file):
            raise UploadError(f"{file.name}: archives and compressed files are not taken; unpack it first")


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.3g} MB"


def _is_archive(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(512)
    return bool(_ARCHIVE_NAME.search(file.name)) or any(start[at : at + len(mark)] == mark for at, mark in _ARCHIVES)


def _laid_out(files: Sequence[Path], own: Path) -> Upload:
    headers = [file for file in files if file.suffix.lower() == ".hea"]
    if len(headers) > 1 or (len(files) > 1 and not headers):
        names = ", ".join(file.name for file in files)
        raise UploadError(f"one recording at a time; found {len(files)} files: {names}")
    if not headers:
        suffix = files[0].suffix.lower()
        path = own / f"recording{suffix if suffix in _SUFFIXES else ''}"
        os.rename(files[0], path)
        return Upload(path, files[0].stem)
    names = [file.name for file in files]
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise UploadError(f"{name}: names of WFDB files may have letters, digits, dots and _ + - only")
    if len({name.casefold() for name in names}) < len(names):
        raise UploadError(f"found two files of one name among: {', '.join(names)}")
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
    """A file, and the folder that Gradio has made for it, once that is empty."""
    with contextlib.suppress(OSError):
        file.unlink()
    with contextlib.suppress(OSError):
        file.parent.rmdir()


__all__ = ["MEGABYTE", "MOST_FILES", "READING", "Upload", "UploadError", "stored_bytes", "sweep", "taken_upload"]
