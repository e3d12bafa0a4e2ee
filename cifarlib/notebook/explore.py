"""Tables and pictures of what an experiment builds on: the splits, the augmentation and the models."""

import dataclasses
from functools import partial

import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..data import augment
from ..data.splits import Split, Splits
from ..models import build_model, count_parameters
from ..parts import ARCHITECTURES, MANY, architecture, load
from ..results.figures.style import new_figure, styled
from ..results.table import Table


def class_counts(splits: Splits) -> pandas.DataFrame:
    """Images of each class in each split, or of many classes the fewest and the most; with the sums."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    classes = pandas.Index(splits.train.classes, name="class")
    counts = {name: torch.bincount(split.labels, minlength=len(classes)).tolist() for name, split in parts.items()}
    table = pandas.DataFrame(counts, index=classes)
    extremes = table.agg(["min", "max"]).set_axis(["fewest in a class", "most in a class"])
    shown = table if len(classes) <= MANY else extremes
    shown.loc["all"] = table.sum()
    return shown


def class_grid(split: Split, seed: int, columns: int = 10) -> Figure:
    """`columns` images of each class, or of some of many classes, chosen with `seed`; a row a class."""
    generator = torch.Generator().manual_seed(seed)
    classes = range(len(split.classes))
    if len(classes) > MANY:
        classes = torch.randperm(len(classes), generator=generator)[:MANY].sort().values.tolist()
    rows = []
    for label in classes:
        members = (split.labels == label).nonzero().flatten()
        rows.append(split.images[members[torch.randperm(len(members), generator=generator)[:columns]]])
    return _picture(rows, [split.classes[label] for label in classes], [""] * columns)


def augmentation_grid(split: Split, config: Config, images: int = 5, samples: int = 5) -> Figure:
    """Some images as they are, under each augmentation alone, and `samples` times as training has them; a row an image.

    config: says what training does, and seeds the choice.
    """
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(split), generator=generator)[:images]
    packed = augment.pack(split.images[chosen])

    def same(flip: int = 0, angle: float = 0, top: int = 0, left: int = 0) -> Tensor:
        values = torch.tensor([flip, angle, top, left, 0, 0], dtype=torch.float64)[:, None]
        return augment.as_parameters(*values).expand(images, -1)

    angle, crop = config.rotation, config.crop
    ways = {"original": same(), "flip": same(flip=1), f"rotate {angle:g}°": same(angle=angle),
            f"rotate −{angle:g}°": same(angle=-angle), "crop ↖": same(top=-crop, left=-crop),
            "crop ↘": same(top=crop, left=crop)}
    ways |= {f"all, {number}": augment.sample_parameters(config, torch.arange(images), number, generator)
             for number in range(1, samples + 1)}
    shown = [augment.unpack(augment.augmented(packed, torch.arange(images), each, config)) for each in ways.values()]
    return _picture(list(zip(*shown)), [split.classes[label] for label in split.labels[chosen]], list(ways))


@styled
def _picture(rows: list[Tensor], row_names, column_names) -> Figure:
    """uint8 images (3, 32, 32), a list of rows of them, with their names at the left and above."""
    height, width = len(rows), len(column_names)
    figure, axes = new_figure(0.8 * height + 0.3, height, width, width=0.8 * width + 1, squeeze=False)
    for line, row, name in zip(axes, rows, row_names):
        for axis, image in zip(line, row):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis, name in zip(axes[0], column_names):
        axis.set_title(name, fontsize=8)
    return figure


def _without_content(config: Config) -> tuple[nn.Module, Tensor]:
    """A model and an image for it that have shapes but no content: more is not needed to count operations."""
    load(architecture(config.model).home)  # what its module makes when it is imported has content
    with torch.device("meta"):
        return build_model(config).eval(), torch.zeros(1, 3, 32, 32)


def forward_flop(config: Config) -> int:
    """Floating-point operations of a forward pass of one image; a multiplication and an addition are two."""
    model, image = _without_content(config)
    # The counter knows attention only as its matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def with_flop(table: Table) -> Table:
    """The table with the column `flop`: what each run's training took, three forward passes an image and epoch.

    The usual estimate, of a backward pass as two forward ones. Raises InputError for a model that can't be built.
    """
    rows = table.rows
    model = rows["config"].map(lambda config: f"{config.model} {config.model_args}")
    forward = {name: forward_flop(config) for name, config in dict(zip(model, rows["config"])).items()}
    images, epochs = rows.get("train_images", 40_000), rows.get("epochs_run", rows["epochs"])
    return dataclasses.replace(table, rows=rows.assign(flop=3.0 * model.map(forward) * images * epochs))


def model_table() -> pandas.DataFrame:
    """Parameters, and FLOPs of a forward pass of one image, of each architecture."""
    rows = {}
    for name in ARCHITECTURES:
        config = Config(model=name)
        rows[name] = {"parameters": f"{count_parameters(_without_content(config)[0]):,}",
                      "GFLOPs per image": round(forward_flop(config) / 1e9, 4)}
    return pandas.DataFrame.from_dict(rows, orient="index")


def stage_table(model: str, **sizes) -> pandas.DataFrame:
    """Output shape and parameters of a model's stages, for one image; of its children where parts.py names none."""
    network, image = _without_content(Config(model=model, model_args=sizes))
    rows = [{"stage": "image", "output": "3 x 32 x 32", "parameters": ""}]

    def note(name, module, inputs, output):
        parameters = count_parameters(module)
        rows.append({"stage": f"{name} ({type(module).__name__})", "output": " x ".join(map(str, output.shape[1:])),
                     "parameters": f"{parameters:,}" if parameters else ""})

    stages = set(architecture(model).stages) or {name for name, _ in network.named_children()}
    for name, module in network.named_modules():
        if stages & {name, type(module).__name__}:
            module.register_forward_hook(partial(note, name))
    with torch.inference_mode():
        network(image)
    return pandas.DataFrame(rows).set_index("stage")
