"""environment.yml installs what pyproject.toml names, whose pins are exact and fit together."""

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
PINS = [pin for pins in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()) for pin in pins
        if not pin.startswith(PROJECT["name"])]


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
