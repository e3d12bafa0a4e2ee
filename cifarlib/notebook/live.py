"""A run shown while it trains, and its scores."""

import os
import time

import pandas
from IPython.display import display

from ..config import CHECKPOINTS, Config
from ..results.figures.one_run import learning_curves
from ..runs.history import History


class Live:
    """Shows a run as it trains: in JupyterLab a bar of epochs and a figure that is redrawn, elsewhere a line an epoch.

    A context around the training, called with the history after every epoch.
    """

    def __init__(self, config: Config):
        self.config, self.bar, self.drawn, self.next_drawing = config, None, False, 0.0
        if "JPY_SESSION_NAME" in os.environ:  # Jupyter's server sets it for kernels that a person looks at
            from tqdm.notebook import tqdm  # its widgets would only delay a run that nobody looks at

            self.bar = tqdm(total=config.epochs, unit="epoch")

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            if self.bar.n == 0:  # nothing was trained: the run was finished already
                self.bar.container.layout.display = "none"
            self.bar.close()

    def __call__(self, history: History) -> None:
        if self.bar is None:
            print(epoch_line(history.last, self.config.epochs), flush=True)
            return
        if self.bar.n == 0:  # epochs of an earlier session don't count for the speed
            self.bar.initial = self.bar.n = len(history.rows) - 1
        self.bar.update()
        row = history.last
        self.bar.set_postfix({name: f"{row[name]:.3f}" for name in ("train_accuracy", "val_accuracy") if name in row})
        started = time.monotonic()
        if history.finished(self.config) or started >= self.next_drawing:
            display(learning_curves(history.frame()), display_id=f"live {id(self)}", update=self.drawn)
            self.drawn = True
            now = time.monotonic()
            self.next_drawing = now + 20 * (now - started)  # at most a twentieth of the time goes into drawing


def epoch_line(row: dict, epochs: int) -> str:
    """An epoch in one line of a log."""
    text = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  lr {row['learning_rate']:.2e}"
    text += f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}"
    if "val_loss" in row:
        text += f"  val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}"
    return text + f"  {row['seconds']:.1f} s"


def score_table(record: dict) -> pandas.DataFrame:
    """Validation and test metrics of the three checkpoints, a row each."""
    columns = ("epoch", "val_accuracy", "val_loss", "test_accuracy", "test_per_class_accuracy", "test_loss")
    rows = {name: {column: record["metrics"].get(f"{column}_{name}") for column in columns} for name in CHECKPOINTS}
    return pandas.DataFrame.from_dict(rows, orient="index").round(4)
