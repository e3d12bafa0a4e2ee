"""What the notebooks need besides the package: their parameters, and a run shown while it trains."""

import ast
import dataclasses
import os
import time
from contextlib import suppress

import pandas
from IPython.display import display

from .config import CHECKPOINTS, Config, Options, check_known, check_names, typed
from .figures import learning_curves
from .history import History


def read_parameters(namespace: dict) -> tuple[Config, Options]:
    """The notebook's parameters, checked. `namespace` is the notebook's globals().

    papermill writes the values it was given into a cell of their own and only warns of unknown names; here they are errors.
    """
    check_names(injected_names(namespace.get("In", [])), Config, Options)
    return tuple(cls(**{spec.name: namespace[spec.name] for spec in dataclasses.fields(cls)}) for cls in (Config, Options))


def check_parameters(namespace: dict) -> None:
    """Raise InputError for a parameter that the notebook doesn't have, or of another type than the notebook's own cell says.

    namespace: the notebook's globals(), in which `In` has its cells.
    """
    cells = namespace["In"]
    known = annotated_names(cells)
    check_known(injected_names(cells), known)
    for name, kind in known.items():
        typed(name, namespace[name], kind)


def annotated_names(cells: list[str]) -> dict[str, type]:
    """The names that cells assign with a type, such as `epochs: int = 3`. From Python 3.14 on their namespace lacks them (PEP 649)."""
    kinds, found = {kind.__name__: kind for kind in (str, int, float, bool, list)}, {}
    for cell in cells:
        with suppress(SyntaxError):  # a cell that somebody mistyped
            nodes = [node for node in ast.parse(cell).body if isinstance(node, ast.AnnAssign)]
            found |= {node.target.id: kinds[node.annotation.id] for node in nodes if getattr(node.annotation, "id", None) in kinds}
    return found


def injected_names(cells: list[str]) -> list[str]:
    """Names assigned in the cell that papermill injected last, known by its first line."""
    injected = [cell for cell in cells if cell.startswith("# Parameters\n")][-1:]
    return [target.id for cell in injected for node in ast.parse(cell).body if isinstance(node, ast.Assign) for target in node.targets]


class Live:
    """Shows a run as it trains: in JupyterLab a bar of epochs and one figure that is redrawn, elsewhere a line an epoch.

    A context around the training, called with the history after every epoch.
    """

    def __init__(self, config: Config):
        self.config, self.bar, self.handle, self.next_drawing = config, None, None, 0.0
        if "JPY_SESSION_NAME" in os.environ:  # Jupyter's server sets it for kernels that a person looks at
            from tqdm.notebook import tqdm  # its widgets would only delay a run that nobody looks at

            self.bar = tqdm(total=config.epochs, unit="epoch")

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is None:
            return
        if self.bar.n == 0:  # nothing was trained: the run was finished already
            self.bar.container.layout.display = "none"
        self.bar.close()

    def __call__(self, history: History) -> None:
        if self.bar is None:
            print(epoch_line(history.last, self.config.epochs), flush=True)
            return
        self._advance(history)
        if history.finished(self.config) or time.monotonic() >= self.next_drawing:
            self._draw(history)

    def _advance(self, history: History) -> None:
        if self.bar.n == 0:
            self.bar.initial = self.bar.n = len(history.rows) - 1  # epochs of an earlier session don't count for the speed
        self.bar.update()
        row = history.last
        self.bar.set_postfix({name: f"{row[name]:.3f}" for name in ("train_accuracy", "val_accuracy") if name in row})

    def _draw(self, history: History) -> None:
        started = time.monotonic()
        figure = learning_curves(history.frame())
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
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
