"""The files of a run folder from which training goes on."""

import copy
import pickle
import zipfile
import shutil
import time
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from ..config import CHECKPOINTS, Config
from ..data.splits import Split
from ..errors import InputError
from ..files import HISTORY, PLAN, PREDICTIONS, RECORD, STATE, STOP, replacing, write_json
from ..parts import source_file
from ..runs.history import History
from ..runs.record import check_plan, commit, is_finished
from .recipe import tested_model

EVERY_EPOCH = ("cpu",)  # devices on which every epoch is written to disk, since an epoch takes far longer than that
QUICK = 0.1  # seconds: elsewhere every epoch is written too, as long as a writing takes no longer
SPACING = 10  # a writing that took longer is followed by at least so many times as much training before the next one


def load_weights(path: Path, device: torch.device) -> dict:
    """What torch saved in `path`. Raises InputError for a damaged file."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch doesn't compare the checksums
                raise zipfile.BadZipFile
        return torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except (OSError, EOFError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError):
        raise InputError(f"{path} is damaged; restore it, or train anew with resume False (--no-resume)") from None


def carried(config: Config, train: Split) -> dict:
    """What weights carry beside themselves to be used without their run, as plain data."""
    settings = {name: value for name, value in config.to_dict().items() if name != "data_dir"}
    return {"config": settings, "classes": list(train.classes), "mean": train.mean.tolist(), "std": train.std.tolist()}


class Store:
    """The files of a run folder that training needs; without a folder every call does nothing.

    plan.json says what the run is; last.pt holds weights, optimizer and history after the latest epoch and is removed
    once terminal.pt exists, which says that nothing is left to train. A copy of the user's own file of the model is
    kept beside them.
    """

    def __init__(self, folder: Path | str | None, plan: dict, resume: bool, carried: dict):
        self.folder, self.carried = folder and Path(folder), carried
        self.unwritten = False  # whether the latest epoch is not on disk
        self.unwritten_best = {}  # best weights since the last writing, by checkpoint
        self.next_writing = 0.0  # on the monotonic clock
        self.every_epoch = plan["device"] in EVERY_EPOCH
        self.stop_file = self.folder and self.folder / STOP
        if not self.folder:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                for name in (PLAN, RECORD, STATE, HISTORY, PREDICTIONS, *(f"{name}.pt" for name in CHECKPOINTS)):
                    (self.folder / name).unlink(missing_ok=True)
            check_plan(self.folder, plan)
            if not is_finished(self.folder):
                write_json(self.folder / PLAN, plan)
                if own := source_file(plan["model"]):
                    shutil.copyfile(own, self.folder / own.name)
            commit()  # that of the code which trains, not of the files at the end
        except OSError as error:
            raise InputError(f"{self.folder} can't be written ({error.strerror}); choose another executed_dir or study")

    def restore(self, model: nn.Module, optimizer: Optimizer) -> History:
        """Load the latest state into model and optimizer; an empty history if there is none."""
        if not self.folder:
            return History()
        device, terminal = next(model.parameters()).device, self.folder / "terminal.pt"
        if (self.folder / STATE).exists():
            state = load_weights(self.folder / STATE, device)
            try:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            except (KeyError, TypeError, ValueError, RuntimeError):
                raise InputError(f"{self.folder / STATE} is of another version of this package; "
                                 "train the run anew with resume False (--no-resume)") from None
            self._write_best(state["best"])  # again, if writing was cut off between the two
            return History(state["rows"])
        if terminal.exists():
            tested_model(model, optimizer).load_state_dict(load_weights(terminal, device)["weights"])
        elif not is_finished(self.folder):  # a finished run may have kept no weights
            return History()
        return History.read(self.folder / HISTORY)

    def keep(self, model: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Remember an epoch, and write it: on a CPU always, elsewhere unless writing takes over a tenth of the time."""
        if not self.folder:
            return
        if best := [name for name in ("best_val_acc", "best_val_loss") if history.best(name) is history.last]:
            self.unwritten_best |= dict.fromkeys(best, copy.deepcopy(tested_model(model, optimizer).state_dict()))
        self.unwritten = True
        if self.every_epoch or time.monotonic() >= self.next_writing:
            self.write(model, optimizer, history)

    def write(self, model: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Write what `keep` has remembered, if anything.

        Once STATE is in place its epochs are never trained again, so it also holds the best weights; their own files
        follow it.
        """
        if not self.unwritten:
            return
        started = time.monotonic()
        history.write(self.folder / HISTORY)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": history.rows,
                 "best": self.unwritten_best}
        save(state, self.folder / STATE)
        self._write_best(self.unwritten_best)
        self.unwritten_best, self.unwritten = {}, False
        took = time.monotonic() - started
        self.next_writing = started + took + SPACING * took if took > QUICK else 0.0

    def _write_best(self, best: dict[str, dict]) -> None:
        for name, weights in best.items():
            save({"weights": weights, **self.carried}, self.folder / f"{name}.pt")

    def finish(self, model: nn.Module) -> None:
        """Keep the terminal weights; the state to go on from, of several times their size, is not needed any more."""
        if self.folder and (self.folder / STATE).exists():
            save({"weights": model.state_dict(), **self.carried}, self.folder / "terminal.pt")
            (self.folder / STATE).unlink()


def save(content, path: Path) -> None:
    """torch.save by a temporary file and a rename: a reader never sees half a file."""
    with replacing(path) as part:
        torch.save(content, part)
