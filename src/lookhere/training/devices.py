"""What a training computes on: the device that the options name, and HF accelerate around it."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from lookhere import launch
from lookhere.errors import UsageError
from lookhere.training.config import TrainingOptions
from lookhere.training.memory import keep_freed_memory


def start_accelerator(options: TrainingOptions, precision: str = "float32") -> Accelerator:
    """Return an accelerator for the device that the options name and ``precision``, float32 or bfloat16.

    Raises:
        UsageError: no such device.
    """
    device = resolve_device(options.device)
    # Its state outlives a training; the next one in this process may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs()],
    )
    set_threads(options)
    return accelerator


def set_threads(options: TrainingOptions) -> None:
    """Use as many CPU threads as the options say."""
    if options.threads:
        torch.set_num_threads(options.threads)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, ``auto`` being the GPU if there is one, and make this process ready for it.

    Of several processes on a machine, each takes the GPU of its own number.

    Raises:
        UsageError: it is absent, or is to be shared by several processes.
    """
    there = torch.accelerator.current_accelerator(check_available=True)
    known = f"cpu, {there.type}:0 … {there.type}:{torch.accelerator.device_count() - 1}" if there else "cpu"
    device = there or torch.device("cpu")
    try:
        if name != "auto":
            device = torch.device(name)
            if device.type not in ("cpu", "cuda", "mps", "xpu"):
                raise RuntimeError("not a device to train on")
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"training.device: no device '{name}' here ({reason}); there is: {known}") from None
    if device.type == "cpu":
        keep_freed_memory()
    if launch.started() == 1 or device.type == "cpu":
        return device
    if device.index is not None or device.type == "mps":
        raise UsageError(f"training.device: '{name}' is one device for {launch.started()} processes; give auto or cpu")
    if launch.place() >= torch.accelerator.device_count():
        raise UsageError(f"training.device: no GPU for process {launch.place()} of this machine ({known}); start fewer")
    device = torch.device(device.type, launch.place())
    torch.accelerator.set_device_index(device.index)
    return device
