"""The results notebook executed for a table of runs, without JupyterLab, and its HTML."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .batch import notebook_path
from .config import InputError, project_path
from .execute import BAD_INPUT, OK
from .files import replacing


def make_report(parameters: dict, folder: str) -> Path:
    """Execute notebooks/results.ipynb with `parameters` into `folder` and write results.html beside it; return the HTML's path.

    Passes on what its cells print. Raises InputError for a table that can't be used, with the notebook's own line.
    """
    output = project_path(folder) / "results.ipynb"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output.parent} can't be written ({error.strerror}); choose another folder with --report")
    if os.path.isabs(parameters["data_dir"]):  # would be published with the executed notebook
        os.environ["CIFAR10_DIR"], parameters = parameters["data_dir"], {**parameters, "data_dir": ""}
    command = [sys.executable, "-m", "cifarlib.execute", str(notebook_path("results.ipynb")), str(output)]
    ended = subprocess.run(command, input=json.dumps(parameters), text=True, stderr=subprocess.PIPE)
    lines = ended.stderr.strip().splitlines() or ["the results notebook ended without a word"]
    if ended.returncode == BAD_INPUT:
        raise InputError(lines[-1].removeprefix("cifarlib: "))
    if ended.returncode != OK:
        raise InputError(f"the results notebook failed: {lines[-1]}; see {output}")
    return _html(output)


def _html(notebook: Path) -> Path:
    from nbconvert import HTMLExporter  # jupyterlab brings it; its import takes a second

    exporter = HTMLExporter(exclude_input=True)
    text, _ = exporter.from_filename(str(notebook))
    with replacing(notebook.with_suffix(".html")) as part:
        part.write_text(text)
    return notebook.with_suffix(".html")
