"""All runs of some studies while they train: a table, curves on one pair of axes, two runs' predictions compared.

Everything is read from the run folders, and nothing is written there, but for the nameless file by which the clock of a
file server is asked whether a run on another machine still lives.
"""

import asyncio
import base64
import dataclasses
import io
import operator
import re
import time
from collections import Counter
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas
from PIL import Image

from ..config import Config, check_names, checked, parted, setting
from ..errors import InputError
from ..files import HISTORY, PREDICTIONS, project_path
from ..parts import DATASETS, short_name
from ..results.figures.one_run import learning_curves
from ..results.figures.style import COLOURS
from ..results.ranking import predictions_in
from ..results.statistics import mcnemar, softmax
from ..runs.history import History
from ..runs.study import (STATUSES, RunState, configs_of, epoch_seconds, no_runs, remembered, run_state, seconds_left,
                          studies)
from ..words import duration, percent, value_text

STATES = ("running", "damaged", *(status for status in STATUSES if status != "running"))  # in the table's order
DOTS = {"running": "#0072B2", "done": "#009E73", "failed": "#D55E00", "damaged": "#D55E00", "diverged": "#E69F00",
        "preempted": "#CC79A7", "dropped": "#666666", "pending": "#AAAAAA"}
SIGNS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

STYLE = """<style>
.monitor {line-height: 1.35; font-variant-numeric: tabular-nums}
.monitor table {border-collapse: collapse; white-space: nowrap}
.monitor th, .monitor td {padding: 1px 9px; text-align: left; border-bottom: 1px solid var(--jp-border-color2, #ddd)}
.monitor th {position: sticky; top: 0; background: var(--jp-layout-color0, white)}
.monitor td:first-child {color: var(--jp-ui-font-color2, #777); text-align: right}
.monitor figure {display: inline-block; width: 146px; margin: 0 8px 12px 0; vertical-align: top}
.monitor figure img {width: 96px; height: 96px; image-rendering: pixelated; display: block}
.monitor figure div {padding-left: 3px; margin-top: 1px; white-space: nowrap}
</style>"""


@dataclasses.dataclass
class Columns:
    """The columns of the table before those of the fields of a run."""

    study: str = setting("", "the study's name")
    state: str = setting("", "how the run stands", choices=STATES)
    epoch: int = setting(0, "epochs that are trained")
    accuracy: float = setting(0.0, "best validation accuracy so far, from 0 to 1")
    test: float = setting(0.0, "test accuracy, from 0 to 1, of the best weights by validation, or else of the last")
    left: float = setting(0.0, "seconds that the run may still take, if it doesn't stop early")


OWN = {spec.name: spec for spec in dataclasses.fields(Columns)}
FIELDS = {spec.name: spec for spec in dataclasses.fields(Config) if spec.metadata["role"] != "place"}


def look(folder: Path, names: list[str]) -> tuple[pandas.DataFrame, list[str]]:
    """The runs of the studies of a folder, a row each, by their folders; and what can't be read, in lines.

    Columns: those of Columns, and the fields of a run, without a value where they are idle in it.
    """
    states, damaged, an_epoch = [], [], epoch_seconds(folder)
    for name in names:
        try:
            configs = configs_of(folder / name)
        except (InputError, OSError) as error:
            damaged.append(str(error))
            continue
        for run, config in configs.items():
            try:
                states.append(run_state(folder / name / run, config))
            except OSError:  # it went meanwhile
                continue
            except InputError as error:  # perhaps it is being copied
                states.append(RunState(folder / name / run, config, "damaged"))
                damaged.append(str(error))
    rows = pandas.DataFrame([_row(state, an_epoch) for state in states], index=[state.folder for state in states],
                            columns=[*OWN, *FIELDS], dtype=object)
    return rows.assign(state=pandas.Categorical(rows["state"], STATES, ordered=True)), damaged


def _row(state: RunState, an_epoch: dict) -> dict:
    tests = (state.metrics.get(f"test_accuracy_{checkpoint}") for checkpoint in ("best_val_acc", "terminal"))
    row = {"study": state.folder.parent.name, "state": state.status, "epoch": state.epochs,
           "accuracy": state.metrics.get("val_accuracy_best_val_acc"),
           "test": next((test for test in tests if test is not None), None), "left": seconds_left(state, an_epoch)}
    if state.config:
        row |= {name: getattr(state.config, name) for name in FIELDS.keys() - state.config.idle()}
    return row


def varied(rows: pandas.DataFrame) -> list[str]:
    """The columns of the model, and of the study and the fields that differ among the rows."""
    return [name for name in ("study", *FIELDS) if name == "model" or rows[name].dropna().map(str).nunique() > 1]


def label(row: pandas.Series, varying: list[str]) -> str:
    """What to call a run: the values of its varying columns."""
    if missing(row["model"]):
        return f"{row['study']}, {row.name.name}"
    parts = []
    for name in varying:
        if missing(row[name]) or row[name] == {}:
            continue
        text = short_name(row[name]) if name == "model" else value_text(row[name])
        named = name not in ("study", "model", "model_args")
        parts.append(f"{FIELDS[name].metadata['short'] or name} {text}" if named else text)
    return ", ".join(parts)


def select(rows: pandas.DataFrame, wanted: str) -> pandas.DataFrame:
    """The rows that meet all conditions of a text such as `model=cnn, learning_rate<0.01, state=done`.

    Raises InputError for what is no condition, for unknown names, and for values that no run can have.
    """
    specs = OWN | FIELDS
    for part in parted(wanted):
        found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*", part)
        if not found:
            raise InputError(f"{part.strip()!r} is no condition; expected NAME=VALUE, also with != < <= > >=")
        name, sign, text = found.groups()
        check_names([name], specs)
        value = checked(text, specs[name])
        if sign[0] in "<>" and specs[name].type not in (int, float):
            raise InputError(f"{name} is no number, so {sign} says nothing of it; use = or !=")
        rows = rows[[not missing(each) and SIGNS[sign](each, value) for each in rows[name]]]
    return rows


def missing(value) -> bool:
    return value is None or value != value  # NaN


def ordered(rows: pandas.DataFrame, by: str, descending: bool) -> pandas.DataFrame:
    """The rows by a column, those without a value last; where that is equal, by accuracy."""
    def key(column):
        return column.map(value_text, na_action="ignore") if column.name == "model_args" else column

    return rows.sort_values([by, "accuracy"], ascending=[not descending, False], key=key, kind="stable")


def table_html(rows: pandas.DataFrame, varying: list[str], shown: int) -> str:
    """The first rows as a table with the columns of Columns, the planned epochs among them, and the varying ones."""
    names = [name for name in OWN if name != "study"] + [name for name in varying if name != "epochs"]
    head = "".join(f'<th title="{escape((OWN | FIELDS)[name].metadata["help"])}">{name}</th>' for name in names)
    lines = [f'<tr title="{escape(folder.name)}"><td>{number}</td>{"".join(_cell(name, row) for name in names)}</tr>'
             for number, (folder, row) in enumerate(rows.head(shown).iterrows(), 1)]
    more = f"<p>and {len(rows) - shown:,} more; filter or sort to see others</p>" if len(rows) > shown else ""
    return f'{STYLE}<div class="monitor"><table><tr><th></th>{head}</tr>{"".join(lines)}</table>{more}</div>'


def _cell(name: str, row: pandas.Series) -> str:
    value, style = row[name], ""
    if missing(value):
        text = "" if name in FIELDS else "–"
    elif name == "state":
        text = f'<span style="color: {DOTS[value]}">●</span> {value}'
    elif name == "epoch" and not missing(row["epochs"]):
        part, text = 100 * value / row["epochs"], f"{value} of {row['epochs']}"
        style = f' style="background: linear-gradient(90deg, #56B4E966 {part:.0f}%, transparent {part:.0f}%)"'
    elif name == "left":
        text = duration(value)
    else:
        text = percent(value) if name in ("accuracy", "test") else escape(value_text(value))
    return f"<td{style}>{text}</td>"


def disagreements(first: tuple, second: tuple) -> pandas.DataFrame:
    """The test images on which two runs answer differently, those of which both are surest first.

    first, second: (labels (N,), logits (N, classes)) of the same images. Columns: image (its position), label, first,
    second (the answers as classes' numbers), first_p, second_p (their probabilities). Raises InputError for runs that
    were tested on other images.
    """
    (labels, logits), (others, other_logits) = first, second
    if not np.array_equal(labels, others):
        raise InputError("these two runs were tested on different images; choose two of one dataset and one limit_test")
    chances = [softmax(each) for each in (logits, other_logits)]
    frame = pandas.DataFrame({"image": range(len(labels)), "label": labels})
    for name, each in zip(("first", "second"), chances):
        frame = frame.assign(**{name: each.argmax(axis=1), f"{name}_p": each.max(axis=1)})
    frame = frame[frame["first"] != frame["second"]]
    return frame.iloc[np.argsort(-frame[["first_p", "second_p"]].min(axis=1), kind="stable")]


KINDS = {
    "all on which they differ": lambda frame: frame["first"] != frame["second"],
    "only the first is right": lambda frame: frame["first"] == frame["label"],
    "only the second is right": lambda frame: frame["second"] == frame["label"],
    "both are wrong": lambda frame: (frame["first"] != frame["label"]) & (frame["second"] != frame["label"]),
}


def verdict(first: tuple, second: tuple) -> str:
    """How two runs' answers compare, in a sentence."""
    labels = first[0]
    hits = [logits.argmax(axis=1) == labels for _, logits in (first, second)]
    only_first, only_second, p = mcnemar(*hits)
    differ = (first[1].argmax(axis=1) != second[1].argmax(axis=1)).sum()
    return (f"Of {len(labels):,} test images the first gets {percent(hits[0].mean())} right, the second "
            f"{percent(hits[1].mean())}. They answer {differ:,} differently: {only_first:,} only the first gets right, "
            f"{only_second:,} only the second (McNemar's exact test: p = {p:.2g}).")


def gallery_html(frame: pandas.DataFrame, pixels: np.ndarray | None, classes: tuple[str, ...]) -> str:
    """Images with their class and both answers; pixels: uint8 (N, 3, 32, 32), or None for the words alone."""
    figures = []
    for row in frame.itertuples():
        picture = "" if pixels is None else f'<img src="data:image/png;base64,{_png(pixels[row.image])}">'
        answers = "".join(
            f'<div style="background: linear-gradient(90deg, {"#009E7355" if answer == row.label else "#D55E0055"} '
            f'{100 * p:.0f}%, transparent {100 * p:.0f}%)">{number} {escape(classes[answer])} {100 * p:.1f}%</div>'
            for number, answer, p in ((1, row.first, row.first_p), (2, row.second, row.second_p)))
        figures.append(f"<figure>{picture}{row.image}: <b>{escape(classes[row.label])}</b>{answers}</figure>")
    return f'{STYLE}<div class="monitor">{"".join(figures) or "none"}</div>'


def _png(image: np.ndarray) -> str:
    with io.BytesIO() as file:
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "png")
        return base64.b64encode(file.getvalue()).decode()


def _history(path: Path) -> pandas.DataFrame:
    return History.read(path).frame()


def _predictions(path: Path) -> tuple | None:
    return predictions_in(path, "best_val_acc", "terminal")


def same(histories: dict, others: dict) -> bool:
    """Whether two sets of histories are of the same names and of the very same tables."""
    return [*histories] == [*others] and all(history is others[name] for name, history in histories.items())


class Monitor:
    """The widgets `table`, `curves` and `comparison`, refreshed as long as the kernel lives and nobody pauses them.

    executed_dir: the folder of all studies; chosen: the studies to begin with, [] for the one that changed last;
    seconds: between two looks; shown: rows of the table at most; data_dir: as in a run.
    """

    watching: asyncio.Task | None = None  # of the latest monitor; one of before, in a cell that was run again, ends
    PAGE = 24  # images

    def __init__(self, executed_dir: str = "executed", chosen: list | tuple = (), seconds: float = 5.0,
                 shown: int = 50, data_dir: str = ""):
        self.folder, self.seconds, self.shown, self.data_dir = project_path(executed_dir), seconds, shown, data_dir
        self.images, self.drawn, self.took, self.busy = {}, {}, 0.0, False
        if unknown := [name for name in chosen if name not in studies(self.folder)]:
            raise no_runs(self.folder / str(unknown[0]))
        wide = widgets.Layout(width="auto")
        self.studies = widgets.SelectMultiple(rows=4, layout=widgets.Layout(width="300px"))
        self.filter = widgets.Text(placeholder="such as model=cnn, learning_rate<0.01, state=done", description="only",
                                   continuous_update=False, layout=widgets.Layout(width="480px"))
        self.by = widgets.Dropdown(options=[*OWN, *FIELDS], value="state", description="sort by")
        self.descending = widgets.ToggleButton(description="descending", icon="sort-amount-desc")
        self.paused = widgets.ToggleButton(description="pause", icon="pause", tooltip="don't look again until released")
        self.standing, self.message, self.rows_shown = widgets.HTML(), widgets.HTML(), widgets.HTML()
        controls = [widgets.HBox([self.filter]), widgets.HBox([self.by, self.descending, self.paused])]
        scrolled = widgets.Layout(max_height="560px", overflow="auto")  # stays where it is when the table is replaced
        self.table = widgets.VBox([widgets.HBox([self.studies, widgets.VBox(controls)]), self.standing, self.message,
                                   widgets.Box([self.rows_shown], layout=scrolled)])
        self.runs = widgets.SelectMultiple(rows=8, layout=wide)
        self.figure = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self.no_figure = widgets.HTML()
        self.curves = widgets.VBox([self.runs, self.no_figure, self.figure])
        self.pair = [widgets.Dropdown(description=name, layout=wide) for name in ("first", "second")]
        self.kind = widgets.Dropdown(options=[*KINDS], description="images")
        self.page = widgets.IntSlider(min=1, max=1, description="page", continuous_update=False)
        self.verdict, self.gallery = widgets.HTML(), widgets.HTML()
        self.comparison = widgets.VBox([*self.pair, widgets.HBox([self.kind, self.page]), self.verdict, self.gallery])
        self._offer(self.studies, [(name, name) for name in chosen], chosen)
        for control in (self.studies, self.filter, self.by, self.descending, self.runs, *self.pair, self.kind,
                        self.page):
            control.observe(self._changed, "value")
        self.refresh()

    def watch(self) -> "Monitor":
        """Look every few seconds from now on, between the cells that the kernel executes."""
        if Monitor.watching:
            Monitor.watching.cancel()
        Monitor.watching = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(max(self.seconds, 10 * self.took))  # at most a tenth of the time
            if not self.paused.value:
                self.refresh()

    def _changed(self, change) -> None:
        if not self.busy:  # else a widget was changed here, not by a person
            self.refresh()

    def refresh(self) -> None:
        """Look at the runs and show them."""
        started, self.busy = time.perf_counter(), True
        try:
            self._show()
        except InputError as error:
            self._say(str(error))
        except Exception as error:  # a task that ends would leave a table that stands still without a word
            self._say(f"{type(error).__name__}: {error}")
        finally:
            self.busy, self.took = False, time.perf_counter() - started

    def _read(self, read, path: Path):
        """What `read` makes of a file; None if it isn't there, or damaged, which is said."""
        try:
            return remembered(read, path)
        except InputError as error:
            self._say(str(error))
            return None

    def _say(self, text: str) -> None:
        self.message.value = f'<span style="color: #D55E00">{escape(text)}</span>' if text else ""

    def _show(self) -> None:
        names = studies(self.folder)
        latest = sorted(names, key=lambda name: (self.folder / name).stat().st_mtime)[-1:]
        self._offer(self.studies, [(name, name) for name in names], self.studies.value or latest)
        every, damaged = look(self.folder, list(self.studies.value))
        counts = Counter(every["state"])
        standing = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        rows = ordered(select(every, self.filter.value), self.by.value, self.descending.value)
        matching = f"{len(rows):,} of " if len(rows) < len(every) else ""
        self.standing.value = (f"<b>{matching}{len(every):,} runs</b>: {standing or f'none in {self.folder} yet'} "
                               f"<small>(looked at {time.strftime('%H:%M:%S')})</small>")
        self._say("; ".join(damaged[:2]) + f" and {len(damaged) - 2} more" * (len(damaged) > 2))
        chosen = every.index[every.index.isin({*self.runs.value, *(widget.value for widget in self.pair)})]
        varying = varied(every.loc[rows.index.union(chosen, sort=False)])
        self.rows_shown.value = table_html(rows, varying, self.shown)
        offered = every.loc[rows.index[:self.shown].union(chosen, sort=False)]
        offered = offered.assign(label=[label(row, varying) for _, row in offered.iterrows()])
        self._show_curves(offered)
        self._show_comparison(offered)

    @staticmethod
    def _offer(widget, options: list[tuple], value) -> None:
        """Give a widget its options, and the value, as far as it is one of them."""
        known = {each for _, each in options}
        if list(widget.options) != options:
            widget.options = options
        if isinstance(widget, widgets.SelectMultiple):
            widget.value = tuple(each for each in value if each in known)
        else:
            widget.value = value if value in known else None

    def _show_curves(self, offered: pandas.DataFrame) -> None:
        self._offer(self.runs, list(zip(offered["label"], offered.index)), self.runs.value)
        begun = offered.loc[list(self.runs.value)] if self.runs.value else offered[offered["epoch"] > 0].head(3)
        found = {row["label"]: self._read(_history, folder / HISTORY) for folder, row in begun.iterrows()}
        found = {name: history for name, history in found.items() if history is not None and len(history)}
        few = dict(list(found.items())[:len(COLOURS)])
        self.no_figure.value = f"the first {len(few)} of {len(found)}" if len(few) < len(found) else (
            "" if found else "no epoch is trained yet")
        if few and not same(few, self.drawn):
            figure = learning_curves({name: [history] for name, history in few.items()})
            self.figure.value, self.drawn = figure._repr_png_(), few

    def _show_comparison(self, offered: pandas.DataFrame) -> None:
        tested = offered[offered["test"].notna()]
        chosen = []
        for widget in self.pair:
            others = [folder for folder in tested.index if folder not in chosen]
            chosen.append(widget.value if widget.value in others else next(iter(others), None))
            self._offer(widget, list(zip(tested["label"], tested.index)), chosen[-1])
        found = [folder and self._read(_predictions, folder / PREDICTIONS) for folder in chosen]
        if not all(found):
            gone = next((folder for folder, each in zip(chosen, found) if folder and not each), None)
            self.verdict.value = f"no predictions in {escape(str(gone))}" if gone else "no two tested runs yet"
            self.gallery.value = ""
            return
        try:
            frame = disagreements(*found)
        except InputError as error:
            self.verdict.value, self.gallery.value = escape(str(error)), ""
            return
        self.verdict.value = verdict(*found)
        frame = frame[KINDS[self.kind.value](frame)]
        self.page.max = max(1, -(-len(frame) // self.PAGE))
        start = self.PAGE * (self.page.value - 1)
        dataset = offered.at[chosen[0], "dataset"]
        pixels = self._pixels(dataset, found[0][0])
        self.gallery.value = gallery_html(frame[start:start + self.PAGE], pixels, DATASETS[dataset].classes)

    def _pixels(self, dataset: str, labels: np.ndarray) -> np.ndarray | None:
        """The test images of a dataset; None if they are not here, or not those of the labels."""
        if dataset not in self.images:
            self.images[dataset] = DATASETS[dataset].test_images(self.data_dir)
        if isinstance(self.images[dataset], str):
            self.verdict.value += f" {escape(self.images[dataset])}"
            return None
        pixels, true = self.images[dataset]
        return pixels if np.array_equal(true[:len(labels)], labels) else None
