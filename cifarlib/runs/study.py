"""A folder of runs: its table, what was asked for, how it stands."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import pandas

from ..config import Config, names_apart, nearest
from ..errors import InputError
from ..files import HISTORY, LOG, PLANNED, RECORD, TABLE, replacing
from ..parts import short_name
from ..words import duration
from .claim import STALE
from .history import History
from .record import metrics_of, read_record, recorded, status_now, status_of

STATUSES = ("done", "diverged", "failed", "running", "dropped", "preempted", "pending")


def remembered(read: Callable[[Path], Any], path: Path) -> Any:
    """read(path), which nobody may change, until the file changes: who looks every few seconds reads little.

    None without such a file.
    """
    try:
        found = path.stat()
        return _read(read, path, (found.st_mtime_ns, found.st_size, found.st_ino))
    except OSError:  # perhaps it went between the two
        return None


@lru_cache(maxsize=4096)
def _read(read: Callable[[Path], Any], path: Path, stamp: tuple) -> Any:
    return read(path)


def remove_stale_parts(study: Path) -> None:
    """Remove what killed processes left half written in the study's folder; in a run's it goes when that is trained."""
    for part in (*study.glob(".*.part"), *(study / PLANNED).glob(".*.part")):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > STALE:  # nobody writes that long
                part.unlink()


def note_planned(study: Path, cells: list[Config]) -> None:
    """Keep the cells that somebody asked for in the study's folder, from where status and the table of runs take them.

    A file for each distinct list, named by its content: runners that start at once don't overwrite each other's.
    """
    content = json.dumps([{**cell.to_dict(), "data_dir": ""} for cell in cells], indent=0)
    (study / PLANNED).mkdir(parents=True, exist_ok=True)
    with replacing(study / PLANNED / f"{hashlib.sha256(content.encode()).hexdigest()[:12]}.json") as part:
        part.write_text(content)


def planned_cells(study: Path) -> dict[str, list[Config]]:
    """The cells that were asked for in a study, by the name of their run.

    Raises InputError if they are of another version.
    """
    runs = {}
    for path in sorted((study / PLANNED).glob("*.json")):
        for run, name, cell in remembered(_cells, path) or []:
            runs.setdefault(run, {})[name] = cell
    return {name: list(group.values()) for name, group in runs.items()}


def _cells(path: Path) -> list[tuple[str, str, Config]]:
    """The cells that a file of planned ones lists, each with the names of its run and its own."""
    try:
        cells = [Config.from_dict(cell) for cell in json.loads(path.read_text(encoding="utf-8"))]
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no list of cells of this version ({error}); remove it")
    return [(cell.run_name, cell.cell_name, cell) for cell in cells]


def table_rows(folder: Path, planned: list[Config]) -> list[dict]:
    """The rows that a run folder gives to the table: one for each of the `planned` cells that share the run.

    Raises InputError if its record is of another version.
    """
    record = read_record(folder)
    if not record:
        return []
    try:
        run, data = Config.from_dict(record["config"]), dict(record.get("data", {}))
        results = {name: record[name] for name in ("epochs_run", "seconds", "commit")}
        results |= {"error": record.get("error"), **record["metrics"]}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RECORD} is not a run of this version ({error}); move its folder out of the study")
    common = {
        "Modelname": run.model, "Group": run.model, "study": folder.parent.name, "run": folder.name,
        "status": record["status"], "dataset": data.get("dataset", run.dataset),
        "model_args": json.dumps(run.model_args),
        "precision": record.get("precision"), "device": record.get("device"), "parameters": record.get("parameters"),
        "train_images": data.get("train"), "val_images": data.get("validation"), "test_images": data.get("test"),
        "data_fingerprint": data.get("fingerprint"), **results,
    }
    if "model_source" in record:  # runs of a network that was changed in between don't compare
        common["model_source"] = record["model_source"]
    cells = {cell.cell_name: cell for cell in [*planned, run]}.values()
    settings = [name for name in Config.names_of("knob", "condition", "repeat") if name not in common]
    return [{**common, **{name: getattr(cell, name) for name in settings}, "Full_Modelname": cell.cell_name,
             "shared_with": "" if cell.cell_name == run.cell_name else run.cell_name} for cell in cells]


def write_table(study: Path) -> Path:
    """Rebuild STUDY/runs.csv from the records of its run folders, in the order of the run names, and return its path.

    Without records it is left as it is. Raises InputError if one is of another version.
    """
    before = {}
    while before != (records := _records(study)):  # again if records came meanwhile: a newer table may be replaced
        planned = planned_cells(study)
        rows = [row for path in records for row in table_rows(path.parent, planned.get(path.parent.name, []))]
        if rows:  # else another runner has just begun to try the only run again
            with replacing(study / TABLE) as part:
                pandas.DataFrame(rows).to_csv(part, index=False)
        before = records
    return study / TABLE


def _records(study: Path) -> dict[Path, int]:
    """When each record of a study was written, in the order of the run names."""
    found = {}
    for path in sorted(study.glob(f"*/{RECORD}")):
        with suppress(FileNotFoundError):  # a runner tries the run again
            found[path] = path.stat().st_mtime_ns
    return found


def studies(folder: Path) -> list[str]:
    """The names of the studies in a folder: those with runs that were asked for or recorded."""
    return sorted({*(path.parent.name for path in folder.glob(f"*/{PLANNED}")),
                   *(path.parent.parent.name for path in folder.glob(f"*/*/{RECORD}"))})


def no_runs(study: Path) -> InputError:
    """The error for a study without any: which there are instead."""
    if not (known := [name for name in studies(study.parent) if name != study.name]):
        return InputError(f"no runs in {study}; train one there first")
    near = nearest(study.name, known)
    meant = f"did you mean {near}? " if near else ""
    return InputError(f"no runs in {study}; {meant}the studies there are {', '.join(known)}")


def overview(folder: Path) -> str:
    """A line for each study in a folder: how its runs stand. Raises InputError if there is none."""
    if not (names := studies(folder)):
        raise InputError(f"no studies in {folder}; train a run or a grid first")
    return "\n".join(f"{name}: {standing(folder / name / run for run in configs_of(folder / name))}" for name in names)


def standing(folders: Iterable[Path]) -> str:
    """How many runs have which status."""
    counts = Counter(map(status_of, folders))
    return ", ".join(f"{counts[name]} {name}" for name in _told(counts))


def _told(there) -> list[str]:
    """The statuses that a text counts: `dropped` only where it is `there`, since most grids drop nothing."""
    return [name for name in STATUSES if name != "dropped" or name in there]


def configs_of(study: Path) -> dict[str, Config | None]:
    """The runs of a study that were asked for or recorded, by name; None for a record of another version."""
    found: dict[str, Config | None] = {name: cells[0] for name, cells in planned_cells(study).items()}
    for path in study.glob(f"*/{RECORD}"):
        if path.parent.name not in found:
            found[path.parent.name] = None
            with suppress(InputError):
                found[path.parent.name] = (remembered(_outcome, path) or {}).get("config")
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    config: None if its record is of another version; epochs: how many are trained, in how many seconds; metrics: those
    of its record, or of its epochs so far.
    """

    folder: Path
    config: Config | None
    status: str
    epochs: int = 0
    seconds: float = 0.0
    metrics: dict = field(default_factory=dict)


def run_state(folder: Path, config: Config | None) -> RunState:
    """How the run in a folder stands. Raises InputError for damaged files."""
    outcome = remembered(_outcome, folder / RECORD)
    status = status_now(folder, outcome and outcome["status"])
    if not outcome or status in ("running", "preempted"):  # the record may be of an earlier session
        outcome = remembered(_so_far, folder / HISTORY) or outcome or {}
    told = {name: outcome[name] for name in ("epochs", "seconds", "metrics") if name in outcome}
    return RunState(folder, config, status, **told)


def _outcome(path: Path) -> dict | None:
    """What the table and the status need of a record; None if it went meanwhile."""
    if not (record := read_record(path.parent)):
        return None
    config = None
    with suppress(InputError, KeyError, TypeError):
        config = Config.from_dict(record["config"])
    return {"status": record["status"], "config": config, "epochs": record.get("epochs_run", 0),
            "seconds": record.get("seconds", 0.0), "metrics": record.get("metrics", {})}


def _so_far(path: Path) -> dict:
    """The same of the epochs of a run without a record."""
    history = History.read(path)
    return {"epochs": len(history.rows), "seconds": sum(row["seconds"] for row in history.rows),
            "metrics": metrics_of(history, {})}


def summary(study: Path) -> str:
    """How a study stands: runs by model and status, the best so far, what runs, what failed, the time for the rest.

    Raises InputError if nothing is there, or if files are damaged.
    """
    if not (configs := configs_of(study)):
        raise no_runs(study)
    states = {name: run_state(study / name, config) for name, config in configs.items()}
    models = [short_name(config.model) if config else "unknown" for config in configs.values()]
    counts = pandas.crosstab(models, [state.status for state in states.values()])
    counts = counts.reindex(columns=_told(counts), fill_value=0)
    counts.loc["all"] = counts.sum()
    lines = [counts.rename_axis(index=None, columns=None).to_string()]
    known = {name: config for name, config in configs.items() if config}
    labels = {name: name for name in configs} | dict(zip(known, names_apart([*known.values()])))
    scores = {name: score for name, state in states.items()
              if (score := state.metrics.get("val_accuracy_best_val_acc")) is not None}
    if best := max(scores, key=scores.get, default=None):
        lines.append(f"best so far: {labels[best]}, validation accuracy {scores[best]:.4f}")
    lines += [f"running: {labels[name]}, {progress(states[name])}"
              for name in known if states[name].status == "running"]
    failed = {labels[name]: state.folder for name, state in states.items() if state.status == "failed"}
    left = [known[name] for name in known if states[name].status in ("pending", "preempted", "running")]
    return "\n".join([*lines, *rest(failed, left, study, max(1, int(counts.loc["all", "running"])))])


def progress(state: RunState) -> str:
    """Where a run is that is being trained: its epoch, its latest accuracy, the time that it may still take."""
    if not state.epochs:
        return f"in epoch 1 of {state.config.epochs}"
    name = "val_accuracy" if "val_accuracy" in state.metrics else "train_accuracy"
    kind = "validation" if name == "val_accuracy" else "training"
    return (f"epoch {state.epochs} of {state.config.epochs}, {kind} accuracy {state.metrics[name]:.4f}, "
            f"about {duration(seconds_left(state, {}))} left")


def seconds_left(state: RunState, an_epoch: dict[tuple, float]) -> float | None:
    """How long a run may still take, by its own epochs or, before the first, by `epoch_seconds`; None if unknown."""
    if state.config is None or state.status not in ("pending", "preempted", "running"):
        return None
    each = state.seconds / state.epochs if state.epochs else an_epoch.get(_size(state.config))
    return None if each is None else (state.config.epochs - state.epochs) * each


def epoch_seconds(folder: Path) -> dict[tuple, float]:
    """The mean seconds of an epoch of the recorded runs in all studies of a folder, by model and size."""
    found: dict[tuple, list[float]] = {}
    for path in folder.glob(f"*/*/{RECORD}"):
        with suppress(InputError):  # damaged it tells nothing
            outcome = remembered(_outcome, path)
            if outcome and outcome["config"] and outcome["epochs"]:
                found.setdefault(_size(outcome["config"]), []).append(outcome["seconds"] / outcome["epochs"])
    return {size: mean(values) for size, values in found.items()}


def _size(config: Config) -> tuple:
    return config.model, str(config.model_args), config.limit_train


SHOWN = 5  # failed runs, of which a text says why


def rest(folders: dict[str, Path], left: list[Config], study: Path, jobs: int, resume: bool = True) -> list[str]:
    """What is not finished, in lines: why runs failed, by what to call them, and the time that those `left` take."""
    failed = [(name, folder) for name, folder in folders.items() if status_of(folder) == "failed"]
    lines = []
    for name, folder in failed[:SHOWN]:
        said = (recorded(folder, "error") or "").strip().splitlines() or ["it ended without a word"]
        lines += [f"failed: {name}: {said[-1]}", f"    see {folder / LOG}"]
    if len(failed) > SHOWN:
        lines.append(f"    and {len(failed) - SHOWN} more")
    if failed:
        lines.append("`grid` leaves what failed alone, unless it is given --retry-failed")
    return [*lines, time_left(left, study, jobs, resume)] if left or not failed else lines


def time_left(left: list[Config], study: Path, jobs: int, resume: bool = True) -> str:
    """The time that the runs `left` of a study may take, so many of them at a time.

    From the seconds an epoch that runs of the same model and size took, in any study.
    """
    if not left:
        return "nothing is left to do"
    an_epoch, sizes = epoch_seconds(study.parent), [_size(config) for config in left]
    if unknown := sorted({short_name(model) for model, *_ in set(sizes) - an_epoch.keys()}):
        return f"no estimate: no run of {', '.join(unknown)} of this size is recorded in {study.parent} yet"
    jobs = min(jobs, len(left))
    epochs = [config.epochs - (run_state(study / config.run_name, config).epochs if resume else 0)
              for config in left]
    total = sum(number * an_epoch[size] for number, size in zip(epochs, sizes))
    return f"about {duration(total / jobs)} for the rest, {jobs} at a time, if none stops early"
