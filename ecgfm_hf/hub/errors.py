"""What keeps a model from the Hub."""

from collections.abc import Sequence

from ..utils.errors import ECGFMError


class PushRefusedError(ECGFMError, ValueError):
    """
    What was to go must not go. Nothing was sent.

    Args:
        problems (sequence of `str`): Each names a file and what was found in it.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__("not pushed:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = list(problems)


class PushError(ECGFMError, RuntimeError):
    """The Hub did not take it. The message says why, and what to do."""


__all__ = ["PushError", "PushRefusedError"]
