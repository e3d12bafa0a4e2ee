"""The charts: each function takes tables and returns a matplotlib Figure whose title says what the data says."""

import math
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from . import results
from .config import CLASSES, SCHEDULES
from .results import KNOBS, LABELS, Table, wilson
from .sentences import chance_sentence
from .words import against, counted, duration, in_words, knob_value, listed, percent, points, signed

# Okabe and Ito's colours for the colour blind, of different lightness for a print in black and white; a marker each.
COLOURS = {"cnn": "#E69F00", "resnet": "#0072B2", "vit": "#009E73"}
MARKERS = {"cnn": "o", "resnet": "s", "vit": "^"}
TRAIN, VALIDATION, GREY, LIGHT = "#56B4E9", "#D55E00", "#666666", "#DDDDDD"
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
         "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False,
         "axes.axisbelow": True,
         "axes.grid": True, "grid.color": "#E6E6E6", "legend.frameon": False, "hatch.color": "white",
         "hatch.linewidth": 0.8,
         "svg.hashsalt": "cifarlib", "figure.dpi": 100}
WIDTH = 10  # inches
_styled = matplotlib.rc_context(STYLE)  # decorates a function that draws with STYLE and leaves the caller's settings alone


@_styled
def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write NAME.png and NAME.svg and return the first: the same figure gives the same bytes (no date, a fixed salt for the SVG's ids)."""
    png, svg = (Path(folder) / f"{name}.{kind}" for kind in ("png", "svg"))
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:  # the layout's last digits differ from run to run, and the SVG's ids with them
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
    figure.savefig(png, dpi=120, metadata={"Software": None})
    with Image.open(png) as picture:  # 256 colours look the same at a third of the size
        picture.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(png, optimize=True)
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png


def _new(height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **options):
    """(figure, its axes); the figure is closed in pyplot at once, so no notebook shows it twice."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
    plt.close(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return figure, axes


def _titled(figure: Figure, title: str, note: str = "", table: Table | None = None) -> Figure:
    characters = int(figure.get_size_inches()[0] * 9.6)
    title = ("SYNTHETIC DATA, NOT CIFAR-10. " if table and table.synthetic else "") + title[0].upper() + title[1:]
    figure.suptitle(_wrapped(title, characters), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    if note:
        figure.supxlabel(_wrapped(note[0].upper() + note[1:], int(characters * 1.75)), x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def _wrapped(text: str, most: int) -> str:
    """Lines of about equal length: no last line with a single word."""
    lines = len(textwrap.wrap(text, most))
    return next(textwrap.fill(text, width) for width in range(max(1, len(text) // lines), most + 1) if len(textwrap.wrap(text, width)) == lines)


def _percent_ticks(*sides, ticks: int = 5) -> None:
    """Round percentages, with the decimals they need, on the given x or y axes."""
    for side in sides:
        side.set_major_locator(MaxNLocator(ticks, steps=(1, 2, 5, 10)))
        side.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")


def _legend(axis) -> None:
    """In one line above the axes, where no point can lie."""
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)


def _jitter(n: int) -> np.ndarray:
    """The same sideways shifts each time, none for up to three points."""
    return np.random.default_rng(0).uniform(-0.27, 0.27, n) if n > 3 else np.zeros(n)


def _whiskers(values, low, high) -> np.ndarray:
    """Lengths below and above, as errorbar takes them; where an interval ends at its value, rounding would make one negative."""
    return np.maximum([values - low, high - values], 0)


# ------------------------------------------------------------------ the best runs


@_styled
def top5(table: Table, model: str) -> Figure:
    """A model's five best runs: test accuracy and test per-class accuracy, the noise floor, 95% Wilson intervals."""
    best, noise = results.top(table, model), results.noise_floor(table, model)
    title = f"the one run reaches {percent(best['test'].iloc[0])}"
    if len(best) > 1:
        gap, margin = best["test"].max() - best["test"].min(), noise.margin(len(best))
        title = f"the best {in_words(len(best))} runs differ by {points(gap)}, {against(gap, margin, noise.name)} ({points(margin)})"
    return _bars(table, best, noise, f"{LABELS[model]}: {title}")


@_styled
def overall_top5(table: Table) -> Figure:
    """The best run of each model."""
    best = results.overall(table)
    first = best.iloc[0]
    gaps = [f"{points(first['test'] - row['test'])} {'ahead of' if first['test'] >= row['test'] else 'behind'} {LABELS[row['model']]}"
            for _, row in best.iloc[1:].iterrows()]
    verdict = "is best" if first["test"] == best["test"].max() else f"ranks first by {table.score}, on test images"
    title = f"{LABELS[first['model']]} {verdict} with {percent(first['test'])}, {listed(gaps)}" if gaps else (
        f"the only model, {LABELS[first['model']]}, reaches {percent(first['test'])}")
    return _bars(table, best, results.noise_floor(table, first["model"]), title)


def _bars(table: Table, best: pd.DataFrame, noise: results.Noise, title: str) -> Figure:
    """Bars from zero on the left, the same accuracies enlarged with their uncertainty on the right."""
    figure, (left, right) = _new(1.5 + 0.72 * len(best), 1, 2, width_ratios=(2.2, 1), sharey=True)
    experiments = best["experiment"].tolist()
    for place, (_, row) in enumerate(best.iterrows()):
        colour, label = COLOURS[row["model"]], (lambda text: text if place == 0 else None)
        repeat = experiments.index(row["experiment"])
        name = row["name"] + (f"  (same experiment as no. {repeat + 1})" if repeat < place else "")
        left.text(0.004, place - 0.36, name, fontsize=min(8.5, 740 / len(name)), va="center")
        left.barh(place - 0.1, row["test"], 0.25, color=colour, label=label("test accuracy"))
        left.barh(place + 0.17, row["per_class"], 0.25, color=colour, alpha=0.55, hatch="///", edgecolor="white",
                  linewidth=0, label=label("test per-class accuracy (mean over classes)"))
        for value, offset in ((row["test"], -0.1), (row["per_class"], 0.17)):
            left.text(value + 0.008, place + offset, percent(value), fontsize=8, va="center")
        right.errorbar(row["test"], place, xerr=_whiskers(row["test"], row["low"], row["high"])[:, None], capsize=3,
                       markersize=6, fmt=MARKERS[row["model"]], color=colour, label=label("run, 95% interval"))
    if len(again := best.assign(place=np.arange(len(best)) + 0.25).query("runs > 1")):
        right.errorbar(again["mean"], again["place"], xerr=again["sd"], fmt="D", color="black", markersize=3.5, capsize=2, linewidth=1,
                       label="repeats, mean and SD")
    middle = best["test"].iloc[0]
    right.axvspan(middle - noise.margin(), middle + noise.margin(), color=LIGHT, zorder=0, label=noise.name.replace("noise", "noise floor"))
    left.set(ylim=(len(best) - 0.5, -0.6), xlim=(0, 1.13), yticks=[])
    _percent_ticks(left.xaxis, ticks=6)
    _percent_ticks(right.xaxis)
    below = -0.48 / figure.get_size_inches()[1]
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=2, borderaxespad=0, handlelength=1.4)
    note = f"Ranked by {table.ranking}. The band: two {noise.alike} differ by less in 95% of cases"
    if len(best) > 2 and best["model"].nunique() == 1:
        note += f", {in_words(len(best))} by less than the title's number"
    return _titled(figure, title, f"{note}. Noise floor: {noise.text}.", table)


@_styled
def finalists(table: Table) -> Figure | str:
    """Configurations run with several seeds: every seed's test accuracy, mean and SD."""
    shown = results.finalists(table).head(15)
    if shown.empty:
        return "nothing was run with several seeds"
    figure, axis = _new(1.4 + 0.5 * len(shown))
    runs = table.runs
    for place, (experiment, row) in enumerate(shown.iterrows()):
        values = runs.loc[runs["experiment"] == experiment, table.tested]
        axis.plot(values, np.full(len(values), place), MARKERS[row["model"]], color=COLOURS[row["model"]], alpha=0.75, markersize=6)
        axis.errorbar(row["test"], place + 0.22, xerr=row["sd"], fmt="D", color="black", markersize=4, capsize=3, linewidth=1)
        label = f"{row['name']}:  {percent(row['test'])}, SD {100 * row['sd']:.2f}, n {row['runs']}"
        axis.annotate(label, (0, place - 0.27), (4, 0), ("axes fraction", "data"), "offset points", va="center",
                      fontsize=min(8.5, 1000 / len(label)))
    axis.set(ylim=(len(shown) - 0.5, -0.6), yticks=[], xlabel="test accuracy, a point a run")
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    _percent_ticks(axis.xaxis, ticks=8)
    first = shown.iloc[0]
    title = f"a {LABELS[first['model']]} reaches {percent(first['test'])} on average over {counted(first['runs'], first['repeat'])}"
    if len(shown) > 1:
        gap = first["test"] - shown["test"].iloc[1]
        noises = [results.noise_floor(table, model) for model in shown["model"].head(2)]
        margin = results.margin_of_means(noises, shown["runs"].head(2))
        title += (f", {points(gap)} {'above' if gap >= 0 else 'below'} the next configuration, "
                  f"{against(gap, margin, results.joint_name(noises))} of two such means ({points(margin)})")
    return _titled(figure, title, f"Ordered by mean {table.ranking}. Diamonds: mean and SD.", table)


@_styled
def all_runs(table: Table) -> Figure:
    """Every run's test accuracy, runs at chance included."""
    runs, untested = table.runs.dropna(subset=[table.tested]), table.runs[table.tested].isna()
    figure, axis = _new(1.3 + 0.75 * len(table.models))
    labels = []
    for place, model in enumerate(table.models):
        mine, without = runs[runs["model"] == model], (untested & (table.runs["model"] == model)).sum()
        mine = mine.assign(y=place + _jitter(len(mine)))
        labels.append(f"{LABELS[model]} ({len(mine)})" + (f"\nand {without} without a score" if without else ""))
        for chance, style in ((False, dict(marker=MARKERS[model], color=COLOURS[model], linewidths=0)),
                              (True, dict(marker="x", color=GREY, linewidths=0.8))):
            chosen = mine[mine["chance"] == chance]
            axis.scatter(chosen[table.tested], chosen["y"], s=18, alpha=0.6, **style)
    axis.axvline(results.CHANCE, color=GREY, linewidth=1, linestyle="--")
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 1), ylim=(len(labels) - 0.5, -0.5),
             xlabel=f"test accuracy (dashed: guessing{'; crosses: runs at chance' if runs['chance'].any() else ''})")
    _percent_ticks(axis.xaxis)
    axis.grid(axis="y", visible=False)
    note = "Heights within a model only keep the points apart." if runs["model"].value_counts().max() > 3 else ""
    return _titled(figure, chance_sentence(table).rstrip("."), note, table)


# ------------------------------------------------------------------ knobs


@_styled
def knobs(table: Table, model: str) -> Figure | str:
    """Distribution of the score and its best for each value of each knob."""
    rows = results.ranked(table, model)
    groups = {knob: results.acting(rows, knob).groupby(knob)[table.rank_by] for knob in KNOBS}
    groups = {knob: group for knob, group in groups.items() if len(group) > 1}
    if not groups:
        return f"no knob takes two values among the ranked runs of {LABELS[model]}"
    if len(rows) < 3:
        return f"{LABELS[model]} has two ranked runs, which the table of the best compares"
    levels = [len(group) + 0.6 for group in groups.values()]
    figure, axes = _new(3.9, 1, len(groups), sharey=True, width_ratios=levels, squeeze=False, width=min(WIDTH, max(6, 1 + 0.9 * sum(levels))))
    point = dict(alpha=0.35, markersize=3, zorder=2) if len(rows) > 60 else dict(alpha=0.8, markersize=5, zorder=4)
    best = {knob: group.min() if table.lower_is_better else group.max() for knob, group in groups.items()}
    for axis, (knob, group) in zip(axes[0], groups.items()):
        names = []
        for place, ((value, scores), score) in enumerate(zip(group, best[knob])):
            axis.plot(place + _jitter(len(scores)), scores, MARKERS[model], color=COLOURS[model], markeredgewidth=0, **point)
            axis.hlines(scores.median(), place - 0.3, place + 0.3, color="black", linewidth=1.5, zorder=3)
            axis.annotate(f"{score:.3f}" if table.lower_is_better else f"{100 * score:.1f}", (place, scores.max()),
                          (0, 5), textcoords="offset points", ha="center", fontsize=7.5)
            names.append(knob_value(value).replace("exponential", "expo-\nnential"))
        axis.set(xticks=range(len(names)), xticklabels=names, title=KNOBS[knob], xlim=(-0.6, len(names) - 0.4))
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(table.score)
    axes[0, 0].margins(y=0.1)
    if not table.lower_is_better:
        _percent_ticks(axes[0, 0].yaxis)
    spans = pd.Series({KNOBS[knob]: values.max() - values.min() for knob, values in best.items()}).sort_values(ascending=False)
    first, last = (f"{span:.3f}" if table.lower_is_better else points(span) for span in (spans.iloc[0], spans.iloc[-1]))
    title, full = f"{spans.index[0]} moves the best score most ({first})", math.prod(map(len, groups.values()))
    if len(cells := results.cells(table, model)) < full:
        title = f"{len(cells)} of the {full} cells of these values were run, so they are not compared like for like"
    elif len(spans) > 1:
        title = f"{title}, {spans.index[-1]} least ({last})" if first != last else f"{listed(spans.index)} move the best score alike ({first})"
    note = f"A point a {'configuration, by one seed' if len(results.finalists(table)) else 'run'}; bars: medians; numbers: the best"
    note += "." if table.lower_is_better else ", in percent."
    note += " Gamma: without cosine runs, where it does nothing." if "gamma" in groups else ""
    return _titled(figure, f"{LABELS[model]}: {title}", note, table)


@_styled
def heatmap(table: Table, model: str) -> Figure | str:
    """Best score at each learning rate and weight decay, a panel a schedule."""
    import seaborn  # a fifth of a second, which the notebooks of runs needn't wait for

    grid = results.cells(table, model).dropna(subset="score")
    rates, decays = sorted(grid["learning_rate"].unique()), sorted(grid["weight_decay"].unique())
    if len(rates) < 2 and len(decays) < 2:
        return f"no two learning rates or weight decays to compare for {LABELS[model]}"
    if table.lower_is_better:
        return f"heatmaps show accuracies, not {table.score}"
    if len(grid) < 3:
        return f"{LABELS[model]} has two cells, which the table of the best compares"
    best = grid.groupby(["scheduler", "learning_rate", "weight_decay"])["score"].max()
    highest, lowest = best.max(), grid.loc[~grid["chance"], "score"].min()
    lowest = best[best >= lowest].min() if lowest < highest else highest - 0.01
    schedules = [schedule for schedule in SCHEDULES if schedule in best]
    figure, axes = _new(1.7 + 0.5 * len(rates), 1, len(schedules), sharey=True, squeeze=False, width=max(6.5, WIDTH * len(schedules) / 3))
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="white", under=LIGHT)
    for axis, schedule in zip(axes[0], schedules):
        values = best[schedule].unstack().reindex(index=rates, columns=decays)
        seaborn.heatmap(values, vmin=lowest, vmax=highest, cmap=colours, cbar=False, annot=100 * values, fmt=".1f", annot_kws={"fontsize": 8},
                        xticklabels=list(map(knob_value, decays)), yticklabels=list(map(knob_value, rates)), ax=axis)
        for text, colour in zip(axis.texts, axis.collections[0].get_facecolors()[values.notna().to_numpy().ravel()]):
            text.set_color("black" if colour[:3] @ (0.299, 0.587, 0.114) > 0.46 else "white")  # seaborn's own choice is too pale to read
        for i, j in np.argwhere(values.isna()):
            axis.text(j + 0.5, i + 0.5, "not run", ha="center", va="center", fontsize=8)
        axis.set(xlabel="weight decay", ylabel="", title=schedule)
        axis.tick_params(length=2, rotation=0)
    axes[0, 0].invert_yaxis()  # all of them: they share it
    axes[0, 0].set_ylabel("learning rate")
    _percent_ticks(figure.colorbar(axes[0, 0].collections[0], ax=axes[0].tolist(), label=table.score, pad=0.02).ax.yaxis)
    schedule, rate, decay = best.idxmax()
    best_cell = f"learning rate {rate:g}, weight decay {decay:g}, {schedule} schedule"
    title = f"{LABELS[model]}: {table.score} {percent(highest)} at best ({best_cell})"
    note = f"Best over the other knobs, in percent; of repeats their mean.{' Grey: at chance.' if best.min() < lowest else ''}"
    return _titled(figure, title, note, table)


@_styled
def importance(table: Table) -> Figure | str:
    """Shares of the score's variance by knob and pair of knobs, a panel a model."""
    found = {model: share for model in table.models if (share := results.importance(table, model))}
    if not found:
        return "no model has a grid in which two knobs vary and enough cells were run"
    figure, axes = _new(4.2, 1, len(found), width=WIDTH if len(found) > 1 else 7, squeeze=False)
    heads = {}
    for axis, (model, (shares, basis)) in zip(axes[0], found.items()):
        shares = shares.drop("rest").sort_values(ascending=False, kind="stable").head(7)
        names = [" x\n".join(KNOBS[knob] for knob in effect.split(" x ")) for effect in shares.index] + ["all the rest"]
        shares["rest"] = max(0.0, 1 - shares.sum())
        axis.barh(range(len(shares)), shares, color=[COLOURS[model]] * (len(shares) - 1) + [LIGHT])
        for place, share in enumerate(shares):
            axis.text(share + 0.015, place, f"{100 * share:.0f}%" if share >= 0.005 else "<0.5%", va="center", fontsize=8)
        axis.set_yticks(range(len(shares)), names, fontsize=7)
        axis.set(xlim=(0, 1.15), xlabel="share of variance")
        axis.set_title(textwrap.fill(f"{LABELS[model]}: {basis}", 40 if len(found) > 1 else 80), loc="left", fontsize=8)
        axis.invert_yaxis()
        _percent_ticks(axis.xaxis, ticks=3)
        axis.grid(axis="y", visible=False)
        heads.setdefault(names[0].replace("\n", " "), []).append(f"{100 * shares.iloc[0]:.0f}% of {LABELS[model]}'s variance")
    title = "; ".join(f"{effect} explains {listed(shares)}" for effect, shares in heads.items())
    return _titled(figure, title, f"Functional ANOVA of the grid's {table.score}.", table)


@_styled
def expected_best(table: Table) -> Figure | str:
    """Expected best score among k random runs."""
    scores = {model: results.candidates(table, model)[table.rank_by].dropna() for model in table.models}
    scores = {model: values for model, values in scores.items() if len(values) > 4}
    if not scores or table.lower_is_better:
        return "no model has five accuracies to draw from"
    figure, axis = _new(3.6, width=7.5)
    heads = []
    for model, values in scores.items():
        curve = results.expected_best(values)
        axis.plot(range(1, len(curve) + 1), curve, color=COLOURS[model], marker=MARKERS[model], markevery=0.15 if len(curve) > 20 else 1,
                  label=f"{LABELS[model]} ({len(curve)} runs)")
        heads.append(f"{np.argmax(curve >= curve[-1] - 0.01) + 1} for {LABELS[model]}")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="runs tried, drawn at random (log scale)", ylabel=f"expected best {table.score}")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _percent_ticks(axis.yaxis)
    axis.legend(loc="lower right")
    return _titled(figure, f"Random runs needed to come within one point of the grid's best: {listed(heads)}", table=table)


# ------------------------------------------------------------------ single runs


@_styled
def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy (training and validation) and learning rate by epoch; works from the first epoch on."""
    figure, axes = _new(3.3, 1, 3)
    _curves(axes, history)
    axes[0].legend()
    return _titled(figure, _curve_message(history))


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
    _percent_ticks(axes[1].yaxis)
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


@_styled
def curves_of_best(table: Table, model: str) -> Figure | str:
    """Learning curves of a model's three best runs, a row each."""
    found = results.best_with(table, results.read_history, model, 3)
    if not found:
        return f"no histories of {LABELS[model]}'s best runs beside the table"
    figure, axes = _new(0.7 + 2.2 * len(found), len(found), 3, squeeze=False)
    for line, (row, history) in zip(axes, found):
        _curves(line, history)
        name = row["Full_Modelname"]
        line[0].set_title(name, loc="left", fontsize=min(8, 700 / len(name))).set_in_layout(False)
    for axis in axes[:-1].flat:
        axis.set_xlabel("")
    axes[0, 0].legend()
    title = f"{LABELS[model]}'s best run with a history: {_curve_message(found[0][1])}"
    return _titled(figure, title, "Stars: the epoch with the best validation accuracy.", table)


@_styled
def confusion(matrix, title: str = "", table: Table | None = None) -> Figure:
    """Confusion matrix (row: true class, column: predicted class) with counts, coloured by share of the true class."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axis = _new(6.3, width=7.2)
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
    return _titled(figure, f"{title}: {message}" if title else message, table=table)


@_styled
def per_class(accuracies, n_per_class, table: Table | None = None) -> Figure:
    """Accuracy of each class with its 95% Wilson interval.

    accuracies: fractions of one run, or a dict of model to fractions. n_per_class: test images a class, one or a list.
    """
    by_model = accuracies if isinstance(accuracies, dict) else {"": accuracies}
    figure, axis = _new(3.8, width=8.5)
    heads = []
    shifts = np.linspace(-0.2, 0.2, len(by_model)) if len(by_model) > 1 else [0]
    for shift, (model, values) in zip(shifts, by_model.items()):
        values, places = np.asarray(values, float), np.arange(len(CLASSES)) + shift
        axis.errorbar(places, values, yerr=_whiskers(values, *wilson(values, np.maximum(n_per_class, 1))), fmt=MARKERS.get(model, "o"),
                      capsize=3, color=COLOURS.get(model, COLOURS["resnet"]), markersize=6, label=LABELS.get(model))
        worst, best = (f"{CLASSES[i]} ({percent(values[i])})" for i in (np.nanargmin(values), np.nanargmax(values)))
        heads.append(f"{LABELS[model]} at {worst}" if model else f"best at {best}, weakest at {worst}")
        if not model:
            for place, value in zip(places, values):
                axis.annotate(f"{100 * value:.1f}", (place, value), (6, 0), textcoords="offset points", fontsize=7.5, va="center")
    axis.set_xticks(range(len(CLASSES)), CLASSES)
    axis.set(ylabel="test accuracy of the class", xlim=(-0.5, len(CLASSES) - 0.3))
    axis.grid(axis="x", visible=False)
    _percent_ticks(axis.yaxis)
    if "" not in by_model:
        _legend(axis)
        heads = [f"weakest class: {listed(heads)}"]
    return _titled(figure, heads[0], "Whiskers: 95% Wilson intervals.", table)


def class_accuracies(table: Table) -> Figure | str:
    """Accuracy of each class for the best run of each model."""
    rows = table.rows.loc[results.overall(table).index].reindex(columns=["model", "images", *(
        f"test_per_class_accuracy_{name}_{table.checkpoint}" for name in CLASSES)]).dropna()
    if rows.empty:
        return "the table has no accuracy of each class"
    return per_class(rows.set_index("model").drop(columns="images").T.to_dict("list"), rows["images"].min() / len(CLASSES), table)


def confusion_of_best(table: Table, model: str) -> Figure | str:
    """Confusion matrix of a model's best run."""
    if not (found := results.best_with(table, results.read_predictions, model)):
        return _no_predictions(model)
    labels, logits = found[0][1]
    return confusion(results.confusion_matrix(labels, logits.argmax(axis=1)), LABELS[model], table)


def _no_predictions(model: str) -> str:
    return f"no predictions of {LABELS[model]}'s best run beside the table"


@_styled
def calibration(table: Table) -> Figure | str:
    """Reliability diagram of each model's best run, with the share of images in each bin."""
    found = {model: pair[0][1] for model in table.models if (pair := results.best_with(table, results.read_predictions, model))}
    if not found:
        return "no predictions of the best runs beside the table"
    figure, axes = _new(4.3, 2, len(found), width=max(5.5, 3.4 * len(found)), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    heads = []
    for (upper, lower), (model, (labels, logits)) in zip(axes.T, found.items()):
        probabilities = results.softmax(logits)
        bins, ece = results.calibration(probabilities, labels)
        full = bins[bins["n"] >= 10]
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
        upper.errorbar(full["confidence"], full["accuracy"], yerr=_whiskers(full["accuracy"], *wilson(full["accuracy"], full["n"])),
                       fmt=MARKERS[model] + "-", color=COLOURS[model], markersize=4, linewidth=1, capsize=2)
        upper.set(title=f"{LABELS[model]}: ECE {percent(ece)}", xlim=(0, 1), ylim=(0, 1.02))
        lower.bar((bins.index + 0.5) / results.BINS, bins["n"] / len(labels), 0.9 / results.BINS, color=COLOURS[model])
        lower.set(xlabel="confidence")
        _percent_ticks(upper.xaxis, upper.yaxis)
        _percent_ticks(lower.yaxis, ticks=2)
        surplus = probabilities.max(axis=1).mean() - (logits.argmax(axis=1) == labels).mean()
        heads.append(f"{LABELS[model]} is {'over' if surplus > 0 else 'under'}confident by {points(surplus)}")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    note = ("Dashed: perfectly calibrated. Points: bins of ten images or more, with 95% Wilson intervals. ECE: "
            f"expected calibration error, {results.BINS} bins.")
    return _titled(figure, listed(heads), note, table)


@_styled
def confidently_wrong(table: Table, model: str, images: tuple | None, n: int = 16) -> Figure | str:
    """The test images that a model's best run gets wrong with the highest probability.

    images: (uint8 (N, 3, 32, 32), labels (N,)) of the test set; a run may have used only the first of them.
    """
    if not (found := results.best_with(table, results.read_predictions, model)):
        return _no_predictions(model)
    labels, logits = found[0][1]
    if images is None:
        return "CIFAR-10 is not here; data_dir may name its folder"
    pixels, true = images
    if not np.array_equal(true[:len(labels)], labels):
        return f"the predictions of {LABELS[model]} are of other images than the ones given"
    probabilities, predicted = results.softmax(logits), logits.argmax(axis=1)
    confidence = np.where(predicted != labels, probabilities.max(axis=1), 0)
    chosen = [i for i in np.argsort(-confidence, kind="stable")[:n] if confidence[i]]
    if not chosen:
        return f"{LABELS[model]} mistakes no test image"
    lines = -(-len(chosen) // 8)
    figure, axes = _new(0.7 + 1.75 * lines, lines, 8)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, chosen):
        axis.imshow(pixels[i].transpose(1, 2, 0), interpolation="nearest")
        axis.set_title(f"is {CLASSES[labels[i]]}\ntaken for {CLASSES[predicted[i]]}\n{100 * confidence[i]:.1f}% sure", fontsize=8)
    sure, mistakes = (confidence > 0.9).sum(), counted((confidence > 0).sum(), "mistake")
    return _titled(figure, f"{LABELS[model]}: {sure} of {mistakes} {'is' if sure == 1 else 'are'} made with more than 90% confidence", table=table)


@_styled
def cost(table: Table) -> Figure | str:
    """Test accuracy against training time and against the number of weights."""
    rows = results.candidates(table).dropna(subset=[table.tested])
    shown = {column: label for column, label in (("seconds", "training time, seconds (log scale)"), ("parameters", "weights (log scale)"))
             if column in rows and (rows[column] > 0).any()}
    if len(shown) > 1 and rows["parameters"].nunique() == 1:  # they tell nothing apart
        del shown["parameters"]
    if not shown:
        return "the table has no training times and no numbers of weights"
    best = rows.loc[results.overall(table).index]
    figure, axes = _new(3.6, 1, len(shown), sharey=True, squeeze=False)
    point = dict(s=16, alpha=0.4) if len(rows) > 60 else dict(s=30, alpha=0.8)
    for axis, (column, label) in zip(axes[0], shown.items()):
        for model in table.models:
            style = dict(marker=MARKERS[model], color=COLOURS[model])
            mine, first = rows[rows["model"] == model], best[best["model"] == model]
            axis.scatter(mine[column], mine[table.tested], linewidths=0, **point, **style)
            axis.scatter(first[column], first[table.tested], s=75, edgecolor="black", label=LABELS[model], zorder=3, **style)
        axis.set(xscale="log", xlabel=label)
        axis.margins(x=0.12)
        _log_ticks(axis)
    axes[0, 0].set_ylabel("test accuracy")
    _percent_ticks(axes[0, 0].yaxis)
    _legend(axes[0, -1])
    heads = []
    for _, row in best.iterrows():
        time = f" in {duration(row['seconds'])}" if "seconds" in shown and pd.notna(row["seconds"]) else ""
        heads.append(f"{LABELS[row['model']]}'s best run reaches {percent(row[table.tested])}{time}")
    note = "Large: the best runs."
    if "seconds" in shown:
        unlike = [f"different {column}s" for column in ("device", "precision") if column in rows and rows[column].nunique() > 1]
        note += f" Times: as they were, with {listed(['other work beside them', *unlike])}."
    return _titled(figure, "; ".join(heads), note, table)


def _log_ticks(axis) -> None:
    """Plain numbers on a log axis, at least three of them."""
    low, high = axis.get_xlim()
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for ticks in (powers, np.outer(powers, (1, 3)).ravel(), np.outer(powers, (1, 2, 5)).ravel(),
                  MaxNLocator(4).tick_values(low, high)):
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    axis.set_xticks(ticks, [f"{t / 1e6:.4g}M" if t >= 1e6 else f"{t / 1e3:.4g}k" if t >= 1e4 else f"{t:.4g}" for t in ticks])
    axis.minorticks_off()


# ------------------------------------------------------------------ two tables


@_styled
def comparison(first: Table, second: Table) -> Figure | str:
    """The experiments of two tables against each other, and the distribution of their differences."""
    both = results.compare(first, second)
    if both.empty:
        return "the two tables have no experiment in common"
    figure, (left, right) = _new(4.4, 1, 2)
    models = [model for model in LABELS if (both["model"] == model).any()]
    point = dict(s=18, alpha=0.6) if len(both) > 60 else dict(s=32, alpha=0.9)
    heads = []
    for place, model in enumerate(models):
        mine = both[both["model"] == model]
        style = dict(marker=MARKERS[model], color=COLOURS[model], linewidths=0, **point)
        left.scatter(mine["first"], mine["second"], **style)
        right.scatter(100 * mine["difference"], place + _jitter(len(mine)), **style)
        right.vlines(100 * mine["difference"].median(), place - 0.35, place + 0.35, color="black")
        heads.append(f"{LABELS[model]} {signed(mine['difference'].median())}")
    limits = left.get_xlim(), left.get_ylim()
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    left.set(xlabel=f"test accuracy in {first.name}", ylabel=f"test accuracy in {second.name}", xlim=limits[0], ylim=limits[1])
    _percent_ticks(left.xaxis, left.yaxis)
    right.axvline(0, color=GREY, linewidth=1, linestyle="--")
    right.set(yticks=range(len(models)), yticklabels=[LABELS[m] for m in models], ylim=(len(models) - 0.5, -0.5),
              xlabel=f"points higher in {second.name}")
    right.grid(axis="y", visible=False)
    title = f"'{second.name}' against '{first.name}', median difference in points: {listed(heads)}"
    return _titled(figure, title, f"{counted(len(both), 'experiment')} in both tables. Bars: medians.", second if second.synthetic else first)


# ------------------------------------------------------------------ speed


@_styled
def throughput(names: list[str], reference: list[list[float]], ours: list[list[float]], shares: list[float], limit: str) -> Figure:
    """Speed of the plain reference and of this package, a pair of bars a model; and how near that is to the machine's limit.

    reference, ours: images per second, round by round; shares: of the limit, in [0, 1]; limit: what it is, in words.
    """
    figure, (left, right) = _new(1.6 + 0.75 * len(names), 1, 2, width_ratios=(2.2, 1), sharey=True)
    medians, longest = [], 1.0
    for place, (name, theirs, mine, share) in enumerate(zip(names, reference, ours, shares)):
        ratios = np.divide(mine, theirs)
        medians.append(float(np.median(ratios)))
        longest = max(longest, *ratios)
        left.barh(place - 0.17, 1, 0.3, color="#BBBBBB", label="plain reference" if place == 0 else None)
        left.barh(place + 0.17, medians[-1], 0.3, color=COLOURS[name])
        left.plot([min(ratios), max(ratios)], [place + 0.17] * 2, color="black", linewidth=1)
        for offset, end, speed in ((-0.17, 1, np.median(theirs)), (0.17, max(ratios), np.median(mine))):
            text = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
            left.annotate(f"{text} images/s", (end, place + offset), (5, 0), textcoords="offset points", va="center", fontsize=8)
        right.barh(place, share, 0.5, color=COLOURS[name])
        right.text(share + 0.015, place, f"{share:.0%}", va="center", fontsize=8)
    left.set(xlabel="times the reference's speed, training and validation", xlim=(0, 1.25 * longest))
    left.set_yticks(range(len(names)), [LABELS[name] for name in names])
    left.invert_yaxis()
    right.set(xlim=(0, 1.1), xlabel="share of the machine's own matrix rate")
    _percent_ticks(right.xaxis)
    _legend(left)
    heads = listed(f"{LABELS[name]} {ratio:.1f}" for name, ratio in zip(names, medians))
    return _titled(figure, f"times as fast as the plain reference: {heads}",
                   f"Coloured: this package. Bars: medians of the rounds' ratios; black lines: lowest to highest. Matrix rate: {limit}.")


# ------------------------------------------------------------------ all of them

PER_MODEL = {"top5": top5, "knobs": knobs, "heatmap": heatmap, "learning_curves": curves_of_best, "confusion": confusion_of_best}
PER_TABLE = {"overall_top5": overall_top5, "all_runs": all_runs, "finalists": finalists, "importance": importance,
             "expected_best": expected_best, "per_class": class_accuracies, "calibration": calibration, "cost": cost}
KINDS = (*PER_MODEL, "wrong", *PER_TABLE, "comparison")


def write_figures(table: Table, folder: str | Path, *kinds: str, images=None, other: Table | None = None) -> list[Path]:
    """Write the figures of the given kinds (default: all of KINDS) as PNG and SVG; returns the PNGs' paths.

    Prints a line for figures that the table gives no ground for, and removes their files of an earlier table. images:
    what confidently_wrong takes; other: the table to compare with.
    """
    written, left_out = [], {}
    for kind in kinds or KINDS:
        for name, drawn in _drawn(table, kind, images, other):
            if isinstance(drawn, Figure):
                written.append(save(drawn, folder, name))
                continue
            left_out.setdefault(drawn, []).append(name)
            for suffix in ("png", "svg"):
                (Path(folder) / f"{name}.{suffix}").unlink(missing_ok=True)
    for reason, names in left_out.items():
        print(f"Left out: {', '.join(names)} ({reason}).")
    return written


def _drawn(table: Table, kind: str, images, other: Table | None) -> Iterator[tuple[str, Figure | str]]:
    """The figures of a kind, one by one: file name, and the figure or why there is none."""
    if kind == "comparison":
        yield kind, comparison(other, table) if other else "no second table was given (compare_with)"
    elif kind in PER_TABLE:
        yield kind, PER_TABLE[kind](table) if len(results.ranked(table)) else "no run in this table can be ranked"
    else:
        draw = partial(confidently_wrong, images=images) if kind == "wrong" else PER_MODEL[kind]
        for model in LABELS:
            yield f"{model}_{kind}", draw(table, model) if len(results.ranked(table, model)) else f"no ranked {LABELS[model]} run in this table"
