"""What a trained model answers and why: where it looks, what it finds alike, its mistakes, and corrupted images."""

import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pandas
import torch
import torch.nn.functional as nnf
from IPython.display import display
from ipywidgets import FileUpload, Output, VBox
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms.v2 import functional as F

from ..data.splits import Split
from ..errors import InputError
from ..parts import architecture
from ..results.figures import one_run
from ..results.figures.style import COLOURS, new_figure, percent_ticks, styled, titled
from ..trained import Trained, as_tensor, predict

TELLING = 4  # pixels across of the smallest feature map that still tells one place from another
BARS = 5  # classes whose probabilities are drawn
# What changes uint8 images (N, 3, H, W), what its strength is called, and five of them, weak to strong. Those of noise,
# blur, contrast and JPEG are CIFAR-10-C's: D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to
# Common Corruptions and Perturbations", 2019.
CORRUPTIONS = {
    "noise": (lambda images, sd: F.gaussian_noise(images, sigma=sd), "SD", (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": (lambda images, sd: F.gaussian_blur(images, [9, 9], [sd, sd]), "SD in pixels", (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (F.adjust_contrast, "factor", (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (F.adjust_brightness, "factor", (1.25, 1.5, 1.75, 2.0, 2.5)),
    "JPEG": (F.jpeg, "quality", (80, 65, 58, 50, 40)),
    "rotation": (F.rotate, "degrees", (5, 10, 15, 20, 30)),
}


def pictures(images: list, split: Split) -> tuple[Tensor, list[str]]:
    """uint8 (N, 3, 32, 32), and a name for each image: its number in the split, or the path of a picture.

    Raises InputError for a number that the split doesn't have, and for what is no picture.
    """
    if not images:
        raise InputError("images: expected numbers of test images or paths of pictures, got none")
    pixels, names = [], []
    for image in images:
        if not isinstance(image, int):
            pixels.append(as_tensor(image))
            names.append(Path(image).name)
        elif 0 <= image < len(split):
            pixels.append(split.images[image].cpu())
            names.append(f"test image {image} ({split.classes[split.labels[image]]})")
        else:
            raise InputError(f"images: expected numbers from 0 to {len(split) - 1}, got {image}; limit_test says how "
                             "many test images there are")
    return torch.stack(pixels), names


class AttentionWeights(TorchFunctionMode):
    """A context in which torch's attention, whichever module calls it, leaves its weights in `weights`.

    weights: (N, heads, T, T), one a block in the order of the calls; each row sums to one. Gradients have to be
    enabled: without them torch's own transformer takes a short cut.
    """

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function is nnf.multi_head_attention_forward:  # of torch.nn.MultiheadAttention
            named |= {"need_weights": True, "average_attn_weights": False}
            output, weights = function(*arguments, **named)
            self.weights.append(weights.detach())
            return output, weights.mean(dim=1)
        if function is nnf.scaled_dot_product_attention:
            query, key = (tensor.detach() for tensor in arguments[:2])
            self.weights.append((query @ key.mT / query.shape[-1]**0.5).softmax(dim=-1))
        return function(*arguments, **named)


def rollout(weights: list[Tensor]) -> Tensor:
    """How much of each token (second index) is in each token after the last block, (N, T, T); rows sum to one.

    weights: of the blocks, as AttentionWeights has them. In each block half of a token comes by its residual
    connection, half by the mean attention of its heads. Source: S. Abnar and W. Zuidema, "Quantifying Attention Flow in
    Transformers", 2020.
    """
    same = torch.eye(weights[0].shape[-1], device=weights[0].device)
    mixed = same
    for block in weights:
        mixed = (block.mean(dim=1) + same) / 2 @ mixed
    return mixed


def grad_cam(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Which places of the layer's map (N, C, H, W) speak for the class that the model decides on: (N, H, W).

    The sum of the channels, each weighted by the mean gradient of the class's logit, where it is above zero. Source: R.
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017.
    """
    maps = []
    with torch.enable_grad(), layer.register_forward_hook(lambda layer, inputs, output: maps.append(output)):
        logits = model(images)
        (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), maps[-1])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * maps[-1].detach()).sum(dim=1).relu()


def last_layer(model: nn.Module, image: Tensor, wanted: Callable[[nn.Module, Tensor], bool]) -> nn.Module | None:
    """The layer that ends last, when the model sees an image, of those that are `wanted` for what they give."""
    found = []

    def note(layer, inputs, output):
        if isinstance(output, Tensor) and wanted(layer, output):
            found.append(layer)

    with torch.inference_mode(), ExitStack() as hooks:
        for layer in model.modules():
            if layer is not model:
                hooks.enter_context(layer.register_forward_hook(note))
        model(image)
    return found[-1] if found else None


def looked_at(trained: Trained, images: Tensor) -> tuple[str, Tensor] | None:
    """What the map is called, and where the model looked, (N, 32, 32) from 0 to 1; None if it can't be told.

    images: normalized. Of a transformer by the rollout of its attention, to the mean of its tokens or to its class
    token; else by Grad-CAM at the last feature map of at least TELLING pixels across.
    """
    model, count = trained.model, len(images)
    with torch.enable_grad(), AttentionWeights() as attention:
        model(images)
    tokens = attention.weights[0].shape[-1] if attention.weights else 0
    side = int(tokens**0.5)
    if tokens and tokens - side**2 in (0, 1):
        mixed = rollout(attention.weights)
        seen = mixed.mean(dim=1) if tokens == side**2 else mixed[:, 0, 1:]
        name, heat = "attention (rollout)", seen.view(count, side, side)
    elif layer := last_layer(model, images[:1], lambda _, maps: maps.ndim == 4 and min(maps.shape[2:]) >= TELLING):
        name, heat = "Grad-CAM", grad_cam(model, layer, images)
    else:
        return None
    heat = nnf.interpolate(heat[:, None].float(), size=images.shape[2:], mode="bilinear")[:, 0].cpu()
    heat -= heat.amin(dim=(1, 2), keepdim=True)
    return name, heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def features(trained: Trained, images: Tensor) -> Tensor:
    """Inputs (N, C) of the last dense layer for uint8 images (N, 3, 32, 32); of a model without one, probabilities."""
    image, kept = trained.preprocess(images[:1]), []
    last = last_layer(trained.model, image, lambda layer, _: isinstance(layer, nn.Linear))
    if not last:
        return predict(trained, images)
    with last.register_forward_pre_hook(lambda layer, inputs: kept.append(inputs[0].float().flatten(1))):
        predict(trained, images)
    return torch.cat(kept)


def neighbours(queries: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows of `features` (M, C) most like each query (N, C): their indices and cosine similarities, (N, count)."""
    similarities = nnf.normalize(queries) @ nnf.normalize(features).T
    found = similarities.topk(min(count, len(features)))
    return found.indices, found.values


def robustness(models: dict[str, Trained], split: Split, tta: str = "none", seed: int = 0) -> pandas.DataFrame:
    """Accuracy of each model (a column) on a split as it is (the row none, 0), and under each corruption and strength.

    seed: of the noise. Raises InputError if a model has other classes than the split.
    """
    for name, model in models.items():
        if model.classes != split.classes:
            raise InputError(f"others: {name} has other classes than the images; expected runs of the same dataset")

    def accuracies(images: Tensor) -> dict[str, float]:
        return {name: (predict(model, images, tta).argmax(dim=1).cpu() == labels).double().mean().item()
                for name, model in models.items()}

    images, labels = split.images.cpu(), split.labels.cpu()
    rows = {("none", 0): accuracies(images)}
    for kind, (change, _, strengths) in CORRUPTIONS.items():
        for strength in strengths:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                rows[kind, strength] = accuracies(change(images, strength))
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis(["corruption", "strength"])


@styled
def answer_chart(trained: Trained, pixels: Tensor, names: list[str], tta: str = "none") -> Figure:
    """For images uint8 (N, 3, 32, 32), two in a row: each, where the model looked, and its likeliest classes."""
    chances, classes = predict(trained, pixels, tta).cpu(), trained.classes
    seen, model = looked_at(trained, trained.preprocess(pixels)), architecture(trained.config.model).label
    blocks = min(2, len(pixels))
    rows = -(-len(pixels) // blocks)
    figure, axes = new_figure(1.75 * rows + 0.9, rows, 3 * blocks, width=5 * blocks, squeeze=False,
                              gridspec_kw={"width_ratios": [1, 1, 1.3] * blocks})
    for axis in axes.flat:
        axis.axis("off")
    for number, (left, middle, right) in enumerate(axes.reshape(-1, 3)[:len(pixels)]):
        _show(left, pixels[number], names[number])
        if seen:
            _show(middle, pixels[number], seen[0])
            middle.imshow(seen[1][number], cmap="inferno", alpha=0.6, vmin=0, vmax=1)
        top = chances[number].topk(min(BARS, len(classes)))
        bars = right.barh([classes[index] for index in top.indices], top.values, color=COLOURS[5])
        right.bar_label(bars, [f"{value:.1%}" for value in top.values], padding=2, fontsize=8)
        right.set(xlim=(0, 1.4), xticks=[])
        right.axis("on")
        right.spines["bottom"].set_visible(False)
        right.invert_yaxis()
        right.grid(visible=False)
    least = chances.amax(dim=1).argmin()
    answer = f"{classes[chances[least].argmax()]}, {chances[least].max():.1%}"
    title = f"{model}: {answer}" if len(pixels) == 1 else f"{model} is least sure of {names[least]}: {answer}"
    return titled(figure, title, "Bright is where the model looked most, dark where it looked least." if seen else
                  "The model has no attention and no feature map that tells one place from another.")


@styled
def neighbour_chart(trained: Trained, pixels: Tensor, names: list[str], split: Split, count: int = 7) -> Figure:
    """For images uint8 (N, 3, 32, 32), a row each: the images of a split whose features are most like theirs."""
    found = neighbours(features(trained, pixels), features(trained, split.images), count)
    figure, axes = new_figure(1.55 * len(pixels) + 0.7, len(pixels), count + 1, squeeze=False)
    for row, image, name, indices, similarities in zip(axes, pixels, names, *found):
        _show(row[0], image, name)
        for axis, index, similarity in zip(row[1:], indices, similarities):
            _show(axis, split.images[index], f"{split.classes[split.labels[index]]} {similarity:.2f}")
    for axis in axes.flat:
        axis.axis("off")
    model = architecture(trained.config.model).label
    return titled(figure, f"What {model} finds most alike among {len(split):,} training images",
                  "Left: the image. Numbers: cosine similarity of the inputs of the last dense layer.")


def _show(axis, image: Tensor, title: str) -> None:
    """An image uint8 (3, H, W), under its title in at most two lines."""
    axis.imshow(image.permute(1, 2, 0).cpu(), interpolation="nearest")
    axis.set_title("\n".join(textwrap.wrap(title, 18)[:2]), fontsize=8)


def mistake_chart(trained: Trained, split: Split, tta: str = "none") -> Figure | str:
    """The images of a split that the model gets wrong with the highest probability."""
    arrays = (values.cpu().numpy() for values in (split.images, split.labels, predict(trained, split.images, tta)))
    return one_run.mistakes(architecture(trained.config.model).label, trained.classes, *arrays)


@styled
def robustness_chart(table: pandas.DataFrame, count: int) -> Figure:
    """Accuracy against strength: a panel a corruption, a line a model. table: of `robustness`, on `count` images."""
    figure, axes = new_figure(5.4, 2, 3, sharey=True)
    for axis, (kind, (_, unit, strengths)) in zip(axes.flat, CORRUPTIONS.items()):
        values = pandas.concat([table.loc["none"], table.loc[kind]])
        for name, marker in zip(table, "osD^vP*X" * len(table.columns)):
            axis.plot(range(len(values)), values[name], marker=marker, markersize=4, label=name, clip_on=False)
        axis.set(title=kind, xlabel=unit, xticks=range(len(values)), xticklabels=["none", *strengths])
    axes[0, 0].set_ylim(0, 1)
    percent_ticks(axes[0, 0].yaxis)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    if len(table.columns) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower right")
    fall = (table.iloc[0] - table.iloc[1:]).stack()
    kind, strength, name = worst = fall.idxmax()
    before, after = table[name].iloc[0], table[name][worst[:2]]
    change = f"{kind}, {CORRUPTIONS[kind][1]} {strength:g}"
    return titled(figure, f"{name}: {before:.1%} of the images as they are, {after:.1%} under {change}",
                  f"On {count:,} images: differences of less than {196 * (0.5 / count)**0.5:.1f} points may be chance.")


def upload(answer: Callable[[Tensor, list[str]], Figure]) -> VBox:
    """A button that takes a picture from the browser, and below it what `answer` says of its pixels and name."""
    button, shown = FileUpload(accept="image/*", description="a picture"), Output()

    def show(change):
        shown.clear_output()
        with shown:
            for file in change["new"]:
                display(answer(as_tensor(bytes(file["content"]))[None], [file["name"]]))

    button.observe(show, names="value")
    return VBox([button, shown])
