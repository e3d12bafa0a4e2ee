"""Notebooks executed without JupyterLab: the results of a table of runs, with their HTML, and the throughput of this machine."""

import json
import subprocess
import sys
from pathlib import Path

from .batch import notebook_path, without_paths
from .config import InputError, project_path
from .execute import BAD_INPUT, OK
from .files import replacing
from .results import compare, read_table


def execute_notebook(name: str, parameters: dict, folder: Path) -> Path:
    """Execute notebooks/NAME with `parameters` into `folder`, passing on what its cells print, and return the executed notebook's path.

    Raises InputError for what can't be used, with the notebook's own line. A notebook that was there stays until the new one is complete.
    """
    output, part = folder / name, folder / f".{name}"
    folder.mkdir(parents=True, exist_ok=True)
    parameters, environment = without_paths(parameters)
    command = [sys.executable, "-m", "cifarlib.execute", str(notebook_path(name)), str(part)]
    ended = subprocess.run(command, input=json.dumps(parameters), text=True, stderr=subprocess.PIPE, env=environment)
    lines = ended.stderr.strip().splitlines() or [f"{name} ended without a word"]
    if ended.returncode == BAD_INPUT:
        part.unlink(missing_ok=True)
        raise InputError(lines[-1].removeprefix("cifarlib: "))
    if ended.returncode != OK:
        raise InputError(f"{name} failed: {lines[-1]}; see {part}")
    return part.replace(output)


def make_report(parameters: dict, folder: str) -> Path:
    """Execute the results notebook into `folder` (empty: the table's), write results.html beside it and return the HTML's path.

    Raises InputError, with nothing written, for tables that can't be used.
    """
    table = read_table(parameters["runs"], parameters["rank_by"], parameters["study"])
    if parameters["compare_with"]:
        compare(read_table(parameters["compare_with"]), table)
    notebook = execute_notebook("results.ipynb", parameters, project_path(folder) if folder else table.folder)
    from nbconvert import HTMLExporter  # jupyterlab brings it; its import takes a second, which bad input needn't wait for

    page = notebook.with_suffix(".html")
    text, _ = HTMLExporter(exclude_input=True).from_filename(str(notebook))
    with replacing(page) as part:
        part.write_text(text, encoding="utf-8")
    return page
