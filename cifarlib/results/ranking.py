"""The competing runs of a table: the best ones, their repeats and noise, tests between them."""

import itertools
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import Config
from ..errors import InputError
from ..files import HISTORY, PREDICTIONS
from ..runs.history import History
from ..words import counted, points
from .statistics import FREEDOM, STUDENTIZED_RANGE, holm, mcnemar, wilson
from .table import Table, label, metrics

BUDGETS = ("epochs", "limit_train")  # fields of which more makes a run better, whatever else is tried


def candidates(table: Table, model: str | None = None) -> pd.DataFrame:
    """The runs that compete: under the main conditions, each run once.

    Further seeds of a configuration are repeats, not competitors: the best of five would win by luck. They stand in for
    a seed that has no score. The published table has no seeds, and each of its rows was trained: there all compete, as
    in its report.
    """
    rows = table.runs.query("main" if model is None else "main and model == @model")
    if "seed" not in rows:
        return rows
    marks = rows.assign(unscored=rows[table.rank_by].isna(), other=rows["seed"] != table.rows["seed"].mode().iloc[0])
    first = marks.sort_values(["unscored", "other", "seed"], kind="stable").drop_duplicates("experiment")
    return rows.loc[first.index.sort_values()]


def ranked(table: Table, model: str | None = None) -> pd.DataFrame:
    """Competing runs, best first; ties keep the table's order (never the test accuracy's)."""
    rows = candidates(table, model).dropna(subset=[table.rank_by, table.tested])
    return rows.sort_values(table.rank_by, ascending=table.lower_is_better, kind="stable")


def unequal_budgets(table: Table, model: str | None = None) -> str:
    """What not all competing runs have equally much of, as a sentence; empty where the ranking is fair."""
    rows = candidates(table, model)
    names = [label(field) for field in BUDGETS if rows[field].nunique() > 1]
    return f"Unequal budgets: not all runs had as many {' and '.join(names)}." if names else ""


def first_word(table: Table) -> str:
    """What to call the run with the highest score: the best only where all had the same budget."""
    return "top-ranked" if unequal_budgets(table) else "best"


def top(table: Table, model: str, n: int = 5) -> pd.DataFrame:
    """The n best runs: model, model_args, name, score, test, per_class, low, high (95% Wilson), and their experiment's
    runs, repeat, mean and sd, and views, views_mean and views_sd of the accuracy by several views of an image.
    """
    best = ranked(table, model).head(n)
    shown = best[["model", "model_args", "experiment", "name"]].assign(
        score=best[table.rank_by], test=best[table.tested], views=best[table.views], per_class=best[table.per_class])
    shown["low"], shown["high"] = wilson(best[table.tested], best["images"])
    spread = experiments(table)[["runs", "repeat", "test", "sd", "views_mean", "views_sd"]]
    spread = spread.rename(columns={"test": "mean"})
    return shown.join(spread, on="experiment")


def overall(table: Table) -> pd.DataFrame:
    """`top`'s row for the best run of each model, best first."""
    best = pd.concat([top(table, model, 1) for model in table.looks])
    return best.sort_values("score", ascending=table.lower_is_better, kind="stable")


def experiments(table: Table, model: str | None = None) -> pd.DataFrame:
    """Rows that are one configuration under several names, seeds or repeats, collapsed; best mean score first.

    Columns: model, its sizes, all knobs, name (the first run's), rows, runs (with a test accuracy), repeat (`seed`, or
    `run` where one seed has several), score (mean), test (mean), sd, chance (whether all runs are at chance),
    views_mean and views_sd (of the test accuracy by several views of an image).
    """
    rows = table.rows.query("main" if model is None else "main and model == @model")
    runs = rows[~rows["copy"]].groupby("experiment", sort=False)  # ties keep the table's order
    every = runs[[*dict.fromkeys(["name", *Config.names_of("model", "knob"), *table.knobs])]].first()
    every = every.join(runs.agg(runs=(table.tested, "count"), score=(table.rank_by, "mean"),
                                test=(table.tested, "mean"), sd=(table.tested, "std"), chance=("chance", "all"),
                                views_mean=(table.views, "mean"), views_sd=(table.views, "std")))
    every["rows"] = rows.groupby("experiment").size()
    every["repeat"] = np.where(runs["seed"].nunique() == runs.size(), "seed", "run") if "seed" in rows else "run"
    return every.sort_values("score", ascending=table.lower_is_better, kind="stable")


def finalists(table: Table) -> pd.DataFrame:
    """The experiments with several runs; none in a table without seeds."""
    every = experiments(table)
    return every[every["runs"] > 1] if "seed" in table.rows else every.head(0)


def identical_experiments(table: Table) -> int:
    """How many experiments repeat another one's metrics in every digit, those at chance apart."""
    rows = candidates(table).query("not chance").drop_duplicates("experiment")
    return int(rows.duplicated(["model", *metrics(rows)]).sum())


@dataclass(frozen=True)
class Noise:
    """How far two runs of one configuration lie apart.

    sd: of a single run's test accuracy; text: where it comes from; freedom: the degrees of freedom of `sd`, 0 where
    nothing was repeated and the sampling error of the test images has to stand in.
    """

    sd: float
    text: str
    freedom: int = 0

    @property
    def name(self) -> str:
        return "noise" if self.freedom else "sampling error"

    @property
    def alike(self) -> str:
        """The runs that differ by it alone."""
        return "runs of one configuration" if self.freedom else "equally good runs tested on separate images"

    def margin(self, runs: int = 2) -> float:
        """What the range of so many runs (of two, their difference) exceeds in 5% of cases; more if `sd` is of few."""
        quantiles = STUDENTIZED_RANGE[min(runs, max(STUDENTIZED_RANGE))]
        return float(np.interp(1 / (self.freedom or np.inf), 1 / FREEDOM, quantiles)) * self.sd


def margin_of_means(noises: list[Noise], runs: list[int]) -> float:
    """What the difference between two means, of so many runs with such noise each, exceeds in 5% of cases."""
    return math.sqrt(sum(noise.margin() ** 2 / count for noise, count in zip(noises, runs)) / 2)


def noise_floor(table: Table, model: str) -> Noise:
    """The spread among repeats, pooled over the better half of the repeated configurations, but at least two of them.

    Poor ones scatter more.
    """
    again = experiments(table, model).query("runs > 1 and not chance").dropna(subset=["sd"])
    good = again.nlargest(max(2, math.ceil(len(again) / 2)), "test", keep="all")
    if (good["sd"] > 0).any():
        freedom = good["runs"] - 1
        sd = math.sqrt((freedom * good["sd"] ** 2).sum() / freedom.sum())
        runs = f"{good['runs'].sum()} runs of {counted(len(good), 'configuration')}"
        return Noise(sd, f"{points(sd)} SD between repeats ({runs})", int(freedom.sum()))
    best = ranked(table, model).iloc[0]
    sd = math.sqrt(best[table.tested] * (1 - best[table.tested]) / best["images"])
    why = "its repeats agree in every digit" if len(good) else "nothing was run twice"
    return Noise(sd, f"not measured ({why}); the sampling error of {best['images']:,} test images, {points(sd)} SD, "
                     "stands in and may be too small")


def read_history(table: Table, run: str) -> pd.DataFrame | None:
    """A run's epochs from its folder beside the table; None if it isn't there. Raises InputError for a damaged file."""
    path = table.folder / run / HISTORY
    return History.read(path).frame() if run and path.is_file() and path.stat().st_size else None


def read_predictions(table: Table, run: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(labels (N,), logits float64 (N, classes)) of the reported checkpoint on the test images, or None.

    Raises InputError for a damaged file.
    """
    path = table.folder / run / PREDICTIONS
    return predictions_in(path, table.checkpoint) if run and path.is_file() else None


def predictions_in(path: Path, *checkpoints: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The same from a file, of the first of the checkpoints that it has."""
    try:
        with np.load(path) as stored:
            for checkpoint in checkpoints:
                if checkpoint in stored:
                    labels, logits = stored["labels"].astype(int), stored[checkpoint].astype(float)
                    if logits.ndim != 2 or labels.shape != logits.shape[:1] or (labels >= logits.shape[1]).any():
                        raise ValueError
                    return labels, logits
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise InputError(f"{path} is damaged; restore it, or remove it to go without") from None


def best_with(table: Table, read, model: str, n: int = 1) -> list[tuple[pd.Series, object]]:
    """(row, what was read) of a model's n best runs; fewer where `read` (read_history or read_predictions) has none."""
    found = ((row, read(table, row.get("run", ""))) for _, row in ranked(table, model).head(n).iterrows())
    return [pair for pair in found if pair[1] is not None]


def paired_tests(table: Table, n: int = 3) -> pd.DataFrame:
    """Each model's best run against its next n - 1, and the models' best against each other, on the same test images.

    Columns: first, second (rows of the table), only_first, only_second (images), p, p_holm. Without a model whose best
    run has no predictions. A test of these runs, not of their configurations: a repeat would differ too.
    """
    best = [best_with(table, read_predictions, model, n) for model in table.looks]
    firsts = ranked(table).drop_duplicates("model").index
    best = [rows for rows in best if rows and rows[0][0].name in firsts]
    pairs = [(rows[0], other) for rows in best for other in rows[1:]]
    pairs += itertools.combinations([rows[0] for rows in best], 2)
    lines = []
    for (first, (labels, logits)), (second, (other_labels, other_logits)) in pairs:
        if np.array_equal(labels, other_labels):
            test = mcnemar(logits.argmax(axis=1) == labels, other_logits.argmax(axis=1) == labels)
            lines.append((first.name, second.name, *test))
    tests = pd.DataFrame(lines, columns=["first", "second", "only_first", "only_second", "p"])
    return tests.assign(p_holm=holm(tests["p"]))
