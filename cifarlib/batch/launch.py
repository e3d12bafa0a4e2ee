"""Every process that the runners start: notebooks through papermill, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ..errors import InputError
from ..files import PACKAGE, project_path
from .kernel import BAD_INPUT, OK

# glibc returns every large block to the kernel and has it zeroed again at the next step; kept, a step is up to a quarter faster.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}


def notebook_path(name: str) -> Path:
    """A notebook of the project: in ./notebooks, else beside the package."""
    here = project_path("notebooks") / name
    return here if here.exists() else Path(os.path.relpath(PACKAGE.parent / "notebooks" / name))


def without_paths(parameters: dict) -> tuple[dict, dict[str, str]]:
    """A notebook's (parameters, environment): an absolute data_dir goes into the environment, since parameters are published with the notebook."""
    environment = {**ALLOCATOR, **os.environ}
    if os.path.isabs(parameters["data_dir"]):
        environment["CIFAR10_DIR"], parameters = parameters["data_dir"], {**parameters, "data_dir": ""}
    return parameters, environment


def execute_notebook(name: str, parameters: dict, folder: Path) -> Path:
    """Execute notebooks/NAME with `parameters` into `folder`, passing on what its cells print, and return the executed notebook's path.

    Raises InputError for what can't be used, with the notebook's own line. A notebook that was there stays until the new one is complete.
    """
    output, part = folder / name, folder / f".{name}"
    folder.mkdir(parents=True, exist_ok=True)
    parameters, environment = without_paths(parameters)
    command = [sys.executable, "-m", "cifarlib.batch.kernel", str(notebook_path(name)), str(part)]
    ended = subprocess.run(command, input=json.dumps(parameters), text=True, stderr=subprocess.PIPE, env=environment)
    lines = ended.stderr.strip().splitlines() or [f"{name} ended without a word"]
    if ended.returncode == BAD_INPUT:
        part.unlink(missing_ok=True)
        raise InputError(lines[-1].removeprefix("cifarlib: "))
    if ended.returncode != OK:
        raise InputError(f"{name} failed: {lines[-1]}; see {part}")
    return part.replace(output)
