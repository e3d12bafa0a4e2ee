"""Charts of single runs: epochs, confusion, classes, calibration, mistakes."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...parts import MANY, architectures
from ...words import counted, listed, percent, points
from .. import ranking, statistics
from ..knobs import short_labels
from ..table import Table
from .style import COLOURS, GREY, legend_above, look_of, new_figure, percent_ticks, styled, titled, whiskers


METRICS = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate")


@styled
def learning_curves(runs: pd.DataFrame | dict[str, list[pd.DataFrame]], whose: str = "", table: Table | None = None,
                    reached: str = "") -> Figure:
    """Loss, accuracy and learning rate by epoch on the same axes, a colour a run. Works from the first epoch on.

    runs: the history of a single one, or the histories of each by what to call it, of which the mean is drawn and the
    SD shaded; whose: what the title's numbers, those of the run with the best epoch, are of; reached: how far that
    came, as History.reached says it.
    """
    runs = {"": [runs]} if isinstance(runs, pd.DataFrame) else runs
    named = [name for name in runs if name]
    figure, (axes, below) = new_figure(2.9 + 0.2 * len(named), 2, 3, sharex="row",
                                       height_ratios=(2.4, 0.02 + 0.2 * len(named)))
    types = {"epoch": int} | dict.fromkeys(METRICS, float)
    means = {name: pd.concat(histories).reindex(columns=[*types]).astype(types).groupby("epoch").agg(["mean", "std"])
             for name, histories in runs.items()}
    bests = {name: _best_epoch(epochs) for name, epochs in means.items()}
    for (name, epochs), colour in zip(means.items(), itertools.cycle(COLOURS)):
        look = dict(marker="o" if len(epochs) < 15 else None, markersize=3, color=colour)
        for metric, axis, style in zip(METRICS, axes.repeat(2), (":", "-", ":", "-", "-")):
            line = epochs[metric].dropna(subset="mean")
            axis.plot(line["mean"], style, **look)
            axis.fill_between(line.index, line["mean"] - line["std"], line["mean"] + line["std"], color=colour,
                              alpha=0.2, linewidth=0)
        if (best := bests[name]) is not None:
            axes[1].plot(best.name, best["val_accuracy", "mean"], "*", color=colour, markersize=11,
                         markeredgecolor="black", markeredgewidth=0.5)
            name += f": {percent(best['val_accuracy', 'mean'])} in epoch {best.name}" * bool(name)
        axes[2].plot([], [], color=colour, linewidth=2, label=name)
    for axis, metric in zip(axes, ("loss", "accuracy", "learning rate")):
        axis.set(xlabel="epoch", ylabel=metric)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    percent_ticks(axes[1].yaxis)
    axes[2].set_ylim(0, 1.05 * axes[2].get_ylim()[1])
    # 0.00005, not 5e-05 beside 0.0001; and powers of ten would start mathtext, for 0.3 s.
    axes[2].yaxis.set_major_formatter(lambda value, _: np.format_float_positional(float(f"{value:g}"), trim="-"))
    if max(map(len, means.values())) == 1:  # else the axes are a tenth of an epoch wide
        axes[0].set_xlim(0.5, 1.5)
    for axis in below:
        axis.axis("off")
    if named:  # wider than the axes in whose place it stands
        below[0].legend(*axes[2].get_legend_handles_labels(), loc="upper left", borderaxespad=0).set_in_layout(False)
    first = max(means, key=lambda name: -1 if bests[name] is None else bests[name]["val_accuracy", "mean"])
    note = "Solid: validation; dotted: training. Stars: the epoch with the best validation accuracy."
    note += " Means over seeds, shaded: their SD." * any(len(histories) > 1 for histories in runs.values())
    whose = whose or (f"{first}: " if first else "")
    return titled(figure, whose + _curve_message(means[first], bests[first], reached), note, table)


def curves_of_best(table: Table, model: str) -> Figure | str:
    """Learning curves of a model's three best runs."""
    found, name = ranking.best_with(table, ranking.read_history, model, 3), table.looks[model].label
    if not found:
        return f"no history of {name}'s best run beside the table"
    rows, histories = zip(*found)
    names = short_labels(table, pd.DataFrame(rows))
    return learning_curves({name: [history] for name, history in zip(names, histories)}, f"{name}: ", table)


def _best_epoch(epochs: pd.DataFrame) -> pd.Series | None:
    """The row of the best validation accuracy; None where nothing was validated."""
    validated = epochs.dropna(subset=[("val_accuracy", "mean")])
    return validated.loc[validated["val_accuracy", "mean"].idxmax()] if len(validated) else None


def _curve_message(epochs: pd.DataFrame, best: pd.Series | None, reached: str) -> str:
    train = epochs["train_accuracy", "mean"]
    if best is None:
        at_the_end = f", training accuracy {percent(train.iloc[-1])}" if len(epochs) else ""
        return f"{reached or counted(len(epochs), 'epoch')} without a validation{at_the_end}"
    last = epochs.index[-1]
    start, of_all = (f"{reached}: ", "") if reached else ("", f" of {last}")
    end = f", {percent(train.iloc[-1])} at the end" if best.name < last else ""
    return (f"{start}validation accuracy {percent(best['val_accuracy', 'mean'])} in epoch {best.name}{of_all};"
            f" training accuracy {percent(train[best.name])} there{end}")


@styled
def confusion(matrix, classes: tuple[str, ...], title: str = "", table: Table | None = None) -> Figure:
    """Confusion matrix (row: true class, column: predicted class), coloured by fraction of the true class.

    Up to MANY classes are named, and their counts written.
    """
    matrix = np.asarray(matrix)
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axis = new_figure(6.3, width=7.2)
    image = axis.imshow(fractions, cmap="Purples", norm=PowerNorm(0.5, 0, 1))  # the root makes small fractions visible
    axis.set(xticks=[], yticks=[], xlabel="predicted class", ylabel="true class")
    if len(classes) <= MANY:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                axis.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=8, in_layout=False,  # layout: slow
                          color="white" if fractions[i, j] > 0.3 else "black")
        axis.set(xticks=range(len(classes)), yticks=range(len(classes)), yticklabels=classes)
        axis.set_xticklabels(classes, rotation=40, ha="right", rotation_mode="anchor")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, format=lambda value, _: f"{100 * value:.0f}%", label="share of the true class",
                    shrink=0.8)
    wrong = fractions * (1 - np.eye(len(matrix)))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    message = "no mistakes"
    if wrong.any():
        message = f"{percent(wrong[i, j])} of {classes[i]} images are taken for {classes[j]}, the most frequent mistake"
    return titled(figure, f"{title}: {message}" if title else message, table=table)


@styled
def per_class(accuracies: dict[str, list[float]], n_per_class, classes: tuple[str, ...],
              table: Table | None = None) -> Figure:
    """Accuracy of each class with its 95% Wilson interval; of more than MANY, the first model's weakest.

    accuracies: fractions by model; n_per_class: test images a class, one number or a list.
    """
    shown = np.sort(np.argsort(next(iter(accuracies.values())))[:MANY])
    figure, axis = new_figure(3.8, width=8.5)
    heads, shifts = [], np.linspace(-0.2, 0.2, len(accuracies)) if len(accuracies) > 1 else [0]
    n = np.broadcast_to(np.maximum(n_per_class, 1), len(classes))[shown]
    looks = table.looks if table else architectures(accuracies)
    for shift, (model, values) in zip(shifts, accuracies.items()):
        values, look = np.asarray(values, float)[shown], looks[model]
        interval = whiskers(values, *statistics.wilson(values, n))
        axis.errorbar(np.arange(len(shown)) + shift, values, yerr=interval, linestyle="none", capsize=3, markersize=6,
                      label=look.label, **look_of(look))
        worst = np.nanargmin(values)
        heads.append(f"{look.label} at {classes[shown[worst]]} ({percent(values[worst])})")
    slanted = dict(rotation=60 if len(shown) > 10 else 30, ha="right", rotation_mode="anchor")
    axis.set_xticks(range(len(shown)), [classes[i] for i in shown], **slanted)
    axis.set(ylabel="test accuracy of the class", xlim=(-0.5, len(shown) - 0.3))
    axis.grid(axis="x", visible=False)
    percent_ticks(axis.yaxis)
    legend_above(axis)
    return titled(figure, f"weakest class: {listed(heads)}", "Whiskers: 95% Wilson intervals.", table)


def class_accuracies(table: Table) -> Figure | str:
    """Accuracy of each class for the best run of each model."""
    names = table.data.classes
    if len(names) > MANY:
        return f"{table.data.label} has {len(names)} classes, more than a chart shows one by one"
    columns = [f"test_per_class_accuracy_{name}_{table.checkpoint}" for name in names]
    rows = table.rows.loc[ranking.overall(table).index].reindex(columns=["model", "images", *columns]).dropna()
    if rows.empty:
        return "the table has no accuracy of each class"
    accuracies = rows.set_index("model")[columns].T.to_dict("list")
    return per_class(accuracies, rows["images"].min() / len(names), names, table)


def confusion_of_best(table: Table, model: str) -> Figure | str:
    """Confusion matrix of a model's best run."""
    if not (found := ranking.best_with(table, ranking.read_predictions, model)):
        return _no_predictions(table, model)
    labels, logits = found[0][1]
    matrix = statistics.confusion_matrix(labels, logits.argmax(axis=1), len(table.data.classes))
    return confusion(matrix, table.data.classes, table.looks[model].label, table)


def _no_predictions(table: Table, model: str) -> str:
    return f"no predictions of {table.looks[model].label}'s best run beside the table"


@styled
def calibration(table: Table) -> Figure | str:
    """Reliability diagram of each model's best run, with the share of images in each bin."""
    found = {model: ranking.best_with(table, ranking.read_predictions, model) for model in table.looks}
    found = {model: best[0][1] for model, best in found.items() if best}
    if not found:
        return "no predictions of the best runs beside the table"
    figure, axes = new_figure(4.3, 2, len(found), width=max(5.5, 3.4 * len(found)), sharex=True, sharey="row",
                              height_ratios=(3, 1), squeeze=False)
    heads = []
    for (upper, lower), (model, (labels, logits)) in zip(axes.T, found.items()):
        probabilities, look = statistics.softmax(logits), table.looks[model]
        bins, ece = statistics.calibration(probabilities, labels)
        full = bins[bins["n"] >= 10]
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        interval = whiskers(full["accuracy"], *statistics.wilson(full["accuracy"], full["n"]))
        upper.errorbar(full["confidence"], full["accuracy"], yerr=interval, markersize=4, linewidth=1, capsize=2,
                       **look_of(look))
        upper.set(title=f"{look.label}: ECE {percent(ece)}", xlim=(0, 1), ylim=(0, 1))
        middles = (bins.index + 0.5) / statistics.BINS
        lower.bar(middles, bins["n"] / len(labels), 0.9 / statistics.BINS, color=look.colour)
        lower.set(xlabel="confidence")
        percent_ticks(upper.xaxis, upper.yaxis)
        percent_ticks(lower.yaxis, ticks=2)
        surplus = probabilities.max(axis=1).mean() - (logits.argmax(axis=1) == labels).mean()
        heads.append(f"{look.label} is {'over' if surplus > 0 else 'under'}confident by {points(surplus)}")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    note = ("Dashed: perfectly calibrated. Points: bins of ten images or more, with 95% Wilson intervals. ECE: "
            f"expected calibration error, {statistics.BINS} bins.")
    return titled(figure, listed(heads), note, table)


def confidently_wrong(table: Table, model: str, images: tuple | str | None, n: int = 16) -> Figure | str:
    """The test images that a model's best run gets wrong with the highest probability.

    images: (uint8 (N, 3, 32, 32), labels (N,)) of the test set, of which a run may have used only the first; or why
    there are none.
    """
    if not (found := ranking.best_with(table, ranking.read_predictions, model)):
        return _no_predictions(table, model)
    labels, logits = found[0][1]
    name, classes = table.looks[model].label, table.data.classes
    if not isinstance(images, tuple):
        return images or "no images were given"
    pixels, true = images
    if not np.array_equal(true[:len(labels)], labels):
        return f"the predictions of {name} are of other images than the ones given"
    return mistakes(name, classes, pixels, labels, statistics.softmax(logits), n, table)


@styled
def mistakes(name: str, classes: tuple[str, ...], pixels, labels, probabilities, n: int = 16,
             table: Table | None = None) -> Figure | str:
    """The images that a model, called `name`, gets wrong with the highest probability.

    pixels: uint8 (N, 3, 32, 32) or more; labels: (N,); probabilities: (N, classes); all of them arrays.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = np.where(predicted != labels, probabilities.max(axis=1), 0)
    chosen = [i for i in np.argsort(-confidence, kind="stable")[:n] if confidence[i]]
    if not chosen:
        return f"{name} mistakes no test image"
    lines = -(-len(chosen) // 8)
    figure, axes = new_figure(0.7 + 1.75 * lines, lines, 8)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, chosen):
        axis.imshow(pixels[i].transpose(1, 2, 0), interpolation="nearest")
        axis.set_title(f"{classes[labels[i]]}\n→ {classes[predicted[i]]}\n{100 * confidence[i]:.1f}% sure", fontsize=8)
    sure, mistakes = (confidence > 0.9).sum(), counted((confidence > 0).sum(), "mistake")
    title = f"{name}: {sure} of {mistakes} {'is' if sure == 1 else 'are'} made with more than 90% confidence"
    return titled(figure, title, "Arrows: from an image's class to what it is taken for.", table)
