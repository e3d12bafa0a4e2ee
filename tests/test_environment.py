"""environment.yml installs what pyproject.toml names, and the pins fit together."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]


def test_pip_gets_the_pins_of_pyproject_and_the_package():
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted([*PINS, "-e ."])


def test_conda_itself_gives_python_and_pip_only():
    names = [re.match(r"[\w-]+", entry)[0] for entry in CONDA["dependencies"] if isinstance(entry, str)]
    assert names == ["python", "pip"] and CONDA["channels"] == ["conda-forge", "nodefaults"] and CONDA["name"] == "cifar"


def test_condas_python_is_one_that_the_package_takes():
    (python,) = [entry for entry in CONDA["dependencies"] if str(entry).startswith("python")]
    least = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"]).groups()
    assert tuple(map(int, re.fullmatch(r"python=(\d+)\.(\d+)", python).groups())) >= tuple(map(int, least))


@pytest.mark.parametrize("pin", PINS)
def test_pins_are_exact_and_installed(pin):
    name, version = re.fullmatch(r"([\w-]+)==([\d.]+)", pin).groups()
    assert importlib.metadata.version(name) == version


def test_torchvision_takes_the_pinned_torch():
    (needed,) = [entry for text in importlib.metadata.requires("torchvision") if (entry := Requirement(text)).name == "torch"]
    (pinned,) = [entry for text in PINS if (entry := Requirement(text)).name == "torch"]
    assert needed.specifier.contains(str(pinned.specifier).strip("="))
