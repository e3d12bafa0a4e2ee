"""Random SIGKILLs of runners, their children and kernels while a grid of tiny runs goes on.

    python tests/torture.py --kills 200 --workers 10

The grid is first trained undisturbed. Then several runners work on it together while processes are killed at random and
dead runners are started again, in as many rounds as the kills need; in the end each round must have left what the
undisturbed grid left. Prints a summary and exits with 1 if anything is off.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from services import differences, file_content, wait_for

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebooks/experiment.ipynb"
MARK = "CIFARLIB_TORTURE"  # a variable in the environment of all that is started here; its value is the round's folder
PATIENCE = 600  # seconds that a round may take once nothing is killed any more
GRID = """
fixed: {{dataset: synthetic, limit_train: 256, limit_val: 64, limit_test: 64, batch_size: 32, epochs: 12,
        device: cpu, precision: fp32, scheduler: cosine, augmentation: true, model_args: {{widths: [8, 8, 8, 8]}}}}
rows: [{{seed: 0, gamma: [0.95, 0.97]}}, {{seed: {seeds}}}]  # the first two share a run
"""

# A cell that is added to the experiment notebook. Its lock lasts as long as the kernel, so that a second one which
# trains the same run fails. One thread, because how many cores a runner finds must not change the sums.
TRACE = f"""
import fcntl
import os
from cifarlib.training import finish, loop

torch.set_num_threads(1)
trace = open(os.path.join(os.environ["{MARK}"], "trace", config.run_name), "a", buffering=1)
fcntl.flock(trace, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("opened", 0, file=trace)

def traced_epoch(trainer, epoch, inner=loop.Trainer.train_epoch):
    print("begins", epoch + 1, file=trace)
    return inner(trainer, epoch)

def traced_keep(store, model, optimizer, history, inner=loop.Store.keep):
    inner(store, model, optimizer, history)
    print("kept", len(history.rows), file=trace)

def traced_finish(*arguments, inner=finish.finish_run):
    record = inner(*arguments)
    print("finished", 0, file=trace)
    return record

loop.Trainer.train_epoch, loop.Store.keep, finish.finish_run = traced_epoch, traced_keep, traced_finish
"""


@dataclass
class Report:
    """What a torture did, kills by kind, and what was off."""

    kills: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lists = (", ".join(f"{number} {name}" for name, number in each.items()) for each in (self.kills, self.counts))
        return f"{self.kills.total()} SIGKILLs ({next(lists)}): {next(lists)}, {len(self.problems)} mismatches"


class Round:
    """One study in a folder of its own, trained by several runners that are started again when they are dead."""

    def __init__(self, folder: Path, cells: int, jobs: list[int], report: Report):
        self.folder, self.study, self.jobs, self.report = folder, folder / "executed" / "study", jobs, report
        self.runs = cells - 1
        for name in ("trace", "notebooks"):
            (folder / name).mkdir(parents=True)
        (folder / "grid.yaml").write_text(GRID.format(seeds=list(range(1, self.runs))))
        notebook = json.loads((PROJECT / NOTEBOOK).read_text())
        sources = ["".join(cell["source"]) for cell in notebook["cells"]]
        index = next(number for number, source in enumerate(sources) if "read_parameters(" in source)
        notebook["cells"].insert(index + 1, {**notebook["cells"][index], "id": "trace", "source": TRACE})
        (folder / NOTEBOOK).write_text(json.dumps(notebook))
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

    def done(self) -> bool:
        """Whether every run has its record."""
        statuses = Counter()
        for path in self.study.glob("*/record.json"):
            with suppress(FileNotFoundError):  # a failed run is tried again
                statuses[json.loads(path.read_text())["status"]] += 1
        return statuses["done"] == self.runs

    def ended(self) -> bool:
        """Whether all is done and the runners know; else those that are dead are started again."""
        alive = [runner.poll() is None for runner in self.runners]
        if self.done():
            return not any(alive)
        for number, runs_on in enumerate(alive):
            if not runs_on:
                self.report.counts["runners started again"] += 1
                self.runners[number] = self.start(number)
        return False

    def processes(self) -> list[psutil.Process]:
        """The living processes that the round started: they carry its folder in their environment."""
        return [process for process in psutil.process_iter(["name", "environ"])
                if (process.info["environ"] or {}).get(MARK) == str(self.folder)]

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL to a runner, its warm process, a run, a kernel, or a runner with all that is below it."""
        kinds: dict[str, list[list[psutil.Process]]] = {}
        runners = {runner.pid for runner in self.runners}
        for process in self.processes():
            kinds.setdefault("runner" if process.pid in runners else process.info["name"], []).append([process])
            with suppress(psutil.NoSuchProcess):
                if process.pid in runners:
                    family = [process, *process.children(recursive=True)]
                    kinds.setdefault("runner with all below it", []).append(family)
        if not kinds:
            return
        kind = chance.choice([*kinds])
        victims = chance.choice(kinds[kind])
        chance.shuffle(victims)
        kill(victims)
        self.report.kills[kind] += 1

    def settle(self) -> None:
        """Let the round come to its end undisturbed, and its last processes too.

        A last runner finds everything done, and tidies up what others may have been killed over some minutes ago.
        """
        with suppress(TimeoutError):
            wait_for(self.ended, PATIENCE, "the end of the round")
            for part in self.study.rglob("*.part"):
                os.utime(part, (0, 0))
            self.start(0).wait()
            wait_for(lambda: not self.processes(), 20, "the end of the last processes")

    def end(self) -> None:
        """Kill whatever is left."""
        kill(self.processes())
        for runner in self.runners:
            runner.wait()


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def torture(folder: Path, kills: int, workers: int, cells: int, seed: int = 0, minutes: float = 60,
            pause: float = 0) -> Report:
    """Torture in a new `folder` and return what came of it.

    pause: mean seconds between two kills; 0 takes the time in which the undisturbed grid ends a run. `minutes` after
    that grid nothing is killed any more.
    """
    report, chance, started = Report(), random.Random(seed), time.monotonic()
    runners = max(2, workers // 2)  # each with two or three runs at a time
    jobs = [max(1, workers // runners + (number < workers % runners)) for number in range(runners)]
    rounds = [reference := Round(folder / "reference", cells, [workers], report)]
    try:
        reference.runners[0].wait()
        deadline = time.monotonic() + 60 * minutes
        pause = pause or (time.monotonic() - started) / cells
        if not reference.done():
            report.problems.append("undisturbed grid: " + (reference.folder / "runner_0.log").read_text()[-2000:])
        while not report.problems and report.kills.total() < kills and time.monotonic() < deadline:
            report.counts["rounds"] += 1
            rounds.append(now := Round(folder / f"round_{report.counts['rounds']}", cells, jobs, report))
            while not now.done() and report.kills.total() < kills and time.monotonic() < deadline:
                time.sleep(chance.uniform(0, 2 * pause))
                now.kill_one(chance)
                now.ended()
            now.settle()
            report.problems += [f"{now.folder.name}: {problem}" for problem in problems(now, reference)]
    finally:
        for each in rounds:
            each.end()
    return report


def problems(now: Round, reference: Round) -> list[str]:
    """What is off in a round that has come to its end."""
    found = [f"process {process.pid} ({process.info['name']}) is left" for process in now.processes()]
    if not now.done():
        return [*found, f"not every run is done; see {now.folder}"]
    now.report.counts["runs done"] += now.runs
    temporary = [path for path in now.folder.rglob("*") if path.suffix == ".part" or path.is_socket()]
    found += [f"{path.relative_to(now.folder)} is left" for path in temporary]
    for log in sorted(now.folder.glob("runner_*.log")):
        found += [f"{log.name}: {problem}" for problem in log_problems(log, now.report)]
    if file_content(now.study / "runs.csv") != file_content(reference.study / "runs.csv"):
        found.append("runs.csv differs")
    for record in sorted(reference.study.glob("*/record.json")):
        name = record.parent.name
        off = trace_problems(now.folder / "trace" / name, now.report)
        off += [f"{file} differs, or is there only once" for file in differences(now.study / name, record.parent)]
        found += [f"{name}: {problem}" for problem in off]
    return found


def log_problems(log: Path, report: Report) -> list[str]:
    """What a runner said and shouldn't have: an error of its own, or a failure that no kill explains."""
    lines = [line for line in log.read_text().splitlines() if line.strip() and "%|" not in line]  # without the bar
    failures = [(line, error) for line, error in itertools.pairwise(lines) if "  failed  " in line]
    report.counts["failures recorded and retried"] += len(failures)
    explained = re.compile("killed by signal 9|[Kk]ernel died")
    unexplained = [line + error for line, error in failures if not explained.search(error)]
    return unexplained + [line for line in lines if line.startswith(("Traceback", "cifarlib:"))]


def trace_problems(trace: Path, report: Report) -> list[str]:
    """The first thing that the kernels of a run did beyond training each epoch once, but for one cut off by a kill."""
    begun, kept, finished = 0, 0, False
    for line in trace.read_text().splitlines():
        event, epoch = line.split()[0], int(line.split()[1])
        if finished:
            return [f"finished, and then again: {line}"]
        if event == "begins" and not max(kept + 1, begun) <= epoch <= begun + 1:
            return [f"epoch {epoch} began after {begun} had begun and {kept} had been kept"]
        begun = epoch if event == "begins" else begun
        report.counts["kernels that went on after an earlier epoch"] += event == "opened" and kept > 0
        report.counts["epochs kept"] += event == "kept"
        kept = epoch if event == "kept" else kept
        finished = event == "finished"
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many")
    parser.add_argument("--workers", type=int, default=10, help="runs at a time, by all runners together")
    parser.add_argument("--cells", type=int, default=20, help="cells of the grid, two of which share a run")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    parser.add_argument("--minutes", type=float, default=120, help="after so many nothing is killed any more")
    options = vars(parser.parse_args())
    folder = Path(tempfile.mkdtemp(prefix="torture-")).resolve()  # which stays if anything is off
    report = torture(folder, **options)
    print(*report.problems, report, sep="\n")
    if not report.problems:
        shutil.rmtree(folder)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
