"""How many runs this machine has room for: by its cores, its memory and its cards."""

import dataclasses
import json
import subprocess
import sys

from ..config import Config
from ..errors import InputError
from ..files import PACKAGE
from ..machine import cores, free_memory, sign_of_gpu
from ..parts import Architecture, architecture
from ..words import counted, listed

GPU_MEMORY_A_RUN = 16.0  # GiB of a card


@dataclasses.dataclass(frozen=True)
class Slots:
    """How many runs go on at a time, with how many threads each; the cards they take, larger ones more often."""

    jobs: int
    threads: int
    gpus: tuple[str, ...]

    @classmethod
    def of_this_machine(cls, jobs: int, configs: list[Config]) -> "Slots":
        """`jobs` at a time, or (0) as many of `configs` as memory and cores, or the cards' free memory, have room for.

        Raises InputError if they are to be trained on several devices, or on one that isn't there.
        """
        device, *others = sorted({config.device for config in configs})
        if others:
            raise InputError(f"device: expected one for all runs, got {listed([device, *others])}; "
                             "leave it to --device: auto takes all cards")
        gpus = [] if device in ("cpu", "mps") else _gpus()
        if device not in ("auto", "cpu") and not gpus:
            from ..device import pick_device

            pick_device(device)
        if gpus and ":" in device:
            number = int(device.partition(":")[2])
            if number >= len(gpus):
                raise InputError(f"device: {device} is not there (cards found: {len(gpus)}); choose another or auto")
            gpus = [gpus[number]]
        room = {name: _room(*sizes) for name, *sizes in gpus}
        if gpus and not any(room.values()):  # others use all of them: the one that is freest
            room[max(gpus, key=lambda gpu: gpu[2])[0]] = 1
        cards = tuple(name for turn in range(max(room.values(), default=0)) for name in room if turn < room[name])
        need = Architecture.memory if cards else max(map(_memory, configs))
        jobs = jobs or max(1, min(len(cards) or cores(), int(free_memory() // need)))
        jobs = min(jobs, len(configs))  # the cores that would stay idle go to the runs there are
        if jobs > len(cards) and any(exclusive for *_, exclusive in gpus):
            print(f"cifarlib: --jobs {jobs}: only {counted(len(cards), 'run')} at a time, since a second one on an "
                  "exclusive card would fail", file=sys.stderr)
            jobs = len(cards)
        return cls(jobs, max(1, cores() // jobs), cards)


def _room(total: float, free: float, exclusive: bool) -> int:
    """How many runs a card has room for, by its GiB in all and free; a small one has for one, unless others use it."""
    runs = max(int(free // GPU_MEMORY_A_RUN), int(free > total / 2))
    return min(runs, 1) if exclusive else runs


def _memory(config: Config) -> float:
    """GiB of main memory that a run may need on a CPU: its architecture's, unless it is of another width."""
    row = architecture(config.model)
    return Architecture.memory if row.width in config.model_args else row.memory


def _gpus() -> list[tuple[str, float, float, bool]]:
    """What device.gpus says, asked in a process of its own; none, after a line that says why, if it can't be used."""
    if not sign_of_gpu():
        return []
    command = [sys.executable, "-m", f"{PACKAGE.name}.device"]
    answer = subprocess.run(command, capture_output=True, text=True)
    try:
        gpus, reason = json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):  # torch can't be imported, or broke off
        gpus, reason = [], f"torch can't be asked: {' '.join(answer.stderr.splitlines()[-1:])}"
    if not gpus:
        print(f"cifarlib: NO GPU IS USED, only the CPU: {reason}", file=sys.stderr)
    return gpus
