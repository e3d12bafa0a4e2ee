"""Successive halving: after how many epochs runs are compared, and which of them go on.

Source: K. Jamieson and A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.
"""

import math
from collections.abc import Sequence


def rungs(epochs: int, rate: int) -> list[int]:
    """The epochs after which runs of so many `epochs` are compared: a `rate`th of them, of that again, the least first.

    8 epochs at a rate of 2 have the rungs 1, 2, 4.
    """
    found = []
    while epochs := epochs // rate:
        found.insert(0, epochs)
    return found


def survivors(scores: Sequence[float], rate: int) -> list[int]:
    """The positions of the best `rate`th of the scores, rounded up: of equal ones the first, NaN last."""
    known = [-math.inf if math.isnan(score) else score for score in scores]
    best = sorted(range(len(known)), key=known.__getitem__, reverse=True)[:math.ceil(len(known) / rate)]
    return sorted(best)
