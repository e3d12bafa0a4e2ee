"""What a run leaves behind: predictions, and record.json, which is written last of all and marks the run as done."""

from pathlib import Path

import numpy as np
from torch import nn

from ..config import CHECKPOINTS, Config
from ..errors import Preempted
from ..data.splits import Splits
from ..device import describe, pick_precision
from ..files import PREDICTIONS, RECORD, replacing, write_json
from ..models import count_parameters
from ..runs.history import History
from ..runs.record import common_fields, is_finished, read_record
from .loop import evaluate_checkpoints
from .metrics import Scores


def finish_run(model: nn.Module, splits: Splits, config: Config, folder: Path, history: History,
               checkpoints: str = "all") -> dict:
    """Test the checkpoints, write predictions.npz and, last, record.json, and return the record.

    A finished run keeps the record that it has. checkpoints: which weights stay in the folder: all three, the best (by
    validation accuracy) or none. Raises Preempted, after writing, if the run was stopped before its end; nothing is
    tested then.
    """
    if is_finished(folder):
        record = read_record(folder)
    else:
        scores, device = evaluate_checkpoints(model, splits.test, config, folder), splits.train.images.device
        if scores:
            _write_predictions(folder, scores)
        record = {
            **common_fields(folder, config, history.status, history, scores),
            "device": describe(device, config.device),
            "precision": pick_precision(config.precision, device),
            "data": {"dataset": splits.dataset, "split": config.split, "fingerprint": splits.fingerprint,
                     "train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test),
                     "classes": splits.test.classes},
            "parameters": count_parameters(model),
            "confusion": {name: score.confusion.tolist() for name, score in scores.items()},
        }
        write_json(folder / RECORD, record)
    if record["status"] == "preempted":
        raise Preempted(f"stopped after epoch {len(history.rows)} of {config.epochs}; the same command goes on from "
                        "there (in a notebook: Run All), unless it says --no-resume (resume False) or pause_after")
    best = "best_val_acc" if "best_val_acc" in record["confusion"] else "terminal"
    for name in CHECKPOINTS if checkpoints != "all" else ():
        if (checkpoints, name) != ("best", best):
            (folder / f"{name}.pt").unlink(missing_ok=True)
    return record


def _write_predictions(folder: Path, scores: dict[str, Scores]) -> None:
    """Labels, and each checkpoint's logits minus the image's highest, which stays apart at 0 when float16 rounds."""
    logits = {}
    for name, score in scores.items():
        below = score.logits - score.logits.amax(dim=1, keepdim=True)
        logits[name] = below.cpu().numpy().astype(np.float16)
    with replacing(folder / PREDICTIONS) as part, part.open("wb") as handle:
        np.savez_compressed(handle, labels=next(iter(scores.values())).labels.cpu().numpy(), **logits)
