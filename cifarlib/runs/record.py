"""One run folder from outside, without torch: its status, its record, its failure."""

import importlib.metadata
import json
import math
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from ..config import CHECKPOINTS, Config
from ..errors import InputError, OtherMachine
from ..files import HISTORY, PACKAGE, PLAN, RECORD, STATE, write_json
from ..parts import is_own, source_file
from .claim import is_claimed
from .history import History

FINISHED = ("done", "diverged")
RECORDED = (*FINISHED, "failed", "dropped", "preempted")


def read_record(folder: Path) -> dict | None:
    """The record in a run folder; None if there is none. Raises InputError for a damaged one."""
    record = _read_json(folder / RECORD)
    if not record:
        return None
    numbers = [record.get("epochs_run", 0), record.get("seconds", 0)]
    metrics = record.get("metrics", {})
    if not (record.get("status") in RECORDED and isinstance(metrics, dict) and isinstance(record.get("error", ""), str)
            and all(isinstance(value, (int, float)) for value in numbers)
            and all(value is None or isinstance(value, (int, float)) for value in metrics.values())):
        raise _damaged(folder / RECORD)
    return record


def recorded(folder: Path, name: str):
    """A value from the record in a run folder; None if there is none."""
    return (read_record(folder) or {}).get(name)


def _read_json(path: Path) -> dict:
    """The mapping in a file; an empty one if there is no file. Raises InputError for a damaged one."""
    try:
        content = json.loads(path.read_text())
    except PermissionError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); make it readable")
    except OSError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged, so nothing says what it held; restore it, or remove it to train anew")


def status_of(folder: Path) -> str:
    """`done`, `diverged`, `running`, `failed`, `dropped` by halving, `preempted` or `pending`.

    What was cut off without a word is preempted, too.
    """
    return status_now(folder, recorded(folder, "status"))


def status_now(folder: Path, status: str | None) -> str:
    """The status of a run whose record says `status`; None if it has no record."""
    if status not in FINISHED and is_claimed(folder):
        return "running"
    return status or ("preempted" if (folder / STATE).exists() else "pending")


def is_finished(folder: Path) -> bool:
    """Whether nothing is left to train in a run folder."""
    return recorded(folder, "status") in FINISHED


def check_plan(folder: Path, plan: dict) -> None:
    """Raise InputError if the run that `folder` holds differs from `plan` in any of the names that both have.

    Fields that were added since then had their usual values. Raises OtherMachine if the kind of device or the precision
    is what differs.
    """
    done = is_finished(folder)
    before = _read_json(folder / PLAN)
    if done and not before:  # a run as it is published
        record = read_record(folder)
        before = record.get("config", {}) | {name: record[name] for name in ("model_source",) if name in record}
    if before:
        usual = Config(**Config.among(before)).to_dict()
        before = {name: usual[name] for name in Config.names_of("model", "knob", "condition", "repeat")} | before
    if done:  # where it was computed no longer matters
        before = {name: value for name, value in before.items() if name not in ("device", "precision")}
    for name, value in json.loads(json.dumps(plan)).items():  # as it reads back: tuples are lists
        if name not in before or before[name] == value:
            continue
        difference = f"holds a run with {name} {before[name]!r}, this one has {value!r}"
        if name == "model_source":
            file = source_file(plan["model"])
            difference = f"holds a run of another {file} (and a copy of that): it has changed since"
        kind = OtherMachine if name in ("device", "precision") else InputError
        raise kind(f"{folder} {difference}; use another study, or train anew with resume False (--no-resume)")


def precision_of(folder: Path) -> str | None:
    """The precision in which the run in a folder is or was trained; None if nothing is there."""
    return _read_json(folder / PLAN).get("precision") or recorded(folder, "precision")


def epochs_of(folder: Path) -> list[dict]:
    """The rows of a run's history; none if there is no readable one."""
    try:
        return History.read(folder / HISTORY).rows
    except (OSError, InputError):  # not there, or what broke the run
        return []


def write_failure(folder: Path, config: Config, error: str, status: str = "failed") -> None:
    """Record a run that broke off, with its last lines, or one that was `dropped`; its checkpoint stays."""
    fields = common_fields(folder, config, status, History(epochs_of(folder)), {})
    write_json(folder / RECORD, {**fields, "error": error})


def common_fields(folder: Path, config: Config, status: str, history: History, scores: dict) -> dict:
    """What every record says: of the run, its code and versions, its epochs and its checkpoints' scores."""
    # data_dir is left out: a folder says nothing about the result, and may name somebody's home.
    settings = {name: value for name, value in config.to_dict().items() if name != "data_dir"}
    packages = ["torch", "torchvision", "papermill", "pandas", "wandb"]
    own = {}
    if file := source_file(config.model):  # as it was when training began, of which the folder has a copy
        own = {"model_file": file.name, "model_source": _read_json(folder / PLAN).get("model_source")}
    elif is_own(config.model):
        packages.append(config.model.partition(":")[0].partition(".")[0])
    return {
        "status": status, "name": config.run_name, "config": settings, **own, "seed": config.seed,
        "epochs_run": len(history.rows), "seconds": round(sum(row["seconds"] for row in history.rows), 2),
        "metrics": metrics_of(history, scores), "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The commit of the code, with `+` if files differ from it; None where git doesn't keep the code.

    That is outside a checkout, and in one of another project in which this one was unpacked.

    Remembered by each process: the files may change while it trains.
    """
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def metrics_of(history: History, scores: dict) -> dict:
    """The published columns: train and val of the last epoch, test of each checkpoint; also its epoch and val."""
    last = history.last if history.rows else {}
    metrics = {name: value for name, value in last.items() if name.startswith(("train_", "val_"))}
    for checkpoint in CHECKPOINTS:
        row = history.best(checkpoint) or {}
        metrics |= {f"epoch_{checkpoint}": row.get("epoch"), f"val_accuracy_{checkpoint}": row.get("val_accuracy"),
                    f"val_loss_{checkpoint}": row.get("val_loss")}
        if checkpoint in scores:
            metrics |= scores[checkpoint].row("test", f"_{checkpoint}")
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
