"""What a table of runs says, in sentences."""

import pandas as pd

from ..words import against, counted, in_words, knob_value, listed, percent, plain, points, signed
from .knobs import augmentation_pairs, comparable, compare, edges
from .ranking import Noise, finalists, identical_experiments, joint_name, margin_of_means, noise_floor, overall, paired_tests, ranked, top
from .statistics import selection_bias
from .table import CONDITIONS, KNOBS, LABELS, Table, acting


def comparison_sentences(first: Table, second: Table) -> list[str]:
    """What differs from the first table to the second, by model."""
    both = compare(first, second)
    lines = [f"`{table.name}`: {' '.join([conditions(table), *table.notes])}" for table in (first, second)]
    for table in (first, second):
        if alone := len(comparable(table)) - len(both):
            lines.append(f"Only in `{table.name}`: {counted(alone, 'experiment')}.")
    for model, group in both.groupby("model"):
        change, lost = group["difference"], group[["chance_first", "chance_second"]].sum()
        lines.append(f"{LABELS[model]}: {counted(len(group), 'experiment')} in both. From the first to the second the median "
                     f"difference is {signed(change.median())} points, {(change > 0).sum()} are higher; at chance are "
                     f"{lost['chance_first']} in the first, {lost['chance_second']} in the second.")
        if len(ranked(first, model)) and len(ranked(second, model)):
            noise = noise_floor(first, model)
            winners = [f"`{row['name']}` ({percent(row['test'])})" for table in (first, second) for _, row in top(table, model, 1).iterrows()]
            large = counted((change.abs() > noise.margin()).sum(), "difference")
            lines.append(f"{LABELS[model]}: the first table's {noise.name} ({points(noise.margin())}) is exceeded by {large}; luck alone exceeds it "
                         f"in one of twenty, more often where accuracies are poor. The winners: {', then '.join(winners)}.")
    return lines if len(both) else [*lines, "The two tables have no experiment in common."]


def conditions(table: Table) -> str:
    """One sentence: data, protocol, split, epochs, sizes, hardware, seeds, number of runs."""
    rows, runs = table.rows[table.rows["main"]], table.runs
    parts = ["SYNTHETIC DATA, NOT CIFAR-10" if table.synthetic else "CIFAR-10"]
    labels = {"protocol": "{} protocol", "split": "{} split", "epochs": "up to {} epochs",
              "batch_size": "batches of {}", "limit_train": "{} training images", "limit_test": "{} test images",
              "model_args": "model sizes: {}", "precision": "{}", "device": "{}"}
    for column, label in labels.items():
        values = [plain(value) for value in rows[column].dropna().unique()] if column in rows else []
        if column == "model_args" and len(values) > 1:
            values = [f"{plain(value)} ({LABELS[model]})" for model, value in rows[["model", column]].drop_duplicates().itertuples(index=False)]
        if set(values) - {"0", "default"}:
            parts.append(label.format(" or ".join("all" if value == "0" else value for value in values)))
    if "seed" in rows:
        seeds = sorted(rows["seed"].dropna().astype(int).unique())
        parts.append(f"seed{'s' * (len(seeds) > 1)} " + (listed(seeds) if len(seeds) < 8 else f"{seeds[0]} to {seeds[-1]}"))
    counts = ", ".join(f"{LABELS[m]} {(runs['model'] == m).sum()}" for m in table.models)
    return f"{'; '.join(parts)}; {counted(len(runs), 'run')} ({counts}), ranked by {table.ranking}."


def chance_sentence(table: Table) -> str:
    """How many runs are no better than guessing, and what they share."""
    runs = table.runs
    lost = runs[runs["chance"]]
    if lost.empty:
        every = {1: "The one run is", 2: "Both runs are"}.get(len(runs), f"All {in_words(len(runs))} runs are")
        return f"{every} better than guessing."
    by_model = listed(f"{n} of {LABELS[m]}'s" for m, n in lost["model"].value_counts().items())
    are = "is" if len(lost) == 1 else "are"
    text = f"{len(lost)} of {counted(len(runs), 'run')} ({by_model}) {are} no better than guessing"
    first = lost.iloc[0]
    group = runs[runs["model"] == first["model"]]
    for knob, name in KNOBS.items():
        alike = group[group[knob] == first[knob]]
        if len(alike) < len(group) and alike.index.equals(lost.index):
            return f"{text}: every {LABELS[first['model']]} run with {name} {knob_value(first[knob])}."
    return text + "."


def shared_knobs(rows: pd.DataFrame) -> str:
    """What the given runs share and how they vary, a sentence a knob."""
    n, lines = len(rows), []
    both = "both" if n == 2 else f"all {in_words(n)}"
    for knob, name in KNOBS.items():
        values = acting(rows, knob)[knob]
        common = values.value_counts()
        everywhere = len(values) == n
        where = f" in the {in_words(len(values))} where it acts" if not everywhere else f" in {both}" if n > 1 else ""
        if knob == "augmentation" and n > 1:
            users = {n: both, 0: "none"}.get(values.sum(), f"{values.sum()} of {n}")
            lines.append(f"Augmentation: used by {users}.")
        elif values.empty:
            lines.append("Gamma does nothing under the cosine schedule.")
        elif len(common) == 1:
            lines.append(f"{name.capitalize()}: {knob_value(common.index[0])}{where}.")
        elif knob == "scheduler":
            lines.append(f"Scheduler: {listed(f'{kind} in {in_words(count)}' for kind, count in common.items())}.")
        else:
            text = f"{name.capitalize()}: from {knob_value(values.min())} to {knob_value(values.max())}"
            if common.iloc[0] > common.iloc[1]:
                text += f", most often {knob_value(common.index[0])} ({common.iloc[0]} of {len(values)})"
            lines.append(f"{text}{'' if everywhere else where}.")
    return " ".join(lines)


def observations(table: Table, model: str) -> list[str]:
    """Key observations on one model's best runs: sentences that follow from the table alone."""
    rows, best = ranked(table, model), top(table, model)
    if best.empty:
        return [f"No run of {LABELS[model]} in this table can be ranked."]
    first, noise = best.iloc[0], noise_floor(table, model)
    repeated = (finalists(table)["model"] == model).any()
    competitors = counted(len(rows), "configuration") + ", one seed of each" if repeated else f"{len(rows)} runs"
    how = f"{'lowest' if table.lower_is_better else 'highest'} {table.score} of {competitors}"
    how = f"the only {'configuration' if repeated else 'run'}" if len(rows) == 1 else how
    score = f"{table.score} {_score(table, first['score'])}, " if table.rank_by != table.tested else ""
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
                     f"{against(gap, margin, noise.name)} {'among' if len(best) > 2 else 'between'} {several} {noise.alike} ({points(margin)}).")
    lines.append(f"**Noise floor:** {noise.text}.")
    if (distinct := best["experiment"].nunique()) < len(best):
        lines.append(f"**One experiment, several names:** the best {in_words(len(best))} rows are "
                     f"{counted(distinct, 'experiment')}, repeated under names that differ in a knob that does "
                     "nothing.")
    lines.append(f"**Hyperparameters:** {shared_knobs(rows.loc[best.index])}")
    lines.append(f"**Augmentation:** {_augmentation_sentence(table, model)}")
    lines += [f"**Edge of the grid:** {text}" for text in edges(table, model)]
    if "precision" in rows and len(kinds := rows["precision"].dropna().unique()) > 1:
        lines.append(f"**Not like for like:** the runs multiply in {listed(sorted(kinds))}; differences may come from that.")
    if len(rows) > 1:
        lines.append(f"**Choice:** {_choice_sentence(table, rows, noise)}")
    return lines


def _score(table: Table, value: float) -> str:
    return f"{value:.4f}" if table.lower_is_better else percent(value)


def _augmentation_sentence(table: Table, model: str) -> str:
    best = ranked(table, model).groupby("augmentation")[table.tested].first()  # by the ranking column
    if len(best) < 2:
        return f"its benefit can't be told: {'every' if best.index[0] else 'no'} ranked run uses it."
    gain = signed(best[True] - best[False])
    text = f"at best {percent(best[True])} with it, {percent(best[False])} without it ({gain} points)"
    if len(pairs := augmentation_pairs(table, model)):
        text += (f"; all else equal it brings {signed(pairs['gain'].median())} points (median) and helps in "
                 f"{(pairs['gain'] > 0).sum()} of {counted(len(pairs), 'pair')}")
    return text + "."


def _choice_sentence(table: Table, rows: pd.DataFrame, noise: Noise) -> str:
    if not table.rank_by.startswith("test_"):
        highest = rows[table.tested].max()
        gap = highest - rows.iloc[0][table.tested]
        return (f"by {table.score}; the test images were not used. The highest test accuracy of the {in_words(len(rows))} candidates, "
                f"{percent(highest)}, is " + (f"{points(gap)} higher." if gap else "the chosen run's."))
    draws = rows.drop_duplicates(["experiment", table.tested])  # repeats that agree in every digit are one draw
    return (f"made by test score among {len(rows)} runs, so the best one's accuracy is too high, by about "
            f"{points(selection_bias(draws[table.tested], noise.sd))} (bootstrap with the {noise.name}).")


def overall_observations(table: Table) -> list[str]:
    """Key observations across models; says which models are missing and where conditions differ."""
    best, lines = overall(table), []
    missing = [label for model, label in LABELS.items() if model not in set(best["model"])]
    if len(best) > 1:
        first = best.iloc[0]
        order = ", ".join(f"{LABELS[row['model']]} {percent(row['test'])}" for _, row in best.iterrows())
        lines = [f"**Best model:** {LABELS[first['model']]} with `{first['name']}`, test accuracy "
                 f"{percent(first['test'])}.", f"**Ranking** by {table.score}, with test accuracies: {order}."]
        if (tied := best["score"] == first["score"]).sum() > 1:
            names = listed(LABELS[model] for model in best.loc[tied, "model"])
            lines.append(f"**Tie:** {names} have the same {table.score}; their order is the table's.")
        lines += [f"**Gap:** {gap_sentence(table, first, row)}" for _, row in best.iloc[1:].iterrows()]
        lines.append(f"**What the winners share:** {shared_knobs(table.rows.loc[best.index])}")
        lines += [f"**Image by image:** {text}" for text in paired_sentences(table)]
        winners = table.rows.loc[best.index].set_index("model")
        for column in (c for c in (*CONDITIONS, "precision") if c in winners and winners[c].nunique() > 1):
            values = listed(f"{plain(value)} for {LABELS[model]}" for model, value in winners[column].items())
            lines.append(f"**Not like for like:** the winners' {column.replace('_', ' ')}: {values}.")
    if missing:
        lines.append(f"**Missing:** the table has no ranked run of {listed(missing)}.")
    rows = table.rows[table.rows["main"]]
    configurations, seeded, runs = (len(rows.drop_duplicates([c for c in columns if c in rows])) for columns in (
        ["experiment"], ["experiment", "seed"], ["experiment", "seed", "study", "run"]))
    kinds = [f"{in_words(n)} {text}" for n, text in (
        (seeded - configurations, "with a further seed"),
        (runs - seeded, "with the same seed in another study" if "seed" in rows else "in a run of its own"),
        (len(rows) - runs, "under another name (gamma does nothing under the cosine schedule)")) if n]
    if kinds:
        lines.append(f"**Experiments:** {len(rows)} rows are {counted(configurations, 'experiment')}; the others repeat one: {listed(kinds)}.")
    if same := identical_experiments(table):
        lines.append(f"**Same digits:** {counted(same, 'experiment')} {'repeats' if same == 1 else 'repeat'} another's metrics in every digit: what "
                     "tells them apart had no effect (a weight decay too small to change a float32 weight, for one).")
    return [*lines, f"**Chance:** {chance_sentence(table)}"]


def gap_sentence(table: Table, first: pd.Series, second: pd.Series) -> str:
    """How far the first of two rows of `overall` is ahead of the second on the test images, beside their noise."""
    gap, names = first["test"] - second["test"], [LABELS[row["model"]] for row in (first, second)]
    if gap == 0:
        return f"{names[0]} and {names[1]} tie on the test images."
    noises = [noise_floor(table, row["model"]) for row in (first, second)]
    margin = margin_of_means(noises, [1, 1])
    return (f"{names[0]} is {points(gap)} {'above' if gap > 0 else 'below'} {names[1]} on the test images, "
            f"{against(gap, margin, joint_name(noises))} ({points(margin)}).")


def paired_sentences(table: Table) -> list[str]:
    """The models' best runs against each other, image by image, in words; corrected for all of `paired_tests`, those within a model too."""
    tests, model_of = paired_tests(table), table.rows.set_index("Full_Modelname")["model"].to_dict()
    lines = []
    for _, t in tests.iterrows():
        first, second = (LABELS[model_of[t[side]]] for side in ("first", "second"))
        if first == second:
            continue
        verdict = "a difference" if t["p_holm"] < 0.05 else "no clear difference"
        lines.append(f"Only {first}'s best run gets {t['only_first']} test images right, only {second}'s {t['only_second']}: {verdict} "
                     f"between these two trainings (McNemar's test with Holm's correction, p = {t['p_holm']:.2g}).")
    return lines
