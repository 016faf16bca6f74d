"""A process that reads uploaded files, with limits on its memory and time."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import OrderedDict
from typing import Any

from ..records import ECGReadError
from ..records.reading import read_with_defaults
from ..records.record import ECGRecord
from ..utils.resumable_parts import exit_with_parent

LONGEST_SECONDS = 600
_MOST_LEADS, _MOST_VALUES = 64, 1 << 24
_LONGEST_START = 600.0  # seconds, on a machine with a lot to do


class ReaderProcess:
    """
    Reads recordings in another process. If it crashes, hangs or takes too much memory, the file is refused and the next
    file gets a new process.

    Args:
        seconds: Longest time to read a file.
        memory: Most bytes to read a file, where the system can limit them (Linux).
    """

    def __init__(self, seconds: float = 60.0, memory: int = 2 << 30):
        self._seconds, self._memory = seconds, memory
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Any = None
        self._ready = False

    def start(self) -> None:
        """Start the process without waiting for it: its imports take seconds."""
        with self._lock:
            self._start()

    def read(self, path: str | os.PathLike, **arguments: Any) -> ECGRecord:
        """
        Read one recording.

        Args:
            path: The file.
            arguments: As in `read_ecg`. Those that the file's format contains itself are not used.

        Raises:
            ECGReadError: as `read_ecg`; also if reading takes too long or too much memory or crashes, or if the
                recording has more than 10 minutes, 64 leads or 2^24 values.
        """
        with self._lock:
            self._start()
            try:
                self._await_ready()
                self._connection.send((os.fspath(path), arguments))
                if not self._connection.poll(self._seconds):
                    self._stop()
                    raise ECGReadError(f"{path}: not read within {self._seconds:g} s")
                found = self._connection.recv()
            except (EOFError, OSError):
                self._stop()
                raise ECGReadError(f"{path}: the process that read it died") from None
        if isinstance(found, ECGReadError):
            raise found
        return found

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        self._stop()
        # Spawned, not forked: a fork could copy locks that the server's threads hold, and wait for them forever.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getpid(), self._memory), name="ecgfm-reader", daemon=True
        )
        self._process.start()
        theirs.close()

    def _await_ready(self) -> None:
        """Wait for the imports, which do not count as time of the first file."""
        if not self._ready:
            if not self._connection.poll(_LONGEST_START):
                raise EOFError
            self._ready = self._connection.recv() == "ready"

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._connection.close()
        self._process = self._connection = None
        self._ready = False


class SessionReaders:
    """
    A reader process for each session, ended with it: memory that one visitor's file has left is seen by no other.

    A process is started in advance, since its imports take seconds.

    Args:
        most: Processes of sessions at once; the one that was unused for longest is ended for another.
        seconds: Time after which an unused process is ended.
    """

    def __init__(self, most: int = 8, seconds: float = 1800.0):
        self._most, self._seconds = most, seconds
        self._lock = threading.Lock()
        self._spare: ReaderProcess | None = None
        self._readers: OrderedDict[str, tuple[float, ReaderProcess]] = OrderedDict()

    def start(self) -> None:
        """Start a process for the first session without waiting for it."""
        with self._lock:
            self._start_spare()

    def read(self, session: str, path: str | os.PathLike, **arguments: Any) -> ECGRecord:
        """Read one recording in the session's own process; without a session, in one that is ended afterwards."""
        reader = self._of(session)
        try:
            return reader.read(path, **arguments)
        finally:
            if not session:
                reader.close()

    def end(self, session: str) -> None:
        """End the session's process, if there is one."""
        with self._lock:
            found = self._readers.pop(session, None)
        if found is not None:
            found[1].close()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            readers = [reader for _, reader in self._readers.values()]
            readers += [] if self._spare is None else [self._spare]
            self._readers.clear()
            self._spare = None
        for reader in readers:
            reader.close()

    def _of(self, session: str) -> ReaderProcess:
        unused = []
        with self._lock:
            now = time.monotonic()
            _, reader = self._readers.pop(session, (0.0, None))
            while self._readers:
                used, oldest = next(iter(self._readers.values()))
                if len(self._readers) < self._most and now - used <= self._seconds:
                    break
                unused.append(oldest)
                self._readers.popitem(last=False)
            if reader is None:
                reader, self._spare = self._spare or ReaderProcess(), None
                self._start_spare()
            if session:
                self._readers[session] = (now, reader)
        for one in unused:
            one.close()
        return reader

    def _start_spare(self) -> None:
        if self._spare is None:
            self._spare = ReaderProcess()
            self._spare.start()


def _serve(connection: Any, parent: int, memory: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    exit_with_parent(parent)
    _limit_memory(memory)
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            path, arguments = connection.recv()
            connection.send(_read(path, arguments))


def _limit_memory(more: int) -> None:
    """Limit memory to `more` bytes above the present use."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
    except (ImportError, OSError, ValueError):
        return  # another system: the readers have limits of their own


def _read(path: str, arguments: dict[str, Any]) -> ECGRecord | ECGReadError:
    try:
        record = read_with_defaults(path, **arguments)
        leads, samples = record.samples.shape
        seconds = samples / record.sampling_rate
        if seconds > LONGEST_SECONDS or leads > _MOST_LEADS or leads * samples > _MOST_VALUES:
            raise ECGReadError(
                f"{path}: {leads} leads of {samples} samples ({seconds:.4g} s) are too many for this page, expected at "
                f"most {LONGEST_SECONDS} s, {_MOST_LEADS} leads and {_MOST_VALUES} values"
            )
        return record
    except ECGReadError as error:
        return error
    except MemoryError:
        return ECGReadError(f"{path}: reading it takes too much memory")
    except Exception as error:  # after any error of an uploaded file, the next one must be read
        return ECGReadError(f"{path}: cannot be read ({type(error).__name__})")


__all__ = ["LONGEST_SECONDS", "ReaderProcess", "SessionReaders"]
