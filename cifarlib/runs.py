"""Run folders from outside, without torch: their status and record, failures, and the table of runs."""

import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
import time
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from statistics import mean

import pandas

from .claim import STALE, is_claimed
from .config import CHECKPOINTS, Config, InputError
from .files import HISTORY, PLAN, PLANNED, RECORD, STATE, TABLE, replacing, write_json
from .history import History
from .words import duration

FINISHED = ("done", "diverged")
STATUSES = ("done", "diverged", "failed", "running", "preempted", "pending")


class OtherMachine(InputError):
    """A run was begun with another kind of device or in another precision: it waits for a machine of that kind."""


def read_record(folder: Path) -> dict | None:
    """The record in a run folder; None if there is none. Raises InputError for a damaged one."""
    record = _read_json(folder / RECORD)
    return record if "status" in record else None


def recorded(folder: Path, name: str):
    """A value from the record in a run folder; None if there is none."""
    return (read_record(folder) or {}).get(name)


def _read_json(path: Path) -> dict:
    """The mapping in a file; an empty one if there is no file. Raises InputError for a damaged one: what it stood for must not be lost."""
    try:
        content = json.loads(path.read_text())
    except PermissionError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); make it readable")
    except OSError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged, so nothing says what it held; restore it, or remove it to train the run anew")
    return content


def status_of(folder: Path) -> str:
    """`done`, `diverged`, `running`, `failed`, `preempted` (also what was cut off without a word) or `pending`."""
    status = recorded(folder, "status")
    if status not in FINISHED and is_claimed(folder):
        return "running"
    return status or ("preempted" if (folder / STATE).exists() else "pending")


def is_finished(folder: Path) -> bool:
    """Whether nothing is left to train in a run folder."""
    return recorded(folder, "status") in FINISHED


def check_plan(folder: Path, plan: dict) -> None:
    """Raise InputError if the run that `folder` holds differs from `plan` in any of the names that both have.

    Raises OtherMachine if that is the kind of device or the precision.
    """
    done = is_finished(folder)
    before = _read_json(folder / PLAN)
    if not before and done:  # a run as it is published
        before = recorded(folder, "config") or {}
    if done:  # where it was computed no longer matters
        before = {name: value for name, value in before.items() if name not in ("device", "precision")}
    for name, value in json.loads(json.dumps(plan)).items():  # as it reads back: tuples are lists
        if name in before and before[name] != value:
            kind = OtherMachine if name in ("device", "precision") else InputError
            raise kind(f"{folder} holds a run with {name} {before[name]!r}, this one has {value!r}; "
                       "use another study, or train anew with resume False (--no-resume)")


def precision_of(folder: Path) -> str | None:
    """The precision in which the run in a folder is or was trained; None if nothing is there."""
    return _read_json(folder / PLAN).get("precision") or recorded(folder, "precision")


def write_failure(folder: Path, config: Config, error: str) -> None:
    """Record a run that broke off, with its last lines; its checkpoint stays, so that it can be tried again."""
    try:
        history = History.read(folder / HISTORY)
    except (OSError, InputError):  # not there, or what broke the run
        history = History()
    write_json(folder / RECORD, {**common_fields(config, "failed", history, {}), "error": error})


def common_fields(config: Config, status: str, history: History, scores: dict) -> dict:
    """What every record says: of the run, its code and versions, its epochs and its checkpoints' scores."""
    # data_dir is left out: a folder says nothing about the result, and may name somebody's home.
    settings = {name: value for name, value in config.to_dict().items() if name != "data_dir"}
    packages = ("torch", "torchvision", "papermill", "pandas", "wandb")
    return {"status": status, "name": config.run_name, "config": settings, "seed": config.seed,
            "epochs_run": len(history.rows), "seconds": round(sum(row["seconds"] for row in history.rows), 2),
            "metrics": metrics_of(history, scores), "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The commit of the code, with `+` if files differ from it; None outside a git checkout.

    Remembered by each process: the files may change while it trains.
    """
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        short = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True).stdout
        return f"{short}+" if changed else short
    except (OSError, subprocess.CalledProcessError):
        return None


def metrics_of(history: History, scores: dict) -> dict:
    """The published columns: train and val of the last epoch, test of each checkpoint; and each checkpoint's epoch and val."""
    metrics = {name: value for name, value in (history.last if history.rows else {}).items() if name.startswith(("train_", "val_"))}
    for checkpoint in CHECKPOINTS:
        row = history.best(checkpoint) or {}
        metrics |= {f"epoch_{checkpoint}": row.get("epoch"), f"val_accuracy_{checkpoint}": row.get("val_accuracy"),
                    f"val_loss_{checkpoint}": row.get("val_loss")}
        if checkpoint in scores:
            metrics |= scores[checkpoint].row("test", f"_{checkpoint}")
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}


def remove_stale_parts(study: Path) -> None:
    """Remove what killed processes left half written in the study's folder; those of its runs go when they are trained again."""
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
    """The cells that were asked for in a study, by the name of their run. Raises InputError if they are of another version."""
    runs: dict[str, dict[str, Config]] = {}
    for path in sorted((study / PLANNED).glob("*.json")):
        try:
            cells = [Config.from_dict(cell) for cell in json.loads(path.read_text())]
        except (InputError, ValueError, TypeError) as error:
            raise InputError(f"{path} is no list of cells of this version ({error}); remove it")
        for cell in cells:
            runs.setdefault(cell.run_name, {})[cell.cell_name] = cell
    return {name: list(group.values()) for name, group in runs.items()}


def table_rows(folder: Path, planned: list[Config]) -> list[dict]:
    """The rows that a run folder gives to the table: one for each of the `planned` cells that share the run.

    Raises InputError if its record is of another version.
    """
    record = read_record(folder)
    if not record:
        return []
    try:
        run, data = Config.from_dict(record["config"]), dict(record.get("data", {}))
        results = {**{name: record[name] for name in ("epochs_run", "seconds", "commit")}, "error": record.get("error"), **record["metrics"]}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RECORD} is not a run of this version ({error}); move its folder out of the study")
    cells = {cell.cell_name: cell for cell in [*planned, run]}.values()
    settings = ("seed", "protocol", "split", "epochs", "batch_size", "val_freq", "early_stopping_patience", "limit_train",
                "limit_val", "limit_test")
    common = {
        "Modelname": run.model, "Group": run.model, "study": folder.parent.name, "run": folder.name, "status": record["status"],
        **{name: getattr(run, name) for name in settings},
        "dataset": data.get("dataset", run.dataset), "model_args": json.dumps(run.model_args),
        "precision": record.get("precision"), "device": record.get("device"), "parameters": record.get("parameters"),
        "train_images": data.get("train"), "val_images": data.get("validation"), "test_images": data.get("test"),
        "data_fingerprint": data.get("fingerprint"), **results,
    }
    knobs = ("augmentation", "gamma", "learning_rate", "scheduler", "weight_decay")
    return [{**common, **{name: getattr(cell, name) for name in knobs}, "Full_Modelname": cell.cell_name,
             "shared_with": "" if cell.cell_name == run.cell_name else run.cell_name} for cell in cells]


def write_table(study: Path) -> Path:
    """Rebuild STUDY/runs.csv from the records of its run folders, if there are any, in the order of the run names; return its path.

    Raises InputError if one is of another version.
    """
    before = {}
    while before != (records := _records(study)):  # again if records came meanwhile: this table may have replaced a newer one
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


def summary(study: Path) -> str:
    """How a study stands: runs by model and status, the best so far, and the time the rest may take. Raises InputError if nothing is there."""
    planned = planned_cells(study)
    names = sorted(planned.keys() | {path.parent.name for path in study.glob(f"*/{RECORD}")})
    if not names:
        raise InputError(f"no runs in {study}; expected the name of a study, such as that of a grid that was begun")
    status = {name: status_of(study / name) for name in names}
    counts = pandas.crosstab([name.split("_")[0] for name in names], [*status.values()]).reindex(columns=STATUSES, fill_value=0)
    counts.loc["all"] = counts.sum()
    scores = {name: (recorded(study / name, "metrics") or {}).get("val_accuracy_best_val_acc") for name in names}
    lines = [counts.rename_axis(index=None, columns=None).to_string()]
    if best := max((name for name in names if scores[name] is not None), key=scores.get, default=None):
        lines.append(f"best so far: {best}, validation accuracy {scores[best]:.4f}")
    pending = [name for name in names if name in planned and status[name] in ("pending", "preempted", "running")]
    left = [(planned[name][0], epochs_left(study / name, planned[name][0])) for name in pending]
    return "\n".join([*lines, time_left(left, study.parent, max(1, int(counts.loc["all", "running"])))])


def epochs_left(folder: Path, config: Config) -> int:
    """Epochs that a run may still take; those after which it can go on are done."""
    resumable = (folder / STATE).exists() and (folder / HISTORY).exists()
    return config.epochs - (len(History.read(folder / HISTORY).rows) if resumable else 0)


def time_left(left: list[tuple[Config, int]], executed: Path, jobs: int) -> str:
    """The time that runs with so many epochs left may take: from the seconds an epoch that runs of the same model and size took, in any study."""
    def size(config: dict) -> tuple:
        return config["model"], str(config["model_args"]), config["limit_train"]

    if not left:
        return "nothing is left to do"
    seconds_an_epoch: dict[tuple, list[float]] = {}
    for path in executed.glob(f"*/*/{RECORD}"):
        with suppress(InputError, KeyError, TypeError, ZeroDivisionError):  # damaged, of another version or without an epoch, it tells nothing
            record = read_record(path.parent) or {}
            key, an_epoch = size(record["config"]), record["seconds"] / record["epochs_run"]
            seconds_an_epoch.setdefault(key, []).append(an_epoch)
    sizes = [size(config.to_dict()) for config, _ in left]
    if unknown := sorted({model for model, *_ in set(sizes) - seconds_an_epoch.keys()}):
        return f"no estimate: no run of {', '.join(unknown)} of this size is recorded in {executed} yet"
    jobs = min(jobs, len(left))
    total = sum(epochs * mean(seconds_an_epoch[each]) for (_, epochs), each in zip(left, sizes))
    return f"about {duration(total / jobs)} for the rest, {jobs} at a time, if none stops early"
