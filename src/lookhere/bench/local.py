"""The engine of one machine: worker processes that stay, so that each loads PyTorch once and not for every training.

Threads are divided among the workers, and wait instead of spinning: two trainings whose threads spin slow each other
down many times over. A worker that dies takes its own training with it and no other, and is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait

from lookhere.bench.engine import Event, Job
from lookhere.bench.worker import environment, serve

PATIENCE = 30.0
"""Seconds that workers have to stop before they are killed."""


class LocalEngine:
    """Runs jobs in worker processes of this machine.

    Args:
        workers: how many; by default ``per_device`` for every GPU, or one for every two cores: one for each core was
            10 % faster with trainings of half a minute and 25 % slower with trainings of a second, and takes twice the
            memory.
        per_device: workers that share a GPU; small trainings leave much of one idle.
        device: the ``training.device`` of all jobs. Workers share out the GPUs where it leaves open which.
    """

    def __init__(self, workers: int | None = None, per_device: int = 1, device: str = "auto") -> None:
        gpus = _gpus() if device in ("auto", "cuda") else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = workers or (per_device * len(gpus) if gpus else max(1, cores // 2))
        self.threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // self.slots))
        self.environments = [
            {
                **environment(self.threads),
                **({"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}),
            }
            for index in range(self.slots)
        ]

    def run(self, jobs: Sequence[Job]) -> Generator[Event]:
        """Carry out jobs, see ``Engine.run``."""
        waiting = deque(jobs)
        workers: list[_Worker] = []
        try:
            for environment in self.environments[: len(jobs)]:
                workers.append(_Worker(environment, self.threads))
                yield workers[-1].start(waiting.popleft())
            busy = list(workers)
            while busy:
                for connection in wait([worker.connection for worker in busy]):
                    worker = next(worker for worker in busy if worker.connection is connection)
                    busy.remove(worker)
                    yield worker.result()
                    if not waiting:
                        continue
                    if not worker.alive:
                        workers.remove(worker)
                        worker = _Worker(worker.environment, self.threads)
                        workers.append(worker)
                    busy.append(worker)
                    yield worker.start(waiting.popleft())
        finally:
            _end(workers)


class _Worker:
    """A process that carries out one job after the other."""

    def __init__(self, environment: Mapping[str, str], threads: int) -> None:
        self.environment = environment
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, threads), daemon=True)
        with _changed(environment):  # read when the libraries are loaded, so before the process starts
            self.process.start()
        theirs.close()
        self.alive = True

    def start(self, job: Job) -> Event:
        """Hand over a job."""
        self.job, self.started = job, time.monotonic()
        try:
            self.connection.send(job.log)
            self.connection.send(job)
        except OSError:  # it died while idle: result says so
            pass
        return Event(job, "started")

    def result(self) -> Event:
        """Return how the job ended, which may be with the process."""
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self.process.join()
            return Event(self.job, "failed", time.monotonic() - self.started, _death(self.process.exitcode or 0))
        return event


def _end(workers: Sequence[_Worker]) -> None:
    """Stop all workers, and kill those that do not."""
    try:
        for worker in workers:
            worker.process.terminate()
        until = time.monotonic() + PATIENCE
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))
    finally:  # also when a second Ctrl-C arrives
        for worker in workers:
            worker.process.kill()
            worker.process.join()


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"its process was ended by {name}" + (", most likely for want of memory" if name == "SIGKILL" else "")


def _gpus() -> list[str]:
    """Return how CUDA_VISIBLE_DEVICES names each GPU that this process may use."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def _changed(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
