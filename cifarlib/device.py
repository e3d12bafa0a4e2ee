"""Where a run is computed and in which precision."""

import ctypes
import json
import os
import platform
import re
import sys
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

import torch

from .errors import InputError
from .machine import cores, sign_of_gpu

COMPUTE_MODE, EXCLUSIVE = 20, (1, 3)  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE and its values for one thread, one process


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU, on which torch is held to the cores that this process may use.

    A line on stderr says why it is the CPU, where a GPU seems to be there. Raises InputError for a device that isn't.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = torch.device(next(kind for kind, found in there.items() if found) if name == "auto" else name)
    if not there[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        found = ", ".join(kind for kind, found in there.items() if found)
        reason = f"; {why_no_gpu()}" if device.type == "cuda" and why_no_gpu() else ""
        raise InputError(f"device: {name} is not there (found: {found}{reason}); choose one of these or auto")
    if device.type == "cpu":
        if torch.get_num_threads() > cores():
            torch.set_num_threads(cores())
        if name == "auto" and why_no_gpu():
            say_once(f"NO GPU IS USED, only the CPU: {why_no_gpu()}")
    return device


@cache
def why_no_gpu() -> str:
    """Why torch can't use CUDA though a GPU seems to be there, in its own words; empty if it can or none is there."""
    if torch.cuda.is_available() or not (sign := sign_of_gpu()):
        return ""
    try:
        torch.cuda.init()
        reason = "it finds none"
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
        reason = str(error).splitlines()[0]
    return f"a GPU seems to be there ({sign}), but torch can't use it ({reason})"


@cache
def say_once(text: str) -> None:
    """A line on stderr, once in each process."""
    print(f"cifarlib: {text}", file=sys.stderr, flush=True)


def gpus() -> list[tuple[str, float, float, bool]]:
    """For each CUDA device that this process may use: (name, GiB, GiB free, whether it takes one process at a time).

    By the name CUDA_VISIBLE_DEVICES picks it. The question takes a context on every one of them, so it is asked in a
    process of its own (see batch.resources). Nothing is free of a device that another process has to itself.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    found = []
    for number in range(count):
        total, free = torch.cuda.get_device_properties(number).total_memory, 0
        with suppress(RuntimeError):
            free, _ = torch.cuda.mem_get_info(number)
        mode = ctypes.c_int()
        with suppress(OSError):  # torch doesn't tell; not there on AMD's
            ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(ctypes.byref(mode), COMPUTE_MODE, number)
        name = names[number] if number < len(names) else str(number)
        found.append((name, total / 2**30, free / 2**30, mode.value in EXCLUSIVE))
    return found


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it natively (elsewhere it is slower than fp32), else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if native else "fp32"


def autocast(device: torch.device, precision: str):
    """bf16: matrix products in it; weights, norms, logits and loss in fp32. fp32: torch's defaults, TF32 on CUDA."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def describe(device: torch.device, asked: str = "") -> str:
    """One line for records, e.g. `cuda: NVIDIA H200` or `cpu: AMD EPYC, 2 threads`.

    asked: the name by which the device was picked; if `auto`, the line says why a GPU was not used.
    """
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"mps: {_processor()}"
    threads = torch.get_num_threads()
    reason = f"; {why_no_gpu()}" if asked == "auto" and why_no_gpu() else ""
    return f"cpu: {_processor()}, {threads} thread{'s' * (threads != 1)}{reason}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)", file.read_text(), re.MULTILINE) if file.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps([gpus(), why_no_gpu()]))
