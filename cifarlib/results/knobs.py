"""The influence of each hyperparameter, and two tables beside each other."""

import pandas as pd

from ..errors import InputError
from ..words import knob_value
from .ranking import candidates, ranked
from .statistics import decompose, main_effects
from .table import KNOBS, Table, acting, without_inert


def cells(table: Table, model: str) -> pd.DataFrame:
    """One row a grid cell: knobs, score (mean over repeats; NaN without any), chance. Cosine cells stand at every gamma that another schedule has."""
    rows = table.runs.query("main and model == @model")
    others = rows[rows["scheduler"] != "cosine"]
    gammas = (others if len(others) else rows.head(1))[["gamma"]].drop_duplicates()
    every = pd.concat([others, rows[rows["scheduler"] == "cosine"].drop(columns="gamma").merge(gammas, how="cross")])
    return every.groupby(list(KNOBS)).agg(score=(table.rank_by, "mean"), chance=("chance", "all")).reset_index()


def importance(table: Table, model: str) -> tuple[pd.Series, str] | None:
    """Shares of the score's variance among the grid's cells by knob (and pair of knobs, `rest`), and on what they rest.

    Values at which every cell stays at chance are left out. None if fewer than two knobs vary or cells are too few.
    """
    grid, dropped = cells(table, model).dropna(subset="score"), []
    for knob in KNOBS:
        dead = grid.groupby(knob)["chance"].all()
        if 0 < dead.sum() < len(dead):
            dropped += [f"{KNOBS[knob]} {knob_value(value)}" for value in dead[dead].index]
            grid = grid[~grid[knob].isin(dead[dead].index)]
    levels = grid[list(KNOBS)].nunique().loc[lambda n: n > 1]
    full = levels.prod()
    if len(levels) < 2 or grid["score"].nunique() == 1 or len(grid) <= 1 + (levels - 1).sum():
        return None
    text = f"all {full} cells" if len(grid) == full else f"{len(grid)} of {full} cells, main effects only"
    if dropped:
        text += f"; without {', '.join(dropped)}, always at chance"
    return (decompose if len(grid) == full else main_effects)(grid, list(levels.index)), text


def edges(table: Table, model: str) -> list[str]:
    """A warning for each numeric knob whose best value is the smallest or largest one tried."""
    rows, best, warnings = candidates(table, model), ranked(table, model).iloc[0], []  # values that diverged were tried too
    for knob in ("learning_rate", "weight_decay", "gamma"):
        values = acting(rows, knob)[knob]
        if values.nunique() > 1 and best.name in values.index and best[knob] in (values.min(), values.max()):
            side, beyond = ("smallest", "lower") if best[knob] == values.min() else ("largest", "higher")
            warnings.append(f"The best run's {KNOBS[knob]}, {knob_value(best[knob])}, is the {side} one tried: {beyond} ones may be better.")
    return warnings


def means(table: Table, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean test accuracy, and whether all are at chance, of the rows that agree in the columns `by`, gamma only where it acts."""
    groups = without_inert(rows.dropna(subset=[table.tested])).groupby(by)
    return groups.agg(test=(table.tested, "mean"), chance=("chance", "all")).reset_index()


def augmentation_pairs(table: Table, model: str) -> pd.DataFrame:
    """Pairs of cells with and without augmentation, all else equal, and the gain; without pairs entirely at chance."""
    every = means(table, candidates(table, model), list(KNOBS))
    sides = [every[every["augmentation"] == side].drop(columns="augmentation") for side in (True, False)]
    others = [knob for knob in KNOBS if knob != "augmentation"]
    pairs = sides[0].merge(sides[1], on=others, suffixes=("_with", "_without")).query("not (chance_with and chance_without)")
    return pairs.assign(gain=pairs["test_with"] - pairs["test_without"])


def comparable(table: Table) -> pd.DataFrame:
    """A table's experiments as another table may have them too: model, model_args, knobs, mean test accuracy, chance."""
    return means(table, table.runs.query("main"), ["model", "model_args", *KNOBS])


def compare(first: Table, second: Table) -> pd.DataFrame:
    """The experiments of both tables: knobs, first and second test accuracy (mean of repeats), difference, chance of each.

    Raises InputError for CIFAR-10 beside synthetic data.
    """
    if first.synthetic != second.synthetic:
        raise InputError(f"compare_with: of {first.name} and {second.name} one is of CIFAR-10 and one of synthetic data; compare tables of one kind")
    both = comparable(first).merge(comparable(second), on=["model", "model_args", *KNOBS], suffixes=("_first", "_second"))
    both = both.rename(columns={"test_first": "first", "test_second": "second"})
    return both.assign(difference=both["second"] - both["first"])
