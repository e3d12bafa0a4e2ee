"""Where a run is computed and in which precision."""

import platform
from contextlib import nullcontext
from pathlib import Path

import torch

from .errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU. Raises InputError for a device that isn't there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    device = torch.device(name)
    if not there[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        found = ", ".join(kind for kind, found in there.items() if found)
        raise InputError(f"device: {name} is not there (found: {found}); choose one of these or auto")
    return device


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


def describe(device: torch.device) -> str:
    """One line for records, e.g. `cuda: NVIDIA H200` or `cpu: AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"mps: {_processor()}"
    threads = torch.get_num_threads()
    return f"cpu: {_processor()}, {threads} thread{'s' * (threads != 1)}"


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
