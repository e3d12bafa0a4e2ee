"""Weights & Biases as a mirror of a run: history.csv and record.json are the truth, and nothing here can end a run."""

import os
import secrets
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..config import Config, Options
from ..runs.history import History
from ..runs.record import is_finished

PROJECT = "cifar-10"
LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes
SECONDS_TO_START, SECONDS_TO_FINISH = 30, 60  # without an answer


class Tracker:
    """A context that mirrors a run to wandb; whatever fails there is one printed line, and ends the mirroring."""

    def __init__(self, config: Config, options: Options, folder: Path):
        self.config, self.options, self.folder, self.run = config, options, folder, None
        self.kept, self.id = Path(os.environ.get("WANDB_DIR") or folder), None

    def __enter__(self) -> "Tracker":
        self._safely(self._start)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.run:
            self._safely(lambda: self._finish(exit_code=1 if kind else 0))

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
        mode = self._asked()
        if shown_again or mode == "disabled":
            return
        import wandb

        self.id = self._id()
        with suppress(OSError):  # a folder that can't be made is for the run to report
            self.kept.mkdir(parents=True, exist_ok=True)
        start = partial(
            wandb.init, project=PROJECT, group=self.config.model[:LONGEST_NAME],
            name=self.config.run_name[:LONGEST_NAME], id=self.id, resume="allow", dir=str(self.kept),
            config={name: value for name, value in self.config.to_dict().items() if name != "data_dir"},
            tags=[self.options.study[:LONGEST_TAG]],
            settings=wandb.Settings(silent=True, console="off", disable_git=True, init_timeout=SECONDS_TO_START,
                                    finish_timeout=SECONDS_TO_FINISH, finish_timeout_raises=True),
        )
        if mode not in ("auto", "online"):
            self.run = start(mode=mode)
            return
        try:
            if wandb.login(prompt=False):
                self.run = start(mode="online")
            elif mode == "online":
                self._say_offline("nobody is logged in: `wandb login`")
        except Exception as error:  # such as a malformed key, or no network
            self._say_offline(_line(error))
            wandb.teardown()  # or the run's id would be in use
        self.run = self.run or start(mode="offline")

    def _asked(self) -> str:
        """The mode that the options ask for; with `auto` the environment's, if it asks for any."""
        if self.options.wandb_mode != "auto":
            return self.options.wandb_mode
        off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
        return "disabled" if off else os.environ.get("WANDB_MODE") or "auto"

    def _id(self) -> str:
        """The run's id at W&B: one for all starts of a run that was interrupted, a new one if it is trained anew."""
        path = self.folder / "wandb" / "id"
        before = path.read_text() if self.options.resume and path.exists() else ""
        if before.isalnum():
            return before
        run_id = secrets.token_hex(8)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(run_id)
        return run_id

    def _finish(self, exit_code: int) -> None:
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            print(f"wandb didn't take the end of the run within {SECONDS_TO_FINISH} s; it is kept, for `wandb sync "
                  f"--include-online {self.kept}/wandb/run-*-{self.id}`")

    def _say_offline(self, reason: str) -> None:
        print(f"wandb can't be used online ({reason}); the run is kept offline, for `wandb sync "
              f"{self.kept}/wandb/offline-run-*-{self.id}`")

    def _safely(self, action) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker throws, the run goes on
            self.run = None
            print(f"wandb is off for this run ({_line(error)}); history.csv has every epoch")


def _line(error: Exception) -> str:
    """An error's kind and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
