"""The learning rate as a pure function of the epoch: it can't be stepped twice, and resuming needs no state."""

import math

from .config import Config

STEP_SIZE = 3  # epochs between two drops of the step schedule
PUBLISHED_T_MAX = 10  # half period of the published cosine, in scheduler steps


def lr_at(config: Config, epoch: int) -> float:
    """AdamW's learning rate in `epoch`, counted from 0.

    The published recipe steps its scheduler twice an epoch and gives its cosine a half period of ten steps, so that its rate is
    zero in the 6th, 16th, ... epoch and rises again.
    """
    steps, half_period = (2 * epoch, PUBLISHED_T_MAX) if config.protocol == "published" else (epoch, config.epochs)
    factors = {
        "exponential": config.gamma**steps,
        "step": config.gamma ** (steps // STEP_SIZE),
        "cosine": (1 + math.cos(math.pi * steps / half_period)) / 2,
    }
    return config.learning_rate * factors[config.scheduler]
