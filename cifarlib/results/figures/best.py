"""Charts of the best runs, of all runs, and of two tables."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...parts import architectures
from ...words import counted, duration, listed, percent, points, signed
from .. import knobs, ranking
from ..sentences import beside_noise, chance_sentence, gap_sentence, range_sentence
from ..table import Table
from .style import (GREY, LIGHT, jitter, legend_above, log_ticks, look_of, new_figure, percent_ticks, styled, titled,
                    whiskers)


@styled
def top5(table: Table, model: str) -> Figure:
    """A model's five best runs: test accuracy and test per-class accuracy, the noise floor, 95% Wilson intervals."""
    best = ranking.top(table, model)
    title = range_sentence(table, model) if len(best) > 1 else f"the one run reaches {percent(best['test'].iloc[0])}"
    return _bars(table, best, f"{table.looks[model].label}: {title}")


@styled
def overall_top5(table: Table) -> Figure:
    """The best run of each model."""
    best = ranking.overall(table)
    title = f"the only model, {table.looks[best['model'].iloc[0]].label}, reaches {percent(best['test'].iloc[0])}"
    return _bars(table, best, gap_sentence(table, best.iloc[0], best.iloc[1]) if len(best) > 1 else title)


def _bars(table: Table, best: pd.DataFrame, title: str) -> Figure:
    """Bars from zero on the left, the same accuracies enlarged with their uncertainty on the right."""
    noise = ranking.noise_floor(table, best["model"].iloc[0])
    figure, (left, right) = new_figure(1.5 + 0.72 * len(best), 1, 2, width_ratios=(2.2, 1), sharey=True)
    experiments = best["experiment"].tolist()
    for y, (_, row) in enumerate(best.iterrows()):
        look, label = table.looks[row["model"]], (lambda text: text if y == 0 else None)
        repeat = experiments.index(row["experiment"])
        name = row["name"] + (f"  (same experiment as no. {repeat + 1})" if repeat < y else "")
        left.text(0.004, y - 0.36, name, fontsize=min(8.5, 740 / len(name)), va="center")
        left.barh(y - 0.1, row["test"], 0.25, color=look.colour, label=label("test accuracy"))
        left.barh(y + 0.17, row["per_class"], 0.25, color=look.colour, alpha=0.55, hatch="///", edgecolor="white",
                  linewidth=0, label=label("test per-class accuracy (mean over classes)"))
        for value, offset in ((row["test"], -0.1), (row["per_class"], 0.17)):
            left.text(value + 0.008, y + offset, percent(value), fontsize=8, va="center")
        right.errorbar(row["test"], y, xerr=whiskers(row["test"], row["low"], row["high"])[:, None], capsize=3,
                       markersize=6, linestyle="none", label=label("run, 95% interval"), **look_of(look))
    if len(again := best.assign(y=np.arange(len(best)) + 0.25).query("runs > 1")):
        right.errorbar(again["mean"], again["y"], xerr=again["sd"], fmt="D", color="black", markersize=3.5, capsize=2,
                       linewidth=1, label="repeats, mean and SD")
    middle = best["test"].iloc[0]
    right.axvspan(middle - noise.margin(), middle + noise.margin(), color=LIGHT, zorder=0,
                  label=noise.name.replace("noise", "noise floor"))
    left.set(ylim=(len(best) - 0.5, -0.6), xlim=(0, 1.13), yticks=[])
    percent_ticks(left.xaxis, ticks=6)
    percent_ticks(right.xaxis)
    below = -0.48 / figure.get_size_inches()[1]
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=2, borderaxespad=0, handlelength=1.4)
    note = f"Ranked by {table.ranking}. The band: two {noise.alike} differ by less in 95% of cases. "
    return titled(figure, title, f"{note}Noise floor: {noise.text}.", table)


@styled
def finalists(table: Table) -> Figure | str:
    """Configurations run with several seeds: every seed's test accuracy, mean and SD."""
    shown = ranking.finalists(table).head(15)
    if shown.empty:
        return "nothing was run with several seeds"
    figure, axis = new_figure(1.4 + 0.5 * len(shown))
    runs = table.runs
    for y, (experiment, row) in enumerate(shown.iterrows()):
        values = runs.loc[runs["experiment"] == experiment, table.tested]
        axis.plot(values, np.full(len(values), y), linestyle="none", alpha=0.75, markersize=6,
                  **look_of(table.looks[row["model"]]))
        axis.errorbar(row["test"], y + 0.22, xerr=row["sd"], fmt="D", color="black", markersize=4, capsize=3,
                      linewidth=1)
        label = f"{row['name']}:  {percent(row['test'])}, SD {100 * row['sd']:.2f}, n {row['runs']}"
        axis.annotate(label, (0, y - 0.27), (4, 0), ("axes fraction", "data"), "offset points", va="center",
                      fontsize=min(8.5, 1000 / len(label)))
    axis.set(ylim=(len(shown) - 0.5, -0.6), yticks=[], xlabel="test accuracy, a point a run")
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    percent_ticks(axis.xaxis, ticks=8)
    first = shown.iloc[0]
    title = (f"a {table.looks[first['model']].label} reaches {percent(first['test'])} on average over "
             f"{counted(first['runs'], first['repeat'])}")
    if len(shown) > 1:
        gap, two = first["test"] - shown["test"].iloc[1], shown.head(2)
        title += (f", {points(gap)} {'above' if gap >= 0 else 'below'} the next configuration, "
                  + beside_noise(table, gap, two["model"], two["runs"], " of two such means"))
    return titled(figure, title, f"Ordered by mean {table.ranking}. Diamonds: mean and SD.", table)


@styled
def all_runs(table: Table) -> Figure:
    """Every run's test accuracy, runs at chance included."""
    runs, untested = table.runs.dropna(subset=[table.tested]), table.runs[table.tested].isna()
    figure, axis = new_figure(1.3 + 0.75 * len(table.looks))
    labels = []
    for y, (model, look) in enumerate(table.looks.items()):
        mine, without = runs[runs["model"] == model], (untested & (table.runs["model"] == model)).sum()
        mine = mine.assign(y=y + jitter(len(mine)))
        labels.append(f"{look.label} ({len(mine)})" + (f"\nand {without} without a score" if without else ""))
        for chance, style in ((False, dict(linewidths=0, **look_of(look))),
                              (True, dict(marker="x", color=GREY, linewidths=0.8))):
            chosen = mine[mine["chance"] == chance]
            axis.scatter(chosen[table.tested], chosen["y"], s=18, alpha=0.6, **style)
    axis.axvline(1 / len(table.data.classes), color=GREY, linewidth=1, linestyle="--")
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 1), ylim=(len(labels) - 0.5, -0.5),
             xlabel=f"test accuracy (dashed: guessing{'; crosses: runs at chance' if runs['chance'].any() else ''})")
    percent_ticks(axis.xaxis)
    axis.grid(axis="y", visible=False)
    note = "Heights within a model only keep the points apart." if runs["model"].value_counts().max() > 3 else ""
    return titled(figure, chance_sentence(table).rstrip("."), note, table)


@styled
def accuracy_by_minutes(tables: list[Table]) -> Figure:
    """Every run of several studies: test accuracy against minutes of training, beside the best published accuracies."""
    runs = pd.concat([table.runs[["model", "epochs"]].assign(
        tested=table.runs[table.tested], views=table.runs[table.views], minutes=table.runs["seconds"] / 60)
        for table in tables])
    runs["shown"] = runs["views"].fillna(runs["tested"])
    figure, axis = new_figure(3.9)
    looks = architectures(runs["model"])
    published = [look.published_best for look in looks.values() if look.published_best]
    for model, look in looks.items():
        mine = runs[runs["model"] == model]
        axis.plot(mine["minutes"], mine["shown"], linestyle="none", markersize=7, alpha=0.8, label=look.label,
                  **look_of(look))
        if look.published_best:
            axis.axhline(look.published_best, color=look.colour, linestyle="--", linewidth=1)
            below = any(0 < other - look.published_best < 0.02 for other in published)
            axis.annotate(f"{look.label}: best published run, 80 epochs", (0.12, look.published_best),
                          (0, -9 if below else 2), ("axes fraction", "data"), "offset points", fontsize=7.5,
                          color=look.colour)
    log_ticks(axis)
    axis.set(xlabel="minutes of training on two cores", ylabel="test accuracy", ylim=(None, 1))
    percent_ticks(axis.yaxis)
    axis.legend(loc="lower left")
    best = runs.groupby(["model", "epochs"])[["shown", "minutes"]].mean().sort_values("shown").iloc[-1]
    name = looks[best.name[0]].label
    several = runs.dropna(subset=["views"])
    note = "Points: runs of several studies, on different processors, some of them with one thread. "
    if len(several):
        note += (f"Accuracies of {listed(look.label for look in architectures(several['model']).values())} are by six "
                 f"views of each test image, by single ones {points((several['shown'] - several['tested']).mean())} "
                 "lower. ")
    return titled(figure, f"{name} reaches {percent(best['shown'])} in {best['minutes']:.0f} minutes on average", note)


@styled
def cost(table: Table) -> Figure | str:
    """Test accuracy against training time and against the number of weights."""
    rows = ranking.candidates(table).dropna(subset=[table.tested])
    axis_labels = {"seconds": "training time, seconds (log scale)", "parameters": "weights (log scale)"}
    columns = [column for column in axis_labels if column in rows and (rows[column] > 0).any()]
    if len(columns) > 1 and rows["parameters"].nunique() == 1:  # they tell nothing apart
        columns.remove("parameters")
    if not columns:
        return "the table has no training times and no numbers of weights"
    best = rows.loc[ranking.overall(table).index]
    figure, axes = new_figure(3.6, 1, len(columns), sharey=True, squeeze=False)
    point = dict(s=16, alpha=0.4) if len(rows) > 60 else dict(s=30, alpha=0.8)
    for axis, column in zip(axes[0], columns):
        for model, look in table.looks.items():
            mine, first = rows[rows["model"] == model], best[best["model"] == model]
            axis.scatter(mine[column], mine[table.tested], linewidths=0, **point, **look_of(look))
            axis.scatter(first[column], first[table.tested], s=75, edgecolor="black", label=look.label, zorder=3,
                         **look_of(look))
        axis.set(xlabel=axis_labels[column])
        axis.margins(x=0.12)
        log_ticks(axis)
    axes[0, 0].set_ylabel("test accuracy")
    percent_ticks(axes[0, 0].yaxis)
    legend_above(axes[0, -1])
    heads = []
    for _, row in best.iterrows():
        time = f" in {duration(row['seconds'])}" if "seconds" in columns and pd.notna(row["seconds"]) else ""
        heads.append(f"{table.looks[row['model']].label}'s best run reaches {percent(row[table.tested])}{time}")
    note = "Large: the best runs."
    if "seconds" in columns:
        unlike = [f"different {name}s" for name in ("device", "precision") if name in rows and rows[name].nunique() > 1]
        note += f" Times: as they were, with {listed(['other work beside them', *unlike])}."
    return titled(figure, "; ".join(heads), note, table)


@styled
def comparison(first: Table, second: Table) -> Figure | str:
    """The experiments of two tables against each other."""
    both = knobs.compare(first, second)
    if both.empty:
        return "the two tables have no experiment in common"
    figure, axis = new_figure(4.8, width=6.5)
    point = dict(s=18, alpha=0.6) if len(both) > 60 else dict(s=32, alpha=0.9)
    heads = []
    for model, group in both.groupby("model"):
        look = first.looks[model]
        axis.scatter(group["first"], group["second"], linewidths=0, label=look.label, **point, **look_of(look))
        heads.append(f"{look.label} {signed(group['difference'].median())}")
    limits = axis.get_xlim(), axis.get_ylim()
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axis.set(xlabel=f"test accuracy in {first.name}", ylabel=f"test accuracy in {second.name}",
             xlim=limits[0], ylim=limits[1])
    percent_ticks(axis.xaxis, axis.yaxis)
    legend_above(axis)
    title = f"'{second.name}' against '{first.name}', median difference in points: {listed(heads)}"
    return titled(figure, title, f"{counted(len(both), 'experiment')} in both tables. Dashed: equal.", first)
