"""Runs that are killed, files that are damaged, and stores compared, for tests of resuming."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

_CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate")


def start(function: Callable[[], object], folder: Path, kill_at: int | None = None) -> int:
    """
    Runs a function in a process, and process group, of its own, and returns its id.

    With `kill_at` it kills itself, with SIGKILL and together with its children, just before the change of that number
    to files below `folder`: made, opened for writing, moved, linked or removed. Children count for themselves.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        changes = [0]

        def count(event: str, arguments: tuple) -> None:
            if event == "open":  # by `open`, with a mode, or by `os.open`, with flags
                writes = set(arguments[1]) & set("wax+") if arguments[1] else arguments[2] & os.O_CREAT
            else:
                writes = False
            if not (writes or event in _CHANGES) or not str(arguments[0]).startswith(str(folder)):
                return
            if changes[0] == kill_at:
                os.killpg(0, signal.SIGKILL)
            changes[0] += 1

        if kill_at is not None:
            sys.addaudithook(count)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a process; that of a killed one is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(seconds: float, pid: int) -> bool:
    """Kills a process group after this time. Returns whether the process was still at work."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):  # the run was faster
        os.killpg(pid, signal.SIGKILL)
    status = wait(pid)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def content(store: Path) -> dict:
    """All of a store that must not depend on how it came about."""
    from ecgfm_hf.data import read_report

    files = sorted(path for path in store.rglob("*") if path.is_file() and path.suffix == ".parquet")
    label_def = store / "label_def.csv"
    return {
        "report": read_report(store) | {"written": None},
        "rows": {str(path.relative_to(store)): pq.read_table(path).to_pylist() for path in files},
        "labels": label_def.read_text() if label_def.exists() else None,
        "names": sorted(path.name for path in store.iterdir()),
    }


def damage_file(path: Path, kind: str = "flipped") -> None:
    """Damages a file: a bit of it is flipped, its end or all of it is cut off, or it is gone."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flipped": bytes(content), "cut short": bytes(content[: len(content) // 2]), "empty": b""}
    path.unlink() if kind == "gone" else path.write_bytes(damaged[kind])
