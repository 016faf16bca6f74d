"""
The parts of a run as tasks of a Ray cluster.

Actors on the cluster's nodes write whole parts into a folder that all nodes see, each by an executor for one process.
The driver gives out parts, shows progress, and gives a part whose actor died to another.
"""

import contextlib
import importlib
import logging
import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import ECGFMError
from ..utils.files import write_text
from ..utils.resumable_parts import Executor, MakeExecutor, PartAccount, Task
from ..utils.text import without_secrets

# To reach a head's port; for all nodes to answer; for a folder's new file to appear on another node (NFS caches).
_CONNECT_SECONDS, _ANSWER_SECONDS, _APPEAR_SECONDS = 10.0, 45.0, 10.0
# Between two checks that the cluster answers, and how long it may not.
_POLL_SECONDS, _SILENT_SECONDS = 5.0, 30.0
# How often a part, or a worker before its first part, may lose its process.
_ATTEMPTS = 5
_REMEDY = "start it with `ray start --head`, and run this command on one of its nodes"

logger = logging.getLogger(__name__)


class ClusterError(ECGFMError, RuntimeError):
    """A Ray cluster that cannot be used. The message names what is wrong, on which node, and what to do."""


class RayExecutor:
    """
    Writes parts on the nodes of a Ray cluster: an `Executor`.

    Args:
        make: Makes what works through parts in one process; is pickled.
        inputs: Files and folders that all nodes must see, as far as they exist.
        address: `"HOST:PORT"` of the cluster's head, from one of its nodes; `"auto"` for the cluster of this machine;
            `"local"` for one that is started here and ends with the run. None is the cluster that `RAY_ADDRESS` names,
            else this machine's, else a local one.
        workers: At most this number of processes; by default as many as the nodes have room for.
        cpus_per_worker, gpus_per_worker: What each of them takes of its node.

    Attributes:
        parts_by_node (`Counter`): Parts that each node wrote, by the node's id.

    Raises:
        `ImportError`: without Ray.
    """

    def __init__(
        self,
        make: MakeExecutor,
        inputs: Sequence[str | os.PathLike[str]] = (),
        *,
        address: str | None = None,
        workers: int | None = None,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
    ):
        self._ray = import_ray()
        self._make = make
        self._inputs = [os.fspath(path) for path in inputs if os.path.exists(path)]  # one that is missing is a failure
        self._address, self._workers = address, workers
        self._needs = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
        self.parts_by_node: Counter[str] = Counter()

    def run(self, tasks: Sequence[Task], advance: Callable[[int], object]) -> Iterator[PartAccount]:
        """Finish all tasks; see `Executor`."""
        if not tasks:
            return
        with _connected(self._ray, self._address):
            room = self._check_nodes(tasks[0].path.parent)
            yield from self._run(deque(tasks), min(room, len(tasks)), advance)
        logger.info("parts by node: %s", dict(self.parts_by_node))

    def _check_nodes(self, folder: Path) -> int:
        """Return how many workers there is room for. `ClusterError` where a node cannot do its share."""
        ray = self._ray
        nodes = [node for node in ray.nodes() if node["Alive"]]
        room = {node["NodeID"]: self._room(node["Resources"]) for node in nodes}
        names = {node["NodeID"]: f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes}
        needs = " and ".join(f"{count:g} {kind}" for kind, count in self._needs.items() if count)
        if not any(room.values()):
            raise ClusterError(
                f"no node of the Ray cluster has {needs} for a worker: start one with more (ray start --num-cpus, "
                "--num-gpus), or ask for less (gpus_per_worker=N)"
            )
        marker, token = folder / ".seen-by-all-nodes", secrets.token_hex(8)
        write_text(marker, token)
        look = ray.remote(_node_check(marker, token, self._inputs))
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        checks = {
            look.options(num_cpus=0, max_retries=0, scheduling_strategy=affinity(node, soft=False)).remote(): node
            for node, count in room.items()
            if count
        }
        try:
            done, late = ray.wait(list(checks), num_returns=len(checks), timeout=_ANSWER_SECONDS)
            silent = f"did not answer within {_ANSWER_SECONDS:g} s: look at `ray status`"
            problems = dict.fromkeys((checks[check] for check in late), silent)
            for check in done:
                try:
                    problems[checks[check]] = ray.get(check)
                except ray.exceptions.RayError as error:
                    problems[checks[check]] = f"cannot run a task: {error}"
        finally:
            marker.unlink(missing_ok=True)
        if found := [f"{names[node]} {problem}" for node, problem in problems.items() if problem]:
            raise ClusterError("; ".join(found))
        return min(sum(room.values()), self._workers or sum(room.values()))

    def _room(self, resources: dict[str, float]) -> int:
        return min(int(resources.get(kind, 0) / count) for kind, count in self._needs.items() if count)

    def _run(self, waiting: deque[Task], workers: int, advance: Callable[[int], object]) -> Iterator[PartAccount]:
        ray = self._ray
        worker = ray.remote(_Worker).options(
            num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], scheduling_strategy="SPREAD"
        )
        make = ray.put(self._make)
        jobs: dict[Any, tuple[Any, Task | None]] = {}  # Ray's promise of a result -> worker, and its part
        lost: Counter[int | None] = Counter()  # processes, by part
        answered = time.monotonic()

        def start_worker() -> None:
            new = worker.remote(make, os.getcwd())
            jobs[new.start.remote()] = new, None

        for _ in range(workers):
            start_worker()
        try:
            while waiting or any(task is not None for _, task in jobs.values()):
                done, _ = ray.wait(list(jobs), timeout=_POLL_SECONDS)
                if done or _answers(ray.get_runtime_context().gcs_address):
                    answered = time.monotonic()
                elif time.monotonic() - answered > _SILENT_SECONDS:
                    raise ClusterError(f"the Ray cluster has not answered for {_SILENT_SECONDS:g} s: {_REMEDY}")
                for job in done:
                    actor, task = jobs.pop(job)
                    try:
                        node, account = ray.get(job)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.LocalRayletDiedError:
                        raise ClusterError(f"Ray has ended on this machine: {_REMEDY}") from None
                    except ray.exceptions.RayError as error:  # its process or node has gone
                        number = None if task is None else task.number
                        lost[number] += 1
                        if lost[number] > _ATTEMPTS * (workers if task is None else 1):
                            what = "a worker" if task is None else f"the worker of part {number}"
                            raise ClusterError(f"{what} died {lost[number]} times: {error}") from None
                        ray.kill(actor)
                        if task is not None:
                            waiting.appendleft(task)
                        start_worker()
                        continue
                    if task is not None:
                        self.parts_by_node[node] += 1
                        advance(task.stop - task.start)
                        yield account
                    if waiting:
                        task = waiting.popleft()
                        jobs[actor.write.remote(task, lost[task.number] > 0)] = actor, task
                    else:
                        ray.kill(actor)
        finally:
            for actor, _ in jobs.values():
                ray.kill(actor)


class _Worker:
    """What runs on a node, in a process of its own."""

    def __init__(self, make: MakeExecutor, folder: str):
        with contextlib.suppress(OSError):  # relative paths mean the same as for the driver
            os.chdir(folder)
        self._make, self._executors = make, dict[bool, Executor]()

    def start(self) -> tuple[str, None]:
        """Return once the process has started."""
        return _node_id(), None

    def write(self, task: Task, is_retry: bool) -> tuple[str, PartAccount]:
        """Write a part; where another process died of it, in a way that costs only the item that killed it."""
        if is_retry not in self._executors:
            self._executors[is_retry] = self._make(is_retry)
        (account,) = self._executors[is_retry].run([task], lambda _: None)
        return _node_id(), account


def _node_id() -> str:
    return import_ray().get_runtime_context().get_node_id()


def import_ray() -> Any:
    """Return Ray. `ImportError`, which names what to install, where it is missing."""
    try:
        importlib.import_module("ray.util.scheduling_strategies")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("a Ray cluster needs Ray: pip install 'ecgfm-hf[ray]'", name="ray") from error


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, unless this process is connected; at the end disconnect, and end a local cluster."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    given = address or os.environ.get("RAY_ADDRESS")
    if given is not None and given not in ("auto", "local"):
        if "://" in given:
            raise ClusterError(
                f"address {without_secrets(given)}: Ray's client is not supported. {_REMEDY[0].upper()}{_REMEDY[1:]}"
            )
        if not _answers(given):
            raise ClusterError(
                f"nothing answers at {given}: check the address of the cluster's head (HOST:PORT). If "
                f"it has ended, {_REMEDY}"
            )
    try:
        _init(ray, given)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        where = "this machine" if given in (None, "auto") else given
        # Without the variable, Ray sends its token to no address that a user names.
        token = "" if "RAY_AUTH_MODE" in os.environ else "set RAY_AUTH_MODE=token if it has token authentication; or "
        raise ClusterError(f"cannot connect to a Ray cluster at {where} ({error}): {token}{_REMEDY}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _init(ray: Any, address: str | None) -> None:
    import signal

    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            try:
                ray.init(address="auto", **options)
                return
            except ConnectionError:  # this machine is part of no cluster
                address = "local"
        ray.init(address=address, **options, **({"include_dashboard": False} if address == "local" else {}))
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, in which Ray sets no handler
            signal.signal(signal.SIGTERM, handler)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _node_check(marker: Path, token: str, inputs: Sequence[str]) -> Callable[[], str]:
    """Return a function that returns what is wrong with a node, or "". Ray pickles it whole, without this package."""
    from .. import __version__ as version

    folder, cwd, seconds = str(marker), os.getcwd(), _APPEAR_SECONDS

    def look() -> str:
        import contextlib
        import os
        import time

        try:
            import ecgfm_hf
        except ImportError as error:
            return f"cannot import ecgfm_hf ({error}): pip install 'ecgfm-hf[ray]=={version}' there"
        if ecgfm_hf.__version__ != version:
            found = f"has ecgfm-hf {ecgfm_hf.__version__}, this machine {version}"
            return f"{found}: install the same version on all nodes"
        with contextlib.suppress(OSError):
            os.chdir(cwd)
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError), open(folder) as file:
                if file.read() == token:
                    break
            if time.monotonic() > end:
                parent = os.path.dirname(os.path.dirname(folder))
                return f"does not see the folder {parent} of this machine: write to a folder that all nodes share"
            time.sleep(0.2)
        if not os.access(os.path.dirname(folder), os.W_OK):
            return f"cannot write to {os.path.dirname(folder)}: run as a user with the permission on all nodes"
        if missing := [path for path in inputs if not os.path.exists(path)]:
            return f"does not see {missing[0]}: put the recordings into a folder that all nodes share"
        return ""

    return look


__all__ = ["ClusterError", "RayExecutor", "import_ray"]
