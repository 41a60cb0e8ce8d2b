"""The engine of several machines: worker processes on a Ray cluster that is there already.

A worker is a Ray actor. It keeps its CPUs and its share of a GPU from its first training to its last, and loads PyTorch
once. When its process or its node is lost, the next free worker takes up the training that it had, from its last
checkpoint. Ray's own retries would not do: it spends them within seconds, before it knows that a node is gone. Nothing
but jobs and events travels by Ray: data, checkpoints and results lie in folders that all nodes see.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookhere import __version__
from lookhere.bench.engine import Event, Job, in_use
from lookhere.bench.worker import carry_out, environment, write_to
from lookhere.errors import UsageError
from lookhere.progress import console

INSTALL = "pip install 'lookhere[ray]'"
START = "start a cluster with: ray start --head"
RETRIES = 3
"""How often a training whose worker was lost is taken up again."""
PATIENCE = 120.0
"""Seconds for the lock of a lost worker to become free, since a file server may need 90 to see that a node is gone; and
for a worker to start."""
PAUSE = 1.0
"""Seconds between two looks at what nodes there are."""


@contextmanager
def connected(address: str = "auto") -> Iterator[None]:
    """Connect this process to a Ray cluster, or leave a connection that it has as it is.

    Args:
        address: ``HOST:PORT`` of the cluster's head, or ``auto``: what RAY_ADDRESS names, else the cluster that this
            machine belongs to.

    Raises:
        UsageError: Ray is not installed; there is no cluster; this machine is not one of its nodes.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(f"--engine ray needs the package ray, which is not installed; run: {INSTALL}") from None
    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # It tries for minutes where nothing listens, and starts a cluster of its own where there is no address.
        address = _find(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--address {address}: no Ray cluster to connect to ({reason}); {START}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray takes it for itself
    try:
        yield
    finally:
        ray.shutdown()


def _find(address: str) -> str:
    """Return the host and port of a cluster's head, at which something listens."""
    from ray._private.services import canonicalize_bootstrap_address_or_die  # what ray.init does; it has no public name

    if "://" in address or "://" in os.environ.get("RAY_ADDRESS", ""):
        raise ValueError("expected HOST:PORT, on a node of the cluster; a Ray client does not see the study's folder")
    found: str = canonicalize_bootstrap_address_or_die(address)
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    return found


class RayEngine:
    """Runs jobs in workers on the nodes of the Ray cluster that this process is ``connected`` to.

    Args:
        workers: the most at a time; by default as many as the nodes have room for, also those that join later.
        per_device: workers that share a GPU.
        devices: the ``training.device`` of all jobs. With ``auto`` or ``cuda`` among them, each worker has its share of
            a GPU, if the cluster has any; else none sees a GPU.
        threads: CPUs that each worker reserves, and its number of threads; by default OMP_NUM_THREADS, or 2.

    Raises:
        UsageError: no node has room for a worker; a device that names one of several GPUs.
    """

    def __init__(
        self,
        workers: int | None = None,
        per_device: int = 1,
        devices: Collection[str] = ("auto",),
        threads: int | None = None,
    ) -> None:
        if others := sorted(set(devices) - {"auto", "cpu", "cuda"}):
            raise UsageError(
                f"training.device: '{others[0]}' with --engine ray, which shares out GPUs; give auto, cuda or cpu"
            )
        self.workers, self.per_device = workers, per_device
        self.threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 2)
        self.gpu = not {"auto", "cuda"}.isdisjoint(devices) and any(node.get("GPU", 0) >= 1 for node in _nodes())
        if not self.slots:
            needed = f"{self.threads} CPUs{' and a GPU' if self.gpu else ''}"
            raise UsageError(
                f"no node of the Ray cluster has the {needed} of a training; add nodes, or lower OMP_NUM_THREADS"
            )

    @property
    def slots(self) -> int:
        """How many jobs run at a time, with the nodes that there are now."""
        room = 0
        for node in _nodes():
            cpus = int(node.get("CPU", 0)) // self.threads
            room += min(cpus, int(node.get("GPU", 0)) * self.per_device) if self.gpu else cpus
        return min(room, self.workers or room)

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        """Carry out jobs, see ``Engine.run``."""
        import ray

        waiting = deque(jobs)
        lost: Counter[str] = Counter()
        workers: list[_Worker] = []
        unfit: list[_Worker] = []  # kept, so that no other is started in their place
        alive = time.monotonic()
        try:
            while waiting or any(worker.job for worker in workers):
                wanted = len(waiting) + sum(worker.job is not None for worker in workers)
                for _ in range(len(workers), min(self.slots - len(unfit), wanted)):
                    workers.append(self._start(jobs[0].folder.parent.parent))
                if not workers:
                    time.sleep(PAUSE)  # all nodes are gone; others may come
                    continue
                # Not ray.wait: the exit code of a SIGTERM that arrives in it is lost.
                wait([worker.future for worker in workers], timeout=PAUSE, return_when=FIRST_COMPLETED)
                for worker in [worker for worker in workers if worker.future.done()]:
                    job = worker.job
                    match worker.answer():
                        case Event() as event:
                            yield event
                        case _Lost(reason):
                            workers.remove(worker)
                            ray.kill(worker.actor)  # where it only does not answer any more
                            if job and lost[job.name] < RETRIES:
                                lost[job.name] += 1
                                waiting.appendleft(job)
                            elif job:
                                reason = f"its worker was lost {RETRIES + 1} times, the last time: {reason}"
                                yield Event(job, "failed", reason=reason)
                            elif time.monotonic() > alive + PATIENCE and not any(worker.job for worker in workers):
                                raise UsageError(f"no worker of the Ray cluster starts: {reason}")
                            else:
                                time.sleep(PAUSE)
                            continue
                        case str(problem) if problem:
                            console.print(f"not used: {problem}", markup=False, highlight=False, soft_wrap=True)
                            workers.remove(worker)
                            unfit.append(worker)
                            if not workers:
                                raise UsageError(f"no node of the Ray cluster can be used: {problem}")
                            continue
                    alive = time.monotonic()
                    if not waiting:
                        workers.remove(worker)
                        ray.kill(worker.actor)
                        continue
                    job = waiting.popleft()
                    worker.start(job, patience=PATIENCE if lost[job.name] else 0.0)
                    if not lost[job.name]:
                        yield Event(job, "started")
        finally:
            _end([*workers, *unfit])

    def _start(self, folder: Path) -> _Worker:
        import ray

        variables = environment(self.threads) | ({} if self.gpu else {"CUDA_VISIBLE_DEVICES": ""})
        actor = ray.remote(Remote).options(
            num_cpus=self.threads,
            num_gpus=10_000 // self.per_device / 10_000 if self.gpu else 0,  # Ray counts in these; rounded down
            runtime_env={"env_vars": variables},
        )
        return _Worker(actor.remote(self.threads), folder)


class Remote:
    """What runs on a node, in a process of its own. It is quick to load: PyTorch comes with the first job.

    Args:
        threads: of each job.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def begin(self, folder: Path, version: str, command: list[str]) -> str:
        """Return why this process cannot work for the one that runs a command, or an empty string."""
        sys.argv = command  # runs keep it
        if version != __version__:
            return f"{socket.gethostname()} has lookhere {__version__}, and the study is run by {version}"
        if not folder.is_dir():
            return f"{socket.gethostname()} does not see {folder}; expected a folder that all nodes share"
        return ""

    def run(self, job: Job, patience: float) -> Event:
        """Carry out a job; before, wait so many seconds for a lost worker, which may still be dying, to let it go."""
        write_to(job.log)
        until = time.monotonic() + patience
        while in_use(job.folder) and time.monotonic() < until:
            time.sleep(0.1)
        return carry_out(job, self.threads)


@dataclass(frozen=True)
class _Lost:
    """What is known of a worker whose process or node has gone, or does not answer any more."""

    reason: str


class _Worker:
    """The driver's side of a ``Remote``: what it does now."""

    def __init__(self, actor: Any, folder: Path) -> None:
        self.actor = actor
        self.job: Job | None = None
        self.future: Future[Event | str] = actor.begin.remote(folder, __version__, sys.argv).future()

    def start(self, job: Job, patience: float) -> None:
        """Hand over a job."""
        self.job, self.started = job, time.monotonic()
        self.future = self.actor.run.remote(job, patience).future()

    def answer(self) -> Event | str | _Lost:
        """Return how its job ended, or, before the first, why it cannot work: an empty string if it can."""
        import ray

        job, self.job = self.job, None
        try:
            return self.future.result()
        except ray.exceptions.RayTaskError as error:  # not of the training, but of what surrounds it
            reason = f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
            return Event(job, "failed", time.monotonic() - self.started, reason, str(error)) if job else reason
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return _Lost(lines[-1].strip())  # where Ray says what happened


def _end(workers: Sequence[_Worker]) -> None:
    """Stop all workers, and wait until they have let go of their run folders."""
    import ray

    for worker in workers:
        ray.kill(worker.actor)
    until = time.monotonic() + PATIENCE
    for job in [worker.job for worker in workers if worker.job]:
        while in_use(job.folder) and time.monotonic() < until:
            time.sleep(0.1)


def _nodes() -> list[dict[str, float]]:
    """Return what each node that is alive has, in use or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
