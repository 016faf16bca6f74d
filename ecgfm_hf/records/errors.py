"""The one error of the records room, and the first look at a file that every reader takes."""

import os
import stat

from ..utils.errors import ECGFMError


class ECGReadError(ECGFMError, ValueError):
    """A recording could not be read, or what was read contradicts itself.

    The message begins with the file and says what was found and what was expected. It takes a single argument, so that
    it survives the way back from a worker process.
    """


def regular_file_size(path: str, role: str = "file") -> int:
    """Size in bytes of a file that is safe to open: it exists, is an ordinary file and is not empty.

    Anything but an ordinary file is refused before it is opened, because opening a named pipe waits for ever and a
    device may never end. Raises `ECGReadError`, with `role` ("header", "signal file") saying what was looked for.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ECGReadError(f"{path}: no such {role}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ECGReadError(f"{path}: cannot look at this {role} ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise ECGReadError(f"{path}: is a folder, expected a {role}")
    if not stat.S_ISREG(status.st_mode):
        raise ECGReadError(f"{path}: is a device or pipe, expected a {role}")
    if status.st_size == 0:
        raise ECGReadError(f"{path}: is empty, expected a {role} with something in it")
    return status.st_size


def read_bytes(path: str, size: int, role: str = "file") -> bytes:
    """Read a file of exactly `size` bytes, raising `ECGReadError` if that is not what is there."""
    try:
        with open(path, "rb") as file:
            content = file.read(size + 1)
    except OSError as error:
        raise ECGReadError(f"{path}: cannot read this {role} ({error})") from error
    if len(content) != size:
        raise ECGReadError(f"{path}: the {role} changed while it was read, expected {size} bytes")
    return content
