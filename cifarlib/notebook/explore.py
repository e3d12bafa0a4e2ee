"""Tables and pictures of what an experiment builds on: the splits, the augmentation and the models."""

from functools import partial

import matplotlib.pyplot as plt
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
from ..parts import ARCHITECTURES


def class_counts(splits: Splits) -> pandas.DataFrame:
    """Images of each class in each split, with the sums."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    counts = {name: torch.bincount(split.labels, minlength=len(splits.train.classes)).tolist() for name, split in parts.items()}
    table = pandas.DataFrame(counts, index=pandas.Index(splits.train.classes, name="class"))
    table.loc["all"] = table.sum()
    return table


def class_grid(split: Split, seed: int, columns: int = 10) -> Figure:
    """`columns` images of each class, drawn with `seed`; a row a class."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in range(len(split.classes)):
        members = (split.labels == label).nonzero().flatten()
        rows.append(split.images[members[torch.randperm(len(members), generator=generator)[:columns]]])
    return _picture(rows, split.classes, [""] * columns)


def augmentation_grid(split: Split, seed: int, images: int = 5, draws: int = 5) -> Figure:
    """Some images as they are, under each augmentation alone, and `draws` times under all together; a row an image."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:images]
    packed = augment.pack(split.images[chosen])
    centre = augment.PADDING

    def same(flip: bool = False, angle: float = 0.0, top: int = centre, left: int = centre) -> augment.Draws:
        return augment.Draws.of(torch.full((images,), flip), torch.full((images,), angle, dtype=torch.float64),
                                torch.full((images,), top), torch.full((images,), left))

    drawn = {"original": same(), "flip": same(flip=True), "rotate 15°": same(angle=15), "rotate −15°": same(angle=-15),
             "crop ↖": same(top=0, left=0), "crop ↘": same(top=2 * centre, left=2 * centre)}
    drawn |= {f"all, {number}": augment.draw(images, generator) for number in range(1, draws + 1)}
    shown = [augment.unpack(augment.augmented(packed, torch.arange(images), each)) for each in drawn.values()]
    return _picture(list(zip(*shown)), [split.classes[label] for label in split.labels[chosen]], list(drawn))


def _picture(rows: list[Tensor], row_names, column_names) -> Figure:
    """uint8 images (3, 32, 32), a list of rows of them, with their names at the left and above."""
    height, width = len(rows), len(column_names)
    figure, axes = plt.subplots(height, width, figsize=(0.8 * width + 1, 0.8 * height + 0.3), squeeze=False, layout="constrained")
    plt.close(figure)  # it is returned, and so shown once
    for line, row, name in zip(axes, rows, row_names):
        for axis, image in zip(line, row):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis, name in zip(axes[0], column_names):
        axis.set_title(name, fontsize=8)
    return figure


def _published(name: str) -> tuple[nn.Module, Tensor]:
    """A published model and an image for it, both without content: shapes and operations are all that is asked for."""
    with torch.device("meta"):
        return build_model(Config(model=name)).eval(), torch.zeros(1, 3, 32, 32)


def model_table() -> pandas.DataFrame:
    """Parameters, and FLOPs of a forward pass of one image, of each architecture."""
    rows = {}
    for name in ARCHITECTURES:
        model, image = _published(name)
        # The counter knows attention only as its matrix products.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
        rows[name] = {"parameters": f"{count_parameters(model):,}", "GFLOPs per image": round(counter.get_total_flops() / 1e9, 4)}
    return pandas.DataFrame.from_dict(rows, orient="index")


def stage_table(name: str) -> pandas.DataFrame:
    """Output shape and parameters of each stage of a published model, for one image."""
    model, image = _published(name)
    rows = [{"stage": "image", "output": "3 x 32 x 32", "parameters": ""}]

    def note(module_name, module, inputs, output):
        parameters = count_parameters(module)
        rows.append({"stage": f"{module_name} ({type(module).__name__})", "output": " x ".join(map(str, output.shape[1:])),
                     "parameters": f"{parameters:,}" if parameters else ""})

    for module_name, module in model.named_modules():
        if {module_name, type(module).__name__} & set(ARCHITECTURES[name].stages):
            module.register_forward_hook(partial(note, module_name))
    with torch.inference_mode():
        model(image)
    return pandas.DataFrame(rows).set_index("stage")
