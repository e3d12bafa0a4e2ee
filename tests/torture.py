"""Random SIGKILLs of runners, their children and kernels while a grid of tiny runs goes on.

    python tests/torture.py --kills 200 --workers 10

The grid is first trained undisturbed. Then several runners work on it together while processes are killed at random and
dead runners are started again, in as many rounds as the kills need; in the end each round must have left what the
undisturbed grid left. Prints a summary and exits with 1 if anything is off.
"""

import argparse
import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import psutil
import torch

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebooks/experiment.ipynb"
MARK = "CIFARLIB_TORTURE"  # a variable in the environment of all that is started here; its value is the round's folder
PATIENCE = 600  # seconds that a round may take once nothing is killed any more
TIMES = ("seconds", "images_per_second")  # in which equal runs differ
GRID = """
fixed: {{dataset: synthetic, limit_train: 256, limit_val: 64, limit_test: 64, batch_size: 32, epochs: 12,
        device: cpu, precision: fp32, scheduler: cosine, augmentation: true, model_args: {{widths: [8, 8, 8, 8]}}}}
rows: [{{seed: 0, gamma: [0.95, 0.97]}}, {{seed: {seeds}}}]  # the first two share a run
"""

# A cell that is added to the experiment notebook. Its lock lasts as long as the kernel, so it tells whether two ever
# train a run at once. One thread, because how many cores a runner finds must not change the sums.
TRACE = f"""
import fcntl
import os
from cifarlib.training import finish, loop

torch.set_num_threads(1)
trace = os.path.join(os.environ["{MARK}"], "trace", config.run_name)
lock, log = (os.open(trace + suffix, os.O_CREAT | os.O_APPEND | os.O_RDWR) for suffix in (".lock", ""))

def note(event, epoch=0):
    os.write(log, f"{{os.getpid()}} {{event}} {{epoch}}\\n".encode())

def traced_epoch(trainer, epoch, inner=loop.Trainer.train_epoch):
    note("begins", epoch + 1)
    return inner(trainer, epoch)

def traced_keep(store, model, optimizer, history, inner=loop.Store.keep):
    inner(store, model, optimizer, history)
    note("kept", len(history.rows))

def traced_finish(*arguments, inner=finish.finish_run):
    record = inner(*arguments)
    note("finished")
    return record

try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    note("opened")
except BlockingIOError:
    note("second")
loop.Trainer.train_epoch, loop.Store.keep = traced_epoch, traced_keep
finish.finish_run = traced_finish
"""


@dataclass
class Report:
    """What a torture did and what was off."""

    kills: Counter = field(default_factory=Counter)  # by kind
    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    minutes: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} of {kind}" for kind, number in sorted(self.kills.items()))
        c = self.counts
        return (f"{self.kills.total()} SIGKILLs ({kinds}) in {c['rounds']} rounds of {c['cells']} cells, "
                f"{c['workers']} runs at a time by {c['runners']} runners: {c['restarts']} runners started again, "
                f"{c['failures']} failures recorded and retried, {c['kernels']} kernels that began to train, "
                f"{c['resumes']} of them after an earlier epoch; {c['done']} runs done, {c['epochs']} epochs kept, "
                f"mismatches = {len(self.problems)}, {self.minutes:.1f} minutes")


class Round:
    """One study in a folder of its own, trained by several runners that are started again when they are dead."""

    def __init__(self, folder: Path, cells: int, jobs: list[int], report: Report):
        self.folder, self.study, self.jobs, self.report = folder, folder / "executed" / "study", jobs, report
        self.runs = cells - 1
        for name in ("trace", "notebooks"):
            (folder / name).mkdir(parents=True)
        (folder / "grid.yaml").write_text(GRID.format(seeds=list(range(1, self.runs))))
        (folder / NOTEBOOK).write_text(traced_notebook())
        # What is killed leaves sockets in the temporary folder. The package is the one here, whatever is installed.
        (folder.parent / "tmp").mkdir(exist_ok=True)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: str(folder), "PYTHONPATH": str(PROJECT),
                            "TMPDIR": str(folder.parent / "tmp")}
        self.runners = [self.start(number) for number in range(len(jobs))]

    def start(self, number: int) -> subprocess.Popen:
        """A runner, as from a terminal of its own."""
        command = [sys.executable, "-m", "cifarlib", "grid", "grid.yaml", "--study", "study", "--retry-failed",
                   "--jobs", str(self.jobs[number]), "--wandb_mode", "disabled"]
        with (self.folder / f"runner_{number}.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=log)

    def revive(self) -> None:
        """Start ended runners again, as long as there is something to do."""
        for number, runner in enumerate(self.runners):
            if runner.poll() is not None and not self.done():
                self.report.counts["restarts"] += 1
                self.runners[number] = self.start(number)

    def done(self) -> bool:
        """Whether every run has its record."""
        return sum(is_done(path) for path in self.study.glob("*/record.json")) == self.runs

    def alive(self) -> bool:
        """Whether a runner is still there."""
        return any(runner.poll() is None for runner in self.runners)

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL to a runner, its warm process, a run, a kernel, or a runner with all that is below it."""
        found = processes(self.folder)
        runners = [runner.pid for runner in self.runners if runner.poll() is None]
        events = [path.read_text().split() for path in (self.folder / "trace").iterdir() if path.suffix != ".lock"]
        training = [int(words[-3]) for words in events if words and words[-2] in ("begins", "kept")]
        kinds = {"runners": [[pid] for pid in runners],
                 "runners with all below them": [below(pid, found) for pid in runners],
                 "warm processes": [[pid] for pid, process in found.items() if process.kind == "warm"],
                 "runs": [[pid] for pid, process in found.items() if process.kind == "run"],
                 "kernels": [[pid] for pid, process in found.items() if process.kind == "kernel"],
                 "kernels in training": [[pid] for pid in training if pid in found]}
        if not any(kinds.values()):
            return
        kind = chance.choice([kind for kind, victims in kinds.items() if victims])
        victims = chance.choice(kinds[kind])
        chance.shuffle(victims)
        for pid in victims:
            kill(pid)
        self.report.kills[kind] += 1

    def end(self) -> None:
        """Kill whatever is left."""
        for pid in processes(self.folder):
            kill(pid)
        for runner in self.runners:
            runner.wait()


def torture(folder: Path, kills: int, workers: int, cells: int, seed: int = 0, minutes: float = 60,
            pause: float = 0) -> Report:
    """Torture in a new `folder` and return what came of it.

    pause: mean seconds between two kills; 0 takes the time in which the undisturbed grid ends a run. `minutes` after
    that grid nothing is killed any more.
    """
    report, chance, started = Report(), random.Random(seed), time.monotonic()
    jobs = shares(workers)
    report.counts.update(cells=cells, workers=workers, runners=len(jobs))
    rounds = [reference := Round(folder / "reference", cells, [workers], report)]
    try:
        reference.runners[0].wait()
        deadline = time.monotonic() + 60 * minutes
        pause = pause or (time.monotonic() - started) / cells
        if not reference.done():
            report.problems.append("undisturbed grid: " + (reference.folder / "runner_0.log").read_text()[-2000:])
        while not report.problems and report.kills.total() < kills and time.monotonic() < deadline:
            report.counts["rounds"] += 1
            rounds.append(Round(folder / f"round_{report.counts['rounds']}", cells, jobs, report))
            disturb(rounds[-1], chance, kills, deadline, pause)
            settle(rounds[-1])
            problems = differences(rounds[-1], reference)
            report.problems += [f"{rounds[-1].folder.name}: {problem}" for problem in problems]
    finally:
        for each in rounds:
            each.end()
    report.minutes = (time.monotonic() - started) / 60
    return report


def shares(workers: int) -> list[int]:
    """Runs at a time of each runner: two or three, and at least two runners."""
    runners = max(2, workers // 2)
    return [max(1, workers // runners + (number < workers % runners)) for number in range(runners)]


def disturb(round_: Round, chance: random.Random, kills: int, deadline: float, pause: float) -> None:
    """Kill and revive until the round is done or nothing is to be killed any more."""
    while not round_.done() and round_.report.kills.total() < kills and time.monotonic() < deadline:
        time.sleep(chance.uniform(0, 2 * pause))
        round_.kill_one(chance)
        round_.revive()


def settle(round_: Round) -> None:
    """Let the round come to its end undisturbed, and its last processes too.

    A last runner finds everything done, and tidies up what others may have been killed over some minutes ago.
    """
    deadline = time.monotonic() + PATIENCE
    while (round_.alive() or not round_.done()) and time.monotonic() < deadline:
        time.sleep(0.2)
        round_.revive()
    if round_.done() and not round_.alive():
        for part in round_.study.rglob("*.part"):
            os.utime(part, (0, 0))
        round_.runners[0] = round_.start(0)
        round_.runners[0].wait()
    deadline = time.monotonic() + 20
    while processes(round_.folder) and time.monotonic() < deadline:
        time.sleep(0.2)


def traced_notebook() -> str:
    """The experiment notebook with the trace after the cell that reads the parameters."""
    notebook = json.loads((PROJECT / NOTEBOOK).read_text())
    cells = notebook["cells"]
    index = next(number for number, cell in enumerate(cells) if "read_parameters(" in "".join(cell["source"]))
    cells.insert(index + 1, {**cells[index], "id": "trace", "source": TRACE.splitlines(True)})
    return json.dumps(notebook)


@dataclass(frozen=True)
class Process:
    kind: str  # runner, warm, run, kernel or other
    parent: int


def processes(folder: Path) -> dict[int, Process]:
    """The living processes that a round started, by process id: they carry its folder in their environment."""
    kinds = {"cifarlib": "runner", "cifarlib.batch.kernel": "run", "ipykernel_launcher": "kernel",  # started
             "cifarlib warm": "warm", "cifarlib run": "run", "cifarlib kernel": "kernel"}  # forked
    found = {}
    for process in psutil.process_iter(["name", "environ", "cmdline", "ppid"]):
        if (process.info["environ"] or {}).get(MARK) == str(folder):
            words = process.info["name"], *process.info["cmdline"][1:4]
            kind = next((kinds[word] for word in words if word in kinds), "other")
            found[process.pid] = Process(kind, process.info["ppid"])
    return found


def below(pid: int, found: dict[int, Process]) -> list[int]:
    """`pid` and all that descends from it."""
    return [pid] + [each for child, process in found.items() if process.parent == pid for each in below(child, found)]


def kill(pid: int) -> None:
    """SIGKILL, unless it has just ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def is_done(path: Path) -> bool:
    """Whether the record in the file is one of a finished run."""
    try:
        return json.loads(path.read_text())["status"] == "done"
    except FileNotFoundError:
        return False


def differences(round_: Round, reference: Round) -> list[str]:
    """What is off in a round that has come to its end."""
    problems = [f"process {pid} ({process.kind}) is left" for pid, process in processes(round_.folder).items()]
    round_.report.counts["done"] += sum(is_done(path) for path in round_.study.glob("*/record.json"))
    if not round_.done():
        return [*problems, f"not every run is done; see {round_.folder}"]
    files = sorted(round_.folder.rglob("*"))
    problems += [f"{path.relative_to(round_.folder)} is left" for path in files if is_temporary(path)]
    for log in sorted(round_.folder.glob("runner_*.log")):
        problems += [f"{log.name}: {problem}" for problem in log_problems(log, round_.report)]
    problems += table_problems(round_.study, reference.study)
    for folder in sorted(path.parent for path in reference.study.glob("*/record.json")):
        found = trace_problems(round_.folder / "trace" / folder.name, round_.report)
        found += run_problems(round_.study / folder.name, folder)
        problems += [f"{folder.name}: {problem}" for problem in found]
    return problems


def is_temporary(path: Path) -> bool:
    """Whether a file should not outlive the process that made it."""
    return path.suffix == ".part" or path.name == "stop" or path.is_socket()


def log_problems(log: Path, report: Report) -> list[str]:
    """What a runner said and shouldn't have: an error of its own, or a failure that no kill explains."""
    lines = [line for line in log.read_text().splitlines() if line.strip() and "%|" not in line]  # without the bar
    failures = [(line, error) for line, error in itertools.pairwise(lines) if "  failed  " in line]
    report.counts["failures"] += len(failures)
    explained = re.compile("killed by signal 9|[Kk]ernel died")
    unexplained = [line + error for line, error in failures if not explained.search(error)]
    return unexplained + [line for line in lines if line.startswith(("Traceback", "cifarlib:"))]


def trace_problems(trace: Path, report: Report) -> list[str]:
    """The first thing that the kernels of a run did beyond training each epoch once, but for one cut off by a kill."""
    writers, begun, kept, finished = [], 0, 0, False
    for line in trace.read_text().splitlines():
        pid, event, epoch = line.split()
        epoch = int(epoch)
        if pid not in writers:
            writers.append(pid)
            report.counts["kernels"] += 1
            report.counts["resumes"] += kept > 0
        if event == "second" or pid in writers[:-1]:
            return [f"two kernels at once: {pid} among {writers}"]
        if finished:
            return [f"finished, and then again: {line}"]
        if event == "begins" and not max(kept + 1, begun) <= epoch <= begun + 1:
            return [f"epoch {epoch} began after {begun} had begun and {kept} had been kept"]
        begun = epoch if event == "begins" else begun
        kept = epoch if event == "kept" else kept
        report.counts["epochs"] += event == "kept"
        finished = event == "finished"
    return []


def run_problems(folder: Path, reference: Path) -> list[str]:
    """What a run folder has otherwise than that of the undisturbed run, times aside."""
    problems = []
    own, other = (json.loads((place / "record.json").read_text()) for place in (folder, reference))
    for name in own.keys() | other.keys():
        if name not in ("seconds", "finished", "commit") and own.get(name) != other.get(name):
            problems.append(f"record.json: {name} differs")
    if history(folder) != history(reference):
        problems.append("history.csv differs")
    own, other = (np.load(place / "predictions.npz") for place in (folder, reference))
    if own.files != other.files or not all(np.array_equal(own[name], other[name]) for name in other.files):
        problems.append("predictions.npz differs")
    for path in sorted(reference.glob("*.pt")):
        own, other = (torch.load(place, weights_only=True)["weights"] for place in (folder / path.name, path))
        if own.keys() != other.keys() or not all(torch.equal(own[name], other[name]) for name in other):
            problems.append(f"{path.name} differs")
    own, other = ({path.name for path in place.iterdir()} for place in (folder, reference))
    names = sorted(name for name in own ^ other if not name.startswith("claim."))
    return problems + [f"{name} is {'left' if name in own else 'missing'}" for name in names]


def history(folder: Path) -> list[dict]:
    """The rows of history.csv as text, without the times."""
    with (folder / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def table_problems(study: Path, reference: Path) -> list[str]:
    """Whether runs.csv says something else than the undisturbed grid's, times aside."""
    tables = (pandas.read_csv(folder / "runs.csv") for folder in (study, reference))
    own, other = (table.drop(columns=["seconds", "commit"]) for table in tables)
    return [] if own.equals(other) else [f"runs.csv differs: {len(own)} rows of {len(other)}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many")
    parser.add_argument("--workers", type=int, default=10, help="runs at a time, by all runners together")
    parser.add_argument("--cells", type=int, default=20, help="cells of the grid, two of which share a run")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    parser.add_argument("--minutes", type=float, default=120, help="after so many nothing is killed any more")
    parser.add_argument("--pause", type=float, default=0,
                        help="mean seconds between kills; 0 goes by the undisturbed grid")
    parser.add_argument("--folder", help="a new folder, which stays; else a temporary one, removed if all is well")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="torture-")).resolve()
    report = torture(folder, options.kills, options.workers, options.cells, options.seed, options.minutes,
                     options.pause)
    print(*report.problems, report, sep="\n")
    if not (options.folder or report.problems):
        shutil.rmtree(folder)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
