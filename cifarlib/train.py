"""The training loop: one run from a configuration, checkpointed every epoch so that it can stop and go on at any of them."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import augment
from .checkpoint import StopRequest, Store
from .config import CHECKPOINTS, Config
from .data import Split, Splits
from .device import autocast, pick_precision
from .files import STATE
from .history import History
from .metrics import Scores, Tally
from .schedule import lr_at

EVALUATION_BATCH = 500


def fit(model: nn.Module, splits: Splits, config: Config, folder: Path | str | None = None,
        on_epoch: Callable | Iterable[Callable] = (), resume: bool = True) -> History:
    """Train `model` in place, call each of `on_epoch` with the history after every epoch, and return the history.

    With a `folder` it keeps history.csv, the checkpoints and the state to go on from there: a run that was cut off continues after
    its last finished epoch to the numbers of an uninterrupted one, a finished run is only read back. `resume=False` starts anew.
    Ctrl-C, SIGTERM, SIGUSR1 or a file `stop` in the folder end it after the epoch in progress. Raises InputError if the folder
    holds another configuration's run or can't be written.
    """
    train, device = splits.train, splits.train.images.device
    precision = pick_precision(config.precision, device)
    callbacks = [on_epoch] if callable(on_epoch) else list(on_epoch)
    model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config, device)
    store = Store(folder, {**config.identity(), "device": device.type, "precision": precision, "data": splits.fingerprint}, resume)
    history = store.restore(model, optimizer)
    packed = augment.pack(train.images)
    with StopRequest(store.stop_file) as stop, torch.random.fork_rng([device] if device.type == "cuda" else []):
        while not history.finished(config) and not stop.requested:
            started = time.perf_counter()
            epoch = len(history.rows)
            scores = train_epoch(model, optimizer, packed, train, config, epoch, precision)
            trained = time.perf_counter()
            row = {"epoch": epoch + 1, "learning_rate": lr_at(config, epoch), **scores.row("train")}
            if math.isfinite(scores.loss) and ((epoch + 1) % config.val_freq == 0 or epoch + 1 == config.epochs):
                row |= evaluate(model, splits.validation, config).row("val")
            row |= {"seconds": time.perf_counter() - started, "images_per_second": len(train) / (trained - started)}
            history.rows.append(row)
            store.keep(model, optimizer, history)
            for callback in callbacks:
                callback(history)
    if history.finished(config):
        history.status = "diverged" if history.diverged else "done"
        store.finish(model)
    return history


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, packed: Tensor, split: Split, config: Config, epoch: int,
                precision: str) -> Scores:
    """One pass over the training images (`packed`, as augment.pack gives them) in the order that seed and epoch give.

    All random numbers depend on seed and epoch alone, so an epoch is the same after a resume, and the same order and augmentation
    are drawn on every device.
    """
    device, count = packed.device, len(split)
    seed = config.seed * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).to(device)
    draws = augment.draw(count, generator).to(device) if config.augmentation else None
    torch.manual_seed(seed)  # of dropout
    for group in optimizer.param_groups:
        group["lr"] = lr_at(config, epoch)
    tally = Tally(device)
    model.train()
    for start in range(0, count, config.batch_size):
        batch = slice(start, start + config.batch_size)
        chosen = order[batch]
        if len(chosen) == 1:
            break  # batch norm has no variance over a left-over single image
        pixels = augment.augmented(packed, chosen, draws[batch]) if draws else augment.plain(packed, chosen)
        labels = split.labels[chosen]
        with autocast(device, precision):
            logits = model(augment.normalize(augment.unpack(pixels), split))
        loss = loss_of(logits, labels, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tally.add(loss, logits, labels)
    return tally.read()


@torch.no_grad()  # in inference mode the weights that are moved here could not be trained afterwards
def evaluate(model: nn.Module, split: Split, config: Config) -> Scores:
    """Loss, accuracy, confusion and logits of `model` on a whole split, in the configuration's precision; leaves its mode as it was."""
    device = split.images.device
    precision = pick_precision(config.precision, device)
    tally, all_logits, training = Tally(device), [], model.training
    model.to(device, memory_format=torch.channels_last).eval()
    for images, labels in zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH)):
        with autocast(device, precision):
            logits = model(augment.normalize(images, split))
        tally.add(loss_of(logits, labels, config), logits, labels)
        all_logits.append(logits.float())
    model.train(training)
    scores = tally.read()
    return Scores(scores.loss, scores.confusion, torch.cat(all_logits).cpu(), split.labels.cpu())


def test_checkpoints(model: nn.Module, split: Split, config: Config, folder: Path | str) -> dict[str, Scores]:
    """Scores of the three checkpoints in `folder` on the test split; none while there is something left to train.

    A run that diverged at once has no best checkpoints. `model` lends its architecture and ends with the terminal weights.
    """
    scores = {}
    if (Path(folder) / STATE).exists():
        return scores
    for name in CHECKPOINTS:
        path = Path(folder) / f"{name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, map_location=split.images.device, weights_only=True))
            scores[name] = evaluate(model, split, config)
    return scores


def loss_of(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """Mean cross entropy in float32. The published CNN's is taken of its softmax output, as if that were logits."""
    logits = logits.float()
    if config.protocol == "published" and config.model == "cnn":
        logits = logits.softmax(dim=1)
    return F.cross_entropy(logits, labels)


def make_optimizer(model: nn.Module, config: Config, device: torch.device) -> torch.optim.AdamW:
    """AdamW with amsgrad. The corrected protocol decays weight matrices and kernels only, the published one biases and norms too."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    other_decay = config.weight_decay if config.protocol == "published" else 0.0
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": other_decay}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, amsgrad=True, fused=device.type in ("cpu", "cuda"))
