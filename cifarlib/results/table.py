"""A table of runs: read and checked."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import CHECKPOINTS, SCHEDULES
from ..errors import InputError
from ..files import TABLE, project_path
from ..parts import ARCHITECTURES, CIFAR10_CLASSES as CLASSES
from ..words import counted, listed, plain, some
from .statistics import wilson

LABELS = {name: row.label for name, row in ARCHITECTURES.items()}
KNOBS = {"learning_rate": "learning rate", "weight_decay": "weight decay", "gamma": "gamma", "scheduler": "scheduler",
         "augmentation": "augmentation"}
# What must be equal before two runs may stand in one ranking. A table that lacks a column is taken to share its value.
CONDITIONS = ("dataset", "protocol", "split", "model_args", "epochs", "batch_size", "val_freq",
              "early_stopping_patience",
              "limit_train", "limit_val", "limit_test", "data_fingerprint")
PUBLISHED_BEST = {name: row.published_best for name, row in ARCHITECTURES.items()}  # github.com/eliasmarcon/CIFAR-10, "Overall Results"
NAMES = ("study", "run", "Modelname", "Full_Modelname", "data_fingerprint")  # text, even where it looks like a number
CHANCE = 1 / len(CLASSES)


@dataclass(frozen=True)
class Table:
    """A checked table of runs.

    rows: a row a cell. Beside the file's columns: `model`, `experiment` (equal for cells that are one configuration), `copy` (the row
    repeats another row's run), `condition` (its values of CONDITIONS, as text), `main` (that condition is the one its model is ranked
    under), `images` (of the test) and `chance` (no better than guessing). notes: a sentence for everything left out or assumed.
    rank_by: the column that ranks; tested, per_class: the test columns that are shown, of the checkpoint that it names.
    """

    rows: pd.DataFrame
    notes: tuple[str, ...]
    folder: Path
    rank_by: str
    name: str

    @property
    def checkpoint(self) -> str:
        return next((c for c in CHECKPOINTS if self.rank_by.endswith(c)), "terminal")  # the last epoch's columns have no suffix

    @property
    def tested(self) -> str:
        return f"test_accuracy_{self.checkpoint}"

    @property
    def per_class(self) -> str:
        return f"test_per_class_accuracy_{self.checkpoint}"

    @property
    def lower_is_better(self) -> bool:
        return "loss" in self.score  # rank_by may name the checkpoint best_val_loss

    @property
    def score(self) -> str:
        """What the ranking column measures, e.g. `validation accuracy`."""
        return self.rank_by.removesuffix(f"_{self.checkpoint}").replace("_", " ").replace("val ", "validation ")

    @property
    def ranking(self) -> str:
        return f"{self.score} (checkpoint {self.checkpoint})"

    @property
    def synthetic(self) -> bool:
        return "dataset" in self.rows and bool(self.rows["dataset"].eq("synthetic").all())

    @property
    def runs(self) -> pd.DataFrame:
        """The rows without copies: each run once."""
        return self.rows[~self.rows["copy"]]

    @property
    def models(self) -> list[str]:
        return [model for model in LABELS if (self.rows["model"] == model).any()]


def read_table(path: str | Path, rank_by: str = "auto", study: str = "") -> Table:
    """Read runs.csv (or a folder that holds one) or a table in the published format, and check it; see check_table."""
    place = project_path(path)
    place = place / TABLE if place.is_dir() else place
    try:
        frame = pd.read_csv(place, dtype=dict.fromkeys(NAMES, "str"), skipinitialspace=True)
    except FileNotFoundError:
        message = f"{path}: no table of runs; expected a CSV such as executed/STUDY/runs.csv; run a study first"
        raise InputError(message) from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: the table is empty; expected a header and a row for each run") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a readable CSV ({str(error).strip()}); expected a table of runs") from None
    name = place.resolve().parent.name if place.name == TABLE else place.stem
    return check_table(frame, rank_by, study, place.parent, name)


def check_table(frame: pd.DataFrame, rank_by: str = "auto", study: str = "", folder: Path = Path("."),
                name: str = "this table") -> Table:
    """Keep the rows that can be shown, with a note on each that can't, and mark what the ranking needs to know.

    Raises InputError for what can't be read as a table of runs: no rows, missing columns, percent, contradictory rows.
    """
    needed = ["Modelname", "Full_Modelname", *KNOBS, "test_accuracy_best_val_acc", "test_per_class_accuracy_best_val_acc"]
    if missing := [column for column in needed if column not in frame]:
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
    notes: list[str] = []  # each of the three steps below adds its sentences
    rows = _usable(_typed(frame), notes)
    if rows.empty:
        raise InputError("nothing to report: " + " ".join(notes))
    table = Table(rows, (), folder, _ranking_column(rows, rank_by, notes), name)
    if missing := [column for column in (table.tested, table.per_class) if column not in rows]:
        raise InputError(f"rank_by: {table.rank_by} goes with {listed(missing)}, which the table lacks; rank by another checkpoint")
    rows = _marked(rows, table.tested, notes)
    late = rows["status"].eq("diverged") & rows[table.rank_by].notna()
    if late.any():
        notes.append(f"{counted(late.sum(), 'row')} diverged after a checkpoint, by which it ranks: {some(rows.loc[late, 'Full_Modelname'])}.")
    return replace(table, rows=rows, notes=tuple(notes))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with clean knobs and accuracies in [0, 1]; text that is no number becomes NaN."""
    frame = frame.copy()
    others = ("learning_rate", "weight_decay", "gamma", "seconds", "parameters", "seed", "test_images")
    numeric = [c for c in frame if "accuracy" in c or "_loss" in c or c in others]
    for column in frame[numeric].select_dtypes(exclude="number"):
        if (text := frame[column].astype(str).str.extract(r"^\s*(\d+%|\d+,\d+%?|\d+\.\d+%)\s*$", expand=False).dropna()).any():
            raise InputError(f"{column}: {text.iloc[0]} is no number; write a decimal point, and fractions instead of percent")
    frame[numeric] = frame[numeric].apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    for column in (c for c in numeric if "accuracy" in c):
        low, high = frame[column].min(), frame[column].max()
        if low < 0 or high > 1:
            raise InputError(f"{column}: {high if high > 1 else low:g} is no fraction; accuracies are expected in [0, "
                             "1]; divide percentages by 100")
    for column in ("Modelname", "scheduler", "augmentation"):
        frame[column] = frame[column].astype(object).fillna("").astype(str).str.strip().str.lower()
    frame["Full_Modelname"] = frame["Full_Modelname"].astype(object).fillna("").astype(str)
    frame["gamma"] = frame["gamma"].mask(frame["gamma"].isna() & (frame["scheduler"] == "cosine"), 0)  # may be left empty, where it does nothing
    frame["model"] = frame["Modelname"]
    frame["augmentation"] = frame["augmentation"].map({"true": True, "false": False, "1": True, "0": False})
    for column, default in {"shared_with": "", "model_args": "{}", "study": "", "status": "done", "run": ""}.items():
        if column in frame or default:
            values = frame.get(column, pd.Series(default, frame.index)).astype(object)
            frame[column] = values.where(values.notna(), default).astype(str)
    return frame.drop(columns="seed") if "seed" in frame and frame["seed"].isna().all() else frame  # as if there were none


def _usable(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows that can be shown; adds a note for each reason to leave rows out."""

    def leave_out(bad: pd.Series, why: str) -> None:
        nonlocal frame
        if bad.any():
            notes.append(f"{counted(bad.sum(), 'row')} left out, {why}: {some(frame.loc[bad, 'Full_Modelname'])}.")
            frame = frame[~bad]

    leave_out(frame["Full_Modelname"] == "", "without a Full_Modelname")
    for other in sorted(set(frame["status"]) - {"done", "diverged"}):
        leave_out(frame["status"] == other, f"status {other}")
    for model in sorted(set(frame["model"]) - set(LABELS)):
        leave_out(frame["model"] == model, f"unknown model {model!r} (known are {', '.join(LABELS)})")
    knobs = frame[list(KNOBS)].isna().any(axis=1) | ~frame["scheduler"].isin(SCHEDULES)
    leave_out(knobs, "without a known value of each knob")
    no_score = frame["test_accuracy_best_val_acc"].isna() & (frame["status"] != "diverged")
    leave_out(no_score, "without a test accuracy")
    if "dataset" in frame and frame["dataset"].nunique() > 1:
        leave_out(frame["dataset"] == "synthetic", "synthetic data beside real data")
    leave_out(frame.duplicated(), "the same line as another")
    identity = [c for c in ("Full_Modelname", "study", "run", "seed", *CONDITIONS) if c in frame]
    if (twice := frame.duplicated(identity, keep=False)).any():
        raise InputError(f"{some(frame.loc[twice, 'Full_Modelname'].unique())}: named twice with different results; "
                         "expected one row a cell and seed; tell repeats apart by a seed or study column, or remove "
                         "one")
    return frame


def _ranking_column(rows: pd.DataFrame, rank_by: str, notes: list[str]) -> str:
    default = "val_accuracy_best_val_acc"
    if rank_by == "auto" and default in rows and rows[default].notna().any():
        rank_by = default
    elif rank_by == "auto":
        rank_by = "test_accuracy_best_val_acc"
        notes.append(f"The table lacks {default}, so runs rank by {rank_by} as in the published report: the winners' "
                     "test accuracies are biased upward.")
    scores = [c for c in rows if c.startswith(("val_", "test_")) and ("accuracy" in c or "loss" in c)]
    if rank_by not in scores:
        near = difflib.get_close_matches(rank_by, scores, n=1) or [default]
        raise InputError(f"rank_by: no column of scores named {rank_by!r}; did you mean {near[0]}?")
    if unranked := rows[rank_by].isna().sum():
        notes.append(f"{counted(unranked, 'row')} without {rank_by} can't be ranked; shown only among all runs.")
    return rank_by


def _marked(rows: pd.DataFrame, tested: str, notes: list[str]) -> pd.DataFrame:
    """The rows with the derived columns that Table names; adds a note for what they leave out of the ranking."""
    conditions = [c for c in CONDITIONS if c in rows]
    images = rows.get("test_images", pd.Series(10_000, rows.index))
    rows = rows.assign(images=images.where(images.between(1, 1e9), 10_000).astype(int),
                       condition=[" | ".join(map(str, key)) for key in rows[conditions].to_numpy()])
    rows["chance"] = rows[tested].isna() | (rows[tested] <= wilson(CHANCE, rows["images"])[1])
    rows["experiment"] = [" ".join(map(str, key)) for key in without_inert(rows)[["model", *KNOBS, "condition"]].to_numpy()]
    rows["copy"] = _copies(rows, notes)
    rows["main"] = _main(rows, conditions, notes)
    return rows


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
        again = rows[~copy].duplicated(["experiment", "seed", *_metrics(rows)]).reindex(rows.index, fill_value=False)
        if again.any():
            notes.append(f"{counted(again.sum(), 'row')} {'repeats' if again.sum() == 1 else 'repeat'} a run of another study in every digit; "
                         "each run counts once.")
        copy |= again
    return copy


def _main(rows: pd.DataFrame, conditions: list[str], notes: list[str]) -> pd.Series:
    """Whether a row is of the condition under which its model is ranked: the one with the most experiments."""
    main = pd.Series(True, rows.index)
    for model, group in rows.groupby("model"):
        main[group.index] = group["condition"] == group.groupby("condition")["experiment"].nunique().idxmax()
        ranked, others = group[main[group.index]], group[~main[group.index]]
        if len(others):
            ours = {c: plain(value) for c, value in ranked[conditions].iloc[0].items()}
            theirs = {c: sorted(set(map(plain, others[c])) - {ours[c]}) for c in conditions}
            how = "; ".join(f"{c} {' or '.join(values)}, not {ours[c]}" for c, values in theirs.items() if values)
            notes.append(f"{LABELS[model]}: {counted(len(others), 'row')} under other conditions ({how}) do not enter "
                         f"the ranking: {some(others['Full_Modelname'])}.")
    return main


def _metrics(rows: pd.DataFrame) -> list[str]:
    return [c for c in rows if c.startswith(("test_", "train_", "val_")) and not c.endswith(("images", "freq"))]


def acting(rows: pd.DataFrame, knob: str) -> pd.DataFrame:
    """The rows on which a knob acts: gamma does nothing under the cosine schedule."""
    return rows[rows["scheduler"] != "cosine"] if knob == "gamma" else rows


def without_inert(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with gamma 0 under the cosine schedule: cells that differ in it are one experiment."""
    return rows.assign(gamma=rows["gamma"].where(rows["scheduler"] != "cosine", 0))
