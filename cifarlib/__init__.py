"""A research workbook for CIFAR-10: data, models, one training loop, records, batches of runs and their results."""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from .files import project_path

_HOMES = {"Config": "config", "InputError": "errors", "load_splits": "data.splits",
          "load_cifar10": "data.splits", "build_model": "models",
          "fit": "training.loop", "evaluate": "training.loop",
          "evaluate_checkpoints": "training.loop",
          "load_model": "trained", "predict": "trained"}
__all__ = list(_HOMES)

with suppress(OSError):  # a working directory that was removed
    _beside = project_path("cifarlib/__init__.py")
    if _beside.exists() and not _beside.samefile(__file__):
        _here = _beside.resolve().parents[1]
        print(f"cifarlib: imported from {Path(__file__).parent}, not from the project in {_here}; "
              f"`pip install --editable {_here}` changes that", file=sys.stderr)


def __getattr__(name: str):
    """Import a public name on first use: `python -m cifarlib --help` need not wait two seconds for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cifarlib' has no attribute {name!r}")
    return getattr(import_module(f"cifarlib.{_HOMES[name]}"), name)
