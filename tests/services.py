"""What tests that start a service for themselves share: it is started as a whole or stopped, and waited for."""

import time


class Service:
    """A context that calls `start` and, whatever happens, `stop`."""

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception):
        self.stop()


def wait_for(condition, timeout, what, interval=0.2):
    """Return the first true value of condition(). Raises TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(interval)
    raise TimeoutError(f"waited {timeout} s for {what}")


def until(condition, seconds=120):
    """Wait for what a test goes on from."""
    wait_for(condition, seconds, "what a test waits for", 0.05)
