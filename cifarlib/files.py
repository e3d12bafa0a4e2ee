"""The files of a run folder, and writing that is never seen half done."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parent
PLAN = "plan.json"  # what the run is; another configuration may not go on in its folder
STATE = "last.pt"  # weights, optimizer and history after the latest epoch, until the run is finished
HISTORY = "history.csv"
PREDICTIONS = "predictions.npz"
RECORD = "record.json"  # written last of all
NOTEBOOK = "experiment.ipynb"
LOG = "run.log"  # what the run printed
STOP = "stop"  # its appearance ends the run after the epoch in progress
PLANNED = "planned"  # in the study's folder: a file for each list of cells that was asked for
TABLE = "runs.csv"  # in the study's folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` at the end; if the body fails, `path` stays as it was."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # process ids recur on other machines
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """`content` as indented JSON; raises ValueError for NaN and infinities, which JSON doesn't have."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def project_path(path: str | Path) -> Path:
    """Where `path` leads: from the working directory if it is there, else from the project's folder.

    That is the nearest folder above with the notebooks, wherever in it a command or a kernel of JupyterLab starts; else
    the working directory, or its parent if that is `notebooks`. `~` is the user's home.
    """
    path, here = Path(path).expanduser(), Path.cwd()
    if os.path.exists(path):  # which is False for what can't be reached
        return path
    beside = here.parent if here.name == "notebooks" else here
    above = (folder for folder in (here, *here.parents) if (folder / "notebooks" / NOTEBOOK).exists())
    return Path(os.path.relpath(next(above, beside))) / path
