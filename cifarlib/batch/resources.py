"""What this machine has room for: cores, memory, cards."""

import dataclasses
import math
import os
import subprocess

import psutil

from ..config import Config
from ..errors import InputError
from ..parts import Architecture, architecture
from ..words import listed

GPU_MEMORY_A_RUN = 16.0  # GiB of a card


@dataclasses.dataclass(frozen=True)
class Slots:
    """How many runs go on at a time, with how many threads each; the cards they take, larger ones more often."""

    jobs: int
    threads: int
    gpus: tuple[str, ...]

    @classmethod
    def of_this_machine(cls, jobs: int, configs: list[Config]) -> "Slots":
        """`jobs` at a time, or (0) as many of `configs` as memory and cores, or the cards' memory, have room for.

        Raises InputError if they are to be trained on several devices, or on one that isn't there.
        """
        device, *others = sorted({config.device for config in configs})
        if others:
            raise InputError(f"device: expected one for all runs, got {listed([device, *others])}; "
                             "leave it to --device: auto takes all cards")
        cores = _cores()
        memory = {} if device in ("cpu", "mps") else _gpu_memory()
        if device not in ("auto", "cpu") and not memory:
            from ..device import pick_device

            pick_device(device)
        if memory and ":" in device:
            names, number = list(memory), int(device.partition(":")[2])
            if number >= len(names):
                raise InputError(f"device: {device} is not there (cards found: {len(names)}); choose another or auto")
            memory = {names[number]: memory[names[number]]}
        room = {name: max(1, int(size // GPU_MEMORY_A_RUN)) for name, size in memory.items()}
        gpus = tuple(name for turn in range(max(room.values(), default=0)) for name in room if turn < room[name])
        need = Architecture.memory if gpus else max(map(_memory, configs))
        jobs = jobs or max(1, min(len(gpus) or cores, int(_free_memory() // need)))
        jobs = min(jobs, len(configs))  # the cores that would stay idle go to the runs there are
        return cls(jobs, max(1, cores // jobs), gpus)


def _memory(config: Config) -> float:
    """GiB of main memory that a run may need on a CPU: its architecture's, unless it is of another width."""
    row = architecture(config.model)
    return Architecture.memory if row.width in config.model_args else row.memory


def _cores() -> int:
    """Cores that this process may use; a SLURM job without task binding is told how many by a variable only."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, _slurm("CPUS_PER_TASK") or here)


def _slurm(name: str) -> int:
    """A number that SLURM tells its jobs; 0 if it doesn't, or not as a plain number."""
    text = os.environ.get(f"SLURM_{name}", "")
    return int(text) if text.isdecimal() else 0


def _free_memory() -> float:
    """GiB of main memory that can be used: what is free, within what a SLURM job was given."""
    node, core, cores = map(_slurm, ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    given = (node or core * cores) / 1024 or math.inf  # 0, too, is all of the node's
    return min(given, psutil.virtual_memory().available / 2**30)


def _gpu_memory() -> dict[str, float]:
    """GiB of each CUDA card that this process may use, by what CUDA_VISIBLE_DEVICES calls it.

    From nvidia-smi (asking torch would take a context on every card), which lists the cards of other jobs too. A part
    of a card, and a card under a shortened name or whose memory nvidia-smi can't tell, count as one that has room for
    one run.
    """
    try:
        query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        rows = [line.split(", ") for line in answer.splitlines()]
        memory = {name: float(size) / 1024 if size.isdecimal() else GPU_MEMORY_A_RUN
                  for index, uuid, size in rows for name in (index, uuid)}
    except (OSError, ValueError, subprocess.SubprocessError):
        rows, memory = [], {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(index for index, _, _ in rows)).split(",")
    return {name: memory.get(name, GPU_MEMORY_A_RUN) for name in visible
            if name in memory or name.startswith(("GPU-", "MIG-")) or not memory and name.isdecimal()}
