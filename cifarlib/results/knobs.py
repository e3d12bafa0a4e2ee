"""The influence of each hyperparameter, and two tables beside each other."""

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from ..errors import InputError
from ..words import listed
from .ranking import candidates, experiments, first_word, ranked
from .statistics import decompose, main_effects
from .table import FIELDS, Table, idle_when, label, shown


def is_switch(values: pd.Series) -> bool:
    """Whether a knob is on or off."""
    return is_bool_dtype(values.infer_objects())


def is_number(values: pd.Series) -> bool:
    """Whether a knob's values have an order."""
    return is_numeric_dtype(values) and not is_switch(values)


def varying(table: Table, model: str) -> list[str]:
    """The knobs with several values among a model's experiments; of two that always change together only the first."""
    every, found = experiments(table, model), []
    for knob in table.knobs:
        levels = every[knob].nunique()
        renamed = any(len(every[[other, knob]].drop_duplicates()) == levels == every[other].nunique()
                      for other in found)
        if levels > 1 and (levels == len(every) or not renamed):  # where all runs differ it may be by chance
            found.append(knob)
    return found


def short_labels(table: Table, rows: pd.DataFrame) -> list[str]:
    """What tells rows apart, for charts: their models and the knobs that differ, but for those that do nothing.

    rows: with `model`, `experiment` and the knobs. A value that nearly all of many rows have is not named. Where that
    leaves two experiments alike, their names; a single one has none.
    """
    models = rows["model"].map(lambda model: table.looks[model].label)
    differing = [knob for knob in table.knobs if rows[knob].nunique() > 1]
    usual = {knob: value for knob in differing for value, count in rows[knob].value_counts().items()
             if count >= max(5, 0.75 * rows[knob].count())}
    parts = [[name] * (models.nunique() > 1)
             + [f"{label(knob)} {shown(knob, row[knob])}" for knob in differing
                if pd.notna(row[knob]) and row[knob] != usual.get(knob)]
             for name, (_, row) in zip(models, rows.iterrows())]
    labels = pd.Series([", ".join(part) or "as most" * (len(rows) > 1) for part in parts], rows.index, dtype=object)
    alike = rows.groupby(labels)["experiment"].transform("nunique") > 1
    return labels.mask(alike, rows["name"]).tolist()


def cells(table: Table, model: str) -> pd.DataFrame:
    """One row a cell of a model's grid: an experiment stands at every value of a knob that does nothing in it."""
    grid = experiments(table, model)
    for knob in table.knobs:
        idle, values = grid[knob].isna(), grid[[knob]].dropna().drop_duplicates()
        if idle.any() and len(values):
            grid = pd.concat([grid[~idle], grid[idle].drop(columns=knob).merge(values, how="cross")])
    return grid


def importance(table: Table, model: str) -> tuple[pd.Series, str] | None:
    """Fractions of the score's variance among the grid's cells by knob (and pair, and `rest`), and on what they rest.

    Values at which every cell stays at chance are left out. None if fewer than two knobs vary or cells are too few.
    """
    grid, dropped, knobs = cells(table, model).dropna(subset="score"), [], varying(table, model)
    for knob in knobs:
        dead = grid.groupby(knob)["chance"].all()
        if 0 < dead.sum() < len(dead):
            dropped += [f"{label(knob)} {shown(knob, value)}" for value in dead[dead].index]
            grid = grid[~grid[knob].isin(dead[dead].index)]
    levels = grid[knobs].nunique().loc[lambda n: n > 1]
    full = levels.prod()
    if len(levels) < 2 or grid["score"].nunique() == 1 or len(grid) <= 1 + (levels - 1).sum():
        return None
    text = f"all {full} cells" if len(grid) == full else f"{len(grid)} of {full} cells, main effects only"
    every = experiments(table, model)
    left = table.runs["experiment"].isin(every.index[every["name"].isin(grid["name"])])
    runs = table.runs[left].dropna(subset=table.rank_by).groupby("experiment")[table.rank_by]
    noise = runs.var().mean() * (1 / runs.count()).mean() / grid["score"].var()
    text += "; noise not measured" if pd.isna(noise) else f"; noise of repeats {min(noise, 1):.1%} of the variance"
    if dropped:
        text += f"; without {', '.join(dropped)}, always at chance"
    return (decompose if len(grid) == full else main_effects)(grid, list(levels.index)), text


def edges(table: Table, model: str) -> list[str]:
    """A warning for each number whose best value is the smallest or largest one tried, if it can go further."""
    rows, best, warnings = candidates(table, model), ranked(table, model).iloc[0], []  # what diverged was tried too
    knobs = varying(table, model)
    if len(experiments(table, model)) < 3 and len(knobs) > 1:  # two that differ in all: nothing was tried by itself
        return []
    for knob in knobs:
        values = rows[knob].dropna()
        if not is_number(values) or best.name not in values.index or "all" in (shown(knob, value) for value in values):
            continue
        limits = FIELDS[knob].metadata if knob in FIELDS else {}
        for end, side, beyond, limit in ((values.min(), "smallest", "lower", limits.get("minimum")),
                                         (values.max(), "largest", "higher", limits.get("maximum"))):
            if best[knob] == end and end != limit:
                warnings.append(f"The {first_word(table)} run's {label(knob)}, {shown(knob, end)}, is the {side} one "
                                f"tried: {beyond} ones may be better.")
    return warnings


def pairs(table: Table, model: str, knob: str, better, other) -> pd.DataFrame:
    """Pairs of experiments with one value of a knob and with another one, all else equal, and the first one's gain.

    Without pairs entirely at chance. Knobs that do nothing at one of the two values need not be equal.
    """
    every = experiments(table, model).dropna(subset="test")
    sides = [every[every[knob] == value].drop(columns=knob) for value in (better, other)]
    alike = [each for each in table.knobs if each != knob and knob not in idle_when(each)]
    both = sides[0].merge(sides[1], on=alike, suffixes=("", "_other")).query("not (chance and chance_other)")
    return both.assign(gain=both["test"] - both["test_other"])


def compare(first: Table, second: Table) -> pd.DataFrame:
    """The experiments of both tables: model, knobs, first and second test accuracy (mean of repeats), difference.

    Raises InputError for tables of different data.
    """
    if first.data != second.data:
        raise InputError(f"compare_with: {first.name} is of {first.data.label}, {second.name} of {second.data.label}; "
                         "compare tables of the same data")
    sides = [experiments(table).dropna(subset="test") for table in (first, second)]
    columns = dict.fromkeys(["model", "model_args", *first.knobs, *second.knobs])
    by = [column for column in columns if column in sides[0] and column in sides[1]]
    sides = [side.astype(dict.fromkeys(by, object)) for side in sides]  # a text that is idle throughout is all NaN
    both = sides[0].merge(sides[1], on=by, suffixes=("_first", "_second"))
    both = both.rename(columns={"test_first": "first", "test_second": "second"})
    return both.assign(difference=both["second"] - both["first"])


def unlike(first: Table, second: Table) -> str:
    """A sentence on the fields in which two tables differ beyond the knobs by which `compare` pairs; empty if none."""
    def values(table: Table, field: str) -> set[str]:
        return {shown(field, value) for value in table.rows.loc[table.rows["main"], field].dropna()}

    paired = {"model_args", *first.knobs, *second.knobs}
    fields = [field for field in dict.fromkeys([*first.fields, *second.fields])
              if field not in paired and field in first.rows and field in second.rows]
    names = [label(field) for field in fields if values(first, field) != values(second, field)]
    return f"Not like for like: {listed(names)} differ." if names else ""
