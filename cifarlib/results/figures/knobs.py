"""Charts of the hyperparameters' influence."""

import math
import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ...words import listed, percent
from .. import knobs, ranking, statistics
from ..sentences import score_text
from ..table import Table, idle_when, label, shown
from .style import LIGHT, WIDTH, jitter, legend, look_of, new_figure, percent_ticks, styled, titled

MOST_LEVELS = 12  # of a knob: more have no room on an axis
MOST_PANELS = 4


def tick_labels(knob: str, values) -> list[str]:
    """A knob's values in lines as short as an axis has room for."""
    return [textwrap.fill(shown(knob, value), 12) for value in values]


@styled
def scores_by_knob(table: Table, model: str) -> Figure | str:
    """Distribution of the score and its best for each value of each knob."""
    rows, look = ranking.ranked(table, model), table.looks[model]
    groups = {knob: rows.groupby(knob)[table.rank_by] for knob in knobs.varying(table, model)}
    groups = {knob: group for knob, group in groups.items() if 1 < len(group) <= MOST_LEVELS}
    if not groups:
        return f"no knob takes 2 to {MOST_LEVELS} values among the ranked runs of {look.label}"
    if len(rows) < 3:
        return f"{look.label} has two ranked runs, which the table of the best compares"
    levels = [len(group) + 0.6 for group in groups.values()]
    figure, axes = new_figure(3.9, 1, len(groups), sharey=True, width_ratios=levels, squeeze=False,
                              width=min(WIDTH, max(6, 1 + 0.9 * sum(levels))))
    point = dict(alpha=0.35, markersize=3, zorder=2) if len(rows) > 60 else dict(alpha=0.8, markersize=5, zorder=4)
    for axis, (knob, group) in zip(axes[0], groups.items()):
        for x, (_, scores) in enumerate(group):
            best = scores.min() if table.lower_is_better else scores.max()
            axis.plot(x + jitter(len(scores)), scores, linestyle="none", markeredgewidth=0, **point, **look_of(look))
            axis.hlines(scores.median(), x - 0.3, x + 0.3, color="black", linewidth=1.5, zorder=3)
            axis.annotate(f"{best:.3f}" if table.lower_is_better else f"{100 * best:.1f}", (x, scores.max()),
                          (0, 5), textcoords="offset points", ha="center", fontsize=7.5)
        names = [tick.replace("exponential", "expo-\nnential") for tick in tick_labels(knob, group.groups)]
        slanted = dict(rotation=30, ha="right", rotation_mode="anchor") if len(groups) > 5 else {}
        axis.set_xticks(range(len(names)), names, **slanted)
        axis.set(title=label(knob), xlim=(-0.6, len(names) - 0.4))
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(table.score)
    axes[0, 0].margins(y=0.1)
    if not table.lower_is_better:
        percent_ticks(axes[0, 0].yaxis)
    note = f"A point a {'configuration, by one seed' if len(ranking.finalists(table)) else 'run'}; bars: medians; "
    note += "numbers: the best" + ("." if table.lower_is_better else ", in percent.")
    for knob in groups:
        if where := [f"{label(field)} {shown(field, value)}" for field, values in idle_when(knob).items()
                     for value in values if (rows[field] == value).any()]:
            note += f" {label(knob).capitalize()}: without the runs of {listed(where)}, where it does nothing."
    if len(cells := knobs.cells(table, model)) < (full := math.prod(map(len, groups.values()))):
        note += f" {len(cells)} of the {full} cells of these values were run, so they are not compared like for like."
    title = f"{look.label}: {table.score} by knob, the highest is {score_text(table, rows[table.rank_by].iloc[0])}"
    return titled(figure, title, note, table)


def heatmap_knobs(table: Table, model: str) -> list[str]:
    """Those of the two axes and of the panels: the two with most values, then one of names, else of the most values."""
    levels = knobs.cells(table, model).dropna(subset="score")[knobs.varying(table, model)].nunique()
    levels = levels[levels.between(2, MOST_LEVELS)].sort_values(ascending=False, kind="stable")
    named = [knob for knob in levels.index[2:] if not knobs.is_number(table.rows[knob])]
    panels = [knob for knob in [*named, *levels.index[2:]] if levels[knob] <= MOST_PANELS]
    return [*levels.index[:2], *panels[:1]]


@styled
def heatmap(table: Table, model: str) -> Figure | str:
    """Best score at each pair of values of two knobs, a panel for each value of a third one."""
    import seaborn  # a fifth of a second, which the notebooks of runs needn't wait for

    grid, name = knobs.cells(table, model).dropna(subset="score"), table.looks[model].label
    chosen = heatmap_knobs(table, model)
    if len(chosen) < 2:
        return f"no two knobs take 2 to {MOST_LEVELS} values for {name}"
    if table.lower_is_better:
        return f"heatmaps show accuracies, not {table.score}"
    y, x, *panel = chosen
    best = grid.groupby([*panel, y, x])["score"].max()
    if len(best) < (full := math.prod(best.index.levshape)) * 2 / 3:
        return f"{len(best)} of the {full} cells of {name}'s heatmap were run"
    highest, lowest = best.max(), grid.loc[~grid["chance"], "score"].min()
    lowest = best[best >= lowest].min() if lowest < highest else highest - 0.01
    rows, columns = (sorted(grid[knob].dropna().unique()) for knob in (y, x))
    panels = sorted(grid[panel[0]].dropna().unique()) if panel else [None]
    figure, axes = new_figure(1.7 + 0.5 * len(rows), 1, len(panels), sharey=True, squeeze=False,
                              width=max(6.5, WIDTH * len(panels) / 3))
    colours = matplotlib.colormaps["cividis"].with_extremes(bad="white", under=LIGHT)
    for axis, value in zip(axes[0], panels):
        values = (best[value] if panel else best).unstack().reindex(index=rows, columns=columns)
        seaborn.heatmap(values, vmin=lowest, vmax=highest, cmap=colours, cbar=False, annot=100 * values, fmt=".1f",
                        annot_kws={"fontsize": 8}, ax=axis,
                        xticklabels=tick_labels(x, columns), yticklabels=tick_labels(y, rows))
        faces = axis.collections[0].get_facecolors()[values.notna().to_numpy().ravel()]
        for text, face in zip(axis.texts, faces):  # seaborn's own choice is too pale to read
            text.set_color("black" if face[:3] @ (0.299, 0.587, 0.114) > 0.46 else "white")
        for i, j in np.argwhere(values.isna()):
            axis.text(j + 0.5, i + 0.5, "not run", ha="center", va="center", fontsize=8)
        axis.set(xlabel=label(x), ylabel="", title=f"{label(panel[0])} {shown(panel[0], value)}" if panel else "")
        axis.tick_params(length=2, rotation=0)
    axes[0, 0].invert_yaxis()  # all of them: they share it
    axes[0, 0].set_ylabel(label(y))
    bar = figure.colorbar(axes[0, 0].collections[0], ax=axes[0].tolist(), label=table.score, pad=0.02)
    percent_ticks(bar.ax.yaxis)
    at = dict(zip(best.index.names, best.idxmax()))
    best_cell = ", ".join(f"{label(knob)} {shown(knob, at[knob])}" for knob in chosen)
    title = f"{name}: the highest {table.score} is {percent(highest)} ({best_cell})"
    note = "Best over the other knobs, in percent; of repeats their mean."
    note += " Grey: at chance." if best.min() < lowest else ""
    return titled(figure, title, note, table)


@styled
def importance(table: Table) -> Figure | str:
    """Fractions of the score's variance by knob and pair of knobs, a panel a model."""
    found = {model: fractions for model in table.looks if (fractions := knobs.importance(table, model))}
    if not found:
        return "no model has a grid in which two knobs vary and enough cells were run"
    figure, axes = new_figure(4.2, 1, len(found), width=WIDTH if len(found) > 1 else 7, squeeze=False)
    heads = {}
    for axis, (model, (fractions, basis)) in zip(axes[0], found.items()):
        look = table.looks[model]
        fractions = fractions.drop("rest").sort_values(ascending=False, kind="stable").head(7)
        names = [" x\n".join(map(label, effect.split(" x "))) for effect in fractions.index] + ["all the rest"]
        fractions["rest"] = max(0.0, 1 - fractions.sum())
        axis.barh(range(len(fractions)), fractions, color=[look.colour] * (len(fractions) - 1) + [LIGHT])
        for y, fraction in enumerate(fractions):
            text = f"{100 * fraction:.0f}%" if fraction >= 0.005 else "<0.5%"
            axis.text(fraction + 0.015, y, text, va="center", fontsize=8)
        axis.set_yticks(range(len(fractions)), names, fontsize=7)
        axis.set(xlim=(0, 1), xlabel="share of variance")
        axis.set_title(textwrap.fill(f"{look.label}: {basis}", 40 if len(found) > 1 else 80), loc="left", fontsize=8)
        axis.invert_yaxis()
        percent_ticks(axis.xaxis, ticks=3)
        axis.grid(axis="y", visible=False)
        head = f"{100 * fractions.iloc[0]:.0f}% of {look.label}'s variance"
        heads.setdefault(names[0].replace("\n", " "), []).append(head)
    title = "; ".join(f"{effect} explains {listed(parts)}" for effect, parts in heads.items())
    return titled(figure, title, f"Functional ANOVA of the grid's {table.score}.", table)


@styled
def expected_best(table: Table) -> Figure | str:
    """Expected best score among k random runs."""
    scores = {model: ranking.candidates(table, model)[table.rank_by].dropna() for model in table.looks}
    scores = {model: values for model, values in scores.items() if len(values) > 4}
    if not scores or table.lower_is_better:
        return "no model has five accuracies to draw from"
    figure, axis = new_figure(3.6, width=7.5)
    heads = []
    for model, values in scores.items():
        curve, look = statistics.expected_best(values), table.looks[model]
        axis.plot(range(1, len(curve) + 1), curve, markevery=0.15 if len(curve) > 20 else 1,
                  label=f"{look.label} ({len(curve)} runs)", **look_of(look))
        heads.append(f"{np.argmax(curve >= curve[-1] - 0.01) + 1} for {look.label}")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="runs tried, drawn at random (log scale)", ylabel=f"expected best {table.score}")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    percent_ticks(axis.yaxis)
    legend(axis, loc="lower right")
    title = f"Random runs needed to come within one point of the highest: {listed(heads)}"
    return titled(figure, title, table=table)
