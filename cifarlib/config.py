"""What a run is: every field that changes its result, checked and frozen, and the few options that change nothing."""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Self

from .errors import InputError
from .files import project_path
from .parts import ARCHITECTURES, DATASETS, OPTIMIZERS, PROTOCOLS, architecture, is_own, short_name, source_digest

SCHEDULES = ("exponential", "step", "cosine", "linear")
SPLITS = ("published", "stratified", "all")
VIEWS = ("none", "flip", "flip_shift")  # of a test image
CHECKPOINTS = ("best_val_acc", "best_val_loss", "terminal")
PUBLISHED_KNOBS = ("augmentation", "scheduler", "learning_rate", "weight_decay", "gamma")  # in the order of the names
PLAIN = {"augmentation": (False,)}  # when what says how images are changed does nothing
ONE_RATE = {"optimizer": ("adamw", "sgd", "muon")}  # when there are no rates of single groups
LONGEST_NAME = 200  # bytes of a run's name; file systems take 255


def setting(default, help, *, role="knob", short=None, label=None, idle_when=None, choices=None, own=False,
            minimum=None, above=None, maximum=None, pattern=None):
    """A dataclass field with all there is to say of it; options, checks, names, tables, charts, texts derive from it.

    A default of None leaves the value to the protocol. role: `model` (it and its sizes); `knob`, whose values may
    compete in one ranking; `condition`, which all runs of a ranking share; `repeat`, the seed; `place`, which says
    where a run is computed or kept and changes no result. short: its name in the names of runs; label: its name in
    charts and texts; idle_when: the values of other fields with which it does nothing; own: beside the choices it may
    name a part of the user's own; the others limit its values.
    """
    metadata = dict(help=help, role=role, short=short, label=label, idle_when=idle_when or {}, choices=choices, own=own,
                    minimum=minimum, above=above, maximum=maximum, pattern=pattern)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def checked(value: Any, spec: dataclasses.Field) -> Any:
    """`value` as the field's type, or InputError with what was expected."""
    if value is None and spec.default is None:
        return None
    name, limits, kind = spec.name, spec.metadata, spec.type
    value = typed(name, value, kind)
    if kind is float and not math.isfinite(value):
        raise InputError(f"{name}: expected a finite number, got {value!r}")
    if limits["choices"] and value not in limits["choices"] and not (limits["own"] and is_own(value)):
        own = ", file.py:Class or package.module:Class" if limits["own"] else ""
        near = nearest(value, limits["choices"])
        raise InputError(f"{name}: expected one of {', '.join(limits['choices'])}{own}, got {value!r}"
                         + (f"; did you mean {near}?" if near else ""))
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
    """`value` as a `kind`, or InputError with what was expected.

    Text is read as a command line gives it, since YAML reads 1e-4 as text, and papermill's -p all but plain numbers;
    for a name that looks like a number or a date its text is taken.
    """
    try:
        if isinstance(value, bool) or value is None:
            pass
        elif kind in (int, float) or (isinstance(value, str) and kind is not str):
            value = _READ[kind](value)
        elif kind is str and isinstance(value, (int, date, Path)):
            value = str(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{name}: expected {_EXPECTED[kind]}, got {value!r}")
    return value


def _whole(value: Any) -> int:
    """A whole number, also of 1e2 and 3.0; ValueError for others."""
    if (number := float(value)) != round(number):
        raise ValueError
    return round(number)


_EXPECTED = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
             dict: 'a mapping of names to values, such as {"name": 1}', list: 'a list, such as ["name"]'}
_READ = {int: _whole, float: float, bool: lambda text: {"true": True, "false": False}[text.lower()], dict: json.loads,
         list: json.loads}


class _Fields:
    """Checks every field of a dataclass and builds it from a mapping in which unknown names are errors."""

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, checked(getattr(self, spec.name), spec))

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """Raises InputError for unknown names, too."""
        check_names(values, [spec.name for spec in dataclasses.fields(cls)])
        return cls(**values)

    @classmethod
    def among(cls, values: dict) -> dict:
        """Those of `values` whose names are fields."""
        return {spec.name: values[spec.name] for spec in dataclasses.fields(cls) if spec.name in values}


def parted(conditions: str) -> list[str]:
    """The parts of `model=vit,model_args={"dim": 96, "depth": 2}`: commas within a pair of braces don't part."""
    return [part.strip() for part in re.split(r",(?![^{]*})", conditions) if part.strip()]


def check_names(names, known) -> None:
    """Raise InputError for the first of `names` that is none of the `known` ones."""
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown parameter {name!r}; {hint}")


def nearest(name, known) -> str:
    """The one of the `known` names that somebody meant: by its short form, or the most similar one; "" if none is."""
    meant = {spec.metadata["short"]: spec.name for spec in dataclasses.fields(Config)}.get(name)
    return meant if meant in known else next(iter(difflib.get_close_matches(str(name).lower(), known, n=1)), "")


@dataclass(frozen=True, kw_only=True)
class Config(_Fields):
    """One run. Field names are the YAML keys, the notebook's parameters, the long options and the JSON keys.

    Fields whose default is None may be left to the protocol; once built, every field has a value. Raises InputError for
    a wrong type or a value out of range.
    """

    model: str = setting("resnet", "architecture, or a class of your own as file.py:Class or package.module:Class",
                         role="model", choices=ARCHITECTURES, own=True)
    epochs: int = setting(None, "passes over the training split", minimum=1)
    batch_size: int = setting(None, "images a step", minimum=2)
    scheduler: str = setting(None, "learning-rate schedule; cosine and linear fall to zero", choices=SCHEDULES)
    augmentation: bool = setting(None, "change the training images at random, as flip, rotation, crop, padding and "
                                 "cutout say", short="aug")
    learning_rate: float = setting(None, "learning rate at the start", short="lr", above=0, maximum=10)
    weight_decay: float = setting(None, "weight decay: decoupled by adamw and muon, in the gradient by sgd; "
                                  "by muon_sgd a part of dense layers, biases and norms for each image",
                                  short="wd", minimum=0, maximum=10)
    gamma: float = setting(0.97, "decay factor of the exponential and step schedules", above=0, maximum=1,
                           idle_when={"scheduler": ("cosine", "linear")})
    optimizer: str = setting(None, "optimizer; adamw is AdamW with amsgrad", choices=OPTIMIZERS)
    momentum: float = setting(None, "Nesterov momentum of sgd and muon", minimum=0, maximum=0.9999,
                              idle_when={"optimizer": ("adamw",)})
    head_lr: float = setting(None, "rate of muon_sgd for dense layers, on gradients summed over a batch", above=0,
                             maximum=100, idle_when=ONE_RATE)
    vector_lr: float = setting(None, "rate of muon_sgd for biases and norms, on gradients summed over a batch", above=0,
                               maximum=100, idle_when=ONE_RATE)
    label_smoothing: float = setting(None, "part of each label spread evenly over all classes, in the training loss",
                                     minimum=0, maximum=0.99)
    val_freq: int = setting(1, "validate every so many epochs (the last one always)", minimum=1,
                            label="epochs between validations")
    early_stopping_patience: int = setting(20, "stop after so many validations without a lower validation loss",
                                           short="patience", label="patience", minimum=1)
    seed: int = setting(100, "seed of the weights, the order of images, augmentation and dropout", role="repeat",
                        minimum=0, maximum=2**31)
    protocol: str = setting("corrected", "the named set of values that fields left open take", choices=PROTOCOLS)
    split: str = setting(None, "training/validation split", role="condition", choices=SPLITS)
    normalization: str = setting(None, "mean and standard deviation to normalize by: the dataset's or ImageNet's",
                                 choices=("dataset", "imagenet"))
    decayed: str = setting(None, "what weight decay acts on: weight matrices and kernels, or all weights",
                           label="decayed weights", choices=("matrices", "all"), idle_when={"weight_decay": (0.0,)})
    schedule_steps: int = setting(None, "steps of the learning-rate schedule an epoch", label="schedule steps an epoch",
                                  minimum=1, idle_when={"scheduler": ("linear",)})
    cosine_period: int = setting(None, "schedule steps in which the cosine falls from the highest rate to zero",
                                 minimum=1, idle_when={"scheduler": ("exponential", "step", "linear")})
    lr_by_step: bool = setting(None, "set the learning rate before every training step, not only every epoch",
                               label="learning rate by step")
    softmax_in_loss: bool = setting(None, "take the training loss of the softmax output, as if that were logits",
                                    label="softmax in the loss")
    flip: str = setting(None, "mirror images: each time with p 0.5, or every other epoch", idle_when=PLAIN,
                        choices=("none", "random", "alternating"))
    rotation: float = setting(None, "largest angle of a random rotation either way, in degrees", minimum=0, maximum=180,
                              idle_when=PLAIN)
    crop: int = setting(None, "largest translation of an image either way, in pixels", minimum=0, maximum=16,
                        label="translation", idle_when=PLAIN)
    padding: str = setting(None, "what a translated image shows beyond its edge: black, or its mirror image",
                           choices=("black", "reflect"), idle_when={**PLAIN, "crop": (0,)})
    cutout: int = setting(None, "side of a square that is blotted out of each image, in pixels (0 for none)", minimum=0,
                          maximum=32, idle_when=PLAIN)
    weight_average: float = setting(None, "decay a step of the average of the weights that is tested (0 tests the "
                                    "weights themselves)", minimum=0, maximum=0.99999)
    tta: str = setting(None, "views of a test image whose logits are averaged: the image alone, with its mirror image, "
                       "or six with translations", label="test views", choices=VIEWS)
    dataset: str = setting("cifar10", "images; auto takes the synthetic stand-in where CIFAR-10 can't be had",
                           role="condition", choices=DATASETS)
    data_dir: str = setting("", "folder of the images' files; empty searches $CIFAR10_DIR and ./cifar-10, then "
                            "downloads", role="place")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps", role="place",
                          pattern=r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")
    precision: str = setting("auto", "auto takes bf16 where the hardware is fast at it", role="place",
                             choices=("auto", "fp32", "bf16"))
    limit_train: int = setting(0, "use only so many training images (0 takes all)", label="training images", minimum=0)
    limit_val: int = setting(0, "use only so many validation images (0 takes all)", role="condition", minimum=0,
                             label="validation images")
    limit_test: int = setting(0, "use only so many test images (0 takes all)", role="condition", minimum=0,
                              label="test images")
    model_args: dict = setting({}, "sizes of the model other than the published ones, as name: value", role="model",
                               label="model sizes")

    def __post_init__(self):
        super().__post_init__()
        self._check_model_args()
        object.__setattr__(self, "given", self.to_dict())  # every field, None where it is left to the protocol
        for spec in dataclasses.fields(self):
            if getattr(self, spec.name) is None:
                object.__setattr__(self, spec.name, self.usual(spec))
        if self.split == "published" and not DATASETS[self.dataset].published_split:
            raise InputError("split: the published one is of CIFAR-10's batches, which "
                             f"{self.dataset} doesn't have; set split stratified")

    def usual(self, spec: dataclasses.Field) -> Any:
        """The value that a field takes where nothing is said: its default, or the protocol's."""
        if spec.default is not None:
            return spec.default
        protocol = PROTOCOLS[self.protocol] | architecture(self.model).protocols.get(self.protocol, {})
        value = protocol[spec.name]
        return value(self) if callable(value) else value

    def _check_model_args(self) -> None:
        sizes = architecture(self.model).sizes
        for name in self.model_args:
            if sizes is not None and name not in sizes:
                raise InputError(f"model_args: {self.model} has no {name!r}; known are {', '.join(sizes)}")
            if not (isinstance(name, str) and name.isidentifier()):
                raise InputError(f"model_args: expected names of arguments of {self.model}, got {name!r}")
        try:
            json.dumps(self.model_args, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(f"model_args: expected values that JSON has, got {self.model_args!r}") from None
        object.__setattr__(self, "model_args", dict(sorted(self.model_args.items())))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the dataset's classes."""
        return DATASETS[self.dataset].classes

    @classmethod
    def names_of(cls, *roles: str) -> list[str]:
        """The fields that have one of these roles."""
        return [spec.name for spec in dataclasses.fields(cls) if spec.metadata["role"] in roles]

    def to_dict(self) -> dict:
        """Every field as plain JSON values."""
        return dataclasses.asdict(self)

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed, checked again; what was left to the protocol is left to it again."""
        return Config(**{**self.given, **changes})

    def idle(self) -> set[str]:
        """Fields that do nothing in this run, such as gamma under the cosine schedule."""
        return {spec.name for spec in dataclasses.fields(self)
                if any(getattr(self, name) in values for name, values in spec.metadata["idle_when"].items())}

    def identity(self) -> dict:
        """What tells this run's result from another's: all fields but idle ones and places, and the user's own code."""
        left_out = self.idle() | set(self.names_of("place"))
        values = {name: value for name, value in self.to_dict().items() if name not in left_out}
        return values | ({"model_source": source_digest(self.model)} if is_own(self.model) else {})

    @property
    def cell_name(self) -> str:
        """The published name of a cell of its grid, gamma included; whatever differs from the default is appended."""
        return self.name_without(set())

    def name_without(self, fields: set[str]) -> str:
        """The cell's name without some of the fields, such as those that all runs of a table share."""
        return self._name(self.idle() - {"gamma"} | fields)

    @property
    def run_name(self) -> str:
        """The cell's name without idle fields: cells that are one experiment share it. Names the run folder."""
        name = self._name(self.idle())
        if len(name.encode()) <= LONGEST_NAME:
            return name
        start = name.encode()[:LONGEST_NAME - 9].decode(errors="ignore")
        return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def _name(self, left_out: set[str]) -> str:
        def part(spec: dataclasses.Field) -> str:
            return f"{spec.metadata['short'] or spec.name}_{_in_name(getattr(self, spec.name))}"

        specs = {spec.name: spec for spec in dataclasses.fields(self) if spec.name not in left_out}
        published = [part(specs[name]) for name in PUBLISHED_KNOBS if name in specs]
        sizes = [f"{name}_{_in_name(value)}" for name, value in self.model_args.items() if "model_args" in specs]
        unusual = [part(specs[name]) for name in self.names_of("knob", "condition", "repeat")
                   if name in specs and name not in PUBLISHED_KNOBS
                   and getattr(self, name) not in (self.usual(specs[name]), "auto")]
        return "_".join([short_name(self.model), *published, *sizes, *unusual])


def names_apart(configs: list[Config]) -> list[str]:
    """A name for each run without what all of them share, for people to read."""
    shared = {spec.name for spec in dataclasses.fields(Config)
              if all(getattr(config, spec.name) == getattr(configs[0], spec.name) for config in configs)}
    return [config.name_without(shared | config.idle()) for config in configs]


def _in_name(value) -> str:
    """A value as the name of a file may have it: `0.001`, `-1`, `step`, `8-8-16` for a list."""
    return str(value) if isinstance(value, (int, float)) else re.sub(r"[^\w.]+", "-", str(value)).strip("-")


@dataclass(frozen=True, kw_only=True)
class Options(_Fields):
    """Where a run is kept and how it is tracked: nothing here changes its result."""

    study: str = setting("single", "a study's name: letters, digits, '.', '_' and '-'",
                         pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]*")
    executed_dir: str = setting("executed", "folder of all studies", pattern=".+")
    wandb_mode: str = setting("auto", "auto is online if logged in, else offline",
                              choices=("auto", "online", "offline", "disabled"))
    checkpoints: str = setting("all", choices=("all", "best", "none"), help="weights that stay when a run is finished: "
                               "all three, the best by validation accuracy, or none")
    pause_after: int = setting(0, "stop the run after so many epochs, to be continued later (0 trains to the end)",
                               minimum=0)
    resume: bool = setting(True, "continue an interrupted run; else train it again from the start")

    def run_folder(self, config: Config) -> Path:
        """EXECUTED/STUDY/RUN, whether it exists or not."""
        return project_path(self.executed_dir) / self.study / config.run_name
