"""Charts of single runs: epochs, confusion, classes, calibration, mistakes."""

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
from .style import (COLOURS, GREY, TRAIN, VALIDATION, legend_above, look_of, new_figure, percent_ticks, styled, titled,
                    whiskers)


@styled
def learning_curves(*histories: pd.DataFrame, names=("",), whose: str = "", table: Table | None = None,
                    reached: str = "") -> Figure:
    """Loss, accuracy (training and validation) and learning rate by epoch, a row a run on the same axes.

    names: of the runs; whose: what the title's numbers, those of the first run, are of; reached: how far it came, as
    History.reached says it. Works from the first epoch on.
    """
    figure, axes = new_figure(0.7 + 2 * len(histories), len(histories), 3, sharex=True, sharey="col", squeeze=False)
    for row, history, name in zip(axes, histories, names):
        _curves(row, history)
        title = row[0].set_title(name, loc="left", fontsize=min(8, 700 / max(1, len(name))))
        title.set_in_layout(False)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    percent_ticks(axes[0, 1].yaxis)  # after all runs: they share the axis
    axes[0, 2].set_ylim(0)
    axes[0, 0].legend()
    message = f"{whose}{_curve_message(histories[0], reached)}"
    stars = any(_best_epoch(history) is not None for history in histories)
    return titled(figure, message, "Stars: the epoch with the best validation accuracy." * stars, table)


@styled
def curves_together(histories: dict[str, pd.DataFrame]) -> Figure:
    """Loss and accuracy of several runs by epoch on one pair of axes, a colour a run.

    histories: by what to call the runs, at most as many as there are COLOURS.
    """
    figure, axes = new_figure(3.9 + 0.18 * len(histories), 1, 2)
    bests = []
    for (name, history), colour in zip(histories.items(), COLOURS):
        best = _best_epoch(history)
        if best is not None:
            bests.append(best)
            name += f": {percent(best['val_accuracy'])} in epoch {best['epoch']:.0f}"
        training = dict(color=colour, linestyle=":", linewidth=1, label=name if best is None else None)
        _lines(axes, history, training, dict(color=colour, label=name))
    for axis in axes:
        axis.set_xlabel("epoch")
    percent_ticks(axes[1].yaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", alignment="left", title_fontsize=8,
                  title="Solid: validation; dotted: training. Stars: the epoch with the best validation accuracy.")
    message = f"{counted(len(histories), 'run')} without a validation"
    if bests:
        first = max(bests, key=lambda best: best["val_accuracy"])
        message = f"best validation accuracy {percent(first['val_accuracy'])}, in epoch {first['epoch']:.0f}"
    return titled(figure, message)


def curves_of_best(table: Table, model: str) -> Figure | str:
    """Learning curves of a model's three best runs."""
    found, name = ranking.best_with(table, ranking.read_history, model, 3), table.looks[model].label
    if not found:
        return f"no history of {name}'s best run beside the table"
    rows, histories = zip(*found)
    whose = f"{name}'s {ranking.first_word(table)} run with a history: "
    return learning_curves(*histories, names=short_labels(table, pd.DataFrame(rows)), whose=whose, table=table)


def _curves(axes, history: pd.DataFrame) -> None:
    look = _lines(axes, history, dict(color=TRAIN, label="training"),
                  dict(color=VALIDATION, linestyle="--", label="validation"))
    rates = history.reindex(columns=["epoch", "learning_rate"]).dropna()
    axes[2].plot(*rates.to_numpy().T, color="black", drawstyle="steps-mid", **look)
    axes[2].set_ylabel("learning rate")
    # 0.00005, not 5e-05 beside 0.0001; and powers of ten would start mathtext, for 0.3 s.
    axes[2].yaxis.set_major_formatter(lambda value, _: np.format_float_positional(float(f"{value:g}"), trim="-"))
    if len(history) == 1:  # else the axes, which share x, are a tenth of an epoch wide
        axes[2].set_xlim(0.5, 1.5)


def _lines(axes, history: pd.DataFrame, train: dict, val: dict) -> dict:
    """Loss and accuracy by epoch on two axes, with a star at the best; returns the look of points.

    train, val: how the lines of the two splits look.
    """
    look = dict(marker="o" if len(history) < 15 else None, markersize=3)
    for axis, metric in zip(axes, ("loss", "accuracy")):
        for split, style in (("train", train), ("val", val)):
            line = history.reindex(columns=["epoch", f"{split}_{metric}"]).dropna()
            if split == "train" or len(line):
                axis.plot(*line.to_numpy().T, **style, **look)
        axis.set_ylabel(metric)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if (best := _best_epoch(history)) is not None:
        axes[1].plot(best["epoch"], best["val_accuracy"], "*", color=val["color"], markersize=11, markeredgewidth=0.5,
                     markeredgecolor="black")
    return look


def _best_epoch(history: pd.DataFrame) -> pd.Series | None:
    validated = history.reindex(columns=["epoch", "val_accuracy", "train_accuracy"]).dropna(subset=["val_accuracy"])
    return validated.loc[validated["val_accuracy"].idxmax()] if len(validated) else None


def _curve_message(history: pd.DataFrame, reached: str) -> str:
    if (best := _best_epoch(history)) is None:
        accuracy = f", training accuracy {percent(history['train_accuracy'].iloc[-1])}" if len(history) else ""
        return f"{reached or counted(len(history), 'epoch')} without a validation{accuracy}"
    last = history["epoch"].max()
    start, of_all = (f"{reached}: ", "") if reached else ("", f" of {last:.0f}")
    end = f", {percent(history['train_accuracy'].iloc[-1])} at the end" if best["epoch"] < last else ""
    return (f"{start}validation accuracy {percent(best['val_accuracy'])} in epoch {best['epoch']:.0f}{of_all};"
            f" training accuracy {percent(best['train_accuracy'])} there{end}")


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
