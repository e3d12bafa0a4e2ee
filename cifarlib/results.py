"""What a table of runs says in numbers: checked, ranked, its noise, the influence of its knobs."""

import difflib
import itertools
import math
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from .config import CHECKPOINTS, CLASSES, SCHEDULES, InputError, project_path
from .files import HISTORY, PREDICTIONS, TABLE
from .history import History
from .words import counted, knob_value, listed, plain, points, some

LABELS = {"cnn": "CNN", "resnet": "ResNet", "vit": "ViT"}
KNOBS = {"learning_rate": "learning rate", "weight_decay": "weight decay", "gamma": "gamma", "scheduler": "scheduler",
         "augmentation": "augmentation"}
# What must be equal before two runs may stand in one ranking. A table that lacks a column is taken to share its value.
CONDITIONS = ("dataset", "protocol", "split", "model_args", "epochs", "batch_size", "val_freq",
              "early_stopping_patience",
              "limit_train", "limit_val", "limit_test", "data_fingerprint")
PUBLISHED_BEST = {"cnn": 0.8697, "resnet": 0.8422, "vit": 0.8350}  # github.com/eliasmarcon/CIFAR-10, "Overall Results"
NAMES = ("study", "run", "Modelname", "Full_Modelname", "data_fingerprint")  # text, even where it looks like a number
CHANCE = 1 / len(CLASSES)
Z = 1.959964  # two-sided 95%
BINS = 15  # of confidence, as in Guo et al.
# Upper 5% points of the studentized range of k = 2 to 5 equal normal variables; columns: the degrees of freedom of the SD's estimate, as in
# FREEDOM. Source: J. Tukey, "The Problem of Multiple Comparisons", 1953.
STUDENTIZED_RANGE = {
    2: (2.772, 3.151, 3.199, 3.261, 3.344, 3.460, 3.635, 3.926, 4.501, 6.085, 17.969),
    3: (3.314, 3.877, 3.948, 4.041, 4.165, 4.339, 4.602, 5.040, 5.910, 8.331, 26.976),
    4: (3.633, 4.327, 4.415, 4.529, 4.681, 4.896, 5.218, 5.757, 6.825, 9.798, 32.819),
    5: (3.858, 4.654, 4.755, 4.886, 5.060, 5.305, 5.673, 6.287, 7.502, 10.881, 37.082),
}
FREEDOM = np.array([np.inf, *range(10, 0, -1)])


# ------------------------------------------------------------------ reading and checking


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


# ------------------------------------------------------------------ ranking


def candidates(table: Table, model: str | None = None) -> pd.DataFrame:
    """The runs that compete: under the main conditions, each run once.

    Further seeds of a configuration are repeats, not competitors: one that got five draws would win by luck. They stand
    in for a seed that has no score. The published table has no seeds, and each of its rows was trained: there all rows
    compete, as in its report.
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


def top(table: Table, model: str, n: int = 5) -> pd.DataFrame:
    """The n best runs: model, name, score (the ranking column), test, per_class, low, high (95% Wilson), and their
    experiment's runs, repeat, mean and sd."""
    best = ranked(table, model).head(n)
    shown = best[["model", "experiment"]].assign(name=best["Full_Modelname"], score=best[table.rank_by],
                                                 test=best[table.tested], per_class=best[table.per_class])
    shown["low"], shown["high"] = wilson(best[table.tested], best["images"])
    spread = experiments(table)[["runs", "repeat", "test", "sd"]].rename(columns={"test": "mean"})
    return shown.join(spread, on="experiment")


def overall(table: Table) -> pd.DataFrame:
    """`top`'s row for the best run of each model, best first."""
    best = pd.concat([top(table, model, 1) for model in table.models])
    return best.sort_values("score", ascending=table.lower_is_better, kind="stable")


def wilson(accuracy, n, z: float = Z):
    """Bounds (low, high) of the Wilson score interval of a share of n images; E. B. Wilson, JASA 22, 1927."""
    accuracy, n = np.asarray(accuracy, float), np.asarray(n, float)
    centre = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


# ------------------------------------------------------------------ noise


def experiments(table: Table, model: str | None = None) -> pd.DataFrame:
    """Rows that are one configuration under several names, seeds or repeats, collapsed; best mean score first.

    Columns: model, name (the first run's), rows, runs (with a test accuracy), repeat (`seed`, or `run` where one seed has several),
    score (mean), test (mean), sd, chance (whether all runs are at chance).
    """
    rows = table.rows.query("main" if model is None else "main and model == @model")
    runs = rows[~rows["copy"]].groupby("experiment")
    every = runs.agg(model=("model", "first"), name=("Full_Modelname", "first"), runs=(table.tested, "count"), score=(table.rank_by, "mean"),
                     test=(table.tested, "mean"), sd=(table.tested, "std"), chance=("chance", "all"))
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
    return int(rows.duplicated(["model", *_metrics(rows)]).sum())


@dataclass(frozen=True)
class Noise:
    """How far two runs of one configuration lie apart.

    sd: of a single run's test accuracy; name: `noise`, or `sampling error` where that of the test images has to stand in;
    text: where it comes from; freedom: the degrees of freedom of `sd`, 0 where it is no estimate; alike: runs that differ by it alone.
    """

    sd: float
    name: str
    text: str
    freedom: int = 0

    @property
    def alike(self) -> str:
        return "runs of one configuration" if self.freedom else "equally good runs tested on separate images"

    def margin(self, runs: int = 2) -> float:
        """What the range of so many single runs (the difference of two) exceeds in 5% of cases; more for an `sd` of few repeats."""
        quantiles = STUDENTIZED_RANGE[min(runs, max(STUDENTIZED_RANGE))]
        return float(np.interp(1 / (self.freedom or np.inf), 1 / FREEDOM, quantiles)) * self.sd


def margin_of_means(noises: list[Noise], runs: list[int]) -> float:
    """What the difference between two means, of so many runs with such noise each, exceeds in 5% of cases."""
    return math.sqrt(sum(noise.margin() ** 2 / count for noise, count in zip(noises, runs)) / 2)


def joint_name(noises: list[Noise]) -> str:
    """`noise` where all were measured, else `sampling error`."""
    return "noise" if all(noise.name == "noise" for noise in noises) else "sampling error"


def noise_floor(table: Table, model: str) -> Noise:
    """The spread among repeats, pooled over the better half of the repeated configurations (at least two): poor ones scatter more."""
    again = experiments(table, model).query("runs > 1 and not chance").dropna(subset=["sd"])
    good = again.nlargest(max(2, math.ceil(len(again) / 2)), "test", keep="all")
    if (good["sd"] > 0).any():
        freedom = good["runs"] - 1
        sd = math.sqrt((freedom * good["sd"] ** 2).sum() / freedom.sum())
        runs = f"{good['runs'].sum()} runs of {counted(len(good), 'configuration')}"
        return Noise(sd, "noise", f"{points(sd)} SD between repeats ({runs})", int(freedom.sum()))
    best = ranked(table, model).iloc[0]
    sd = math.sqrt(best[table.tested] * (1 - best[table.tested]) / best["images"])
    why = "its repeats agree in every digit" if len(good) else "nothing was run twice"
    return Noise(sd, "sampling error", f"not measured ({why}); the sampling error of {best['images']:,} test images, "
                                       f"{points(sd)} SD, stands in and may be too small")


def selection_bias(scores, sd: float) -> float:
    """How much the highest of `scores` overstates its own run's expected score.

    By a parametric bootstrap with noise of `sd` around the scores, which are noisy already: too low where the true values
    are equal, too high where one is well ahead.
    """
    scores = np.asarray(scores, float)
    scores = scores[scores >= scores.max() - 6 * sd]  # the rest can't win
    drawn = scores + np.random.default_rng(0).normal(0, sd, (4000, len(scores)))
    return float((drawn.max(axis=1) - scores[drawn.argmax(axis=1)]).mean())


# ------------------------------------------------------------------ epochs and predictions


def read_history(table: Table, run: str) -> pd.DataFrame | None:
    """A run's epochs from its folder beside the table; None if it isn't there. Raises InputError for a damaged file."""
    place = table.folder / run / HISTORY
    return History.read(place).frame() if run and place.is_file() and place.stat().st_size else None


def read_predictions(table: Table, run: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(labels (N,), logits float64 (N, 10)) of the reported checkpoint on the test images, or None. Raises InputError for a damaged file."""
    place = table.folder / run / PREDICTIONS
    if not (run and place.is_file()):
        return None
    try:
        with np.load(place) as stored:
            return (stored["labels"].astype(int), stored[table.checkpoint].astype(float)) if table.checkpoint in stored else None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise InputError(f"{place} is damaged; restore it, or remove it to go without") from None


def best_with(table: Table, read, model: str, n: int = 1) -> list[tuple[pd.Series, object]]:
    """(row, what was read) of a model's n best runs; fewer where `read` (read_history or read_predictions) has none."""
    found = ((row, read(table, row.get("run", ""))) for _, row in ranked(table, model).head(n).iterrows())
    return [pair for pair in found if pair[1] is not None]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, 10)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts (10, 10): row = true class, column = predicted class."""
    return np.bincount(labels * len(CLASSES) + predicted, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1)


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> tuple[pd.DataFrame, float]:
    """BINS bins of equal width (confidence, accuracy, n) and the expected calibration error; Guo et al., ICML 2017."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    groups = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(place)
    bins = groups.mean().assign(n=groups.size())
    return bins, float(((bins["accuracy"] - bins["confidence"]).abs() * bins["n"]).sum() / len(labels))


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(only the first right, only the second right, two-sided exact p) for two runs' hits (N,); Q. McNemar, 1947."""
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return b, c, min(1.0, 2 * tail / 2 ** (b + c))


def holm(p_values) -> np.ndarray:
    """P-values corrected for being many; S. Holm, 1979."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def paired_tests(table: Table, n: int = 3) -> pd.DataFrame:
    """Each model's best run against its next n - 1, and the models' best against each other, on the same test images.

    Columns: first, second, difference with low and high (95%), only_first, only_second (images), p, p_holm. Without a model whose best
    run has no predictions. A test of these runs, not of their configurations: a repeat with another seed would differ too.
    """
    best = [best_with(table, read_predictions, model, n) for model in table.models]
    firsts = ranked(table).drop_duplicates("model").index
    best = [rows for rows in best if rows and rows[0][0].name in firsts]
    pairs = [(rows[0], other) for rows in best for other in rows[1:]]
    pairs += itertools.combinations([rows[0] for rows in best], 2)
    lines = []
    for (first, (labels, logits)), (second, (other_labels, other_logits)) in pairs:
        if np.array_equal(labels, other_labels):
            b, c, p = mcnemar(logits.argmax(axis=1) == labels, other_logits.argmax(axis=1) == labels)
            gap, half = (b - c) / len(labels), Z * math.sqrt(b + c - (b - c) ** 2 / len(labels)) / len(labels)
            lines.append((first["Full_Modelname"], second["Full_Modelname"], gap, gap - half, gap + half, b, c, p))
    tests = pd.DataFrame(lines, columns=["first", "second", "difference", "low", "high", "only_first", "only_second", "p"])
    return tests.assign(p_holm=holm(tests["p"]))


# ------------------------------------------------------------------ knobs


def cells(table: Table, model: str) -> pd.DataFrame:
    """One row a grid cell: knobs, score (mean over repeats; NaN without any), chance. Cosine cells stand at every gamma that another schedule has."""
    rows = table.runs.query("main and model == @model")
    others = rows[rows["scheduler"] != "cosine"]
    gammas = (others if len(others) else rows.head(1))[["gamma"]].drop_duplicates()
    every = pd.concat([others, rows[rows["scheduler"] == "cosine"].drop(columns="gamma").merge(gammas, how="cross")])
    return every.groupby(list(KNOBS)).agg(score=(table.rank_by, "mean"), chance=("chance", "all")).reset_index()


def importance(table: Table, model: str) -> tuple[pd.Series, str] | None:
    """Shares of the score's variance among the grid's cells by knob (and pair of knobs, `rest`), and on what they rest.

    Values at which every cell stays at chance are left out. None if fewer than two knobs vary or cells are too few.
    """
    grid, dropped = cells(table, model).dropna(subset="score"), []
    for knob in KNOBS:
        dead = grid.groupby(knob)["chance"].all()
        if 0 < dead.sum() < len(dead):
            dropped += [f"{KNOBS[knob]} {knob_value(value)}" for value in dead[dead].index]
            grid = grid[~grid[knob].isin(dead[dead].index)]
    levels = grid[list(KNOBS)].nunique().loc[lambda n: n > 1]
    full = levels.prod()
    if len(levels) < 2 or grid["score"].nunique() == 1 or len(grid) <= 1 + (levels - 1).sum():
        return None
    text = f"all {full} cells" if len(grid) == full else f"{len(grid)} of {full} cells, main effects only"
    if dropped:
        text += f"; without {', '.join(dropped)}, always at chance"
    return (decompose if len(grid) == full else main_effects)(grid, list(levels.index)), text


def decompose(grid: pd.DataFrame, knobs: list[str]) -> pd.Series:
    """Shares of variance by functional ANOVA of a full factorial, exact; Hutter et al., ICML 2014."""
    values = grid.sort_values(knobs)["score"].to_numpy().reshape([grid[knob].nunique() for knob in knobs])
    effect, shares = {(): values.mean()}, {}
    for axes in (*itertools.combinations(range(len(knobs)), 1), *itertools.combinations(range(len(knobs)), 2)):
        marginal = values.mean(axis=tuple(set(range(len(knobs))) - set(axes)), keepdims=True)
        effect[axes] = marginal - sum(effect[part] for k in range(len(axes)) for part in itertools.combinations(axes, k))
        shares[" x ".join(knobs[axis] for axis in axes)] = float((effect[axes] ** 2).mean() / values.var())
    return pd.Series(shares | {"rest": max(0.0, 1 - sum(shares.values()))})


def main_effects(grid: pd.DataFrame, knobs: list[str]) -> pd.Series:
    """Share of variance that each knob explains beyond all others, by least squares: for a grid with holes."""
    target = grid["score"].to_numpy()

    def explained(chosen):
        levels = [pd.get_dummies(grid[knob].astype(str)).to_numpy(float) for knob in chosen]
        design = np.column_stack([np.ones(len(grid)), *levels])
        return 1 - (target - design @ np.linalg.lstsq(design, target)[0]).var() / target.var()

    shares = {knob: max(0.0, explained(knobs) - explained([k for k in knobs if k != knob])) for knob in knobs}
    return pd.Series(shares | {"rest": max(0.0, 1 - sum(shares.values()))})


def edges(table: Table, model: str) -> list[str]:
    """A warning for each numeric knob whose best value is the smallest or largest one tried."""
    rows, best, warnings = candidates(table, model), ranked(table, model).iloc[0], []  # values that diverged were tried too
    for knob in ("learning_rate", "weight_decay", "gamma"):
        values = acting(rows, knob)[knob]
        if values.nunique() > 1 and best.name in values.index and best[knob] in (values.min(), values.max()):
            side, beyond = ("smallest", "lower") if best[knob] == values.min() else ("largest", "higher")
            warnings.append(f"The best run's {KNOBS[knob]}, {knob_value(best[knob])}, is the {side} one tried: {beyond} ones may be better.")
    return warnings


def acting(rows: pd.DataFrame, knob: str) -> pd.DataFrame:
    """The rows on which a knob acts: gamma does nothing under the cosine schedule."""
    return rows[rows["scheduler"] != "cosine"] if knob == "gamma" else rows


def without_inert(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with gamma 0 under the cosine schedule: cells that differ in it are one experiment."""
    return rows.assign(gamma=rows["gamma"].where(rows["scheduler"] != "cosine", 0))


def means(table: Table, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean test accuracy, and whether all are at chance, of the rows that agree in the columns `by`, gamma only where it acts."""
    groups = without_inert(rows.dropna(subset=[table.tested])).groupby(by)
    return groups.agg(test=(table.tested, "mean"), chance=("chance", "all")).reset_index()


def expected_best(scores) -> np.ndarray:
    """Expected highest score among k runs drawn without replacement, for k = 1..N; after Dodge et al., EMNLP 2019."""
    ordered, n = np.sort(np.asarray(scores, float)), len(scores)
    # A run is the highest of k if the other k - 1 are among the `lower` runs below it.
    chances = [[math.comb(lower, k - 1) / math.comb(n, k) for lower in range(n)] for k in range(1, n + 1)]
    return np.array(chances) @ ordered


def augmentation_pairs(table: Table, model: str) -> pd.DataFrame:
    """Pairs of cells with and without augmentation, all else equal, and the gain; without pairs entirely at chance."""
    every = means(table, candidates(table, model), list(KNOBS))
    sides = [every[every["augmentation"] == side].drop(columns="augmentation") for side in (True, False)]
    others = [knob for knob in KNOBS if knob != "augmentation"]
    pairs = sides[0].merge(sides[1], on=others, suffixes=("_with", "_without")).query("not (chance_with and chance_without)")
    return pairs.assign(gain=pairs["test_with"] - pairs["test_without"])


# ------------------------------------------------------------------ two tables


def comparable(table: Table) -> pd.DataFrame:
    """A table's experiments as another table may have them too: model, model_args, knobs, mean test accuracy, chance."""
    return means(table, table.runs.query("main"), ["model", "model_args", *KNOBS])


def compare(first: Table, second: Table) -> pd.DataFrame:
    """The experiments of both tables: knobs, first and second test accuracy (mean of repeats), difference, chance of each.

    Raises InputError for CIFAR-10 beside synthetic data.
    """
    if first.synthetic != second.synthetic:
        raise InputError(f"compare_with: of {first.name} and {second.name} one is of CIFAR-10 and one of synthetic data; compare tables of one kind")
    both = comparable(first).merge(comparable(second), on=["model", "model_args", *KNOBS], suffixes=("_first", "_second"))
    both = both.rename(columns={"test_first": "first", "test_second": "second"})
    return both.assign(difference=both["second"] - both["first"])
