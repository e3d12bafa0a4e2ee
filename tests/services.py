"""What tests share that start something for themselves: it is started as a whole or stopped, waited for, compared."""

import json
import time

import numpy as np
import pandas
import torch


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


TIMES = {"seconds", "images_per_second", "finished", "commit"}  # in which equal runs differ


def file_content(path):
    """What a file of a run says, bit for bit, times aside; of a kind that isn't compared, nothing."""
    if path.suffix == ".csv":
        return pandas.read_csv(path, dtype=str, keep_default_na=False).drop(columns=TIMES, errors="ignore").to_dict()
    if path.suffix == ".json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name not in TIMES}
    if path.suffix == ".npz":
        return {name: array.tobytes() for name, array in np.load(path).items()}
    if path.suffix == ".pt":
        weights = torch.load(path, weights_only=True)["weights"]
        return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def differences(folder, other):
    """The names of the files in which two run folders differ, or that only one has; all claims are left out."""
    names = {path.name for place in (folder, other) for path in place.iterdir()}
    pairs = {name: (folder / name, other / name) for name in sorted(names) if not name.startswith("claim.")}
    return [name for name, pair in pairs.items()
            if not all(path.exists() for path in pair) or file_content(pair[0]) != file_content(pair[1])]
