"""The parts of this project's own pages that its code and its committed records determine."""

import dataclasses
import json
import statistics
from functools import partial
from pathlib import Path

from ..config import CHECKPOINTS, Config, Options
from ..files import project_path
from ..parts import ARCHITECTURES, PROTOCOLS, architecture
from ..words import duration, percent, value_text
from .figures.best import accuracy_by_minutes
from .figures.style import save
from .markdown import cell, comparison_table, markdown, rewrite_between_markers, spread
from .prediction import agreement, early_section
from .ranking import overall
from .table import Table, read_table

FRONT, GRIDS, PACKAGE = "README.md", "parameters/README.md", "cifarlib/README.md"
THROUGHPUT = ("executed/throughput/throughput.json", "executed/throughput/without_bf16/throughput.json")
IMAGES, EPOCHS = 40_000, 80  # of a training split, and of a published run


def rewrite_pages(studies: list[str], flags: dict[str, tuple[str, ...]], other: str = "") -> None:
    """Rewrite the generated parts of all pages but the studies' results, and redraw the front page's chart.

    studies: the folders in executed/ that the front page sums up; flags: a field's options beside the one of its name;
    other: a table to compare studies with. Raises InputError for a study without a table, a page without its markers.
    """
    tables = [read_table(f"executed/{study}") for study in studies]
    save(accuracy_by_minutes(tables), project_path("figures"), "accuracy_by_minutes")
    parts = {(FRONT, "studies"): studies_section(tables),
             (FRONT, "times"): times_section(),
             (GRIDS, "fields"): fields_section(flags),
             (PACKAGE, "architectures"): architectures_section(),
             (PACKAGE, "protocols"): protocols_section()}
    for (page, name), text in parts.items():
        rewrite_between_markers(project_path(page), name, text)
    for page in project_path("executed").glob("*/README.md"):
        rewrite_study(page, other)


def rewrite_study(page: Path, other: str) -> None:
    """Rewrite those of these parts for which a study's page has markers, such as `<!-- first_epochs:begin -->`.

    With another table, beside which the study stands, also `prediction` and `comparison_CHECKPOINT`. What wants
    histories that are not there (see `make unpack`) stays as it is.
    """
    study = f"executed/{page.parent.name}"
    parts = {"first_epochs": lambda: early_section(read_table(study))}
    if other:
        parts["prediction"] = lambda: agreement(read_table(study), read_table(other, f"test_accuracy_{CHECKPOINTS[0]}"))
        parts |= {f"comparison_{checkpoint}": partial(_comparison, other, study, f"test_accuracy_{checkpoint}")
                  for checkpoint in CHECKPOINTS}
    for name, make in parts.items():
        if f"<!-- {name}:begin -->" in page.read_text(encoding="utf-8") and (text := make()):
            rewrite_between_markers(page, name, text)


def _comparison(first: str, second: str, column: str) -> str:
    return markdown(comparison_table(*(read_table(path, column) for path in (first, second))))


def studies_section(tables: list[Table]) -> str:
    """The best run of each model in each study, chosen by validation accuracy."""
    rows = []
    for table in tables:
        for index, best in overall(table).iterrows():
            run = table.rows.loc[index]
            rows.append({
                "Study": f"[{table.name}](executed/{table.name}/README.md)",
                "Model": table.looks[best["model"]].label + " (resized)" * (run["model_args"] != value_text({})),
                "Protocol": run["protocol"],
                "Epochs": str(run["epochs_run"]),
                "Test accuracy": percent(best["test"]),
                "95% interval": f"{100 * best['low']:.2f} to {100 * best['high']:.2f}",
                "By six views": spread(best["views_mean"], best["views_sd"], best["runs"])
                or cell(best["views"], percent),
                "Trained in": duration(run["seconds"]),
                "On": f"{run['device'].removeprefix('cpu: ')}, {run['precision']}",
            })
    return markdown(rows)


def times_section() -> str:
    """Minutes of an epoch and of a published run at the measured rates, and the best published accuracy."""
    rows: dict[str, dict[str, str]] = {}
    for path in THROUGHPUT:
        for model, found in json.loads(project_path(path).read_text())["models"].items():
            seconds = IMAGES / statistics.median(found["images_per_second"]["ours"])
            rows.setdefault(model, {"Model": architecture(model).label}).update({
                f"An epoch in {found['precision']}": duration(seconds),
                f"{EPOCHS} epochs in {found['precision']}": duration(EPOCHS * seconds)})
    for model, row in rows.items():
        row["Published accuracy"] = percent(ARCHITECTURES[model].published_best)
    return markdown(list(rows.values()))


def fields_section(flags: dict[str, tuple[str, ...]]) -> str:
    """Every field of a configuration and of its options: other flags than `--NAME`, meaning, values, default."""
    usual = {Config: Config(), Options: Options()}
    return markdown([{
        "Field": f"`{spec.name}`",
        "Also": " ".join(f"`{flag}`" for flag in flags.get(spec.name, ())),
        "Meaning": spec.metadata["help"],
        "Values": ", ".join(f"`{choice}`" for choice in spec.metadata["choices"] or ()),
        "Default": as_yaml(getattr(usual[cls], spec.name)) + ", or the protocol's" * (spec.default is None),
    } for cls in (Config, Options) for spec in dataclasses.fields(cls)])


def architectures_section() -> str:
    """The package's own architectures: where they are and what sizes they take."""
    return markdown([{
        "`model`": f"`{name}`",
        "Class": f"`{row.home}`",
        "`model_args`": ", ".join(f"`{size}`" for size in row.sizes),
    } for name, row in ARCHITECTURES.items()])


def protocols_section() -> str:
    """What each protocol sets for a CNN, and the modern one for SpeedNet."""
    configs = {name: Config(model="speednet" if name == "modern" else "cnn", protocol=name) for name in PROTOCOLS}
    return markdown([{
        "Field": f"`{spec.name}`",
        "Meaning": spec.metadata["help"],
        **{f"`{name}`": as_yaml(getattr(config, spec.name)) for name, config in configs.items()},
    } for spec in dataclasses.fields(Config) if spec.default is None])


def as_yaml(value) -> str:
    """A value as a grid file has it, in code's type."""
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"
