"""Charts that may lay several tables of runs over each other."""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from ...config import Config, nearest
from ...errors import InputError
from ...words import listed, percent
from .. import ranking
from ..knobs import is_number
from ..table import Table, label, shown
from .one_run import learning_curves
from .style import COLOURS, legend_above, log_ticks, new_figure, percent_ticks, styled, titled

# What is measured of a run beside its fields: the table's column, how many of it are one, and the axis's label.
MEASURES = {"minutes": ("seconds", 60, "minutes of training"),
            "parameters": ("parameters", 1, "weights"),
            "flop": ("flop", 1e12, "TFLOP of training")}
READING = {"minutes": " Times: as they were, on whatever machine.",
           "flop": " FLOP: of three forward passes for each image and epoch, counted on the model."}
KNOWN = [*MEASURES, *Config.names_of("knob", "condition")]


def check_x(x: str) -> None:
    """Raise InputError for what no chart can have on its x axis."""
    if x not in KNOWN:
        near = nearest(x, KNOWN)
        raise InputError(f"x: expected {', '.join(MEASURES)} or a field of the runs, got {x!r}"
                         + (f"; did you mean {near}?" if near else ""))


@styled
def accuracy_by(tables: list[Table], x: str) -> Figure | str:
    """Test accuracy of every configuration against a field of the runs or one of MEASURES, a colour a table.

    One table alone has the colours of its models.
    """
    found = [_configurations(table, x) for table in tables]
    values = pd.concat([rows["x"] for rows in found])
    if values.empty:
        return f"no run in these tables says its {label(x)}"
    if len(tables) == values.nunique() == 1:
        return f"all runs have the same {label(x)}"
    if not is_number(values):
        found = [rows.assign(x=rows["x"].map(partial(shown, x))) for rows in found]
    figure, axis = new_figure(4.4)
    heads, against = [], MEASURES[x][2] if x in MEASURES else label(x)
    for table, rows, colour in zip(tables, found, COLOURS * len(tables)):
        for model, every in rows.groupby("model", sort=False):
            look = table.looks[model]
            colour, name = (colour, f"{table.name}: {look.label}") if len(tables) > 1 else (look.colour, look.label)
            best = every.head(1) if x == "minutes" else every.drop_duplicates("x").sort_values("x")
            axis.plot(every["x"], every["test"], look.marker, color=colour, alpha=0.45, markersize=4.5)
            axis.errorbar(best["x"], best["test"], yerr=best["sd"], color=colour, marker=look.marker,
                          markersize=6, capsize=4, linewidth=1.2, linestyle="none", label=name)
        for _, first in (rows.head(1) if len(tables) > 1 else rows.drop_duplicates("model")).iterrows():
            value = _number(first["x"]) if x in MEASURES else shown(x, first["x"])
            study = f"{table.name}, " * (len(tables) > 1)
            heads.append(f"{percent(first['test'])} at {value} ({study}{table.looks[first['model']].label})")
    _scale(axis, x, values)
    axis.set(xlabel=against, ylabel="test accuracy")
    axis.margins(x=0.08)
    percent_ticks(axis.yaxis)
    legend_above(axis)
    at_each = "the one" if x == "minutes" else "the one at each value"
    note = (f"Points: configurations, mean over their seeds, of one view of each test image. Large: {at_each} whose "
            f"mean ranks first in its table; whiskers: SD between seeds, where several were run.{READING.get(x, '')}")
    if without := [table.name for table, rows in zip(tables, found) if rows.empty]:
        note += f" Without {listed(without)}: no {against} there."
    return titled(figure, f"Test accuracy by {against}: {listed(heads)}", note,
                  tables[0] if len(tables) == 1 else None)


def _configurations(table: Table, x: str) -> pd.DataFrame:
    """Each configuration's model, mean test accuracy, sd and x, best first; without those that have none of them."""
    column, unit, _ = MEASURES.get(x, (x, 1, ""))
    rows = table.runs.query("main").reindex(columns=["experiment", column]).dropna()
    values = rows.groupby("experiment")[column].agg("mean" if x in MEASURES else "first")
    found = ranking.experiments(table)[["model", "test", "sd"]].assign(x=values / unit if unit != 1 else values)
    return found.dropna(subset=["test", "x"])


def _number(value: float) -> str:
    """Three digits, of large numbers with k, M or G."""
    return f"{value:.3g}" if value < 1000 else EngFormatter(sep="")(float(f"{value:.3g}"))


def _scale(axis, x: str, values: pd.Series) -> None:
    """A logarithmic axis for numbers of several magnitudes; ticks at a field's values where they have room."""
    if not is_number(values):
        return
    if values.min() > 0 and values.max() > 8 * values.min():
        log_ticks(axis)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    if x not in MEASURES and values.nunique() < 9:
        ticks = sorted(values.unique())
        axis.set_xticks(ticks, [shown(x, tick) for tick in ticks])


def curves(tables: list[Table]) -> Figure | str:
    """Learning curves of the best configuration of each model in each table, means over its seeds."""
    runs = {}
    for table in tables:
        for model, look in table.looks.items():
            best = ranking.ranked(table, model).head(1)
            seeds = table.runs[table.runs["experiment"].isin(best["experiment"])].get("run", [])
            found = [history for run in seeds if (history := ranking.read_history(table, run)) is not None]
            if found:
                runs[f"{table.name}, {look.label}"] = found
    return learning_curves(runs) if runs else "no history of a best run beside these tables"
