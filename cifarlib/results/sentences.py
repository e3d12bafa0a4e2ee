"""What a table of runs says, in sentences."""

import math

import pandas as pd

from ..config import Config
from ..words import against, counted, in_words, listed, percent, points, signed
from .knobs import compare, edges, is_number, is_switch, pairs, unlike, varying
from .ranking import (BUDGETS, Noise, experiments, finalists, first_word, identical_experiments, margin_of_means,
                      noise_floor, overall, paired_tests, ranked, top, unequal_budgets)
from .statistics import selection_bias
from .table import CONDITIONS, FIELDS, Table, label, shown

ALWAYS = ("protocol", "split", "epochs", "batch_size")  # said of every table; of other fields what is not the default
VIEWED = ("tta",)  # said of a table whose protocol sets it, too
# How the conditions say a field; others are said as `label: value`.
PHRASES = {"protocol": "{} protocol", "split": "{} split", "epochs": "up to {} epochs", "batch_size": "batches of {}",
           "limit_train": "{} training images", "limit_val": "{} validation images", "limit_test": "{} test images"}
VALUE_PHRASES = {("split", "all"): "no validation split", ("tta", "flip"): "two views of each test image",
                 ("tta", "flip_shift"): "six views of each test image"}


def comparison_sentences(first: Table, second: Table) -> list[str]:
    """What differs from the first table to the second, by model."""
    both = compare(first, second)
    lines = [f"`{table.name}`: {' '.join([conditions(table), *table.notes])}" for table in (first, second)]
    for table in (first, second):
        if alone := len(experiments(table).dropna(subset="test")) - len(both):
            lines.append(f"Only in `{table.name}`: {counted(alone, 'configuration')}.")
    for model, group in both.groupby("model"):
        change, name = group["difference"], first.looks[model].label
        lines.append(f"{name}: {counted(len(group), 'configuration')} in both. From the first to the second the median "
                     f"difference is {signed(change.median())} points, {(change > 0).sum()} are higher; at chance are "
                     f"{group['chance_first'].sum()} in the first, {group['chance_second'].sum()} in the second.")
    said = unlike(first, second) if len(both) else "The two tables have no configuration in common."
    return [*lines, said] if said else lines


def conditions(table: Table) -> str:
    """One sentence: data, what all runs of a model share, hardware, seeds, number of runs."""
    rows, runs, parts = table.rows[table.rows["main"]], table.runs, [table.data.label]
    usual = {field: shown(field, value) for field, value in Config().to_dict().items()
             if FIELDS[field].default is not None or field in (*CONDITIONS, *VIEWED)}
    for field in dict.fromkeys([*ALWAYS, *VIEWED, *table.fields]):
        if field in (*table.knobs, "dataset"):
            continue
        models = rows.dropna(subset=field).groupby(field, sort=False)["model"].unique()
        if field in ALWAYS or [shown(field, value) for value in models.index] != [usual.get(field)]:
            phrase = PHRASES.get(field, f"{label(field)}: {{}}")
            texts = [VALUE_PHRASES.get((field, value), phrase.format(shown(field, value))) for value in models.index]
            if len(texts) > 1 and any(len(having) < len(table.looks) for having in models):
                texts = [f"{text} ({listed(table.looks[model].label for model in having)})"
                         for text, having in zip(texts, models)]
            parts += [listed(texts, "or")] if texts else []
    for column in ("precision", "device"):
        if column in rows and rows[column].notna().any():
            parts.append(" or ".join(rows[column].dropna().unique()))
    if "seed" in rows:
        seeds = sorted(rows["seed"].unique())
        several = listed(seeds) if len(seeds) < 8 else f"{seeds[0]} to {seeds[-1]}"
        parts.append(f"seed{'s' * (len(seeds) > 1)} {several}")
    counts = ", ".join(f"{look.label} {(runs['model'] == model).sum()}" for model, look in table.looks.items())
    return f"{'; '.join(parts)}; {counted(len(runs), 'run')} ({counts}), ranked by {table.ranking}."


def chance_sentence(table: Table) -> str:
    """How many runs are no better than guessing, and what they share; empty if none is."""
    runs = table.runs
    lost = runs[runs["chance"]]
    if lost.empty:
        return ""
    by_model = listed(f"{n} of {table.looks[model].label}'s" for model, n in lost["model"].value_counts().items())
    are = "is" if len(lost) == 1 else "are"
    text = f"{len(lost)} of {counted(len(runs), 'run')} ({by_model}) {are} no better than guessing"
    first = lost.iloc[0]
    group = runs[runs["model"] == first["model"]]
    for knob in table.knobs:
        alike = group[group[knob] == first[knob]]
        if len(alike) < len(group) and alike.index.equals(lost.index):
            model = table.looks[first["model"]].label
            return f"{text}: every {model} run with {label(knob)} {shown(knob, first[knob])}."
    return text + "."


def shared_knobs(table: Table, rows: pd.DataFrame) -> str:
    """The knobs' values among the given runs, each with the number of runs that have it unless all do."""
    parts = []
    for knob in table.knobs:
        counts = rows[knob].value_counts()  # without the runs in which it does nothing
        values = [shown(knob, value) + f" ({count})" * (count < len(rows)) for value, count in counts.items()]
        parts += [f"{label(knob)} {listed(values)}"] if values else []
    return "; ".join(parts) + "."


def observations(table: Table, model: str) -> list[str]:
    """Key observations on one model's best runs: sentences that follow from the table alone."""
    rows, best = ranked(table, model), top(table, model)
    if best.empty:
        return [f"No run of {table.looks[model].label} in this table can be ranked."]
    noise = noise_floor(table, model)
    repeated = (finalists(table)["model"] == model).any()
    how = f"the only {'configuration' if repeated else 'run'}"
    if len(rows) > 1:
        competitors = counted(len(rows), "configuration") + ", one seed of each" if repeated else f"{len(rows)} runs"
        how = f"{'lowest' if table.lower_is_better else 'highest'} {table.score} of {competitors}"
    lines = [f"**{first_word(table).capitalize()} run:** `{best['name'].iloc[0]}` ({how})."]
    if ties := (rows[table.rank_by] == best["score"].iloc[0]).sum() - 1:
        lines.append(f"**Tie:** {counted(ties, 'other run')} {'has' if ties == 1 else 'have'} the same {table.score}.")
    if len(best) > 1:
        lines.append(f"**Range:** {range_sentence(table, model)}.")
    if (distinct := best["experiment"].nunique()) < len(best):
        lines.append(f"**One configuration, several names:** these {in_words(len(best))} rows are "
                     f"{counted(distinct, 'configuration')}, repeated under names that differ in a knob that does "
                     "nothing.")
    lines.append(f"**Hyperparameters:** {shared_knobs(table, rows.loc[best.index])}")
    lines += _two_sided(table, model, noise)
    lines += [f"**Edge of the grid:** {text}" for text in edges(table, model)]
    if unequal := unequal_budgets(table, model):
        lines.append(f"**Not like for like:** {unequal}")
    if "precision" in rows and len(kinds := rows["precision"].dropna().unique()) > 1:
        lines.append(f"**Not like for like:** the runs multiply in {listed(sorted(kinds))}; differences may come from "
                     "that.")
    if len(rows) > 1:
        lines.append(f"**Choice:** {_choice_sentence(table, rows, noise)}")
    return lines


def range_sentence(table: Table, model: str) -> str:
    """How far the best runs of a model lie apart on the test images, beside their noise."""
    best, noise = top(table, model), noise_floor(table, model)
    gap, margin, several = best["test"].max() - best["test"].min(), noise.margin(len(best)), in_words(len(best))
    return (f"the {first_word(table)} {several} reach {percent(best['test'].min())} to {percent(best['test'].max())} "
            f"on the test images: {points(gap)} apart, {against(gap, margin, noise.name)} "
            f"{'among' if len(best) > 2 else 'between'} {several} {noise.alike} ({points(margin)})")


def score_text(table: Table, value: float) -> str:
    """A value of the ranking column."""
    return f"{value:.4f}" if table.lower_is_better else percent(value)


def _two_sided(table: Table, model: str, noise: Noise) -> list[str]:
    """What each switch brings, and each knob with two values that are no numbers, all else equal, beside the noise."""
    rows, lines = ranked(table, model), []
    for knob in varying(table, model):
        values = list(rows[knob].dropna().unique())  # the better one first
        if len(values) == 2 and not is_number(rows[knob]):
            better, other = (True, False) if is_switch(rows[knob].dropna()) else values
            both = pairs(table, model, knob, better, other)
            if n := len(both):
                margins = [margin_of_means([noise] * 2, runs) for runs in both[["runs", "runs_other"]].to_numpy()]
                gain, margin = both["gain"].mean(), math.hypot(*margins) / n
                often = f" on average and helps in {(both['gain'] > 0).sum()} of {n} pairs" if n > 1 else ""
                lines.append(f"**{label(knob).capitalize()}:** all else equal, {shown(knob, better)} instead of "
                             f"{shown(knob, other)} brings {signed(gain)} points{often}, "
                             f"{against(gain, margin, noise.name)} ({points(margin)}).")
    return lines


def _choice_sentence(table: Table, rows: pd.DataFrame, noise: Noise) -> str:
    if not table.rank_by.startswith("test_"):
        highest = rows[table.tested].max()
        gap = highest - rows.iloc[0][table.tested]
        return (f"by {table.score}; the test images were not used. The highest test accuracy of the "
                f"{in_words(len(rows))} candidates, {percent(highest)}, is "
                + (f"{points(gap)} higher." if gap else "the chosen run's."))
    distinct = rows.drop_duplicates(["experiment", table.tested])  # repeats that agree in every digit are one run
    return (f"made by test score among {len(rows)} runs, so the best one's accuracy is too high, by about "
            f"{points(selection_bias(distinct[table.tested], noise.sd))} (bootstrap with the {noise.name}).")


def overall_observations(table: Table) -> list[str]:
    """Key observations across models; says which models have no rank and where conditions differ."""
    best, lines = overall(table), []
    labels = {model: look.label for model, look in table.looks.items()}
    if len(best) > 1:
        first = best.iloc[0]
        lines.append(f"**{first_word(table).capitalize()} model:** {labels[first['model']]}, by {table.score}.")
        if (tied := best["score"] == first["score"]).sum() > 1:
            names = listed(labels[model] for model in best.loc[tied, "model"])
            lines.append(f"**Tie:** {names} have the same {table.score}; their order is the table's.")
        lines += [f"**Gap:** {gap_sentence(table, first, row)}." for _, row in best.iloc[1:].iterrows()]
        lines.append(f"**What the winners share:** {shared_knobs(table, table.rows.loc[best.index])}")
        lines += [f"**Image by image:** {text}" for text in paired_sentences(table)]
        winners = table.rows.loc[best.index].set_index("model")
        for field in dict.fromkeys([*BUDGETS, *table.fields, "precision"]):
            compared = field in BUDGETS or field not in table.knobs
            if compared and field in winners and winners[field].nunique() > 1:
                theirs = winners[field].dropna().items()
                values = listed(f"{shown(field, value)} for {labels[model]}" for model, value in theirs)
                lines.append(f"**Not like for like:** the winners' {label(field)}: {values}.")
    rows = experiments(table)["rows"]
    if rows.sum() > len(rows):
        lines.append(f"**Repeats:** {rows.sum()} rows are {counted(len(rows), 'configuration')}; "
                     "the others repeat one.")
    if same := identical_experiments(table):
        lines.append(f"**Same digits:** {counted(same, 'configuration')} {'repeats' if same == 1 else 'repeat'} "
                     "another's metrics in every digit: what tells them apart had no effect (a weight decay too "
                     "small to change a float32 weight, for one).")
    return [*lines, *(f"**Chance:** {text}" for text in [chance_sentence(table)] if text)]


def gap_sentence(table: Table, first: pd.Series, second: pd.Series) -> str:
    """How far the first of two rows of `overall` is ahead of the second on the test images, beside their noise."""
    gap, names = first["test"] - second["test"], [table.looks[row["model"]].label for row in (first, second)]
    if gap == 0:
        return f"{names[0]} and {names[1]} tie on the test images"
    return (f"{names[0]} is {points(gap)} {'above' if gap > 0 else 'below'} {names[1]} on the test images, "
            + beside_noise(table, gap, [first["model"], second["model"]]))


def beside_noise(table: Table, gap: float, models, runs=(1, 1), of: str = "") -> str:
    """A difference between two means, of so many runs of each model, beside what noise alone makes of it."""
    noises = [noise_floor(table, model) for model in models]
    margin, least = margin_of_means(noises, runs), min(noises, key=lambda noise: noise.freedom)
    return f"{against(gap, margin, least.name)}{of} ({points(margin)})"


def paired_sentences(table: Table, within: bool = False) -> list[str]:
    """The models' best runs against each other, image by image; `within` a model, its best run against the next.

    The p-values are corrected for all of these.
    """
    lines = []
    for test in paired_tests(table).to_dict("records"):
        runs = table.rows.loc[[test["first"], test["second"]]]
        if (runs["model"].nunique() == 1) == within:
            first, second = (f"`{name}`" if within else f"{table.looks[model].label}'s {first_word(table)} run"
                             for name, model in zip(runs["name"], runs["model"]))
            verdict = "a difference" if test["p_holm"] < 0.05 else "no clear difference"
            lines.append(f"Only {first} gets {test['only_first']} test images right, only {second} "
                         f"{test['only_second']}: {verdict} between these two trainings (McNemar's test with Holm's "
                         f"correction, p = {test['p_holm']:.2g}).")
    return lines
