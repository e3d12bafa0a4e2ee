"""The signals that end a run after its epoch in progress."""

import signal
import threading

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
