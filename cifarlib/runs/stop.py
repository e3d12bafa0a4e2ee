"""Requests that end a run after its epoch in progress: signals and a file."""

import signal
import threading
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; SLURM's end of a job and its warning before


class SignalContext:
    """Within the context, SIGNALS call the subclass's `_on_signal(number, frame)`."""

    before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class StopRequest(SignalContext):
    """Within the context, Ctrl-C, SIGTERM, SIGUSR1 or the appearance of `file` set `requested` and break nothing off.

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
        print("stopping after this epoch; interrupt again to stop at once and lose it", flush=True)

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        if self.file:
            self.file.unlink(missing_ok=True)
