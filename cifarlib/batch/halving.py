"""A grid by successive halving: all its runs begin, and at each rung only the best part of each model's goes on."""

import dataclasses
import math
import sys
from collections import defaultdict
from pathlib import Path

from ..config import Options
from ..errors import InputError
from ..runs.halving import rungs, survivors
from ..runs.record import epochs_of, is_finished, status_of, write_failure
from ..words import counted
from .grid import Run
from .resources import Slots
from .runner import run_all


def run_halving(runs: list[Run], options: Options, slots: Slots, rate: int, **how) -> int:
    """As run_all, with whose arguments `how`, but at each rung only the best `rate`th of each model's runs goes on.

    By the validation accuracy at that epoch, which the histories keep: several runners, and the same line again, choose
    alike. The others are recorded as dropped; run_all takes them to their end, as if they had never stopped. Raises
    InputError for runs of different lengths, and where nothing validates.
    """
    check_halving(runs, options)
    competing = runs
    for epochs in rungs(runs[0].config.epochs, rate):
        print(f"halving: {counted(len(competing), 'run')} to epoch {epochs}", file=sys.stderr)
        code = run_all(competing, dataclasses.replace(options, pause_after=epochs), slots, **how)
        scores = {run.name: score_at(options.run_folder(run.config), epochs) for run in competing}
        if None in scores.values():  # stopped before the rung
            return code
        chosen = choose(competing, scores, rate)
        for run in competing:
            if run not in chosen and not is_finished(options.run_folder(run.config)):
                write_failure(options.run_folder(run.config), run.config, status="dropped",
                              error=f"dropped by halving after epoch {epochs}; without --halving it is trained on")
        competing = chosen
    return run_all(competing, options, slots, **how)


def check_halving(runs: list[Run], options: Options) -> None:
    """Raise InputError for runs that can't be compared at the same epochs, or can't go on."""
    lengths = sorted({run.config.epochs for run in runs})
    if len(lengths) > 1:
        raise InputError(f"--halving compares runs of equally many epochs; these have {lengths}; choose some by --only")
    if not options.resume:
        raise InputError("--halving continues runs that it has stopped, which --no-resume forbids; use another --study")
    if any(run.config.split == "all" or run.config.val_freq > 1 for run in runs):
        raise InputError("--halving compares validation accuracies at any epoch; expected a split with validation "
                         "images and val_freq 1")


def choose(runs: list[Run], scores: dict[str, float], rate: int) -> list[Run]:
    """The best `rate`th of the runs of each model and size, by scores by the runs' names."""
    models = defaultdict(list)
    for run in runs:
        models[run.config.model, str(run.config.model_args)].append(run)
    return [group[i] for group in models.values() for i in survivors([scores[run.name] for run in group], rate)]


def score_at(folder: Path, epochs: int) -> float | None:
    """A run's validation accuracy after so many epochs, or after its last one if it had ended by then.

    NaN for what failed or diverged; None for what has not come as far.
    """
    rows = epochs_of(folder)
    if len(rows) < epochs and not is_finished(folder):
        return math.nan if status_of(folder) == "failed" else None
    return rows[:epochs][-1].get("val_accuracy", math.nan)


def halving_text(runs: list[Run], rate: int) -> str:
    """How many runs go how far, and what part of the grid's epochs that is."""
    epochs, competing, steps, trained, before = runs[0].config.epochs, runs, [], 0, 0
    for rung in [*rungs(epochs, rate), epochs]:
        steps.append(f"{len(competing)} to epoch {rung}")
        trained, before = trained + len(competing) * (rung - before), rung
        competing = choose(competing, dict.fromkeys((run.name for run in competing), 0.0), rate)
    return f"by halving: {', '.join(steps)}; {trained / (len(runs) * epochs):.0%} of the grid's epochs"
