"""A research workbook for CIFAR-10: data, models, one training loop, records, batches of runs and their results."""

from importlib import import_module

_HOMES = {"Config": "config", "InputError": "config", "load_splits": "data.splits",
          "load_cifar10": "data.splits", "build_model": "models",
          "fit": "training.loop", "evaluate": "training.loop",
          "evaluate_checkpoints": "training.loop",
          "load_model": "trained", "predict": "trained"}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import a public name on first use: `python -m cifarlib --help` need not wait two seconds for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cifarlib' has no attribute {name!r}")
    return getattr(import_module(f"cifarlib.{_HOMES[name]}"), name)
