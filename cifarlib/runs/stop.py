"""Requests that end a run after its epoch in progress: signals and a file."""

import os
import select
import signal
import threading
from pathlib import Path

# Ctrl-C; SLURM's end of a job and its warning before; a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignals:
    """Within the context SIGNALS call `request`, and Ctrl-C after that `break_off`; nohup still means what it says."""

    requested, before = False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            deaf = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
            self.before = {number: signal.signal(number, self._on_signal) for number in {*SIGNALS} - deaf}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            self.break_off()
        else:
            self.request()

    def request(self) -> None:
        self.requested = True
        drop_closed_output()


def drop_closed_output() -> None:
    """From here on let what is printed to a closed terminal, or a pipe that nobody reads any more, go nowhere.

    It would be an error each time, and end what goes on without it.
    """
    for file in (1, 2):
        watched = select.poll()
        watched.register(file, 0)
        if watched.poll(0):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file)
            os.close(nowhere)


class StopRequest(StopSignals):
    """Within the context, one of SIGNALS or the appearance of `file` makes a stop `due` and breaks nothing off.

    A second Ctrl-C breaks off at once.
    """

    def __init__(self, file: Path | None):
        self.file = file

    @property
    def due(self) -> bool:
        return self.requested or bool(self.file and self.file.exists())

    def break_off(self):
        raise KeyboardInterrupt

    def request(self):
        super().request()
        print("stopping after this epoch; interrupt again to stop at once and lose it", flush=True)

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        if self.file:
            self.file.unlink(missing_ok=True)
