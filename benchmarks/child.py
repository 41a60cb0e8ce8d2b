"""Commands in processes of their own: how long they take, and the most memory they hold.

A process counts the memory of the one that started it as its own until its program is loaded, so what starts them must
stay small: the benchmarks that use this import PyTorch when all is measured.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

PATIENCE = 60.0
"""Seconds that a process has to end when asked to, before it is killed."""


class Used(NamedTuple):
    """What a process used."""

    seconds: float
    processor: float
    """Seconds of the processor, of the process and those that it started."""
    peak_mb: float
    """The most resident memory, mapped files included, in MB."""
    output: str


class TooLong(Exception):
    """A process took longer than it may."""


def run(*command: str | Path, limit: float | None = None) -> Used:
    """Run a command and return what it used; it ends with this process, unless that is killed.

    Raises:
        TooLong: it took more than ``limit`` seconds, and was ended.
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=errors)
        late = threading.Event()
        watch = threading.Timer(limit or threading.TIMEOUT_MAX, _end_late, (process, late))
        watch.daemon = True
        try:
            watch.start()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            _end(process)
            raise
        finally:
            watch.cancel()
        seconds = time.perf_counter() - started
        if late.is_set():
            raise TooLong(f"more than {limit:g} s")
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{last}")
        output.seek(0)
        unit = 1e6 if sys.platform == "darwin" else 1e3
        text = output.read().decode()
    return Used(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, text)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, so that what it started and wrote for a while goes too."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _end_late(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.terminate()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
