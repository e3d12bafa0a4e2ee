"""The named parts of an experiment, one row each: what is added to the workbook is a row here, or a file of one's own.

A part is named where it is defined, as `package.module:name` or `file.py:name`, and imported when it is used: nothing
here needs torch.
"""

import difflib
import hashlib
import importlib
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from .errors import InputError
from .files import project_path


@dataclass(frozen=True)
class Architecture:
    """A network, and how tables and charts show it.

    home: its class, which takes `sizes` and `classes` as keyword arguments; colour, marker: matplotlib's; memory: GiB
    of main memory that a run may need on a CPU at the usual size in batches of 256, and `width`, the size that must be
    given for less; published_best: highest test accuracy of the published report; protocols: what it has of its own in
    PROTOCOLS; bench_images: training images a round of the benchmark, on a CPU and on a GPU; stages: names of modules,
    or of their classes, whose outputs are worth showing.
    """

    label: str
    home: str
    sizes: tuple[str, ...] | None = None  # None: whatever its class takes
    colour: str = "#666666"
    marker: str = "o"
    memory: float = 4.5
    width: str | None = None
    published_best: float | None = None
    protocols: dict[str, dict] = field(default_factory=dict)
    bench_images: tuple[int, int] = (256, 20_000)
    stages: tuple[str, ...] = ()


# Okabe and Ito's colours for the colour blind, of different lightness for a print in black and white; a marker each.
ARCHITECTURES = {
    "cnn": Architecture(
        "CNN", "cifarlib.models.cnn:CNN", ("channels", "hidden", "dropout"), "#E69F00", "o",
        published_best=0.8697, protocols={"published": {"softmax_in_loss": True}},  # its output, taken for logits
        stages=("Conv2d", "MaxPool2d", "Linear", "Head")),
    "resnet": Architecture(
        "ResNet", "cifarlib.models.resnet:ResNet", ("widths", "depths", "stem"), "#0072B2", "s",
        published_best=0.8422, bench_images=(2_560, 40_000),
        stages=("stem.0", "stem", "stages.0", "stages.1", "stages.2", "stages.3", "pool", "fc")),
    "vit": Architecture(
        "ViT", "cifarlib.models.vit:ViT", ("patch", "dim", "depth", "heads", "head_dim", "mlp_dim"), "#009E73", "^",
        memory=13.0, width="dim", published_best=0.8350, bench_images=(64, 5_120),
        stages=("embed", *(f"blocks.{i}" for i in range(8)), "norm", "head")),
    "vgg": Architecture(
        "VGG", "cifarlib.models.vgg:VGG", ("depth", "widths"), "#CC79A7", "D",
        stages=("stages.0", "stages.1", "stages.2", "stages.3", "stages.4", "fc")),
    "speednet": Architecture(
        "SpeedNet", "cifarlib.models.speednet:SpeedNet", ("widths", "depth", "stem"), "#D55E00", "P",
        protocols={"modern": {"optimizer": "muon_sgd", "learning_rate": 0.15, "weight_decay": 2e-6, "decayed": "all"}},
        stages=("stem", "groups.0", "groups.1", "groups.2", "fc")),
}
# Of the user's own architectures, in the order in which a table has them.
SPARE_STYLES = (("#56B4E9", "v"), ("#000000", "X"), ("#8C564B", "<"), ("#7F7F7F", ">"))

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple("""
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split())


@dataclass(frozen=True)
class Dataset:
    """Images of 32x32 pixels in classes.

    label: how texts call them; reader: a function of the folder that the user names, or "", to (images uint8
    (N, 3, 32, 32), labels int64 (N,), test images, test labels, a text: the dataset's name, then whatever tells this
    content from another); locate: a function of the same to the folder of the files, or None while they are to be
    downloaded, that raises InputError for a named folder without them; published_split: whether it has the published
    split, CIFAR-10's batches 1 to 4 and batch 5.
    """

    label: str
    classes: tuple[str, ...]
    reader: str
    locate: str | None = None
    published_split: bool = False

    def test_images(self, data_dir: str = "") -> tuple | str:
        """The test's images and labels, without a download; or why they can't be shown.

        Raises InputError if that is the folder that `data_dir` names.
        """
        try:
            if not self.locate or load(self.locate)(data_dir):
                return load(self.reader)(data_dir)[2:4]
        except InputError as error:
            if data_dir:
                raise
            return str(error)
        return f"{self.label} is not here; data_dir may name its folder"


MANY = 20  # classes: of more, tables and charts show a part
DATASETS = {
    "cifar10": Dataset("CIFAR-10", CIFAR10_CLASSES, "cifarlib.data.cifar:read_cifar10",
                       "cifarlib.data.cifar:local_cifar10", published_split=True),
    "cifar100": Dataset("CIFAR-100", CIFAR100_CLASSES, "cifarlib.data.cifar:read_cifar100",
                        "cifarlib.data.cifar:local_cifar100"),
    "synthetic": Dataset("SYNTHETIC DATA, NOT CIFAR-10", CIFAR10_CLASSES, "cifarlib.data.synthetic:synthetic",
                         published_split=True),
    "auto": Dataset("CIFAR-10 or its stand-in", CIFAR10_CLASSES, "cifarlib.data.cifar:cifar10_or_stand_in",
                    "cifarlib.data.cifar:local_cifar10", published_split=True),
}

# Functions from (parameter groups, configuration) to an optimizer with torch.optim's interface.
OPTIMIZERS = {
    "adamw": "cifarlib.training.optimizers:adamw",
    "sgd": "cifarlib.training.optimizers:sgd",
    "muon": "cifarlib.training.optimizers:muon",
    "muon_sgd": "cifarlib.training.optimizers:muon_sgd",
}


# What a protocol sets of the fields that a configuration leaves open, where the architecture's row has nothing of its
# own; a function is called with the configuration.
PROTOCOLS = {
    "corrected": {
        "epochs": 80, "batch_size": 256, "scheduler": "cosine", "augmentation": False, "learning_rate": 0.001,
        "weight_decay": 0.001, "optimizer": "adamw", "momentum": 0.9, "head_lr": 0.67, "vector_lr": 0.053,
        "label_smoothing": 0.0,
        "split": "stratified", "normalization": "dataset", "decayed": "matrices", "schedule_steps": 1,
        "cosine_period": lambda config: config.schedule_steps * config.epochs, "lr_by_step": False,
        "softmax_in_loss": False, "flip": "random", "rotation": 15.0, "crop": 4, "padding": "black", "cutout": 0,
        "weight_average": 0.0, "tta": "none",
    },
}
PROTOCOLS["published"] = PROTOCOLS["corrected"] | {
    "split": "published", "normalization": "imagenet", "decayed": "all", "schedule_steps": 2, "cosine_period": 10,
}
PROTOCOLS["modern"] = PROTOCOLS["corrected"] | {
    "epochs": 10, "batch_size": 500, "scheduler": "linear", "lr_by_step": True, "augmentation": True,
    "optimizer": "muon", "learning_rate": 0.02, "weight_decay": 0.1, "momentum": 0.6, "label_smoothing": 0.2,
    "flip": "alternating", "rotation": 0.0, "crop": 2, "padding": "reflect", "tta": "flip_shift",
}


def architecture(model: str) -> Architecture:
    """The row of a model; of a user's own model, a row that its class gives the name."""
    return ARCHITECTURES.get(model) or Architecture(short_name(model), model)


def short_name(model: str) -> str:
    """What the names of runs call a model: its name in the table, or that of the user's class."""
    return model.rpartition(":")[2]


def architectures(models: Iterable[str]) -> dict[str, Architecture]:
    """The rows of several models in the table's order, then the user's own, each with a colour and a marker."""
    models = list(dict.fromkeys(models))
    rows = {name: row for name, row in ARCHITECTURES.items() if name in models}
    for number, name in enumerate(name for name in models if name not in ARCHITECTURES):
        colour, marker = SPARE_STYLES[number % len(SPARE_STYLES)]
        rows[name] = replace(architecture(name), colour=colour, marker=marker)
    return rows


def is_own(name: str) -> bool:
    """Whether `name` says where a part of the user's own is, as `file.py:name` or `package.module:name`."""
    place, colon, attribute = name.rpartition(":")
    in_package = all(part.isidentifier() for part in place.split("."))
    return bool(colon) and attribute.isidentifier() and (place.endswith(".py") or in_package)


def source_file(name: str) -> Path | None:
    """The file that defines a part of the user's own; None for what is in a package, whose version says what it is."""
    place = name.rpartition(":")[0]
    return project_path(place) if place.endswith(".py") else None


def source_digest(name: str) -> str | None:
    """A digest of that file; None for what is in a package. Raises InputError if the file can't be read."""
    path = source_file(name)
    try:
        return path and hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); expected a file of Python, named from the "
                         "project's folder") from None


def load(name: str):
    """What `package.module:name` or `file.py:name` names. Raises InputError, in one line, if it can't be imported."""
    place, _, attribute = name.rpartition(":")
    try:
        module = _file_as_module(name) if source_file(name) else importlib.import_module(place)
    except InputError:
        raise
    except Exception as error:  # whatever the user's file does while it is imported
        raise InputError(f"{place} can't be imported ({reason(error, name)})") from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        raise InputError(f"{place} has no {attribute}" + (f"; did you mean {near[0]}?" if near else ""))
    return getattr(module, attribute)


def _file_as_module(name: str) -> ModuleType:
    """The user's file as a module, executed once for each content that it has while this process lives."""
    path = source_file(name)
    module = ModuleType(f"{path.stem}_{source_digest(name)}")
    module.__file__ = str(path)  # it may look for its own files beside it
    if module.__name__ in sys.modules:
        return sys.modules[module.__name__]
    sys.modules[module.__name__] = module  # before it is executed: dataclasses look there
    try:
        # Not by importlib, which may take over a compiled file of another content if both are of one second and length.
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def reason(error: Exception, name: str) -> str:
    """What an error in a part of the user's own says, in one line, with the line of its file where that was."""
    said = " ".join(str(error).splitlines()[:2])  # without the frames of C++ that torch may add
    path = str(source_file(name))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{type(error).__name__}: {said}" + (f"; line {lines[-1]} of {path}" if lines else "")
