"""What a table of runs says, in sentences."""

import pandas as pd

from ..config import Config
from ..words import against, counted, in_words, listed, percent, points, signed
from .knobs import compare, edges, is_number, is_switch, pairs, varying
from .ranking import (Noise, experiments, finalists, identical_experiments, joint_name, margin_of_means, noise_floor,
                      overall, paired_tests, ranked, top)
from .statistics import selection_bias
from .table import FIELDS, Table, idle_when, label, shown

# How the conditions say what is said of every table; of other fields they say what differs from the default.
PHRASES = {"protocol": "{} protocol", "split": "{} split", "epochs": "up to {} epochs", "batch_size": "batches of {}"}


def comparison_sentences(first: Table, second: Table) -> list[str]:
    """What differs from the first table to the second, by model."""
    both = compare(first, second)
    lines = [f"`{table.name}`: {' '.join([conditions(table), *table.notes])}" for table in (first, second)]
    for table in (first, second):
        if alone := len(experiments(table).dropna(subset="test")) - len(both):
            lines.append(f"Only in `{table.name}`: {counted(alone, 'experiment')}.")
    for model, group in both.groupby("model"):
        change, name = group["difference"], first.looks[model].label
        lines.append(f"{name}: {counted(len(group), 'experiment')} in both. From the first to the second the median "
                     f"difference is {signed(change.median())} points, {(change > 0).sum()} are higher; at chance are "
                     f"{group['chance_first'].sum()} in the first, {group['chance_second'].sum()} in the second.")
        if len(ranked(first, model)) and len(ranked(second, model)):
            noise = noise_floor(first, model)
            winners = [f"`{row['name']}` ({percent(row['test'])})"
                       for table in (first, second) for _, row in top(table, model, 1).iterrows()]
            large = counted((change.abs() > noise.margin()).sum(), "difference")
            lines.append(f"{name}: the first table's {noise.name} ({points(noise.margin())}) is exceeded by {large}; "
                         "luck alone exceeds it in one of twenty, more often where accuracies are poor. The winners: "
                         f"{', then '.join(winners)}.")
    return lines if len(both) else [*lines, "The two tables have no experiment in common."]


def conditions(table: Table) -> str:
    """One sentence: data, what all runs of a model share, hardware, seeds, number of runs."""
    rows, runs, parts = table.rows[table.rows["main"]], table.runs, [table.data.label]
    usual = {field: shown(field, value) for field, value in Config().to_dict().items()
             if FIELDS[field].default is not None}
    for field in [*PHRASES, *(field for field in table.fields if field not in PHRASES)]:
        if field not in table.fields or field in (*table.knobs, "dataset"):
            continue
        models = rows.dropna(subset=field).groupby(field, sort=False)["model"].unique()
        values = [shown(field, value) for value in models.index]
        if len(values) > 1:
            values = [f"{value} ({listed(table.looks[model].label for model in having)})"
                      for value, having in zip(values, models)]
        if values and (field in PHRASES or values != [usual.get(field)]):
            parts.append(PHRASES.get(field, f"{label(field)}: {{}}").format(" or ".join(values)))
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
    """How many runs are no better than guessing, and what they share."""
    runs = table.runs
    lost = runs[runs["chance"]]
    if lost.empty:
        every = {1: "The one run is", 2: "Both runs are"}.get(len(runs), f"All {in_words(len(runs))} runs are")
        return f"{every} better than guessing."
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
    """What the given runs share and how they vary, a sentence a knob."""
    n, lines = len(rows), []
    both = "both" if n == 2 else f"all {in_words(n)}"
    for knob in table.knobs:
        values, name = rows[knob].dropna(), label(knob).capitalize()
        common = values.value_counts()
        everywhere = len(values) == n
        where = f" in the {in_words(len(values))} where it acts" if not everywhere else f" in {both}" if n > 1 else ""
        if values.empty:
            why = " or ".join(f"the {' or '.join(values)} {label(other)}" for other, values in idle_when(knob).items())
            lines.append(f"{name} does nothing under {why}.")
        elif is_switch(values) and n > 1:
            users = {n: both, 0: "none"}.get(values.sum(), f"{values.sum()} of {n}")
            lines.append(f"{name}: used by {users}.")
        elif len(common) == 1:
            lines.append(f"{name}: {shown(knob, common.index[0])}{where}.")
        elif not is_number(values):
            counts = listed(f"{shown(knob, value)} in {in_words(count)}" for value, count in common.items())
            lines.append(f"{name}: {counts}{'' if everywhere else where}.")
        else:
            text = f"{name}: from {shown(knob, values.min())} to {shown(knob, values.max())}"
            if common.iloc[0] > common.iloc[1]:
                text += f", most often {shown(knob, common.index[0])} ({common.iloc[0]} of {len(values)})"
            lines.append(f"{text}{'' if everywhere else where}.")
    return " ".join(lines)


def observations(table: Table, model: str) -> list[str]:
    """Key observations on one model's best runs: sentences that follow from the table alone."""
    rows, best = ranked(table, model), top(table, model)
    if best.empty:
        return [f"No run of {table.looks[model].label} in this table can be ranked."]
    first, noise = best.iloc[0], noise_floor(table, model)
    repeated = (finalists(table)["model"] == model).any()
    competitors = counted(len(rows), "configuration") + ", one seed of each" if repeated else f"{len(rows)} runs"
    how = f"{'lowest' if table.lower_is_better else 'highest'} {table.score} of {competitors}"
    how = f"the only {'configuration' if repeated else 'run'}" if len(rows) == 1 else how
    score = f"{table.score} {score_text(table, first['score'])}, " if table.rank_by != table.tested else ""
    lines = [f"**Best run:** `{first['name']}` ({how}): {score}test accuracy {percent(first['test'])} (95% interval "
             f"{percent(first['low'])} to {percent(first['high'])})."]
    if ties := (rows[table.rank_by] == first["score"]).sum() - 1:
        lines.append(f"**Tie:** {counted(ties, 'other run')} {'has' if ties == 1 else 'have'} the same {table.score}.")
    if first["runs"] > 1 and "seed" in table.rows:
        lines.append(f"**Repeats:** over {first['runs']} {first['repeat']}s the best run's configuration reaches "
                     f"{percent(first['mean'])} on average, SD {points(first['sd'])}.")
    if len(best) > 1:
        gap, margin, several = best["test"].max() - best["test"].min(), noise.margin(len(best)), in_words(len(best))
        lines.append(f"**Range:** the best {several} reach {percent(best['test'].min())} to "
                     f"{percent(best['test'].max())} on the test images: {points(gap)} apart, "
                     f"{against(gap, margin, noise.name)} {'among' if len(best) > 2 else 'between'} {several} "
                     f"{noise.alike} ({points(margin)}).")
    lines.append(f"**Noise floor:** {noise.text}.")
    if (distinct := best["experiment"].nunique()) < len(best):
        lines.append(f"**One experiment, several names:** the best {in_words(len(best))} rows are "
                     f"{counted(distinct, 'experiment')}, repeated under names that differ in a knob that does "
                     "nothing.")
    lines.append(f"**Hyperparameters:** {shared_knobs(table, rows.loc[best.index])}")
    lines += _two_sided(table, model)
    lines += [f"**Edge of the grid:** {text}" for text in edges(table, model)]
    if "precision" in rows and len(kinds := rows["precision"].dropna().unique()) > 1:
        lines.append(f"**Not like for like:** the runs multiply in {listed(sorted(kinds))}; differences may come from "
                     "that.")
    if len(rows) > 1:
        lines.append(f"**Choice:** {_choice_sentence(table, rows, noise)}")
    return lines


def score_text(table: Table, value: float) -> str:
    """A value of the ranking column."""
    return f"{value:.4f}" if table.lower_is_better else percent(value)


def _two_sided(table: Table, model: str) -> list[str]:
    """What each switch brings, and each knob with two values that are no numbers."""
    rows, lines = ranked(table, model), []
    for knob in table.knobs:
        best = rows.groupby(knob)[table.tested].first()  # by the ranking column
        switch = is_switch(rows[knob].dropna())
        if switch and len(best) == 1:
            text = f"its benefit can't be told: {'every' if best.index[0] else 'no'} ranked run uses it"
        elif len(best) == 2 and (switch or knob in varying(table, model) and not is_number(rows[knob])):
            better = True if switch else rows[knob].dropna().iloc[0]
            other = next(value for value in best.index if value != better)
            it = "it" if switch else shown(knob, better)
            without = "without it" if switch else f"with {shown(knob, other)}"
            text = (f"at best {percent(best[better])} with {it}, {percent(best[other])} {without} "
                    f"({signed(best[better] - best[other])} points)")
            gains = pairs(table, model, knob, better, other)["gain"]
            if len(gains):
                text += f"; all else equal {it} brings {signed(gains.median())} points"
                text += f" (median) and helps in {(gains > 0).sum()} of {len(gains)} pairs" if len(gains) > 1 else ""
        else:
            continue
        lines.append(f"**{label(knob).capitalize()}:** {text}.")
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
    missing = [name for model, name in labels.items() if model not in set(best["model"])]
    if len(best) > 1:
        first = best.iloc[0]
        order = ", ".join(f"{labels[row['model']]} {percent(row['test'])}" for _, row in best.iterrows())
        lines = [f"**Best model:** {labels[first['model']]} with `{first['name']}`, test accuracy "
                 f"{percent(first['test'])}.",
                 f"**Ranking** by {table.score}, with test accuracies: {order}."]
        if (tied := best["score"] == first["score"]).sum() > 1:
            names = listed(labels[model] for model in best.loc[tied, "model"])
            lines.append(f"**Tie:** {names} have the same {table.score}; their order is the table's.")
        lines += [f"**Gap:** {gap_sentence(table, first, row)}" for _, row in best.iloc[1:].iterrows()]
        lines.append(f"**What the winners share:** {shared_knobs(table, table.rows.loc[best.index])}")
        lines += [f"**Image by image:** {text}" for text in paired_sentences(table)]
        winners = table.rows.loc[best.index].set_index("model")
        for field in [*(field for field in table.fields if field not in table.knobs), "precision"]:
            if field in winners and winners[field].nunique() > 1:
                theirs = winners[field].dropna().items()
                values = listed(f"{shown(field, value)} for {labels[model]}" for model, value in theirs)
                lines.append(f"**Not like for like:** the winners' {label(field)}: {values}.")
    if missing:
        lines.append(f"**Missing:** no run of {listed(missing)} can be ranked.")
    rows = experiments(table)["rows"]
    if rows.sum() > len(rows):
        lines.append(f"**Experiments:** {rows.sum()} rows are {counted(len(rows), 'experiment')}; "
                     "the others repeat one.")
    if same := identical_experiments(table):
        lines.append(f"**Same digits:** {counted(same, 'experiment')} {'repeats' if same == 1 else 'repeat'} another's "
                     "metrics in every digit: what tells them apart had no effect (a weight decay too small to change "
                     "a float32 weight, for one).")
    return [*lines, f"**Chance:** {chance_sentence(table)}"]


def gap_sentence(table: Table, first: pd.Series, second: pd.Series) -> str:
    """How far the first of two rows of `overall` is ahead of the second on the test images, beside their noise."""
    gap, names = first["test"] - second["test"], [table.looks[row["model"]].label for row in (first, second)]
    if gap == 0:
        return f"{names[0]} and {names[1]} tie on the test images."
    noises = [noise_floor(table, row["model"]) for row in (first, second)]
    margin = margin_of_means(noises, [1, 1])
    return (f"{names[0]} is {points(gap)} {'above' if gap > 0 else 'below'} {names[1]} on the test images, "
            f"{against(gap, margin, joint_name(noises))} ({points(margin)}).")


def paired_sentences(table: Table) -> list[str]:
    """The models' best runs against each other, image by image; p is corrected for all of `paired_tests`."""
    lines = []
    for test in paired_tests(table).to_dict("records"):
        models = table.rows.loc[[test["first"], test["second"]], "model"]
        if models.nunique() == 1:
            continue
        first, second = (table.looks[model].label for model in models)
        verdict = "a difference" if test["p_holm"] < 0.05 else "no clear difference"
        lines.append(f"Only {first}'s best run gets {test['only_first']} test images right, only {second}'s "
                     f"{test['only_second']}: {verdict} between these two trainings (McNemar's test with Holm's "
                     f"correction, p = {test['p_holm']:.2g}).")
    return lines
