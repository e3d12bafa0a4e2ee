"""Charts of single runs: epochs, confusion, classes, calibration, mistakes."""

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...parts import CIFAR10_CLASSES as CLASSES
from ...words import counted, listed, percent, points
from .. import ranking, statistics
from ..table import LABELS, Table
from .style import COLOURS, GREY, MARKERS, TRAIN, VALIDATION, legend_above, new_figure, percent_ticks, styled, titled, whiskers


@styled
def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy (training and validation) and learning rate by epoch; works from the first epoch on."""
    figure, axes = new_figure(3.3, 1, 3)
    _curves(axes, history)
    axes[0].legend()
    return titled(figure, _curve_message(history))


def _curves(axes, history: pd.DataFrame) -> None:
    marker = dict(marker="o" if len(history) < 15 else None, markersize=3)
    for axis, metric in zip(axes, ("loss", "accuracy")):
        for split, name, style in (("train", "training", dict(color=TRAIN)),
                                   ("val", "validation", dict(color=VALIDATION, linestyle="--"))):
            line = history.reindex(columns=["epoch", f"{split}_{metric}"]).dropna()
            axis.plot(*line.to_numpy().T, label=name, **style, **marker)
        axis.set(ylabel=metric, xlabel="epoch")
    if (best := _best_epoch(history)) is not None:
        axes[1].plot(best["epoch"], best["val_accuracy"], "*", color=VALIDATION, markersize=11, markeredgecolor="black", markeredgewidth=0.5)
    percent_ticks(axes[1].yaxis)
    rates = history.reindex(columns=["epoch", "learning_rate"]).dropna().to_numpy().T
    axes[2].plot(*rates, color="black", drawstyle="steps-mid", **marker)
    axes[2].set(ylabel="learning rate", xlabel="epoch", ylim=(0, 1.05 * rates[1].max(initial=0) or None))
    # 0.00005, not 5e-05 beside 0.0001; and powers of ten would start mathtext, for 0.3 s.
    axes[2].yaxis.set_major_formatter(lambda value, _: np.format_float_positional(float(f"{value:g}"), trim="-"))
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if len(history) == 1:  # else the axis is a tenth of an epoch wide
            axis.set_xlim(0.5, 1.5)


def _best_epoch(history: pd.DataFrame) -> pd.Series | None:
    validated = history.reindex(columns=["epoch", "val_accuracy", "train_accuracy"]).dropna(subset=["val_accuracy"])
    return validated.loc[validated["val_accuracy"].idxmax()] if len(validated) else None


def _curve_message(history: pd.DataFrame) -> str:
    if (best := _best_epoch(history)) is None:
        return f"{counted(len(history), 'epoch')}, not validated yet"
    last = history["epoch"].max()
    end = f", {percent(history['train_accuracy'].iloc[-1])} at the end" if best["epoch"] < last else ""
    return (f"validation accuracy {percent(best['val_accuracy'])} in epoch {best['epoch']:.0f} of {last:.0f}; "
            f"training accuracy {percent(best['train_accuracy'])} there{end}")


@styled
def curves_of_best(table: Table, model: str) -> Figure | str:
    """Learning curves of a model's three best runs, a row each."""
    found = ranking.best_with(table, ranking.read_history, model, 3)
    if not found:
        return f"no histories of {LABELS[model]}'s best runs beside the table"
    figure, axes = new_figure(0.7 + 2.2 * len(found), len(found), 3, squeeze=False)
    for line, (row, history) in zip(axes, found):
        _curves(line, history)
        name = row["Full_Modelname"]
        line[0].set_title(name, loc="left", fontsize=min(8, 700 / len(name))).set_in_layout(False)
    for axis in axes[:-1].flat:
        axis.set_xlabel("")
    axes[0, 0].legend()
    title = f"{LABELS[model]}'s best run with a history: {_curve_message(found[0][1])}"
    return titled(figure, title, "Stars: the epoch with the best validation accuracy.", table)


@styled
def confusion(matrix, title: str = "", table: Table | None = None) -> Figure:
    """Confusion matrix (row: true class, column: predicted class) with counts, coloured by share of the true class."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axis = new_figure(6.3, width=7.2)
    image = axis.imshow(shares, cmap="Purples", norm=PowerNorm(0.5, 0, 1))  # the root makes small shares visible
    for (i, j), count in np.ndenumerate(matrix):
        if count:
            axis.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if shares[i, j] > 0.3 else "black", in_layout=False)  # which a hundred texts would slow down
    axis.set(xticks=range(len(matrix)), yticks=range(len(matrix)), yticklabels=CLASSES, xlabel="predicted class", ylabel="true class")
    axis.set_xticklabels(CLASSES, rotation=40, ha="right", rotation_mode="anchor")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, format=lambda value, _: f"{100 * value:.0f}%", label="share of the true class", shrink=0.8)
    wrong = shares * (1 - np.eye(len(matrix)))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    message = f"{percent(wrong[i, j])} of {CLASSES[i]} images are taken for {CLASSES[j]}, the most frequent mistake" if wrong.any() else "no mistakes"
    return titled(figure, f"{title}: {message}" if title else message, table=table)


@styled
def per_class(accuracies, n_per_class, table: Table | None = None) -> Figure:
    """Accuracy of each class with its 95% Wilson interval.

    accuracies: fractions of one run, or a dict of model to fractions. n_per_class: test images a class, one or a list.
    """
    by_model = accuracies if isinstance(accuracies, dict) else {"": accuracies}
    figure, axis = new_figure(3.8, width=8.5)
    heads = []
    shifts = np.linspace(-0.2, 0.2, len(by_model)) if len(by_model) > 1 else [0]
    for shift, (model, values) in zip(shifts, by_model.items()):
        values, places = np.asarray(values, float), np.arange(len(CLASSES)) + shift
        axis.errorbar(places, values, yerr=whiskers(values, *statistics.wilson(values, np.maximum(n_per_class, 1))), fmt=MARKERS.get(model, "o"),
                      capsize=3, color=COLOURS.get(model, COLOURS["resnet"]), markersize=6, label=LABELS.get(model))
        worst, best = (f"{CLASSES[i]} ({percent(values[i])})" for i in (np.nanargmin(values), np.nanargmax(values)))
        heads.append(f"{LABELS[model]} at {worst}" if model else f"best at {best}, weakest at {worst}")
        if not model:
            for place, value in zip(places, values):
                axis.annotate(f"{100 * value:.1f}", (place, value), (6, 0), textcoords="offset points", fontsize=7.5, va="center")
    axis.set_xticks(range(len(CLASSES)), CLASSES)
    axis.set(ylabel="test accuracy of the class", xlim=(-0.5, len(CLASSES) - 0.3))
    axis.grid(axis="x", visible=False)
    percent_ticks(axis.yaxis)
    if "" not in by_model:
        legend_above(axis)
        heads = [f"weakest class: {listed(heads)}"]
    return titled(figure, heads[0], "Whiskers: 95% Wilson intervals.", table)


def class_accuracies(table: Table) -> Figure | str:
    """Accuracy of each class for the best run of each model."""
    rows = table.rows.loc[ranking.overall(table).index].reindex(columns=["model", "images", *(
        f"test_per_class_accuracy_{name}_{table.checkpoint}" for name in CLASSES)]).dropna()
    if rows.empty:
        return "the table has no accuracy of each class"
    return per_class(rows.set_index("model").drop(columns="images").T.to_dict("list"), rows["images"].min() / len(CLASSES), table)


def confusion_of_best(table: Table, model: str) -> Figure | str:
    """Confusion matrix of a model's best run."""
    if not (found := ranking.best_with(table, ranking.read_predictions, model)):
        return _no_predictions(model)
    labels, logits = found[0][1]
    return confusion(statistics.confusion_matrix(labels, logits.argmax(axis=1)), LABELS[model], table)


def _no_predictions(model: str) -> str:
    return f"no predictions of {LABELS[model]}'s best run beside the table"


@styled
def calibration(table: Table) -> Figure | str:
    """Reliability diagram of each model's best run, with the share of images in each bin."""
    found = {model: pair[0][1] for model in table.models if (pair := ranking.best_with(table, ranking.read_predictions, model))}
    if not found:
        return "no predictions of the best runs beside the table"
    figure, axes = new_figure(4.3, 2, len(found), width=max(5.5, 3.4 * len(found)), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    heads = []
    for (upper, lower), (model, (labels, logits)) in zip(axes.T, found.items()):
        probabilities = statistics.softmax(logits)
        bins, ece = statistics.calibration(probabilities, labels)
        full = bins[bins["n"] >= 10]
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        upper.errorbar(full["confidence"], full["accuracy"], yerr=whiskers(full["accuracy"], *statistics.wilson(full["accuracy"], full["n"])),
                       fmt=MARKERS[model] + "-", color=COLOURS[model], markersize=4, linewidth=1, capsize=2)
        upper.set(title=f"{LABELS[model]}: ECE {percent(ece)}", xlim=(0, 1), ylim=(0, 1.02))
        lower.bar((bins.index + 0.5) / statistics.BINS, bins["n"] / len(labels), 0.9 / statistics.BINS, color=COLOURS[model])
        lower.set(xlabel="confidence")
        percent_ticks(upper.xaxis, upper.yaxis)
        percent_ticks(lower.yaxis, ticks=2)
        surplus = probabilities.max(axis=1).mean() - (logits.argmax(axis=1) == labels).mean()
        heads.append(f"{LABELS[model]} is {'over' if surplus > 0 else 'under'}confident by {points(surplus)}")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    note = ("Dashed: perfectly calibrated. Points: bins of ten images or more, with 95% Wilson intervals. ECE: "
            f"expected calibration error, {statistics.BINS} bins.")
    return titled(figure, listed(heads), note, table)


@styled
def confidently_wrong(table: Table, model: str, images: tuple | None, n: int = 16) -> Figure | str:
    """The test images that a model's best run gets wrong with the highest probability.

    images: (uint8 (N, 3, 32, 32), labels (N,)) of the test set; a run may have used only the first of them.
    """
    if not (found := ranking.best_with(table, ranking.read_predictions, model)):
        return _no_predictions(model)
    labels, logits = found[0][1]
    if images is None:
        return "CIFAR-10 is not here; data_dir may name its folder"
    pixels, true = images
    if not np.array_equal(true[:len(labels)], labels):
        return f"the predictions of {LABELS[model]} are of other images than the ones given"
    probabilities, predicted = statistics.softmax(logits), logits.argmax(axis=1)
    confidence = np.where(predicted != labels, probabilities.max(axis=1), 0)
    chosen = [i for i in np.argsort(-confidence, kind="stable")[:n] if confidence[i]]
    if not chosen:
        return f"{LABELS[model]} mistakes no test image"
    lines = -(-len(chosen) // 8)
    figure, axes = new_figure(0.7 + 1.75 * lines, lines, 8)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, chosen):
        axis.imshow(pixels[i].transpose(1, 2, 0), interpolation="nearest")
        axis.set_title(f"is {CLASSES[labels[i]]}\ntaken for {CLASSES[predicted[i]]}\n{100 * confidence[i]:.1f}% sure", fontsize=8)
    sure, mistakes = (confidence > 0.9).sum(), counted((confidence > 0).sum(), "mistake")
    return titled(figure, f"{LABELS[model]}: {sure} of {mistakes} {'is' if sure == 1 else 'are'} made with more than 90% confidence", table=table)
