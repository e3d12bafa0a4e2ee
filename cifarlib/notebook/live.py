"""A run shown while it trains, and its scores."""

import os
import time
from pathlib import Path

import pandas
from IPython.display import display

from ..config import CHECKPOINTS, Config
from ..results.figures.one_run import learning_curves
from ..runs.claim import is_claimed
from ..runs.history import History
from ..runs.study import write_table


class Live:
    """Shows a run as it trains: in JupyterLab a bar of epochs and a figure that is redrawn, elsewhere a line an epoch.

    A context around the training, called with the history after every epoch.
    """

    def __init__(self, config: Config):
        self.config, self.bar, self.history, self.drawn, self.next_drawing = config, None, None, 0, 0.0
        if "JPY_SESSION_NAME" in os.environ:  # Jupyter's server sets it for kernels that a person looks at
            from tqdm.notebook import tqdm  # its widgets would only delay a run that nobody looks at

            self.bar = tqdm(total=config.epochs, unit="epoch")

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.bar is not None:
            if not self.history:
                self.bar.container.layout.display = "none"
            elif self.drawn < len(self.history.rows):
                self._draw()
            self.bar.close()
            if self.history and self.history.status == "done":
                self.bar.container.children[1].bar_style = "success"  # tqdm takes early stopping for a failure
        if not (self.history or kind):
            print("nothing was trained; resume = False trains a finished run anew")

    def __call__(self, history: History) -> None:
        first, self.history = self.history is None, history
        if self.bar is None:
            print(epoch_line(history.last, self.config.epochs), flush=True)
            return
        if first:  # epochs of an earlier session don't count for the speed
            self.bar.initial = self.bar.n = len(history.rows) - 1
        self.bar.update()
        row = history.last
        self.bar.set_postfix({name: f"{row[name]:.3f}" for name in ("train_accuracy", "val_accuracy") if name in row})
        if time.monotonic() >= self.next_drawing:
            self._draw()

    def _draw(self) -> None:
        started = time.monotonic()
        figure = learning_curves(self.history.frame(), reached=self.history.reached(self.config))
        display(figure, display_id=f"live {id(self)}", update=self.drawn > 0)
        self.drawn, now = len(self.history.rows), time.monotonic()
        self.next_drawing = now + 20 * (now - started)  # at most a twentieth of the time goes into drawing


def epoch_line(row: dict, epochs: int) -> str:
    """An epoch in one line of a log."""
    text = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  lr {row['learning_rate']:.2e}"
    text += f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}"
    if "val_loss" in row:
        text += f"  val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}"
    return text + f"  {row['seconds']:.1f} s"


def score_table(record: dict) -> pandas.DataFrame:
    """Validation and test metrics of the checkpoints that a run has, a row each, without empty columns."""
    columns = ("epoch", "val_accuracy", "val_loss", "test_accuracy", "test_accuracy_with_views",
               "test_per_class_accuracy", "test_loss")
    rows = {name: {column: record["metrics"].get(f"{column}_{name}") for column in columns} for name in CHECKPOINTS}
    table = pandas.DataFrame.from_dict(rows, orient="index", dtype=float)
    return table.dropna(how="all").dropna(axis=1, how="all").convert_dtypes().round(4)


def enter_in_table(folder: Path) -> None:
    """Rebuild the table of a run's study, as a runner does by itself for the runs that it trains."""
    if not is_claimed(folder):
        write_table(folder.parent)
