"""What a table of runs says, as Markdown."""

from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..files import NOTEBOOK, replacing
from ..words import duration, knob_value, percent, plain, signed
from .knobs import compare
from .ranking import experiments, overall, paired_tests, top
from .sentences import _score, conditions, observations, overall_observations
from .table import KNOBS, LABELS, PUBLISHED_BEST, Table

MOST_RUNS = 25  # that a README lists one by one


def comparison_table(first: Table, second: Table, n: int = 20) -> str:
    """The experiments of both tables side by side as Markdown, the `n` that differ most."""
    both = compare(first, second).sort_values("difference", key=abs, ascending=False, kind="stable").head(n)
    return markdown([{
        "Model": LABELS[row["model"]], "Sizes": plain(row["model_args"]) * (row["model_args"] != "{}"),
        **{name.capitalize(): "" if knob == "gamma" and row["scheduler"] == "cosine" else knob_value(row[knob]) for knob, name in KNOBS.items()},
        f"First: `{first.name}`": percent(row["first"]),
        f"Second: `{second.name}`": percent(row["second"]),
        "Difference, points": signed(row["difference"]),
    } for _, row in both.iterrows()]) if len(both) else ""


def bullets(lines) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def markdown(rows: list[dict[str, str]]) -> str:
    """A Markdown table of at least one row, without its empty columns."""
    heads = [head for head in rows[0] if any(row[head] for row in rows)]
    lines = [heads, ["---"] * len(heads), *([row[head] for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_table(table: Table, best: pd.DataFrame) -> str:
    """`top` or `overall` as Markdown; where each row is another model, the published best beside ours of the same size."""
    across, ours = best["model"].nunique() == len(best) > 1, "run" in table.rows and not table.synthetic
    sizes = table.rows.loc[best.index, "model_args"]
    return markdown([{
        "Model": LABELS[row["model"]] if across else "",
        "Run": f"`{row['name']}`",
        table.score.capitalize(): _score(table, row["score"]) if table.rank_by != table.tested else "",
        "Test accuracy": percent(row["test"]),
        "95% interval": f"{100 * row['low']:.2f} to {100 * row['high']:.2f}",
        "Per-class accuracy": percent(row["per_class"]),
        "Mean ± SD (runs)": f"{100 * row['mean']:.2f} ± {100 * row['sd']:.2f} ({row['runs']})" if row["runs"] > 1 else "",
        "Published best, 80 epochs": percent(PUBLISHED_BEST[row["model"]]) if across and ours and size == "{}" else "",
    } for (_, row), size in zip(best.iterrows(), sizes)])


def experiments_table(table: Table, model: str) -> str:
    """A model's best experiments as Markdown, or why there are none."""
    rows = [{
        f"{LABELS[model]}: experiment": f"`{row['name']}`",
        "Rows": str(row["rows"]),
        "Runs": str(row["runs"]),
        f"Mean {table.score}": _score(table, row["score"]),
        "Mean test accuracy": percent(row["test"]),
        "SD, points": f"{100 * row['sd']:.2f}" if row["runs"] > 1 else "",
    } for _, row in experiments(table, model).dropna(subset=["test"]).head(5).iterrows()]
    return markdown(rows) if rows else f"No run of {LABELS[model]} in this table has a test accuracy."


def paired_table(table: Table) -> str:
    """`paired_tests` as Markdown, or why there are none."""
    rows = [{
        "First run": f"`{row['first']}`",
        "Second run": f"`{row['second']}`",
        "Difference, points": signed(row["difference"]),
        "95% interval": f"{signed(row['low'])} to {signed(row['high'])}",
        "Only first right": str(row["only_first"]),
        "Only second right": str(row["only_second"]),
        "p": f"{row['p']:.2g}",
        "p (Holm)": f"{row['p_holm']:.2g}",
    } for _, row in paired_tests(table).iterrows()]
    return markdown(rows) if rows else "No paired comparison: it takes the stored predictions of two of the best runs on the same test images."


def model_section(table: Table, model: str, figures: str = "") -> str:
    """A model's results as Markdown: its chart (if `figures` says where), the best runs, the key observations."""
    best = top(table, model)
    chart = f"![{LABELS[model]}: the best runs]({figures}/{model}_top5.png)" if figures else ""
    shown = [chart, runs_table(table, best)] if len(best) else []
    return "\n\n".join(filter(None, [f"### Results {LABELS[model]}", *shown, bullets(observations(table, model))]))


def overall_section(table: Table, figures: str = "") -> str:
    """As model_section, of the best run of each model; with a single model the chart and the table would repeat its own and are left out."""
    best = overall(table)
    chart = f"![The best run of each model]({figures}/overall_top5.png)" if figures else ""
    shown = [chart, runs_table(table, best)] if len(best) > 1 else []
    return "\n\n".join(filter(None, ["### Overall results", *shown, bullets(overall_observations(table))]))


def every_run_section(table: Table, folder: str) -> str:
    """What each run took and reached, with a link to its notebook; empty for more than MOST_RUNS runs, and for a table without times.

    folder: where the run folders are, as a README sees it.
    """
    runs = table.runs
    if not {"run", "status", "seconds", "epochs_run", "precision"} <= set(runs) or len(runs) > MOST_RUNS:
        return ""
    rows = []
    for _, row in runs.sort_values(table.rank_by, ascending=table.lower_is_better, kind="stable").iterrows():
        notebook, score, test = f"{row['run']}/{NOTEBOOK}", row[table.rank_by], row[table.tested]
        rows.append({
            "Run": f"[`{row['run']}`]({folder}/{notebook})" if (table.folder / notebook).exists() else f"`{row['run']}`",
            table.score.capitalize(): _score(table, score) if pd.notna(score) else row["status"],
            "Test accuracy": percent(test) if pd.notna(test) else "",
            "Epochs": plain(row["epochs_run"]) if pd.notna(row["epochs_run"]) else "",
            "Precision": row["precision"] if pd.notna(row["precision"]) else "",
            "Time": duration(row["seconds"]) if pd.notna(row["seconds"]) else "",
        })
    return f"### Every run\n\n{markdown(rows)}\n\nTogether {duration(runs['seconds'].sum())} of training and validation."


def readme_section(table: Table, figures: str = "figures", folder: str = ".") -> str:
    """The results as Markdown: conditions, each model, all models, each run.

    figures, folder: those of the charts and of the runs, as a README sees them.
    """
    notes = ["What this report assumes or leaves out:", bullets(table.notes)] if table.notes else []
    parts = [f"**Conditions:** {conditions(table)}", *notes, *(model_section(table, model, figures) for model in table.models),
             overall_section(table, figures), every_run_section(table, folder)]
    return "\n\n".join(filter(None, parts))


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
        raise InputError(f"{path}: expected {begin} and then {end}, once each; add the two lines where the results belong")
    new = old[:old.index(begin)] + f"{begin}\n\n{text.strip()}\n\n" + old[old.index(end):]
    if new != old:
        with replacing(path) as part:
            part.write_text(new, encoding="utf-8")
    return new != old
