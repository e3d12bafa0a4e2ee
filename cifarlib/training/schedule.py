"""The learning rate as a pure function of time: it can't be stepped twice, and resuming needs no state."""

import math

from ..config import Config

STEP_SIZE = 3  # schedule steps between two drops of the step schedule


def lr_at(config: Config, epoch: float) -> float:
    """The learning rate in `epoch`, counted from 0; 1.5 is in the middle of the second one.

    The published recipe steps its schedule twice an epoch and its cosine has a half period of ten steps: the rate is
    zero in the 6th, 16th, ... epoch and rises again.
    """
    steps = config.schedule_steps * epoch
    factors = {
        "exponential": config.gamma**steps,
        "step": config.gamma ** (steps // STEP_SIZE),
        "linear": 1 - epoch / config.epochs,
        "cosine": (1 + math.cos(math.pi * steps / config.cosine_period)) / 2,
    }
    return config.learning_rate * factors[config.scheduler]
