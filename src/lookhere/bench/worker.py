"""What runs in the worker processes of all engines. It is quick to load: PyTorch comes with the first job."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lookhere.bench.engine import Event, Job, execute


def serve(connection: Connection, threads: int) -> None:
    """Carry out the jobs that arrive, with so many threads, until no more can."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            write_to(connection.recv())
            job: Job = connection.recv()  # loads PyTorch the first time
        except (EOFError, OSError):
            return
        connection.send(carry_out(job, threads))


def environment(threads: int) -> dict[str, str]:
    """Return the variables with which a worker starts: its number of threads, which wait instead of spinning."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
    }


def write_to(log: Path) -> None:
    """Append all that this process prints, whoever prints it, to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)


def carry_out(job: Job, threads: int) -> Event:
    """Carry out a job with so many threads, say so in the log, and leave the device and memory to others."""
    import torch

    from lookhere.training.memory import release_memory

    torch.set_num_threads(threads)  # the last job may have had a number of its own
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    print(f"{time.strftime('%F %T')} {job.label}: process {os.getpid()} on {socket.gethostname()}", flush=True)
    event = execute(job)
    print(f"{time.strftime('%F %T')} {event.state} {event.reason}\n{event.trace}".rstrip(), flush=True)
    gc.collect()
    release_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for the others on this device
    return event


def _follow_parent() -> None:
    """End this process when its parent has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
