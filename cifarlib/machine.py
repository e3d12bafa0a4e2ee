"""What this process may use of its machine, without torch: cores, main memory, and what says that a GPU is there."""

import math
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
GPU_FILES = ("nvidia[0-9]*", "nvhost-gpu", "kfd")  # in /dev: NVIDIA's cards, its Jetsons, AMD's cards
DEVICES = Path("/dev")


def cores() -> int:
    """Cores that this process may use: of its affinity, its control groups' quotas and its SLURM job's share the least.

    A SLURM job without task binding is told how many by a variable only.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [*_cgroups("cpu", "cpu.max"), *_cgroups("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    quotas = [int(quota) / int(period) for quota, period in limits if quota.isdecimal()]  # none: max or -1
    return max(1, int(min([here, _slurm("CPUS_PER_TASK") or here, *quotas])))


def free_memory() -> float:
    """GiB of main memory that can be used: what is free, within what control groups and a SLURM job were given."""
    node, core, count = map(_slurm, ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    given = (node or core * count) * 2**20 or math.inf  # 0, too, is all of the node's
    free = [given, psutil.virtual_memory().available]
    for files in (("memory.max", "memory.stat"), ("memory.limit_in_bytes", "memory.stat")):
        for limit, *stat in _cgroups("memory", *files):
            used = dict(zip(stat[::2], stat[1::2]))  # without the files in memory, which give way
            if limit.isdecimal():
                free.append(int(limit) - int(used.get("total_rss") or used.get("anon", 0)))
    return max(0, min(free)) / 2**30


def _slurm(name: str) -> int:
    """A number that SLURM tells its jobs; 0 if it doesn't, or not as a plain number."""
    text = os.environ.get(f"SLURM_{name}", "")
    return int(text) if text.isdecimal() else 0


def _cgroups(controller: str, *files: str) -> list[list[str]]:
    """The words in `files`, for each control group around this process that has them all: each one's limits hold.

    Version 2 has one tree of groups, version 1 one for each controller. A container may find its own group at the root.
    """
    found = []
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = CGROUPS / (controllers and controller)
            group = root / path.strip("/")
            for folder in (group, *group.parents[:len(group.parts) - len(root.parts)]):
                with suppress(OSError):
                    found.append([word for file in files for word in (folder / file).read_text().split()])
    return found


def sign_of_gpu() -> str:
    """What says that this process was given a GPU; empty if nothing does, or CUDA_VISIBLE_DEVICES hides all of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return ""
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):  # their numbers
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    for pattern in GPU_FILES:
        for file in DEVICES.glob(pattern):
            if os.access(file, os.R_OK):  # not of another job's card, which a control group keeps from this one
                return str(file)
    with suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
        if listing.startswith("GPU "):
            return f"nvidia-smi lists {listing.splitlines()[0]}"
    return ""
