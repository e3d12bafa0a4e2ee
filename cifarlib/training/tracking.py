"""Weights & Biases as a mirror of a run: history.csv and record.json are the truth, and nothing here can end a run."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..config import Config, Options
from ..runs.history import History
from ..runs.record import is_finished

PROJECT = "cifar-10"


class Tracker:
    """A context that mirrors a run to wandb; whatever fails there is one printed line, and ends the mirroring."""

    def __init__(self, config: Config, options: Options, folder: Path):
        self.config, self.options, self.folder, self.run = config, options, folder, None

    def __enter__(self) -> "Tracker":
        self._safely(self._start)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.run:
            self._safely(lambda: self.run.finish(exit_code=1 if kind else 0))

    def log_epoch(self, history: History) -> None:
        """One commit an epoch, with the published metric names."""
        if self.run:
            self._safely(lambda: self.run.log(history.last, step=history.last["epoch"]))

    def log_test(self, record: dict) -> None:
        """Final scores as the run's summary."""
        if self.run:
            final = {name: value for name, value in record["metrics"].items() if name.startswith("test_")}
            self._safely(lambda: self.run.summary.update({**final, "status": record["status"]}))

    def _start(self) -> None:
        shown_again = self.options.resume and is_finished(self.folder)
        if shown_again or (mode := self._mode()) == "disabled":
            return
        import wandb

        with suppress(OSError):  # wandb warns of a missing folder; one that can't be made is for the run to report
            self.folder.mkdir(parents=True, exist_ok=True)
        start = partial(
            wandb.init, project=PROJECT, group=self.config.model, name=self.config.run_name, dir=str(self.folder),
            config={name: value for name, value in self.config.to_dict().items() if name != "data_dir"},
            tags=[self.options.study],
            settings=wandb.Settings(silent=True, console="off", disable_git=True, init_timeout=30),
        )
        try:
            self.run = start(mode=mode)
        except Exception as error:
            if mode != "online":
                raise
            print(f"wandb can't be reached ({type(error).__name__}); the run is kept offline, for `wandb sync`")
            self.run = start(mode="offline")

    def _mode(self) -> str:
        """The mode asked for; `auto` goes by $WANDB_MODE, and is offline for whoever isn't logged in."""
        asked = self.options.wandb_mode if self.options.wandb_mode != "auto" else os.environ.get("WANDB_MODE")
        if asked:
            return asked
        import wandb

        return "online" if wandb.login(prompt=False) else "offline"

    def _safely(self, action) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker throws, the run goes on
            self.run = None
            reason = str(error).partition("\n")[0]
            print(f"wandb is off for this run ({type(error).__name__}: {reason}); history.csv has every epoch")
