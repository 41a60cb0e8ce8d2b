"""Memory that a CPU training frees is kept for its next step, and nothing that is computed changes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from lookhere.training.memory import OWN_SETTINGS

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

PROGRAM = """
import hashlib, json, resource, sys
import timm, torch
import lookhere
from lookhere.training.devices import resolve_device
from lookhere.training.memory import release_memory

if sys.argv[1] == "kept":
    resolve_device("cpu")
block = 2**24  # 64 MiB of float32

def held():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()

counts = []
for _ in range(10):
    torch.ones(block)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
faults = counts[-1] - counts[4]  # the heap has grown to what is needed
full = held()
release_memory()
released = full - held()

torch.manual_seed(0)
torch.set_num_threads(1)
model = timm.create_model("resnet18", num_classes=2)
sage = lookhere.SAGE(model)
for _ in range(2):
    loss = sage(torch.rand(4, 3, 96, 96), torch.rand(4, 1, 96, 96), torch.tensor([0, 1, 0, 1]))
    loss.backward()
digest = hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in model.parameters())).hexdigest()
print(json.dumps({"faults": faults, "released": released, "digest": digest}))
"""


def run(mode: str, **variables: str) -> Any:
    own = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, env=own | variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_memory_is_kept_and_released_and_gradients_are_the_same_to_the_bit() -> None:
    default, kept = run("default"), run("kept")
    assert default["faults"] > 100
    assert kept["faults"] * 20 < default["faults"]
    assert kept["released"] > 2**26 * 0.9 > default["released"]
    assert kept["digest"] == default["digest"]


def test_settings_of_a_users_own_are_left_alone() -> None:
    assert run("kept", MALLOC_TRIM_THRESHOLD_="131072")["faults"] > 100
