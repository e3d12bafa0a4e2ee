"""Requests that end a run after its epoch in progress: signals and a file."""

import os
import select
import signal
import threading
from pathlib import Path

# Ctrl-C; SLURM's end of a job and its warning before; a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class SignalContext:
    """Within the context, SIGNALS call the subclass's `_on_signal(number, frame)`; nohup still means what it says."""

    before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            deaf = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
            self.before = {number: signal.signal(number, self._on_signal) for number in {*SIGNALS} - deaf}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


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


class StopRequest(SignalContext):
    """Within the context, one of SIGNALS or the appearance of `file` sets `requested` and breaks nothing off.

    A second Ctrl-C breaks off at once.
    """

    def __init__(self, file: Path | None):
        self.file, self.signalled = file, False

    @property
    def requested(self) -> bool:
        return self.signalled or bool(self.file and self.file.exists())

    def _on_signal(self, number, frame):
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = True
        drop_closed_output()
        print("stopping after this epoch; interrupt again to stop at once and lose it", flush=True)

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        if self.file:
            self.file.unlink(missing_ok=True)
