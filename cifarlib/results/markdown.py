"""What a table of runs says, as Markdown."""

from functools import partial
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..files import NOTEBOOK, replacing
from ..words import duration, percent, signed, value_text
from .knobs import compare, short_labels
from .ranking import finalists, overall, top
from .sentences import conditions, observations, overall_observations, score_text
from .table import KNOBS, Table, label, shown

MOST_RUNS = 30  # that a README lists one by one


def comparison_table(first: Table, second: Table, n: int = 20) -> pd.DataFrame:
    """The experiments of both tables side by side as texts, the `n` that differ most."""
    both = compare(first, second).sort_values("difference", key=abs, ascending=False, kind="stable").head(n)
    knobs = [knob for knob in dict.fromkeys([*first.knobs, *second.knobs]) if knob in KNOBS
             or knob in both and knob != "model_args" and both[knob].nunique() > 1]
    return texts([{
        "Model": first.looks[row["model"]].label,
        "Sizes": row["model_args"].replace(value_text({}), ""),
        **{label(knob).capitalize(): cell(row[knob], partial(shown, knob)) for knob in knobs},
        f"First: {first.name}": percent(row["first"]),
        f"Second: {second.name}": percent(row["second"]),
        "Difference, points": signed(row["difference"]),
    } for _, row in both.iterrows()])


def bullets(lines) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def spread(mean: float, sd: float, runs: int) -> str:
    """A mean accuracy with its standard deviation over several runs; empty without one."""
    return "" if pd.isna(sd) else f"{100 * mean:.2f} ± {100 * sd:.2f} ({runs})"


def cell(value, text=str) -> str:
    """What `text` makes of a value; empty where there is none."""
    return "" if pd.isna(value) else text(value)


def texts(rows: list[dict[str, str]]) -> pd.DataFrame:
    """Rows of a report's table, without its empty columns."""
    frame = pd.DataFrame(rows)
    return frame.loc[:, (frame != "").any()]


def markdown(rows: pd.DataFrame | list[dict[str, str]]) -> str:
    """A Markdown table, without its empty columns; names of runs as code, but for links. Empty without a row."""
    frame = texts(rows)
    if "Run" in frame:
        frame["Run"] = [run if run.startswith("[") else f"`{run}`" for run in frame["Run"]]
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(frame) else ""


def runs_table(table: Table, best: pd.DataFrame) -> pd.DataFrame:
    """`top` or `overall` as texts; where each row is another model, with the published best of that size."""
    across = best["model"].nunique() == len(best) > 1
    if across and "run" in table.rows and table.usual_data:
        usual = best["model_args"] == value_text({})
        best = best.assign(published=best["model"].map(lambda model: table.looks[model].published_best).where(usual))
    return texts([{
        "Model": table.looks[row["model"]].label if across else "",
        "Run": row["name"],
        table.score.capitalize(): score_text(table, row["score"]) if table.rank_by != table.tested else "",
        "Test accuracy": percent(row["test"]),
        "95% interval": f"{100 * row['low']:.2f} to {100 * row['high']:.2f}",
        "With views": cell(row["views"], percent),
        "Per-class accuracy": percent(row["per_class"]),
        "Mean ± SD (runs)": spread(row["mean"], row["sd"], row["runs"]),
        "With views, mean ± SD (runs)": spread(row["views_mean"], row["views_sd"], row["runs"]),
        "Published best, 80 epochs": cell(row.get("published"), percent),
    } for _, row in best.iterrows()])


def model_section(table: Table, model: str, figures: str = "") -> str:
    """A model's results as Markdown: its chart (if `figures` says where), the best runs, the key observations."""
    best, name = top(table, model), table.looks[model].label
    chart = f"![{name}: the best runs]({figures}/{table.stem(model)}_top5.png)" if figures else ""
    parts = [chart, markdown(runs_table(table, best))] if len(best) else []
    return "\n\n".join(filter(None, [f"### Results {name}", *parts, bullets(observations(table, model))]))


def overall_section(table: Table, figures: str = "") -> str:
    """As model_section, of the best run of each model; a single model's own section has its chart and table already."""
    best = overall(table)
    chart = f"![The best run of each model]({figures}/overall_top5.png)" if figures else ""
    parts = [chart, markdown(runs_table(table, best))] if len(best) > 1 else []
    parts += filter(None, [bullets(overall_observations(table))])
    return "\n\n".join(["### Overall results", *parts]) if parts else ""


def every_run_table(table: Table) -> pd.DataFrame:
    """What each run took and reached, as texts; no row without times and for more than MOST_RUNS."""
    runs = table.runs
    if not {"run", "status", "seconds", "epochs_run", "precision"} <= set(runs) or len(runs) > MOST_RUNS:
        return texts([])
    return texts([{
        "Run": row["run"],
        table.score.capitalize(): cell(row[table.rank_by], partial(score_text, table)) or row["status"],
        "Test accuracy": cell(row[table.tested], percent),
        "With views": cell(row[table.views], percent),
        "Epochs": cell(row["epochs_run"], value_text),
        "Precision": cell(row["precision"]),
        "Time": cell(row["seconds"], duration),
    } for _, row in runs.sort_values(table.rank_by, ascending=table.lower_is_better, kind="stable").iterrows()])


def every_run_section(table: Table, folder: str) -> str:
    """`every_run_table` as Markdown, with links to the runs' notebooks; empty without a row.

    folder: where the run folders are, as a README sees it.
    """
    every = every_run_table(table)
    if every.empty:
        return ""
    notebooks = [f"{run}/{NOTEBOOK}" for run in every["Run"]]
    every["Run"] = [f"[`{run}`]({folder}/{notebook})" if (table.folder / notebook).exists() else run
                    for run, notebook in zip(every["Run"], notebooks)]
    together = f"Together {duration(table.runs['seconds'].sum())} of training and validation."
    return f"### Every run\n\n{markdown(every)}\n\n{together}"


def repeats_table(table: Table) -> pd.DataFrame:
    """Each configuration that was run several times, its means and their distance from the first one's, as texts."""
    again = finalists(table).head(MOST_RUNS).reset_index()
    return texts([{
        "Configuration": name,
        f"{table.score.capitalize()}, mean": score_text(table, row["score"]) if table.rank_by != table.tested else "",
        "Test accuracy, mean ± SD (runs)": spread(row["test"], row["sd"], row["runs"]),
        "With views, mean ± SD (runs)": spread(row["views_mean"], row["views_sd"], row["runs"]),
        "Test accuracy from the first, points": signed(row["test"] - again["test"][0]),
    } for name, (_, row) in zip(short_labels(table, again), again.iterrows())])


def repeats_section(table: Table, figures: str) -> str:
    """`repeats_table` as Markdown, with its chart; empty for one or two, which the models' sections have."""
    again = repeats_table(table)
    chart = f"![Repeated configurations]({figures}/finalists.png)"
    return f"### Repeated configurations\n\n{chart}\n\n{markdown(again)}" if len(again) > 2 else ""


def readme_section(table: Table, figures: str = "figures", folder: str = ".") -> str:
    """The results as Markdown: conditions, each model, all models, repeated configurations, each run.

    figures, folder: those of the charts and of the runs, as a README sees them.
    """
    notes = ["What this report assumes or leaves out:", bullets(table.notes)] if table.notes else []
    models = [model_section(table, model, figures) for model in table.looks]
    every = [overall_section(table, figures), repeats_section(table, figures), every_run_section(table, folder)]
    return "\n\n".join(filter(None, [f"**Conditions:** {conditions(table)}", *notes, *models, *every]))


def rewrite_between_markers(path: str | Path, name: str, text: str) -> bool:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->`; returns whether the file changed.

    Raises InputError if the file can't be read, lacks the pair or has it twice.
    """
    path, begin, end = Path(path), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    try:
        old = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}); expected a file with {begin} and {end}") from None
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise InputError(f"{path}: expected {begin} and then {end}, once each; add the lines where the results belong")
    new = old[:old.index(begin)] + f"{begin}\n\n{text.strip()}\n\n" + old[old.index(end):]
    if new != old:
        with replacing(path) as part:
            part.write_text(new, encoding="utf-8")
    return new != old
