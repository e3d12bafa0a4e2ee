"""Runs in batch: each its own papermill process and kernel, several at a time, skipping what is done and resuming what was cut off."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from .cifar10 import local_cifar10
from .claim import Claim
from .config import Config, InputError, Options, project_path
from .execute import BAD_INPUT, FAILED, OK, PREEMPTED
from .files import LOG, NOTEBOOK, RECORD, STOP
from .grid import Run
from .runs import (
    FINISHED, check_plan, is_finished, note_planned, precision_of, read_record, recorded, remove_stale_parts, status_of, write_failure, write_table,
)
from .signals import SignalContext
from .words import counted, listed

LAST_LINES = 20  # of a failed run's log, kept in its record
POLL = 2.0  # seconds between two looks at runs that other runners train
MEMORY_A_RUN = 4.5  # GiB of main memory that a run may need: that of the CNN in batches of 256 on a CPU
MEMORY_A_VIT = 13.0  # GiB, at the published size in batches of 256 on a CPU; extrapolated from 5.0 in batches of 64
GPU_MEMORY_A_RUN = 16.0  # GiB of a card
# glibc returns every large block to the kernel and has it zeroed again at the next step; kept, a step is up to a quarter faster.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}


def notebook_path(name: str) -> Path:
    """A notebook of the project: in ./notebooks, else beside the package."""
    here = project_path("notebooks") / name
    return here if here.exists() else Path(os.path.relpath(Path(__file__).parent.parent / "notebooks" / name))


def without_paths(parameters: dict) -> tuple[dict, dict[str, str]]:
    """A notebook's (parameters, environment): an absolute data_dir goes into the environment, since parameters are published with the notebook."""
    environment = {**ALLOCATOR, **os.environ}
    if os.path.isabs(parameters["data_dir"]):
        environment["CIFAR10_DIR"], parameters = parameters["data_dir"], {**parameters, "data_dir": ""}
    return parameters, environment


class Stopping(SignalContext):
    """Within the context the first Ctrl-C, SIGTERM or SIGUSR1 asks all runs to stop at their epoch's end; a second kills them."""

    def __init__(self):
        self.requested, self.killed, self.running = False, False, {}

    def _on_signal(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            self.killed = True
            for process in list(self.running.values()):
                process.kill()  # which passes over one that has just ended; its kernel, of a session of its own, ends with its parent
            return
        self.request()

    def request(self) -> None:
        """Ask every run to stop at its epoch's end, and start no more."""
        self.requested = True
        for folder in list(self.running):
            (folder / STOP).touch()
        print("stopping: every run ends after its epoch in progress; Ctrl-C again kills them", file=sys.stderr, flush=True)


def execute_run(run: Run, options: Options, stopping: Stopping, threads: int = 0, gpu: str | None = None,
                echo: Callable[[str], None] | None = None, claim: Claim | None = None) -> int:
    """Train one run in its own process and return its exit code (see execute.py); a failure is recorded with its last lines.

    threads: share of the cores (0 leaves it to torch); gpu: the card to use; echo: called with every line the run prints;
    claim: the run ends, and nothing is recorded, if somebody else takes it over.
    """
    folder = options.run_folder(run.config)
    if not is_finished(folder):  # a finished run's goes once training anew begins, which bad input may prevent
        (folder / RECORD).unlink(missing_ok=True)
    for stale in (folder / STOP, *folder.glob(".*.part")):  # parts are what killed processes left half written
        stale.unlink(missing_ok=True)
    parameters, environment = without_paths({**run.config.to_dict(), **dataclasses.asdict(options)})
    environment["PYTHONUNBUFFERED"] = "1"
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment |= {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # which is how nvidia-smi counts
        parameters["device"] = run.config.device.partition(":")[0]  # the only card it sees
    command = [sys.executable, "-m", "cifarlib.execute", str(notebook_path(NOTEBOOK)), str(folder / NOTEBOOK), str(os.getpid())]
    if claim:
        command += [str(claim.path), str(claim.lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=environment, start_new_session=True, errors="replace",
                               pass_fds=[claim.lock] if claim else [])
    stopping.running[folder] = process
    if stopping.requested:
        (folder / STOP).touch()
    lines = deque(maxlen=LAST_LINES)
    with process, (folder / LOG).open("w") as log:
        with contextlib.suppress(BrokenPipeError):  # killed before it could read them; its exit code tells
            process.stdin.write(json.dumps(parameters))
            process.stdin.close()
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line.rstrip())
            if echo:
                echo(line)
    del stopping.running[folder]
    if claim and claim.lost:
        return PREEMPTED  # the folder is another runner's now
    (folder / STOP).unlink(missing_ok=True)  # a killed run leaves it, and the next one, by hand, would stop at once
    if stopping.killed and process.returncode < 0:
        return PREEMPTED  # the user killed the run: nothing has failed
    return _outcome(process.returncode, folder, run.config, list(lines))


def _outcome(code: int, folder: Path, config: Config, lines: list[str]) -> int:
    """The exit code, after making sure that the record agrees: what ended without one, or badly, has failed."""
    if is_finished(folder) or code == PREEMPTED:
        return code  # what came after a finished record, such as a kernel killed while it draws, does not undo the training
    if code < 0:
        lines.append(f"killed by signal {-code}")
    write_failure(folder, config, "\n".join(lines) or f"ended with exit code {code} and no word")
    return BAD_INPUT if code == BAD_INPUT else FAILED


@dataclasses.dataclass(frozen=True)
class Slots:
    """How many runs go on at a time, and what each gets: a share of the cores, and a card in turn (one with more room more often)."""

    jobs: int
    threads: int
    gpus: tuple[str, ...]

    @classmethod
    def of_this_machine(cls, jobs: int, configs: list[Config]) -> "Slots":
        """`jobs` at a time, or (0) as many of `configs` as the memory and the cores, or the cards' memory, have room for.

        Raises InputError if they are to be trained on several devices, or on one that isn't there.
        """
        device, *others = sorted({config.device for config in configs})
        if others:
            raise InputError(f"device: expected one for all runs, got {listed([device, *others])}; leave it to --device: auto takes all cards")
        cores = _cores()
        memory = {} if device in ("cpu", "mps") else _gpu_memory()
        if device not in ("auto", "cpu") and not memory:
            from .device import pick_device  # torch has the last word, and takes seconds to import

            pick_device(device)
        if memory and ":" in device:
            names, number = list(memory), int(device.partition(":")[2])
            if number >= len(names):
                raise InputError(f"device: {device} is not there (cards found: {len(names)}); choose another or auto")
            memory = {names[number]: memory[names[number]]}
        room = {name: max(1, int(size // GPU_MEMORY_A_RUN)) for name, size in memory.items()}
        gpus = tuple(name for turn in range(max(room.values(), default=0)) for name in room if turn < room[name])
        large = not gpus and any(config.model == "vit" and "dim" not in config.model_args for config in configs)
        jobs = jobs or max(1, min(len(gpus) or cores, int(_free_memory() // (MEMORY_A_VIT if large else MEMORY_A_RUN))))
        jobs = min(jobs, len(configs))  # the cores that would stay idle go to the runs there are
        return cls(jobs, max(1, cores // jobs), gpus)


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
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(given, int(lines["MemAvailable"].split()[0]) / 2**20)
    except (OSError, KeyError, ValueError):
        return 8.0


def _gpu_memory() -> dict[str, float]:
    """GiB of each CUDA card that this process may use, by what CUDA_VISIBLE_DEVICES calls it.

    From nvidia-smi (asking torch would take a context on every card), which lists the cards of other jobs too. A part of a card, and a
    card under a shortened name or whose memory nvidia-smi can't tell, count as one that has room for one run.
    """
    try:
        query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        rows = [line.split(", ") for line in answer.splitlines()]
        memory = {name: float(size) / 1024 if size.isdecimal() else GPU_MEMORY_A_RUN for index, uuid, size in rows for name in (index, uuid)}
    except (OSError, ValueError, subprocess.SubprocessError):
        rows, memory = [], {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(index for index, _, _ in rows)).split(",")
    return {name: memory.get(name, GPU_MEMORY_A_RUN) for name in visible
            if name in memory or name.startswith(("GPU-", "MIG-")) or not memory and name.isdecimal()}


def run_all(runs: list[Run], options: Options, slots: Slots, *, retry_failed: bool = False, fail_fast: bool = False,
            wait_for_others: bool = True, echo: Callable[[str], None] | None = None) -> int:
    """Train what is pending of `runs`, print a line for each that ends, rebuild the table, and return the exit code.

    0 if all are finished, 1 if some failed, 2 if none could start for bad input, 75 if some were stopped before their end.
    Runs that another runner trains are waited for (its owner may die) unless told otherwise. Raises InputError, before anything
    starts, for what check_runs finds and if the study holds a run of another version.
    """
    study = project_path(options.executed_dir) / options.study
    check_runs(runs, options)
    remove_stale_parts(study)
    note_planned(study, [cell for run in runs for cell in run.cells])
    write_table(study)  # cells that share a finished run may be new
    codes: dict[str, int] = {}
    with Stopping() as stopping, ThreadPoolExecutor(slots.jobs) as pool, _grid_bar(runs, options, echo is None) as bar:
        waiting = deque(run for run in runs if wanted(run, options, retry_failed))
        failed = sum(status_of(options.run_folder(run.config)) == "failed" for run in runs)
        if failed and not retry_failed:
            tqdm.write(f"left alone: {counted(failed, 'run')} that failed before (--retry-failed tries again)", file=sys.stderr)
        free, training, told = deque(range(slots.jobs)), {}, False  # training: (run, claim, slot, when it started) by future
        while training or (waiting and not stopping.requested):
            while waiting and free and not stopping.requested and (claimed := _claim_next(waiting, options, retry_failed, bar)):
                (run, claim), slot = claimed, free.popleft()
                gpu = slots.gpus[slot % len(slots.gpus)] if slots.gpus else None
                future = pool.submit(execute_run, run, options, stopping, slots.threads, gpu, echo, claim)
                training[future] = run, claim, slot, time.monotonic()
            if training:
                for future in wait(training, timeout=POLL, return_when=FIRST_COMPLETED).done:
                    run, claim, slot, started = training.pop(future)
                    free.append(slot)
                    codes[run.name] = future.result()
                    if claim.lost:
                        waiting.append(run)
                    else:  # before the release: another runner that tries a failed run again removes its record
                        _report(bar, run, options, codes[run.name], time.monotonic() - started, echo is None)
                    claim.release()
                    if fail_fast and codes[run.name] in (FAILED, BAD_INPUT):
                        stopping.request()
            elif waiting and wait_for_others:
                if not told:
                    tqdm.write(f"waiting for {counted(len(waiting), 'run')} that other runners train", file=sys.stderr)
                told = True
                time.sleep(POLL)
            else:
                break
    write_table(study)  # what it may have said on the way is an error in the end
    return _exit_code(runs, options, codes, fail_fast, stopping.requested)


def _exit_code(runs: list[Run], options: Options, codes: dict[str, int], fail_fast: bool, stopped: bool) -> int:
    if codes and set(codes.values()) == {BAD_INPUT}:
        return BAD_INPUT
    statuses = {status_of(options.run_folder(run.config)) for run in runs}
    if not options.resume and FAILED in codes.values():
        return FAILED  # what it was to replace may still be there, finished
    # A run that somebody else trains is left to them, unless this runner was stopped while it waited for them.
    unfinished = statuses & ({"preempted", "pending", "running"} if stopped else {"preempted", "pending"})
    if "failed" in statuses and (fail_fast or not unfinished):
        return FAILED
    return PREEMPTED if unfinished else OK


def check_runs(runs: list[Run], options: Options) -> None:
    """Raise InputError for what can be known to fail before a kernel starts.

    That is a folder named for CIFAR-10 that holds none, and a run folder that holds another run, or one in another precision than asked for.
    """
    for run in runs:
        if run.config.dataset != "synthetic" and not (options.resume and is_finished(options.run_folder(run.config))):
            local_cifar10(run.config.data_dir)
    for run in runs if options.resume else ():
        folder, asked = options.run_folder(run.config), run.config.precision
        check_plan(folder, run.config.identity())
        if asked != "auto" and (trained := precision_of(folder) or asked) != asked:
            raise InputError(f"{folder} holds a run in {trained}, not in {asked}; use another study, or train anew with --no-resume")


def wanted(run: Run, options: Options, retry_failed: bool) -> bool:
    """Whether a run is still to be trained (or to be waited for, while somebody else trains it): the record alone decides."""
    status = recorded(options.run_folder(run.config), "status")
    if status in FINISHED:
        return not options.resume
    return status != "failed" or retry_failed


def _claim_next(waiting: deque, options: Options, retry_failed: bool, bar: tqdm):
    """The first of `waiting` that is free, with its claim; what others have finished meanwhile is dropped, what they train stays."""
    for _ in range(len(waiting)):
        run = waiting.popleft()
        claim = Claim.take(options.run_folder(run.config))
        if claim is None:
            waiting.append(run)
        elif wanted(run, options, retry_failed):  # looked at again: another runner may just have ended it
            return run, claim
        else:
            claim.release()
            bar.update()
    return None


def _grid_bar(runs: list[Run], options: Options, shown: bool) -> tqdm:
    """One bar for the whole grid, with the time that is left."""
    done = sum(is_finished(options.run_folder(run.config)) for run in runs) if options.resume else 0
    return tqdm(total=len(runs), initial=done, unit="run", disable=not shown, dynamic_ncols=True, smoothing=0.1)


def _report(bar: tqdm, run: Run, options: Options, code: int, seconds: float, shown: bool) -> None:
    """A run that ended: the table anew and, where the bar is `shown`, one line with name, status, best validation accuracy, seconds."""
    try:
        write_table(options.run_folder(run.config).parent)
    except InputError as error:  # of another run's record that came meanwhile: no reason to stop training
        tqdm.write(f"cifarlib: {error}", file=sys.stderr)
    if not shown:
        return
    record = read_record(options.run_folder(run.config)) or {
        "status": "preempted", "metrics": {}, "error": f"it was killed, or begun by another kind of machine: see {LOG}"}
    accuracy = record["metrics"].get("val_accuracy_best_val_acc")
    best = f"best validation accuracy {accuracy:.4f}" if accuracy is not None else "no validation"
    bar.update()
    bar.write(f"{run.name}  {record['status']}  {best}  {seconds:.0f} s")
    if "error" in record:
        bar.write("    " + record["error"].splitlines()[-1])
    elif code not in (OK, PREEMPTED):
        bar.write(f"    its notebook broke off before or after the training: see {LOG}")
