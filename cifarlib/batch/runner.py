"""Runs in batch: each its own papermill process and kernel, several at a time.

What is done is skipped, what was cut off goes on.
"""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from ..config import Config, Options
from ..errors import InputError
from ..files import HISTORY, LOG, NOTEBOOK, RECORD, STOP, project_path
from ..parts import DATASETS, load
from ..runs.claim import Claim
from ..runs.record import (FINISHED, check_plan, epochs_of, is_finished, precision_of, read_record, recorded, status_of,
                           write_failure)
from ..runs.stop import StopSignals, drop_closed_output
from ..runs.study import note_planned, remove_stale_parts, write_table
from ..words import counted
from .grid import Run
from .kernel import BAD_INPUT, FAILED, OK, PREEMPTED
from .launch import Warm, check_notebook, notebook_path, start_notebook
from .resources import Slots

LAST_LINES = 20  # of a failed run's log, kept in its record
NO_PROGRESS = 76  # exit code of a stop before any run ended or finished an epoch: another start may get no further
ALIKE = 5  # runs that fail with the same line, one after the other: the cause is not in the runs
NO_ROOM = os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "inline_container.cc"  # the last where torch saves
NO_MEMORY = "DeadKernelError", "out of memory", "can't allocate memory", "MemoryError"
POLL = 2.0  # seconds between two looks at runs that other runners train


class Stopping(StopSignals):
    """Within the context a signal asks all runs to stop at their epoch's end; Ctrl-C after that kills them.

    So do `most` failures in a row that say the same (1: any failure). running: the processes of the runs, by run
    folder; progress: whether any run has ended or finished an epoch.
    """

    def __init__(self, most: int = ALIKE):
        self.most, self.alike, self.running, self.killed, self.progress = most, [], {}, False, False
        self.warm = None  # the process from which runs are forked

    @property
    def given_up(self) -> bool:
        """Whether it was for failures."""
        return len(self.alike) >= self.most

    def note(self, failure: str | None) -> None:
        """A run has ended, with this line if it failed."""
        self.alike = [*(line for line in self.alike if line == failure), failure] if failure is not None else []
        if self.given_up and not self.requested:
            self.request(f"{counted(self.most, 'run')} in a row failed alike: {failure}" if self.most > 1 else "")

    def request(self, reason: str = "") -> None:
        """Ask every run to stop at its epoch's end, and start no more."""
        super().request()
        for folder in list(self.running):
            with suppress(OSError):  # no room even for that: it will notice
                (folder / STOP).touch()
        if reason:
            tqdm.write(f"cifarlib: {reason}", file=sys.stderr)
        print("stopping: every run ends after its epoch in progress; Ctrl-C again kills them", file=sys.stderr)

    def break_off(self) -> None:
        self.killed = True
        for process in list(self.running.values()):
            process.kill()  # which passes over one that has just ended; its kernel ends with it
        if self.warm:
            self.warm.kill()  # a start that waits for it goes on


def execute_run(run: Run, options: Options, stopping: Stopping, threads: int = 0, gpu: str | None = None,
                echo: Callable[[str], None] | None = None, claim: Claim | None = None, warm: Warm | None = None) -> int:
    """Train one run in its own process, record it if it failed, and return its exit code (see kernel.py).

    threads: for its computations (0 leaves it to torch); gpu: the card to use; echo: called with every line it prints;
    claim: the run ends, and nothing is recorded, if somebody else takes it over; warm: from where to fork it.
    """
    folder = options.run_folder(run.config)
    # What a finished run left goes once training anew begins, which bad input may prevent.
    finished = read_record(folder) if is_finished(folder) else None
    notebook = (folder / NOTEBOOK).read_bytes() if finished and (folder / NOTEBOOK).exists() else None
    if not finished:
        (folder / RECORD).unlink(missing_ok=True)
    for stale in (folder / STOP, *folder.glob(".*.part")):  # parts are what killed processes left half written
        stale.unlink(missing_ok=True)
    parameters, environment = {**run.config.to_dict(), **dataclasses.asdict(options)}, {}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
        parameters["device"] = run.config.device.partition(":")[0]  # the only card it sees
    before = _modified(folder / HISTORY)
    process = start_notebook(notebook_path(NOTEBOOK), folder / NOTEBOOK, parameters, environment, claim, warm,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    stopping.running[folder] = process
    if stopping.requested:
        (folder / STOP).touch()
    if stopping.killed:  # while the warm process was beginning
        process.kill()
    lines = deque(maxlen=LAST_LINES)
    with process, (folder / LOG).open("a" if finished else "w") as log:
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line.rstrip())
            if echo:
                with suppress(OSError):  # the terminal was closed
                    echo(line)
    del stopping.running[folder]
    if notebook and process.returncode != OK and read_record(folder) == finished:
        (folder / NOTEBOOK).write_bytes(notebook)
    code = process.returncode
    if stopping.killed and code < 0:
        code = PREEMPTED  # the user killed the run: nothing has failed
    if code in (FAILED, BAD_INPUT) and any(sign in line for line in lines for sign in NO_ROOM):
        code = PREEMPTED  # neither has this run failed, nor need the others
        stopping.request(f"no room is left on a disk or in a quota; the same line goes on when there is: {lines[-1]}")
    if code != PREEMPTED or _modified(folder / HISTORY) != before:
        stopping.progress = True
    if claim and claim.lost:
        return PREEMPTED  # the folder is another runner's now
    (folder / STOP).unlink(missing_ok=True)  # a killed run leaves it, and the next one, by hand, would stop at once
    return _outcome(code, folder, run.config, list(lines))


def _modified(path: Path) -> int | None:
    """When a file was written, in nanoseconds by its file system's clock; None if it isn't there."""
    return path.stat().st_mtime_ns if path.exists() else None


def _outcome(code: int, folder: Path, config: Config, lines: list[str]) -> int:
    """The exit code, after making sure that the record agrees: what ended without one, or badly, has failed."""
    if is_finished(folder) or code == PREEMPTED:
        return code  # what came after a finished record, such as a kernel killed while it draws, does not undo it
    if code < 0:
        lines.append(f"killed by signal {-code}")
    if code == -signal.SIGKILL or any(sign in line for line in lines for sign in NO_MEMORY):
        lines.append(f"{lines[-1]}: most likely it ran out of memory, of which fewer --jobs at a time, a smaller "
                     "batch_size or a smaller model need less")
    write_failure(folder, config, "\n".join(lines) or f"ended with exit code {code} and no word")
    return BAD_INPUT if code == BAD_INPUT else FAILED


def run_all(runs: list[Run], options: Options, slots: Slots, stopping: Stopping, *, retry_failed: bool = False,
            wait_for_others: bool = True, echo: Callable[[str], None] | None = None, warm: bool = True) -> int:
    """Train what is pending of `runs`, print a line for each that ends, rebuild the table, and return the exit code.

    0 if all are finished, 1 if some failed, 2 if none could start for bad input, 75 if some were stopped before their
    end, 76 if they were so before any ended or finished an epoch. Runs that another runner trains are waited for (it
    may die) unless told otherwise. stopping: an entered context; warm: whether runs are forked, which gains nothing
    for one alone. Raises InputError, before anything starts, for what check_runs finds and if the
    study holds a run of another version.
    """
    study = project_path(options.executed_dir) / options.study
    drop_closed_output()
    check_runs(runs, options)
    remove_stale_parts(study)
    note_planned(study, [cell for run in runs for cell in run.cells])
    write_table(study)  # cells that share a finished run may be new
    failed = sum(status_of(options.run_folder(run.config)) == "failed" for run in runs)
    if failed and not retry_failed:
        tqdm.write(f"left alone: {counted(failed, 'run')} that failed before (--retry-failed tries again)",
                   file=sys.stderr)
    waiting, codes = deque(run for run in runs if wanted(run, options, retry_failed)), {}
    turn, told = threading.Lock(), threading.Event()

    def work(gpu: str | None) -> None:
        """In a thread: train one run after the other, as long as there are any."""
        while waiting and not stopping.requested:
            with turn:
                run, claim = _claim_next(waiting, options, retry_failed, bar)
            if claim:
                train(run, claim, gpu)
            elif not wait_for_others:
                return
            elif waiting:
                if not told.is_set():
                    tqdm.write(f"waiting for {counted(len(waiting), 'run')} that other runners train", file=sys.stderr)
                told.set()
                time.sleep(POLL)

    def train(run: Run, claim: Claim, gpu: str | None) -> None:
        """Train what is claimed, report how it ended and let others claim it."""
        started = time.monotonic()
        try:
            code = codes[run.name] = execute_run(run, options, stopping, slots.threads, gpu, echo, claim, source)
            with turn:
                if claim.lost:
                    waiting.append(run)
                else:  # before the release: a runner that tries a failed run again removes its record
                    failure = _report(bar, run, options, code, time.monotonic() - started, echo is None)
                    stopping.note(failure if code in (FAILED, BAD_INPUT) else None)
        finally:
            claim.release()

    with (Warm(warm) as source, ThreadPoolExecutor(slots.jobs) as pool,
          _grid_bar(runs, options, echo is None) as bar):
        stopping.warm = source
        cards = [slots.gpus[number % len(slots.gpus)] if slots.gpus else None for number in range(slots.jobs)]
        for worker in as_completed(pool.submit(work, card) for card in cards):
            if worker.exception():
                stopping.request()  # the others, too, end after their epoch
            worker.result()
    write_table(study)  # what it may have said on the way is an error in the end
    return _exit_code(runs, options, codes, stopping)


def _exit_code(runs: list[Run], options: Options, codes: dict[str, int], stopping: Stopping) -> int:
    if codes and set(codes.values()) == {BAD_INPUT}:
        return BAD_INPUT
    if not options.resume and FAILED in codes.values():
        return FAILED  # what it was to replace may still be there, finished
    statuses = {status_of(options.run_folder(run.config)) for run in runs}
    # A run that somebody else trains is left to them, unless this runner was stopped while it waited for them.
    unfinished = statuses & {"preempted", "pending", "dropped", *(["running"] if stopping.requested else [])}
    if "failed" in statuses and (stopping.given_up or not unfinished):
        return FAILED
    if not unfinished:
        return OK
    return NO_PROGRESS if stopping.requested and not stopping.progress else PREEMPTED


def check_runs(runs: list[Run], options: Options) -> None:
    """Raise InputError for what can be known to fail before a kernel starts.

    That is a notebook that takes no parameters, a folder named for the data that holds none, and a run folder that
    can't be written, or holds another run, or one in another precision than asked for.
    """
    check_notebook(notebook_path(NOTEBOOK), {**Config().to_dict(), **dataclasses.asdict(options)})
    for run in runs:
        folder, locate = options.run_folder(run.config), DATASETS[run.config.dataset].locate
        if options.resume and is_finished(folder):
            continue
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder} can't be written; is it a folder of yours? else use another study")
        if locate:
            load(locate)(run.config.data_dir)
    for run in runs if options.resume else ():
        folder, asked = options.run_folder(run.config), run.config.precision
        check_plan(folder, run.config.identity())
        if asked != "auto" and (trained := precision_of(folder) or asked) != asked:
            raise InputError(f"{folder} holds a run in {trained}, not in {asked}; use another study, or train anew "
                             "with --no-resume")


def wanted(run: Run, options: Options, retry_failed: bool) -> bool:
    """Whether a run is still to be trained (or waited for, while somebody else trains it): the record alone decides."""
    folder = options.run_folder(run.config)
    status = recorded(folder, "status")
    if status in FINISHED:
        return not options.resume
    if options.resume and 0 < options.pause_after <= len(epochs_of(folder)):
        return False
    return status != "failed" or retry_failed


def _claim_next(waiting: deque[Run], options: Options, retry_failed: bool, bar: tqdm) -> tuple:
    """Take the first of `waiting` that is free: (run, claim), or (None, None) if others train all of them.

    What others have finished meanwhile is dropped, what they train stays.
    """
    for run in list(waiting):
        if not (claim := Claim.take(options.run_folder(run.config))):
            continue
        waiting.remove(run)
        if wanted(run, options, retry_failed):  # looked at again: another runner may just have ended it
            return run, claim
        claim.release()
        bar.update()
    return None, None


def _grid_bar(runs: list[Run], options: Options, shown: bool) -> tqdm:
    """One bar for the whole grid, with the time that is left."""
    done = sum(is_finished(options.run_folder(run.config)) for run in runs) if options.resume else 0
    return tqdm(total=len(runs), initial=done, unit="run", disable=not shown, dynamic_ncols=True, smoothing=0.1)


def _report(bar: tqdm, run: Run, options: Options, code: int, seconds: float, shown: bool) -> str:
    """A run that ended: the table anew and, where the bar is `shown`, a line of it; return its error's last line."""
    drop_closed_output()
    try:
        write_table(options.run_folder(run.config).parent)
    except InputError as error:  # of another run's record that came meanwhile: no reason to stop training
        tqdm.write(f"cifarlib: {error}", file=sys.stderr)
    record = read_record(options.run_folder(run.config)) or {
        "status": "preempted", "metrics": {}, "error": f"it was killed, or begun by another kind of machine: see {LOG}"}
    failure = record.get("error", "").rpartition("\n")[2]
    if shown:
        accuracy = record["metrics"].get("val_accuracy_best_val_acc")
        best = f"best validation accuracy {accuracy:.4f}" if accuracy is not None else "no validation"
        bar.update(record["status"] != "preempted" or options.pause_after > 0)
        bar.write(f"{run.label}  {record['status']}  {best}  {seconds:.0f} s")
        if failure:
            bar.write(f"    {failure}")
        elif code not in (OK, PREEMPTED):
            bar.write(f"    its notebook broke off before or after the training: see {LOG}")
    return failure
