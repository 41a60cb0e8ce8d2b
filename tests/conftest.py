"""Shared fixtures: a tiny synthetic set, and a decode cache that does not outlive the tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from lookhere.data.iris import make_iris

# A shell starts what it leaves in the background with Ctrl-C ignored, and the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a tiny synthetic iris set, half of whose training images have maps."""
    return make_iris(tmp_path_factory.mktemp("iris") / "set", size=96, train=24, val=8, test=16, maps=0.5)


@pytest.fixture(autouse=True)
def _same_threads() -> None:
    """Give every test the threads that the process started with; some train with their own number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
