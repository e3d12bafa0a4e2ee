"""Charts of the hyperparameters' influence."""

import math
import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...config import SCHEDULES
from ...words import knob_value, listed, percent, points
from .. import knobs, ranking, statistics
from ..table import KNOBS, LABELS, Table
from .style import COLOURS, LIGHT, MARKERS, WIDTH, jitter, new_figure, percent_ticks, styled, titled


@styled
def scores_by_knob(table: Table, model: str) -> Figure | str:
    """Distribution of the score and its best for each value of each knob."""
    rows = ranking.ranked(table, model)
    groups = {knob: table.acting(rows, knob).groupby(knob)[table.rank_by] for knob in KNOBS}
    groups = {knob: group for knob, group in groups.items() if len(group) > 1}
    if not groups:
        return f"no knob takes two values among the ranked runs of {LABELS[model]}"
    if len(rows) < 3:
        return f"{LABELS[model]} has two ranked runs, which the table of the best compares"
    levels = [len(group) + 0.6 for group in groups.values()]
    figure, axes = new_figure(3.9, 1, len(groups), sharey=True, width_ratios=levels, squeeze=False, width=min(WIDTH, max(6, 1 + 0.9 * sum(levels))))
    point = dict(alpha=0.35, markersize=3, zorder=2) if len(rows) > 60 else dict(alpha=0.8, markersize=5, zorder=4)
    best = {knob: group.min() if table.lower_is_better else group.max() for knob, group in groups.items()}
    for axis, (knob, group) in zip(axes[0], groups.items()):
        names = []
        for place, ((value, scores), score) in enumerate(zip(group, best[knob])):
            axis.plot(place + jitter(len(scores)), scores, MARKERS[model], color=COLOURS[model], markeredgewidth=0, **point)
            axis.hlines(scores.median(), place - 0.3, place + 0.3, color="black", linewidth=1.5, zorder=3)
            axis.annotate(f"{score:.3f}" if table.lower_is_better else f"{100 * score:.1f}", (place, scores.max()),
                          (0, 5), textcoords="offset points", ha="center", fontsize=7.5)
            names.append(knob_value(value).replace("exponential", "expo-\nnential"))
        axis.set(xticks=range(len(names)), xticklabels=names, title=KNOBS[knob], xlim=(-0.6, len(names) - 0.4))
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(table.score)
    axes[0, 0].margins(y=0.1)
    if not table.lower_is_better:
        percent_ticks(axes[0, 0].yaxis)
    spans = pd.Series({KNOBS[knob]: values.max() - values.min() for knob, values in best.items()}).sort_values(ascending=False)
    first, last = (f"{span:.3f}" if table.lower_is_better else points(span) for span in (spans.iloc[0], spans.iloc[-1]))
    title, full = f"{spans.index[0]} moves the best score most ({first})", math.prod(map(len, groups.values()))
    if len(cells := knobs.cells(table, model)) < full:
        title = f"{len(cells)} of the {full} cells of these values were run, so they are not compared like for like"
    elif len(spans) > 1:
        title = f"{title}, {spans.index[-1]} least ({last})" if first != last else f"{listed(spans.index)} move the best score alike ({first})"
    note = f"A point a {'configuration, by one seed' if len(ranking.finalists(table)) else 'run'}; bars: medians; numbers: the best"
    note += "." if table.lower_is_better else ", in percent."
    note += " Gamma: without cosine runs, where it does nothing." if "gamma" in groups else ""
    return titled(figure, f"{LABELS[model]}: {title}", note, table)


@styled
def heatmap(table: Table, model: str) -> Figure | str:
    """Best score at each learning rate and weight decay, a panel a schedule."""
    import seaborn  # a fifth of a second, which the notebooks of runs needn't wait for

    grid = knobs.cells(table, model).dropna(subset="score")
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
    figure, axes = new_figure(1.7 + 0.5 * len(rates), 1, len(schedules), sharey=True, squeeze=False, width=max(6.5, WIDTH * len(schedules) / 3))
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
    percent_ticks(figure.colorbar(axes[0, 0].collections[0], ax=axes[0].tolist(), label=table.score, pad=0.02).ax.yaxis)
    schedule, rate, decay = best.idxmax()
    best_cell = f"learning rate {rate:g}, weight decay {decay:g}, {schedule} schedule"
    title = f"{LABELS[model]}: {table.score} {percent(highest)} at best ({best_cell})"
    note = f"Best over the other knobs, in percent; of repeats their mean.{' Grey: at chance.' if best.min() < lowest else ''}"
    return titled(figure, title, note, table)


@styled
def importance(table: Table) -> Figure | str:
    """Shares of the score's variance by knob and pair of knobs, a panel a model."""
    found = {model: share for model in table.models if (share := knobs.importance(table, model))}
    if not found:
        return "no model has a grid in which two knobs vary and enough cells were run"
    figure, axes = new_figure(4.2, 1, len(found), width=WIDTH if len(found) > 1 else 7, squeeze=False)
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
        percent_ticks(axis.xaxis, ticks=3)
        axis.grid(axis="y", visible=False)
        heads.setdefault(names[0].replace("\n", " "), []).append(f"{100 * shares.iloc[0]:.0f}% of {LABELS[model]}'s variance")
    title = "; ".join(f"{effect} explains {listed(shares)}" for effect, shares in heads.items())
    return titled(figure, title, f"Functional ANOVA of the grid's {table.score}.", table)


@styled
def expected_best(table: Table) -> Figure | str:
    """Expected best score among k random runs."""
    scores = {model: ranking.candidates(table, model)[table.rank_by].dropna() for model in table.models}
    scores = {model: values for model, values in scores.items() if len(values) > 4}
    if not scores or table.lower_is_better:
        return "no model has five accuracies to draw from"
    figure, axis = new_figure(3.6, width=7.5)
    heads = []
    for model, values in scores.items():
        curve = statistics.expected_best(values)
        axis.plot(range(1, len(curve) + 1), curve, color=COLOURS[model], marker=MARKERS[model], markevery=0.15 if len(curve) > 20 else 1,
                  label=f"{LABELS[model]} ({len(curve)} runs)")
        heads.append(f"{np.argmax(curve >= curve[-1] - 0.01) + 1} for {LABELS[model]}")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="runs tried, drawn at random (log scale)", ylabel=f"expected best {table.score}")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    percent_ticks(axis.yaxis)
    axis.legend(loc="lower right")
    return titled(figure, f"Random runs needed to come within one point of the grid's best: {listed(heads)}", table=table)
