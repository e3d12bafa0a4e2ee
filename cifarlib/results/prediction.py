"""How well a cheap table of runs predicts an expensive one, and a run's first epochs its last."""

import itertools

import numpy as np
import pandas as pd

from ..runs.halving import rungs, survivors
from ..words import listed, points
from .knobs import cells
from .markdown import markdown
from .ranking import candidates, experiments, read_history
from .table import KNOBS, Table, label, shown

PICKS = 5
PARTS = (2, 4, 8)  # of which only the best one goes on


def rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Spearman's: 1 for the same order, 0 for none, -1 for the reverse."""
    return first.rank().corr(second.rank())


def matched(cheap: Table, full: Table, model: str, rows=experiments) -> pd.DataFrame:
    """What both tables have of a model's experiments (or of its `cells`): published knobs, score and cheap (validation
    and test accuracy in the cheap table), full (test accuracy in the other). Sizes and all other fields may differ.
    """
    sides = [rows(table, model).dropna(subset="test")[[*KNOBS, "score", "test"]] for table in (cheap, full)]
    both = sides[0].rename(columns={"test": "cheap"}).merge(sides[1].rename(columns={"test": "full"}), on=KNOBS,
                                                            suffixes=("", "_full"))
    return both.drop(columns="score_full")


def same_order(both: pd.DataFrame, knob: str) -> tuple[float, int]:
    """Of the pairs of cells that differ in one knob alone, the fraction that both tables order alike, and the
    number of pairs. Pairs that are equal in either table don't count.
    """
    signs = []
    for _, group in both.groupby([name for name in KNOBS if name != knob]):
        for (cheap, full), (other_cheap, other_full) in itertools.combinations(group[["cheap", "full"]].to_numpy(), 2):
            signs.append(np.sign(cheap - other_cheap) * np.sign(full - other_full))
    told = [sign > 0 for sign in signs if sign]
    return (float(np.mean(told)) if told else np.nan), len(told)


def agreement(cheap: Table, full: Table) -> str:
    """As Markdown: for each model how the two tables' orders agree, and what choosing by the cheap one would lose."""
    rows, orders, rates = [], [], []
    for model, look in cheap.looks.items():
        both = matched(cheap, full, model)
        if len(both) < PICKS:
            continue
        better = both[both["full"] >= both["full"].median()]
        chosen = both.sort_values("score", ascending=cheap.lower_is_better, kind="stable")
        places = both["full"].rank(ascending=False, method="min").astype(int)
        tenth = chosen.head(max(1, round(len(chosen) / 10)))
        best = both["full"].max()
        rows.append({
            "Model": look.label,
            "Configurations": str(len(both)),
            "Rank correlation": f"{rank_correlation(both['cheap'], both['full']):.2f}",
            "In the better half": f"{rank_correlation(better['cheap'], better['full']):.2f}",
            "Its five best are there no.": ", ".join(str(places[index]) for index in chosen.index[:PICKS]),
            "Lost by its best": points(best - chosen["full"].iloc[0]),
            "By the best of its five": points(best - chosen["full"].head(PICKS).max()),
            "By the best of its tenth": points(best - tenth["full"].max()),
        })
        grid = matched(cheap, full, model, cells)
        orders.append({"Model": look.label, **{label(knob).capitalize(): _order(grid, knob) for knob in KNOBS}})
        peaks = [both.groupby("learning_rate")[side].max().idxmax() for side in ("cheap", "full")]
        rates.append(f"{look.label} {shown('learning_rate', peaks[0])} (there {shown('learning_rate', peaks[1])})")
    if not rows:
        return "The two tables have too few configurations in common."
    return "\n\n".join([
        markdown(rows),
        "Of two cells that differ in one knob alone, both tables order alike (half would be chance; in brackets the "
        "number of pairs):",
        markdown(orders),
        f"The learning rate of the best run: {'; '.join(rates)}.",
    ])


def _order(grid: pd.DataFrame, knob: str) -> str:
    fraction, pairs = same_order(grid, knob)
    return f"{fraction:.0%} ({pairs})" if pairs else "-"


def by_epoch(table: Table, model: str) -> pd.DataFrame:
    """Validation accuracy after each epoch, a row a run and a column an epoch; one that ended early keeps its last.

    Runs without a history beside the table are left out; accuracies after a divergence count as 0.
    """
    found = {run: read_history(table, run) for run in candidates(table, model).get("run", [])}
    curves = {run: history.set_index("epoch")["val_accuracy"] for run, history in found.items()
              if history is not None and "val_accuracy" in history}
    return pd.DataFrame(curves).T.sort_index(axis=1).ffill(axis=1).fillna(0)


def early_choice(curves: pd.DataFrame) -> pd.DataFrame:
    """For each epoch: `correlation`, the rank correlation of the accuracies after it with the final ones, and for each
    of PARTS what is lost of the best final accuracy if only that part of the runs had gone on.
    """
    last, rows = curves.iloc[:, -1], {}
    for epoch in curves:
        order = curves[epoch].sort_values(ascending=False, kind="stable").index
        kept = {part: last[order[:max(1, len(order) // part)]].max() for part in PARTS}
        rows[epoch] = {"correlation": rank_correlation(curves[epoch], last),
                       **{part: last.max() - best for part, best in kept.items()}}
    return pd.DataFrame(rows).T


def halved(curves: pd.DataFrame, rate: int) -> tuple[float, float]:
    """The fraction of all epochs that successive halving would train, and what it would lose of the best accuracy.

    curves: as by_epoch gives them.
    """
    epochs, left, trained, before = curves.shape[1], curves, 0, 0
    for rung in rungs(epochs, rate):
        trained, before = trained + len(left) * (rung - before), rung
        left = left.iloc[survivors(left[rung].tolist(), rate)]
    trained += len(left) * (epochs - before)
    return trained / curves.size, curves[epochs].max() - left[epochs].max()


def early_section(table: Table) -> str:
    """As Markdown: how early each model's runs could have been told apart; empty without histories."""
    rows, savings = [], []
    for model, look in table.looks.items():
        curves = by_epoch(table, model)
        if curves.shape[1] < 2 or len(curves) < PARTS[-1]:
            continue
        for epoch, found in early_choice(curves).iloc[:-1].iterrows():
            rows.append({"Model": f"{look.label} ({len(curves)} runs)" if epoch == curves.columns[0] else "",
                         "After epoch": str(epoch),
                         "Rank correlation with the end": f"{found['correlation']:.2f}",
                         **{f"Lost if the best 1/{part} go on": points(found[part]) for part in PARTS}})
        outcomes = {rate: halved(curves, rate) for rate in PARTS[:2]}
        savings.append(f"{look.label} " + listed(f"{trained:.0%} of the epochs and {points(lost)} (rate {rate})"
                                                 for rate, (trained, lost) in outcomes.items()))
    if not rows:
        return ""
    return f"{markdown(rows)}\n\nSuccessive halving would have trained, and lost: {'; '.join(savings)}."
