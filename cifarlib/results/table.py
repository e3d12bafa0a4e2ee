"""A table of runs: read and checked."""

import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import CHECKPOINTS, PUBLISHED_KNOBS, Config, nearest
from ..errors import InputError
from ..files import TABLE, project_path
from ..parts import ARCHITECTURES, DATASETS, Architecture, Dataset, architectures
from ..words import counted, listed, some, value_text
from .statistics import wilson

FIELDS = {spec.name: spec for spec in dataclasses.fields(Config)}
CONDITIONS = Config.names_of("condition")
KNOBS = sorted(PUBLISHED_KNOBS, key=lambda name: (float, str, bool).index(FIELDS[name].type))
NEEDED = ("Modelname", "Full_Modelname", *KNOBS)
TESTED = [f"test_accuracy_{checkpoint}" for checkpoint in CHECKPOINTS]
TEXT = ("study", "run", "Modelname", "Full_Modelname", "data_fingerprint")  # even where it looks like a number
MEASURED = ("seconds", "parameters", "test_images")
SOURCE = "model_source"  # a digest of the user's file: two versions of a network are two configurations
# What beside fields and metrics every table may have: it tells no configurations apart.
BOOKKEEPING = (*TEXT, *MEASURED, "Group", "status", "shared_with", "error", "commit", "epochs_run", "precision",
               "device", "train_images", "val_images", *(f"epoch_{checkpoint}" for checkpoint in CHECKPOINTS))


def label(field: str) -> str:
    """What charts and texts call a field, or a column that is none."""
    return (field in FIELDS and FIELDS[field].metadata["label"]) or field.replace("_", " ")


def shown(field: str, value) -> str:
    """A field's value in charts and texts; a limit of 0 is none."""
    return "all" if field.startswith("limit_") and value == 0 else value_text(value)


def idle_when(knob: str) -> dict[str, tuple]:
    """The values of other fields with which a knob does nothing."""
    return FIELDS[knob].metadata["idle_when"] if knob in FIELDS else {}


@dataclass(frozen=True)
class Table:
    """A checked table of runs.

    rows: a row a cell, with the file's columns and these: every field of the configuration, empty where it does nothing
    in the row; `config` (all of them); `name` (without what all rows share); `experiment` (equal for cells that are one
    configuration); `copy` (the row repeats another row's run); `condition` (of the data, as text); `main` (its model is
    ranked under this condition); `images` (of the test); `chance` (no better than guessing). notes: a sentence for
    everything left out or assumed. rank_by: the column that ranks. fields: the columns that may tell configurations
    apart.
    """

    rows: pd.DataFrame
    notes: tuple[str, ...]
    folder: Path
    rank_by: str
    name: str
    fields: tuple[str, ...]

    @property
    def checkpoint(self) -> str:
        """The one whose scores rank; the columns of the last epoch name none."""
        return next((c for c in CHECKPOINTS if self.rank_by.endswith(c)), "terminal")

    @property
    def tested(self) -> str:
        return f"test_accuracy_{self.checkpoint}"

    @property
    def views(self) -> str:
        """The test accuracy by several views of each image."""
        return f"test_accuracy_with_views_{self.checkpoint}"

    @property
    def per_class(self) -> str:
        return f"test_per_class_accuracy_{self.checkpoint}"

    @property
    def score(self) -> str:
        """What the ranking column measures, e.g. `validation accuracy`."""
        return self.rank_by.removesuffix(f"_{self.checkpoint}").replace("_", " ").replace("val ", "validation ")

    @property
    def lower_is_better(self) -> bool:
        return "loss" in self.score  # rank_by may name the checkpoint best_val_loss

    @property
    def ranking(self) -> str:
        return f"{self.score} (checkpoint {self.checkpoint})"

    @property
    def runs(self) -> pd.DataFrame:
        """The rows without copies: each run once."""
        return self.rows[~self.rows["copy"]]

    @cached_property
    def looks(self) -> dict[str, Architecture]:
        """Label, colour and marker of each model."""
        return architectures(self.rows["model"])

    def stem(self, model: str) -> str:
        """What the names of a model's files begin with."""
        return model if model in ARCHITECTURES else re.sub(r"[^\w.]+", "-", self.looks[model].label)

    @property
    def data(self) -> Dataset:
        return DATASETS[self.rows["dataset"].iloc[0]]

    @property
    def usual_data(self) -> bool:
        """Whether the images are those of the published report."""
        return self.data is DATASETS[FIELDS["dataset"].default]

    @cached_property
    def knobs(self) -> list[str]:
        """The published knobs, and the fields that vary among the ranked runs of a model."""
        levels = self.rows[self.rows["main"]].groupby("model")[list(self.fields)].nunique().max()
        return [*KNOBS, *(field for field in self.fields if levels[field] > 1 and field not in KNOBS)]


def read_table(path: str | Path, rank_by: str = "auto", study: str = "") -> Table:
    """Read runs.csv (or a folder that holds one) or a table in the published format, and check it; see check_table."""
    file = project_path(path)
    file = file / TABLE if file.is_dir() else file
    try:
        frame = pd.read_csv(file, dtype=dict.fromkeys(TEXT, "str"), skipinitialspace=True)
    except FileNotFoundError:
        message = f"{path}: no table of runs; expected a CSV such as executed/STUDY/runs.csv; run a study first"
        raise InputError(message) from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: the table is empty; expected a header and a row for each run") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a readable CSV ({str(error).strip()}); expected a table of runs") from None
    name = file.resolve().parent.name if file.name == TABLE else file.stem
    return check_table(frame, rank_by, study, file.parent, name)


def check_table(frame: pd.DataFrame, rank_by: str = "auto", study: str = "", folder: Path = Path("."),
                name: str = "this table") -> Table:
    """Keep the rows that can be shown, with a note on each that can't, and mark what the ranking needs to know.

    Raises InputError for what can't be read as a table of runs: no rows, missing columns, percent, contradictory rows.
    """
    if missing := [column for column in NEEDED if column not in frame]:
        hint = "; save it with commas between its columns" if frame.shape[1] == 1 else ""
        raise InputError(f"the table lacks {', '.join(missing)}; expected the columns of executed/STUDY/runs.csv{hint}")
    if study:
        known = sorted(frame["study"].dropna().astype(str).unique()) if "study" in frame else []
        if study not in known:
            raise InputError(f"study: no rows of {study!r}; the table has {', '.join(known) or 'no study column'}")
        frame = frame[frame["study"].astype(str) == study]
    if frame.empty:
        raise InputError("the table has no rows; expected one for each run")
    # The published table's unnamed first column is an index.
    frame = frame.loc[:, ~frame.columns.str.startswith("Unnamed")].reset_index(drop=True)
    notes: list[str] = []  # each of the steps below adds its sentences
    frame, configs = _usable(_typed(frame), notes)
    if frame.empty:
        raise InputError("nothing to report: " + " ".join(notes))
    rank_by = _ranking_column(frame, rank_by, notes)
    fields = _fields(frame, configs, notes)
    table = Table(_described(frame, configs, fields), (), folder, rank_by, name, tuple(fields))
    if missing := [column for column in (table.tested, table.per_class) if column not in frame]:
        raise InputError(f"rank_by: {rank_by} goes with {listed(missing)}, which the table lacks; "
                         "rank by another checkpoint")
    return dataclasses.replace(table, rows=_marked(table, notes), notes=tuple(notes))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with finite numbers for what was measured, accuracies in [0, 1], and text for names."""
    frame = frame.copy()
    for column in [*metrics(frame), *(column for column in MEASURED if column in frame)]:
        values = pd.to_numeric(frame[column], errors="coerce").replace([np.inf, -np.inf], np.nan)
        if len(bad := frame.loc[values.isna() & frame[column].notna(), column]):
            raise InputError(f"{column}: {bad.iloc[0]!r} is no number; write fractions, with a decimal point")
        if "accuracy" in column and len(bad := values[(values < 0) | (values > 1)]):
            raise InputError(f"{column}: {bad.iloc[0]:g} is no fraction; accuracies are expected in [0, 1]; divide "
                             "percentages by 100")
        frame[column] = values
    for column, default in {"Full_Modelname": "", "shared_with": "", "study": "", "status": "done", "run": ""}.items():
        if column in frame or default:
            values = frame.get(column, pd.Series(default, frame.index)).astype(object)
            frame[column] = values.where(values.notna(), default).astype(str)
    return frame.drop(columns=[column for column in frame if column not in NEEDED and frame[column].isna().all()])


def metrics(frame: pd.DataFrame) -> list[str]:
    """The columns of accuracies and losses."""
    return [column for column in frame if re.match("(test|train|val)_.*(accuracy|loss)", column)]


def _usable(frame: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """The rows that can be shown, and their configurations; adds a note for each reason to leave rows out."""

    def leave_out(bad: pd.Series, why: str) -> None:
        nonlocal frame
        bad = bad[frame.index]
        if bad.any():
            notes.append(f"{counted(bad.sum(), 'row')} left out, {why}: {some(frame.loc[bad, 'Full_Modelname'])}.")
            frame = frame[~bad]

    leave_out(frame["Full_Modelname"] == "", "without a Full_Modelname")
    for other in sorted(set(frame["status"]) - {"done", "diverged"}):
        leave_out(frame["status"] == other, f"status {other}")
    configs = pd.Series([_configuration(row) for row in frame.to_dict("records")], frame.index, dtype=object)
    for problem in dict.fromkeys(found for found in configs if isinstance(found, str)):
        leave_out(configs == problem, problem)
    tested = next((column for column in TESTED if column in frame), TESTED[0])
    leave_out(frame.reindex(columns=[tested])[tested].isna() & (frame["status"] != "diverged"), f"without {tested}")
    datasets = configs[frame.index].map(lambda config: config.dataset)
    kept = next((name for name in DATASETS if (datasets == name).any()), FIELDS["dataset"].default)
    leave_out(datasets != kept, f"of other data than {DATASETS[kept].label}")
    leave_out(frame.duplicated(), "the same line as another")
    return frame, configs[frame.index]


def _configuration(row: dict) -> Config | str:
    """The configuration of a row, or what is wrong with it; a field without a value is as usual, but for KNOBS."""
    values = {}
    for name, spec in FIELDS.items():
        value = row.get("Modelname" if name == "model" else name)
        text = "" if pd.isna(value) else str(value).strip()
        if text.lower() in (spec.metadata["choices"] or ()):
            text = text.lower()
        if text and spec.metadata["role"] != "place":
            values[name] = text
    try:
        config = Config(**values)
    except InputError as error:
        return str(error)
    missing = [label(name) for name in ("model", *KNOBS) if name not in {*values, *config.idle()}]
    return f"without {listed(missing)}" if missing else config


def _fields(frame: pd.DataFrame, configs: pd.Series, notes: list[str]) -> list[str]:
    """The columns that may tell configurations apart; adds a note for those that are no field of a configuration.

    A field that every row leaves to its protocol follows from that, and is not counted beside it.
    """
    def left_to_protocol(name: str) -> bool:
        spec = FIELDS[name]
        return spec.default is None and all(getattr(config, name) == config.usual(spec) for config in configs)

    known = [name for name in [*CONDITIONS, *Config.names_of("knob"), "model_args"]
             if name in frame and (name in CONDITIONS or not left_to_protocol(name))]
    if SOURCE in frame and frame.groupby("Modelname")[SOURCE].nunique(dropna=False).max() > 1:
        known.append(SOURCE)
    others = [column for column in frame if column not in (*FIELDS, *BOOKKEEPING, SOURCE, *metrics(frame))
              and frame[column].nunique(dropna=False) > 1]
    for column in others:
        notes.append(f"{column} is no field of a configuration, yet it varies: rows that differ in it rank as "
                     "different configurations. If it changes no result, remove the column.")
    return known + others


def _described(frame: pd.DataFrame, configs: pd.Series, fields: list[str]) -> pd.DataFrame:
    """The rows with every field of their configurations, and their names in charts and texts."""
    names = ["model", "model_args", *Config.names_of("knob"), *CONDITIONS, *(["seed"] if "seed" in frame else [])]
    values = pd.DataFrame([config.to_dict() | dict.fromkeys(config.idle()) for config in configs], frame.index)[names]
    values = values.where(values.notna(), np.nan).infer_objects()
    values["model_args"] = values["model_args"].map(value_text)
    for column in (column for column in fields if column not in FIELDS and frame[column].hasnans):
        values[column] = frame[column].astype(object).fillna("").astype(str)
    shared = {name for name in set(names) - set(PUBLISHED_KNOBS) if values[name].nunique(dropna=False) == 1}
    values["name"] = [config.name_without(shared) if name == config.cell_name else name
                      for config, name in zip(configs, frame["Full_Modelname"])]
    values["config"] = configs
    return frame.drop(columns=[column for column in values if column in frame]).join(values)


def _ranking_column(rows: pd.DataFrame, rank_by: str, notes: list[str]) -> str:
    default = "val_accuracy_best_val_acc"
    if rank_by == "auto":
        rank_by = next((column for column in (default, *TESTED) if column in rows), default)
        if rank_by == TESTED[-1]:
            notes.append("Nothing validated these runs, so they rank by the test accuracy of their last weights: that "
                         "of the best of several configurations is biased upward.")
        elif rank_by != default:
            notes.append(f"The table lacks {default}, so runs rank by {rank_by} as in the published report: the "
                         "winners' test accuracies are biased upward.")
    scores = [column for column in metrics(rows) if not column.startswith("train_")]
    if rank_by == default and rank_by not in scores:
        raise InputError("nothing to report: no run has a validation or a test accuracy")
    if rank_by not in scores:
        near = nearest(rank_by, scores) or default
        raise InputError(f"rank_by: no column of scores named {rank_by!r}; did you mean {near}?")
    if unranked := rows[rank_by].isna().sum():
        notes.append(f"{counted(unranked, 'row')} without {rank_by} can't be ranked; shown only among all runs.")
    return rank_by


def _marked(table: Table, notes: list[str]) -> pd.DataFrame:
    """The rows with the derived columns that Table names; adds a note for what they leave out of the ranking.

    Raises InputError for rows that contradict each other.
    """
    rows = table.rows
    images = rows.get("test_images", pd.Series(10_000, rows.index))
    rows["images"] = images.where(images.between(1, 1e9), 10_000).astype(int)
    lucky = wilson(1 / len(table.data.classes), rows["images"])[1]
    if table.views not in rows:
        rows[table.views] = np.nan
    rows["chance"] = rows[table.tested].isna() | (rows[table.tested] <= lucky)
    rows["condition"] = _condition(rows)
    others = [field for field in table.fields if field not in FIELDS]
    identity = rows[[*Config.names_of("model", "knob"), *others, "condition"]]
    rows["experiment"] = [" ".join(map(str, values)) for values in identity.to_numpy()]
    _tell_apart(rows, notes)
    rows["copy"] = _copies(rows, notes)
    rows["main"] = _main(rows, table.looks, notes)
    late = rows["status"].eq("diverged") & rows[table.rank_by].notna()
    if late.any():
        notes.append(f"{counted(late.sum(), 'row')} diverged after a checkpoint, by which it ranks: "
                     f"{some(rows.loc[late, 'name'])}.")
    return rows


def _condition(rows: pd.DataFrame) -> list[str]:
    """What runs must share to be ranked together: how their data are split and limited, and that it is the same data.

    The fingerprint is of the training images too, so it is compared among runs with equally many of them.
    """
    key = rows[CONDITIONS]
    if "data_fingerprint" in rows:
        prints = rows["data_fingerprint"].fillna("")
        usual = prints.groupby([rows[name] for name in (*CONDITIONS, "limit_train")]).transform(lambda p: p.mode()[0])
        key = key.assign(other=prints.where(prints != usual, ""))
    return [" | ".join(map(str, values)) for values in key.to_numpy()]


def _tell_apart(rows: pd.DataFrame, notes: list[str]) -> None:
    """Make runs that agree in every field, but whose folders have different names, an experiment each, with a note.

    They are no repeats: something that the table has no column for tells them apart.
    """
    same = [column for column in ("experiment", "study", "seed") if column in rows]
    if (twice := rows.duplicated([*same, "Full_Modelname", *(["run"] if "run" in rows else [])], keep=False)).any():
        raise InputError(f"{some(rows.loc[twice, 'Full_Modelname'].unique())}: named twice with different results; "
                         "expected one row a cell and seed; tell repeats apart by a seed or a study, or remove one")
    if "run" not in rows:
        return
    unlike = rows["run"].replace("", None).groupby([rows[column] for column in same]).transform("nunique") > 1
    if unlike.any():
        rows.loc[unlike, "experiment"] += " " + rows["run"]
        notes.append(f"{counted(unlike.sum(), 'row')} of different runs agree in every field that the table has, and "
                     f"rank as different configurations: {some(rows.loc[unlike, 'run'])}. Add a column for what tells "
                     "them apart; if they are repeats, give each a seed of its own, or a study.")


def _copies(rows: pd.DataFrame, notes: list[str]) -> pd.Series:
    """Whether a row repeats another row's run: a cell that shares it, or the same run in another study."""
    if "run" not in rows:  # in the published format each row was trained
        return pd.Series(False, rows.index)
    run = rows["run"].where(rows["run"] != "", rows["Full_Modelname"]) + rows["condition"] + rows.get("study", "")
    trained_first = rows.assign(key=run, shared=rows.get("shared_with", "") != "").sort_values("shared", kind="stable")
    copy = trained_first.duplicated("key").reindex(rows.index)
    if copy.any():
        notes.append(f"{counted(copy.sum(), 'cell')} of {len(rows)} share another cell's run, because what tells them "
                     "apart does nothing; each run counts once.")
    if "seed" in rows:
        again = rows[~copy].duplicated(["experiment", "seed", *metrics(rows)]).reindex(rows.index, fill_value=False)
        if again.any():
            notes.append(f"{counted(again.sum(), 'row')} {'repeats' if again.sum() == 1 else 'repeat'} a run of "
                         "another study in every digit; each run counts once.")
        copy |= again
    return copy


def _main(rows: pd.DataFrame, looks: dict[str, Architecture], notes: list[str]) -> pd.Series:
    """Whether a row is of the condition under which its model is ranked: the one with the most experiments."""
    main = pd.Series(True, rows.index)
    conditions = [name for name in (*CONDITIONS, "data_fingerprint") if name in rows]
    for model, group in rows.groupby("model"):
        main[group.index] = group["condition"] == group.groupby("condition")["experiment"].nunique().idxmax()
        ours, others = group[main[group.index]].iloc[0], group[~main[group.index]]
        if len(others):
            unlike = {name: others.loc[others[name] != ours[name], name].unique() for name in conditions}
            how = "; ".join(f"{label(name)} {' or '.join(shown(name, value) for value in values)}, "
                            f"not {shown(name, ours[name])}" for name, values in unlike.items() if len(values))
            notes.append(f"{looks[model].label}: {counted(len(others), 'row')} under other conditions ({how}) do not "
                         f"enter the ranking: {some(others['name'])}.")
    return main
