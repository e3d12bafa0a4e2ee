"""What each epoch of a run gave, and what follows from it: best epochs, early stopping, whether the run is finished."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas

from ..config import Config
from ..errors import InputError
from ..files import replacing


NEEDED = {"train_loss", "train_accuracy", "seconds"}  # of every epoch


@dataclass
class History:
    """One row an epoch: the published column names, learning rate, seconds and images per second.

    status: `done`, `diverged` (a loss became NaN or infinite) or `preempted` (stopped before its end; can go on).
    """

    rows: list[dict] = field(default_factory=list)
    status: str = "preempted"

    @property
    def last(self) -> dict:
        """The row of the latest epoch."""
        return self.rows[-1]

    @property
    def diverged(self) -> bool:
        """Whether the latest epoch's training or validation loss is not a finite number."""
        return bool(self.rows) and not all(math.isfinite(self.last.get(key, 0)) for key in ("train_loss", "val_loss"))

    def best(self, checkpoint: str) -> dict | None:
        """The row whose weights a checkpoint holds: the first with the best value; None if there is none yet."""
        if checkpoint == "terminal":
            return self.last if self.rows else None
        validated = [row for row in self.rows
                     if math.isfinite(row["train_loss"]) and math.isfinite(row.get("val_loss", math.nan))]
        if checkpoint == "best_val_acc":
            return max(validated, key=lambda row: row["val_accuracy"], default=None)
        return min(validated, key=lambda row: row["val_loss"], default=None)

    def out_of_patience(self, patience: int) -> bool:
        """Whether the last `patience` validations brought no lower validation loss."""
        best = self.best("best_val_loss")
        return best is not None and sum("val_loss" in row for row in self.rows[best["epoch"]:]) >= patience

    def finished(self, config: Config) -> bool:
        """Whether nothing is left to train."""
        return self.diverged or len(self.rows) >= config.epochs or self.out_of_patience(config.early_stopping_patience)

    def reached(self, config: Config) -> str:
        """`epoch 23 of 80`, and what ended the training there if it ended by itself."""
        text = f"epoch {len(self.rows)} of {config.epochs}"
        if self.diverged:
            return f"{text}, diverged"
        if len(self.rows) < config.epochs and self.out_of_patience(config.early_stopping_patience):
            return f"{text}, no lower validation loss in {config.early_stopping_patience} validations"
        return text

    def frame(self) -> pandas.DataFrame:
        """The rows as a table."""
        return pandas.DataFrame(self.rows)

    def write(self, path: Path) -> None:
        """As CSV, exactly (every float reads back as the same number)."""
        names = max((list(row) for row in self.rows), key=len, default=[])
        with replacing(path) as part, part.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, names)
            writer.writeheader()
            writer.writerows(self.rows)

    @classmethod
    def read(cls, path: Path) -> "History":
        """What `write` wrote. Raises InputError for anything else."""
        try:
            with path.open(newline="") as handle:
                rows = [{name: float(value) for name, value in row.items() if value != ""}  # None: the row is cut off
                        for row in csv.DictReader(handle)]
            if [row["epoch"] for row in rows] != [*range(1, len(rows) + 1)] or any(NEEDED - row.keys() for row in rows):
                raise ValueError
            return cls([{**row, "epoch": int(row["epoch"])} for row in rows])
        except (KeyError, TypeError, ValueError, csv.Error):
            raise InputError(f"{path} is damaged; restore it, or train anew with resume False (--no-resume)") from None
