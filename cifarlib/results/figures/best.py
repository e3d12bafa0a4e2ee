"""Charts of the best runs, of all runs, and of two tables."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...parts import architectures
from ...words import counted, listed, percent, points, signed, value_text
from .. import knobs, ranking
from ..sentences import beside_noise, chance_sentence, gap_sentence, range_sentence
from ..table import Table
from .style import (GREY, LIGHT, jitter, legend, legend_above, log_ticks, look_of, new_figure, percent_ticks, styled,
                    titled, whiskers)


@styled
def top5(table: Table, model: str) -> Figure:
    """A model's five best runs: test accuracy and test per-class accuracy, the noise floor, 95% Wilson intervals."""
    best = ranking.top(table, model)
    title = range_sentence(table, model) if len(best) > 1 else f"the one run reaches {percent(best['test'].iloc[0])}"
    return _bars(table, best, f"{table.looks[model].label}: {title}")


@styled
def overall_top5(table: Table) -> Figure | str:
    """The best run of each model."""
    best = ranking.overall(table)
    if len(best) < 2:
        return "one model alone, whose chart of the best runs shows it"
    return _bars(table, best, gap_sentence(table, best.iloc[0], best.iloc[1]))


def _bars(table: Table, best: pd.DataFrame, title: str) -> Figure:
    """Bars from zero on the left, the same accuracies enlarged with their uncertainty on the right.

    The per-class accuracy has bars of its own where it differs, as it can't for classes of equally many test images.
    """
    noise = ranking.noise_floor(table, best["model"].iloc[0])
    bars = [("test", "test accuracy", {})]
    if differs := (abs(best["test"] - best["per_class"]) > 5e-5).any():
        bars.append(("per_class", "test per-class accuracy (mean over classes)",
                     dict(alpha=0.55, hatch="///", edgecolor="white", linewidth=0)))
    figure, (left, right) = new_figure(1.55 + 0.52 * len(best) + 0.2 * differs * len(best), 1, 2,
                                       width_ratios=(2.2, 1), sharey=True)
    experiments = best["experiment"].tolist()
    for y, (text, (_, row)) in enumerate(zip(knobs.short_labels(table, table.rows.loc[best.index]), best.iterrows())):
        look, repeat = table.looks[row["model"]], experiments.index(row["experiment"])
        left.text(0.004, y - 0.36, text if repeat == y else f"same configuration as no. {repeat + 1}", va="center",
                  fontsize=min(8.5, 740 / max(1, len(text))))
        for offset, (column, name, style) in zip((-0.05, 0.22), bars):
            left.barh(y + offset, row[column], 0.25, color=look.colour, label=None if y else name, **style)
            left.text(row[column] + 0.008, y + offset, percent(row[column]), fontsize=8, va="center")
        right.errorbar(row["test"], y, xerr=whiskers(row["test"], row["low"], row["high"])[:, None], capsize=3,
                       markersize=6, linestyle="none", label=None if y else "run, 95% interval", **look_of(look))
    if len(again := best.assign(y=np.arange(len(best)) + 0.25).query("runs > 1")):
        right.errorbar(again["mean"], again["y"], xerr=again["sd"], fmt="D", color="black", markersize=3.5, capsize=2,
                       linewidth=1, label="repeats, mean and SD")
    middle = best["test"].iloc[0]
    right.axvspan(middle - noise.margin(), middle + noise.margin(), color=LIGHT, zorder=0,
                  label=noise.name.replace("noise", "noise floor"))
    left.set(ylim=(len(best) - 0.5, -0.6), xlim=(0, 1), yticks=[], xlabel="" if differs else "test accuracy")
    percent_ticks(left.xaxis, ticks=6)
    percent_ticks(right.xaxis)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
        legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.48 / figure.get_size_inches()[1]), ncols=3,
               borderaxespad=0, handlelength=1.4, columnspacing=1.2)
    note = f"Ranked by {table.ranking}. The band: two {noise.alike} differ by less in 95% of cases. "
    note += f"Noise floor: {noise.text}." + ("" if differs else " The mean accuracy of the classes is the same.")
    return titled(figure, title, note, table)


@styled
def finalists(table: Table) -> Figure | str:
    """Configurations run with several seeds: every seed's test accuracy, mean and SD."""
    shown = ranking.finalists(table).head(15)
    if shown.empty:
        return "nothing was run with several seeds"
    figure, axis = new_figure(1.4 + 0.5 * len(shown))
    runs, names = table.runs, knobs.short_labels(table, shown.reset_index())
    for y, (name, (experiment, row)) in enumerate(zip(names, shown.iterrows())):
        values = runs.loc[runs["experiment"] == experiment, table.tested]
        axis.plot(values, np.full(len(values), y), linestyle="none", alpha=0.75, markersize=6,
                  **look_of(table.looks[row["model"]]))
        axis.errorbar(row["test"], y + 0.22, xerr=row["sd"], fmt="D", color="black", markersize=4, capsize=3,
                      linewidth=1)
        label = f"{name + ':  ' if name else ''}{percent(row['test'])}, SD {100 * row['sd']:.2f}, n {row['runs']}"
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
            axis.scatter(chosen[table.tested], chosen["y"], s=18 if len(mine) > 60 else 36, alpha=0.6, **style)
    axis.axvline(1 / len(table.data.classes), color=GREY, linewidth=1, linestyle="--")
    axis.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 1), ylim=(len(labels) - 0.5, -0.5),
             xlabel=f"test accuracy (dashed: guessing{'; crosses: runs at chance' if runs['chance'].any() else ''})")
    percent_ticks(axis.xaxis)
    axis.grid(axis="y", visible=False)
    note = "Heights within a model only keep the points apart." if runs["model"].value_counts().max() > 3 else ""
    reached = runs.groupby("model", sort=False)[table.tested].agg(["min", "max"])
    title = chance_sentence(table).rstrip(".") or "; ".join(
        f"{table.looks[model].label} reaches {' to '.join(map(percent, sorted({*ends})))}"
        for model, ends in reached.T.items())
    return titled(figure, title, note, table)


@styled
def accuracy_by_minutes(tables: list[Table]) -> Figure:
    """Every run of several studies: test accuracy against minutes of training, beside the best published accuracies."""
    runs = pd.concat([table.runs[["model", "epochs", "model_args"]].assign(
        tested=table.runs[table.tested], views=table.runs[table.views], minutes=table.runs["seconds"] / 60)
        for table in tables])
    runs["shown"] = runs["views"].fillna(runs["tested"])
    figure, axis = new_figure(3.9)
    looks = architectures(runs["model"])
    published = [look.published_best for look in looks.values() if look.published_best]
    for model, look in looks.items():
        mine = runs[runs["model"] == model]
        usual = mine["model_args"] == value_text({})
        for chosen, fill in ((mine[usual], "full"), (mine[~usual], "none")):
            if chosen.empty:
                continue
            axis.plot(chosen["minutes"], chosen["shown"], linestyle="none", markersize=7, alpha=0.8, fillstyle=fill,
                      label=look.label if fill == "full" or not usual.any() else None, **look_of(look))
        if look.published_best:
            axis.axhline(look.published_best, color=look.colour, linestyle="--", linewidth=1)
            below = any(0 < other - look.published_best < 0.02 for other in published)
            axis.annotate(f"{look.label}: best published run, 80 epochs", (0.12, look.published_best),
                          (0, -9 if below else 2), ("axes fraction", "data"), "offset points", fontsize=7.5,
                          color=look.colour)
    log_ticks(axis)
    axis.set(xlabel="minutes of training on two cores (log scale)", ylabel="test accuracy", ylim=(None, 1))
    percent_ticks(axis.yaxis)
    legend(axis, loc="lower left")
    every = runs.groupby(["model", "epochs"])[["shown", "tested", "minutes"]]
    best = every.mean().sort_values("shown").iloc[-1]
    name, gain = looks[best.name[0]].label, best["shown"] - best["tested"]
    average = " on average" * (len(every.get_group(best.name)) > 1)
    note = ("Points: runs of several studies, on different processors, some of them with one thread; hollow: models "
            "of other sizes than their usual ones. ")
    if gain:
        note += f"Six views of each test image where a run has them; by one view the best is {points(gain)} lower."
    return titled(figure, f"{name} reaches {percent(best['shown'])} in {best['minutes']:.0f} minutes{average}", note)


@styled
def comparison(first: Table, second: Table) -> Figure | str:
    """The experiments of two tables against each other."""
    both = knobs.compare(first, second)
    if both.empty:
        return "the two tables have no configuration in common"
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
    note = f"{counted(len(both), 'configuration')} in both tables. Dashed: equal. {knobs.unlike(first, second)}"
    return titled(figure, title, note, first)
