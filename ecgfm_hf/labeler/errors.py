"""What goes wrong with a labeler's tables."""


class LabelerError(ValueError):
    """
    A labeler's definition is wrong; the message names the file and the entry.

    It is a `ValueError`, so that callers who validate input need no import from here.
    """
