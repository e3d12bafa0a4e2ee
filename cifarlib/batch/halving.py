"""A grid by successive halving: all its runs begin, and at each rung only the best part of each model's goes on."""

import dataclasses
import math
import sys
from collections import defaultdict
from pathlib import Path

from ..config import Options
from ..errors import InputError
from ..runs.claim import Claim
from ..runs.halving import rungs, survivors
from ..runs.record import epochs_of, is_finished, status_of, write_failure
from ..words import counted
from .grid import Run
from .kernel import FAILED
from .resources import Slots
from .runner import Stopping, run_all


def run_halving(runs: list[Run], options: Options, slots: Slots, stopping: Stopping, rate: int, **how) -> int:
    """As run_all, with whose arguments `how`, but at each rung only the best `rate`th of each model's runs goes on.

    By the validation accuracy at that epoch, which the histories keep: several runners, and the same line again, choose
    alike. The others are recorded as dropped; run_all takes them to their end, as if they had never stopped. What
    failed neither goes on nor is dropped. Raises InputError for runs that can't be halved.
    """
    check_halving(runs, options, rate)
    competing, failed = runs, False
    for epochs in [*rungs(runs[0].config.epochs, rate), 0]:
        print(f"halving: {counted(len(competing), 'run')} to {f'epoch {epochs}' if epochs else 'the end'}",
              file=sys.stderr)
        code = run_all(competing, dataclasses.replace(options, pause_after=epochs), slots, stopping, **how)
        scores = {run.name: score_at(options.run_folder(run.config), epochs) for run in competing}
        if stopping.requested or None in scores.values():
            return code
        failed = failed or any(status_of(options.run_folder(run.config)) == "failed" for run in competing)
        if epochs:
            competing = go_on(competing, options, scores, rate, epochs)
    return FAILED if failed else code


def go_on(runs: list[Run], options: Options, scores: dict[str, float], rate: int, epochs: int) -> list[Run]:
    """The runs that go on after so many epochs; the others are recorded as dropped, unless somebody trains them."""
    runs = [run for run in runs if status_of(options.run_folder(run.config)) != "failed"]
    chosen = choose(runs, scores, rate)
    for run in runs:
        folder = options.run_folder(run.config)
        if run not in chosen and (claim := Claim.take(folder)):
            if not is_finished(folder):
                write_failure(folder, run.config, status="dropped",
                              error=f"dropped by halving after epoch {epochs}; without --halving it is trained on")
            claim.release()
    return chosen


def check_halving(runs: list[Run], options: Options, rate: int) -> None:
    """Raise InputError for runs that can't be compared at the same epochs, or can't go on."""
    lengths = sorted({run.config.epochs for run in runs})
    if max(lengths) < rate:
        raise InputError(f"--halving: expected at most the number of epochs, {max(lengths)}, got {rate}")
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
    """A run's validation accuracy after so many epochs (0: at its end), or after its last one if it had ended by then.

    NaN for what failed or diverged; None for what has not come as far.
    """
    rows = epochs_of(folder)
    if status_of(folder) == "failed":
        return math.nan
    if not is_finished(folder) and not 0 < epochs <= len(rows):
        return None
    reached = rows[:epochs] if epochs else rows
    return reached[-1].get("val_accuracy", math.nan) if reached else math.nan  # a history may have been removed


def halving_text(runs: list[Run], rate: int) -> str:
    """How many runs go how far, and what part of the grid's epochs that is."""
    epochs, competing, steps, trained, before = runs[0].config.epochs, runs, [], 0, 0
    for rung in [*rungs(epochs, rate), epochs]:
        steps.append(f"{len(competing)} to epoch {rung}")
        trained, before = trained + len(competing) * (rung - before), rung
        competing = choose(competing, dict.fromkeys((run.name for run in competing), 0.0), rate)
    return f"by halving: {', '.join(steps)}; {trained / (len(runs) * epochs):.0%} of the grid's epochs"
