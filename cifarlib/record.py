"""What a run leaves behind: predictions, and record.json, which is written last of all and marks the run as done."""

from pathlib import Path

import numpy as np

from .config import Config, InputError
from .data import Splits
from .device import describe, pick_precision
from .files import PREDICTIONS, RECORD, replacing, write_json
from .history import History
from .metrics import Scores
from .runs import FINISHED, head, metrics_of, read_record


class Preempted(InputError):
    """A run was stopped before its end; the message says how to go on."""


def write_record(folder: Path, config: Config, splits: Splits, history: History, scores: dict[str, Scores], parameters: int) -> dict:
    """Write predictions.npz, then record.json, and return the record; a finished run keeps the record it has.

    parameters: number of the model's weights. Raises Preempted, after writing, if the run was stopped before its end.
    """
    before = read_record(folder)
    if before and before["status"] in FINISHED:
        return before
    device = splits.train.images.device
    record = {
        **head(config, history.status),
        "device": describe(device),
        "precision": pick_precision(config.precision, device),
        "data": {"dataset": splits.dataset, "split": config.split, "fingerprint": splits.fingerprint,
                 "train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "parameters": parameters,
        "epochs_run": len(history.rows),
        "seconds": round(sum(row["seconds"] for row in history.rows), 2),
        "metrics": metrics_of(history, scores),
        "confusion": {name: score.confusion.tolist() for name, score in scores.items()},
    }
    if history.status in FINISHED:
        arrays = {name: score.logits.numpy().astype(np.float16) for name, score in scores.items()}
        labels = next(iter(scores.values())).labels.numpy()
        with replacing(folder / PREDICTIONS) as part, part.open("wb") as handle:
            np.savez_compressed(handle, labels=labels, **arrays)
    write_json(folder / RECORD, record)
    if history.status == "preempted":
        raise Preempted(f"stopped after epoch {len(history.rows)} of {config.epochs}; the same command goes on from there")
    return record
