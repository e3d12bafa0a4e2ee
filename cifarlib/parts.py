"""The named parts of an experiment, one row each: what a user adds to the workbook is a row here, or a file of the user's own.

A part is named where it is defined, as `package.module:name` or `file.py:name`, and imported when it is used: nothing here needs torch.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .errors import InputError
from .files import project_path


@dataclass(frozen=True)
class Architecture:
    """A network, and how tables and charts show it.

    home: its class, which takes `sizes` and `classes` as keyword arguments; colour, marker: matplotlib's; memory: GiB of main
    memory that a run may need on a CPU at the published size in batches of 256; width: the one of the sizes without which it
    is no smaller; published_best: highest test accuracy of the published report;
    softmax_output: whether the published network ends in a softmax, which its loss then takes for logits; bench_images: training images a
    round of the benchmark, on a CPU and on a GPU; stages: names of modules, or of their classes, whose outputs are worth showing.
    """

    label: str
    home: str
    sizes: tuple[str, ...] | None = None  # None: whatever its class takes
    colour: str = "#666666"
    marker: str = "o"
    memory: float = 4.5
    width: str | None = None
    published_best: float | None = None
    softmax_output: bool = False
    bench_images: tuple[int, int] = (256, 20_000)
    stages: tuple[str, ...] = ()


# Okabe and Ito's colours for the colour blind, of different lightness for a print in black and white; a marker each.
ARCHITECTURES = {
    "cnn": Architecture(
        "CNN", "cifarlib.models.cnn:CNN", ("channels", "hidden", "dropout"), "#E69F00", "o", published_best=0.8697, softmax_output=True,
        stages=("Conv2d", "MaxPool2d", "Linear", "Head")),
    "resnet": Architecture(
        "ResNet", "cifarlib.models.resnet:ResNet", ("widths", "depths"), "#0072B2", "s", published_best=0.8422, bench_images=(2_560, 40_000),
        stages=("stem.0", "stem", "stages.0", "stages.1", "stages.2", "stages.3", "pool", "fc")),
    "vit": Architecture(
        "ViT", "cifarlib.models.vit:ViT", ("patch", "dim", "depth", "heads", "head_dim", "mlp_dim"), "#009E73", "^", memory=13.0,
        width="dim", published_best=0.8350, bench_images=(64, 5_120), stages=("embed", *(f"blocks.{i}" for i in range(8)), "norm", "head")),
}
# Of the user's own architectures, in the order in which a table has them.
SPARE_STYLES = (("#CC79A7", "D"), ("#D55E00", "v"), ("#56B4E9", "P"), ("#000000", "X"), ("#8C564B", "<"), ("#7F7F7F", ">"))

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Dataset:
    """Images of 32x32 pixels in classes: how texts call them, and the function that reads them from a folder (see data/splits.py)."""

    label: str
    classes: tuple[str, ...]
    reader: str


DATASETS = {
    "cifar10": Dataset("CIFAR-10", CIFAR10_CLASSES, "cifarlib.data.cifar10:arrays"),
    "synthetic": Dataset("SYNTHETIC DATA, NOT CIFAR-10", CIFAR10_CLASSES, "cifarlib.data.synthetic:arrays"),
}

# Functions from (parameter groups, configuration) to an optimizer with torch.optim's interface.
OPTIMIZERS = {
    "adamw": "cifarlib.training.optimizers:adamw",
}

# What a protocol sets of the fields that a configuration leaves open; a function is called with the configuration.
PROTOCOLS = {
    "corrected": {
        "split": "stratified", "normalization": "dataset", "decayed": "matrices", "schedule_steps": 1,
        "cosine_period": lambda config: config.schedule_steps * config.epochs, "softmax_in_loss": False,
    },
    "published": {
        "split": "published", "normalization": "imagenet", "decayed": "all", "schedule_steps": 2,
        "cosine_period": 10, "softmax_in_loss": lambda config: architecture(config.model).softmax_output,
    },
}


def architecture(model: str) -> Architecture:
    """The row of a model; of a user's own model, a row that its class gives the name."""
    return ARCHITECTURES.get(model) or Architecture(short_name(model), model)


def short_name(model: str) -> str:
    """What the names of runs call a model: its name in the table, or that of the user's class."""
    return model.rpartition(":")[2]


def architectures(models: Iterable[str]) -> dict[str, Architecture]:
    """The rows of several models, the table's own first and in its order; each of the user's own gets a colour and a marker."""
    models = list(dict.fromkeys(models))
    rows = {name: row for name, row in ARCHITECTURES.items() if name in models}
    for number, name in enumerate(name for name in models if name not in ARCHITECTURES):
        colour, marker = SPARE_STYLES[number % len(SPARE_STYLES)]
        rows[name] = replace(architecture(name), colour=colour, marker=marker)
    return rows


def is_own(name: str) -> bool:
    """Whether `name` says where a part of the user's own is, as `file.py:name` or `package.module:name`."""
    place, colon, attribute = name.rpartition(":")
    return bool(colon) and attribute.isidentifier() and (place.endswith(".py") or all(map(str.isidentifier, place.split("."))))


def source_digest(name: str) -> str | None:
    """A digest of the file that defines a part of the user's own; None for what is in a package. Raises InputError if it can't be read."""
    place = name.rpartition(":")[0]
    if not place.endswith(".py"):
        return None
    try:
        return hashlib.sha256(project_path(place).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise InputError(f"{place} can't be read ({error.strerror}); expected a file of Python, named from the project's folder") from None


def load(name: str):
    """What `package.module:name` or `file.py:name` names. Raises InputError, in one line, if it can't be imported."""
    place, _, attribute = name.rpartition(":")
    try:
        if digest := source_digest(name):
            spec = importlib.util.spec_from_file_location(f"{project_path(place).stem}_{digest}", project_path(place))
            if spec.name not in sys.modules:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                sys.modules[spec.name] = module
            return getattr(sys.modules[spec.name], attribute)
        return getattr(importlib.import_module(place), attribute)
    except InputError:
        raise
    except Exception as error:  # whatever the user's file does while it is imported
        raise InputError(f"{name} can't be imported ({type(error).__name__}: {' '.join(str(error).split())})") from None
