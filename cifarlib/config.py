"""What a run is: every knob that changes its result, checked once and frozen, and the few options that change nothing."""

import dataclasses
import difflib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SCHEDULES = ("exponential", "step", "cosine")
CHECKPOINTS = ("best_val_acc", "best_val_loss", "terminal")
# The models' own parameters (a test compares), known without importing torch.
SIZES = {"cnn": ("channels", "hidden", "dropout"), "resnet": ("widths", "depths"), "vit": ("patch", "dim", "depth", "heads", "head_dim", "mlp_dim")}


class InputError(Exception):
    """Something the user gave can't be used; the message is one line: what was wrong, what was expected, what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the one line, not a page of frames above it."""
        return [f"{type(self).__name__}: {self}"]


def knob(default, help, *, choices=None, minimum=None, above=None, maximum=None, pattern=None):
    """A dataclass field that carries its own help and limits; the CLI, the checks and the tests derive from it."""
    metadata = dict(help=help, choices=choices, minimum=minimum, above=above, maximum=maximum, pattern=pattern)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def checked(name: str, value: Any, spec: dataclasses.Field) -> Any:
    """`value` as the field's type, or InputError with what was expected."""
    limits, kind = spec.metadata, spec.type
    if isinstance(value, Path) and kind is str:
        value = str(value)
    value = typed(name, value, kind)
    if kind is float and not math.isfinite(value):
        raise InputError(f"{name}: expected a finite number, got {value!r}")
    if limits["choices"] and value not in limits["choices"]:
        raise InputError(f"{name}: expected one of {', '.join(limits['choices'])}, got {value!r}")
    if limits["pattern"] and not re.fullmatch(limits["pattern"], value):
        raise InputError(f"{name}: expected {limits['help']}, got {value!r}")
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise InputError(f"{name}: expected at least {limits['minimum']}, got {value!r}")
    if limits["above"] is not None and value <= limits["above"]:
        raise InputError(f"{name}: expected more than {limits['above']}, got {value!r}")
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise InputError(f"{name}: expected at most {limits['maximum']}, got {value!r}")
    return value


def typed(name: str, value: Any, kind: type) -> Any:
    """`value` as a `kind`, a whole number as a float too; or InputError with what was expected."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{name}: expected {_EXPECTED[kind]}, got {value!r}{_type_hint(value, kind)}")
    return value


_EXPECTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping of names to values", list: "a list"}


def _type_hint(value, kind) -> str:
    """What to write instead, for the two ways YAML and papermill's -p turn a value into a string."""
    if kind in (int, float) and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return f" (a string: YAML needs the dot, as in {float(value):.1e})"
    if kind is bool and isinstance(value, str):
        return " (a string: papermill's -p takes True or False)"
    return " (a string)" if isinstance(value, str) else ""


class _Fields:
    """Checks every field of a dataclass and builds it from a mapping in which unknown names are errors."""

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, checked(spec.name, getattr(self, spec.name), spec))

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """Raises InputError on unknown names (with the nearest known one) and on values that don't fit."""
        check_names(values, cls)
        return cls(**values)


def check_names(names, *classes) -> None:
    """Raise InputError for the first of `names` that is a field of none of `classes`."""
    check_known(names, [spec.name for cls in classes for spec in dataclasses.fields(cls)])


def check_known(names, known) -> None:
    """Raise InputError for the first of `names` that is none of the `known` ones."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown parameter {name!r}; {hint}")


@dataclass(frozen=True, kw_only=True)
class Config(_Fields):
    """One run. Field names are the YAML keys, the notebook's parameters, the long options and the JSON keys.

    Raises InputError for a wrong type or a value out of range.
    """

    model: str = knob("resnet", "architecture", choices=tuple(SIZES))
    epochs: int = knob(80, "passes over the training split", minimum=1)
    batch_size: int = knob(256, "images a step", minimum=2)
    scheduler: str = knob("cosine", "learning-rate schedule", choices=SCHEDULES)
    augmentation: bool = knob(False, "flip, rotate and crop the training images at random")
    learning_rate: float = knob(0.001, "AdamW's rate in the first epoch", above=0, maximum=10)
    weight_decay: float = knob(0.001, "AdamW's decoupled weight decay", minimum=0, maximum=10)
    gamma: float = knob(0.97, "decay factor of the exponential and step schedules", above=0, maximum=1)
    val_freq: int = knob(1, "validate every so many epochs (the last one always)", minimum=1)
    early_stopping_patience: int = knob(20, "stop after so many validations without a lower validation loss", minimum=1)
    seed: int = knob(100, "seed of the weights, the order of images, augmentation and dropout", minimum=0, maximum=2**31)
    protocol: str = knob("corrected", "corrected, or the published recipe with its faults", choices=("corrected", "published"))
    split: str = knob("auto", "training/validation split; auto goes by the protocol: stratified if corrected, published if published",
                      choices=("auto", "published", "stratified"))
    dataset: str = knob("cifar10", "images; auto takes the synthetic stand-in where CIFAR-10 can't be had",
                        choices=("cifar10", "synthetic", "auto"))
    data_dir: str = knob("", "folder of the CIFAR-10 batches; empty searches $CIFAR10_DIR and ./cifar-10, then downloads")
    device: str = knob("auto", "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps", pattern=r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")
    precision: str = knob("auto", "auto takes bf16 where the hardware is fast at it", choices=("auto", "fp32", "bf16"))
    limit_train: int = knob(0, "use only so many training images (0 takes all)", minimum=0)
    limit_val: int = knob(0, "use only so many validation images (0 takes all)", minimum=0)
    limit_test: int = knob(0, "use only so many test images (0 takes all)", minimum=0)
    model_args: dict = knob({}, "sizes of the model other than the published ones, as name: value")

    def __post_init__(self):
        super().__post_init__()
        if self.split == "auto":
            object.__setattr__(self, "split", "stratified" if self.protocol == "corrected" else "published")
        for name in self.model_args:
            if name not in SIZES[self.model]:
                raise InputError(f"model_args: {self.model} has no {name!r}; known are {', '.join(SIZES[self.model])}")
        try:
            json.dumps(self.model_args, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(f"model_args: expected values that JSON has, got {self.model_args!r}") from None
        object.__setattr__(self, "model_args", dict(sorted(self.model_args.items())))

    def to_dict(self) -> dict:
        """Every field as plain JSON values."""
        return dataclasses.asdict(self)

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed, checked again; `split` is resolved already and doesn't follow a new protocol."""
        return dataclasses.replace(self, **changes)

    def inert(self) -> set[str]:
        """Knobs that do nothing in this run: gamma under the cosine schedule."""
        return {"gamma"} if self.scheduler == "cosine" else set()

    def identity(self) -> dict:
        """What tells this run's result from another's: every field but the inert ones and where it is computed."""
        return {k: v for k, v in self.to_dict().items() if k not in self.inert() | {"data_dir", "device", "precision"}}

    @property
    def cell_name(self) -> str:
        """The published name of a grid cell; sizes and seeds other than the published ones are appended."""
        return self._name(gamma=True)

    @property
    def run_name(self) -> str:
        """The cell's name without inert knobs: cells that are one experiment share it. Names the run folder."""
        return self._name(gamma="gamma" not in self.inert())

    def _name(self, gamma: bool) -> str:
        name = (f"{self.model}_aug_{self.augmentation}_scheduler_{self.scheduler}"
                f"_lr_{self.learning_rate}_wd_{self.weight_decay}")
        if gamma:
            name += f"_gamma_{self.gamma}"
        name += "".join(f"_{key}_" + re.sub(r"[^\w.]+", "-", str(value)).strip("-") for key, value in self.model_args.items())
        return name + (f"_seed_{self.seed}" if self.seed != Config.seed else "")


@dataclass(frozen=True, kw_only=True)
class Options(_Fields):
    """Where a run is kept and how it is tracked: nothing here changes its result."""

    study: str = knob("single", "a study's name: letters, digits, '.', '_' and '-'", pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]*")
    executed_dir: str = knob("executed", "folder of all studies", pattern=".+")
    wandb_mode: str = knob("auto", "auto is online if logged in, else offline", choices=("auto", "online", "offline", "disabled"))
    checkpoints: str = knob("all", "weights that stay when a run is finished: all three, the best by validation accuracy, or none",
                            choices=("all", "best", "none"))
    resume: bool = knob(True, "continue an interrupted run; else train it again from the start")

    def run_folder(self, config: Config) -> Path:
        """EXECUTED/STUDY/RUN, whether it exists or not."""
        return project_path(self.executed_dir) / self.study / config.run_name


def project_path(path: str | Path) -> Path:
    """A relative path starts at the working directory, or at its parent when that is `notebooks` (JupyterLab's habit); `~` is the user's home."""
    here = Path(".")
    return (Path("..") if here.resolve().name == "notebooks" else here) / Path(path).expanduser()

