"""SIGTERM and Ctrl-C, noted instead of obeyed at once: an update is finished and saved first."""

import signal
import threading
from types import FrameType


class Interruption:
    """
    A context manager that notes signals; a second Ctrl-C raises `KeyboardInterrupt` as ever.

    Outside the main thread it notes nothing, since Python delivers signals only there.

    Attributes:
        number (`int`): The signal that came, 0 while none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self.number = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = int(number)


__all__ = ["Interruption"]
