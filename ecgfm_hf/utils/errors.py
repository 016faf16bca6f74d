"""The base of every exception that this package raises on purpose."""

import difflib
from collections.abc import Iterable


class ECGFMError(Exception):
    """
    Base class of this package's exceptions: `except ecgfm_hf.ECGFMError` catches them all.

    The message contains what is wrong and where, what was found, what is expected, and what to do.
    """


class SettingsError(ECGFMError, ValueError):
    """A setting that is unknown or impossible. The message names the key, what was found and what is expected."""


class InputNotFoundError(ECGFMError, FileNotFoundError):
    """A file or folder to read that does not exist. The message names it."""


class OutputExistsError(ECGFMError, FileExistsError):
    """Something exists where an output would be written. The message names it, and how to continue."""


class DeviceNotFoundError(ECGFMError, ValueError):
    """A device that this machine does not have. The message names it, and the devices to choose from."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean NAME?` where a known name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


__all__ = [
    "DeviceNotFoundError",
    "ECGFMError",
    "InputNotFoundError",
    "OutputExistsError",
    "SettingsError",
    "suggestion",
]
