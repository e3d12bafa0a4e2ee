"""The learning rate as a pure function of the epoch: it can't be stepped twice, and resuming needs no state."""

import math

from ..config import Config

STEP_SIZE = 3  # schedule steps between two drops of the step schedule


def lr_at(config: Config, epoch: int) -> float:
    """The learning rate in `epoch`, counted from 0.

    The published recipe steps its schedule twice an epoch and its cosine has a half period of ten steps: the rate is
    zero in the 6th, 16th, ... epoch and rises again.
    """
    steps = config.schedule_steps * epoch
    factors = {
        "exponential": config.gamma**steps,
        "step": config.gamma ** (steps // STEP_SIZE),
        "cosine": (1 + math.cos(math.pi * steps / config.cosine_period)) / 2,
    }
    return config.learning_rate * factors[config.scheduler]
