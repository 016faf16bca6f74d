"""What goes wrong with a labeler's tables."""

from ..utils.errors import ECGFMError


class LabelerError(ECGFMError, ValueError):
    """
    A labeler's definition is wrong; the message names the file and the entry.

    It is a `ValueError`, so that callers who validate input need no import from here.
    """
