"""Every notebook that the package executes, through papermill in a process of its own."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from ..files import PACKAGE, project_path
from ..runs.claim import Claim
from .kernel import BAD_INPUT, OK

# glibc returns every large block to the kernel and has it zeroed again at the next step; kept, a step is up to a
# quarter faster.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}


def notebook_path(name: str) -> Path:
    """A notebook of the project: in ./notebooks, else beside the package."""
    here = project_path("notebooks") / name
    return here if here.exists() else Path(os.path.relpath(PACKAGE.parent / "notebooks" / name))


def start_notebook(notebook: Path, output: Path, parameters: dict, environment: dict[str, str] | None = None,
                   claim: Claim | None = None, **streams) -> subprocess.Popen:
    """Start a process that executes `notebook` with `parameters` into `output` (see kernel.py) and ends with this one.

    environment: variables that differ from this process's; claim: the process ends when it is lost; streams: stdout and
    stderr, as for Popen.
    """
    environment = {**ALLOCATOR, **os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    if os.path.isabs(parameters.get("data_dir", "")):  # parameters are published with the notebook
        environment["CIFAR10_DIR"], parameters = parameters["data_dir"], {**parameters, "data_dir": ""}
    command = [sys.executable, "-m", "cifarlib.batch.kernel", str(notebook), str(output), str(os.getpid())]
    if claim:
        command += [str(claim.path), str(claim.lock)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, errors="replace",
                               start_new_session=True, pass_fds=[claim.lock] if claim else [], **streams)
    with suppress(BrokenPipeError), process.stdin:  # killed before it could read them; its exit code tells
        process.stdin.write(json.dumps(parameters))
    return process


def execute_notebook(name: str, parameters: dict, folder: Path) -> Path:
    """Execute notebooks/NAME with `parameters` into `folder` and return the executed notebook's path.

    What its cells print is passed on. Raises InputError for what can't be used, with the notebook's own line. A
    notebook that was there stays until the new one is complete.
    """
    output, part = folder / name, folder / f".{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with start_notebook(notebook_path(name), part, parameters, stderr=subprocess.PIPE) as process:
        try:
            lines = process.stderr.read().strip().splitlines() or [f"{name} ended without a word"]
        except BaseException:  # an interrupt
            process.kill()
            raise
    if process.returncode == BAD_INPUT:
        part.unlink(missing_ok=True)
        raise InputError(lines[-1].removeprefix("cifarlib: "))
    if process.returncode != OK:
        raise InputError(f"{name} failed: {lines[-1]}; see {part}")
    return part.replace(output)
