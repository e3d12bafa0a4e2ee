"""environment.yml installs what pyproject.toml names, whose pins are exact and fit together."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]


def test_conda_gives_python_and_pip_and_pip_the_package_with_its_pins():
    *condas, pips = CONDA["dependencies"]
    assert CONDA["channels"] == ["conda-forge", "nodefaults"] and CONDA["name"] == "cifar"
    assert condas == [PROJECT["requires-python"].replace(">=", "python="), "pip"] and pips == {"pip": ["-e .[test]"]}


@pytest.mark.parametrize("pin", PINS)
def test_pins_are_exact_and_installed(pin):
    name, version = re.fullmatch(r"([\w-]+)==([\d.]+)", pin).groups()
    assert importlib.metadata.version(name) == version


def test_torchvision_takes_the_pinned_torch():
    needed, pinned = (next(entry for text in texts if (entry := Requirement(text)).name == "torch")
                      for texts in (importlib.metadata.requires("torchvision"), PINS))
    assert needed.specifier.contains(str(pinned.specifier).strip("="))


STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >>"$CALLS"
[[ "$1 $2" != "env list" ]] || echo "cifar  /somewhere"
[[ "$1 $2" != "-m venv" ]] || { mkdir -p .venv/bin && cp "$0" .venv/bin/python; }
"""


@pytest.mark.parametrize("conda", [False, True])
def test_a_clusters_environment_is_condas_or_a_venv(conda, tmp_path):
    """With stand-ins for conda and python that say how they were called."""
    project, programs, calls = tmp_path / "the project", tmp_path / "programs", tmp_path / "calls"
    shutil.copytree(ROOT / "cifarlib" / "slurm", project / "cifarlib" / "slurm")
    programs.mkdir()
    for name in ["python3", *["conda", "python"] * conda]:
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin", "CALLS": str(calls)}
    script = project / "cifarlib" / "slurm" / "setup_env.sh"
    done = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    python = programs / "python" if conda else project / ".venv" / "bin" / "python"
    assert (done.returncode, done.stdout) == (0, f"setup_env.sh: done; jobs will use {python}\n"), done.stderr
    made = ("conda env update --name cifar --file environment.yml --prune" if conda
            else "python -m pip install --editable .")
    assert made in calls.read_text().splitlines() and (project / ".venv").exists() is not conda
