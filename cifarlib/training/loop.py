"""The training loop: one run from a configuration, which can stop after any epoch and goes on from its checkpoint."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import CHECKPOINTS, Config
from ..data import augment
from ..data.splits import Split, Splits
from ..device import autocast, pick_precision
from ..errors import InputError
from ..files import STATE
from ..runs.history import History
from ..runs.stop import StopRequest
from .checkpoint import Store, carried, load_weights
from .metrics import Scores, Tally
from .recipe import loss_of, make_optimizer, tested_model, views
from .schedule import lr_at

EVALUATION_BATCH = 500  # images, on a CPU, whose caches hold their maps; a GPU is fed more at once
GPU_EVALUATION_BATCH = 1000
PREPARING = 5000  # training images from which a model may set itself up
WARM_UP = 3  # steps on CUDA before one is captured


def fit(model: nn.Module, splits: Splits, config: Config, folder: Path | str | None = None,
        on_epoch: Callable | Iterable[Callable] = (), resume: bool = True, pause_after: int = 0) -> History:
    """Train `model` in place, call each of `on_epoch` with the history after every epoch, and return the history.

    A model that has a method `prepare` is first given normalized training images (at most 5,000), from which it may set
    weights. With a `folder` it keeps history.csv, the checkpoints and the state to go on from there: a run that was cut
    off continues after its last finished epoch to the numbers of an uninterrupted one, a finished run is only read
    back. `resume=False` starts anew. Ctrl-C, SIGTERM, SIGUSR1 or a file `stop` in the folder end it after the epoch in
    progress, `pause_after` (if not 0) after so many epochs. Raises InputError if the folder holds another
    configuration's run or can't be written.
    """
    train, device = splits.train, splits.train.images.device
    precision = pick_precision(config.precision, device)
    callbacks = [on_epoch] if callable(on_epoch) else list(on_epoch)
    model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config)
    plan = {**config.identity(), "device": device.type, "precision": precision, "data": splits.fingerprint}
    if getattr(model, "source_digest", source := plan.get("model_source")) != source:
        raise InputError(f"{config.model} has changed since this model was built from it; build it anew")
    store = Store(folder, plan, resume, carried(config, train))
    history, tested = store.restore(model, optimizer), tested_model(model, optimizer)
    if not history.rows and hasattr(model, "prepare"):
        model.prepare(augment.normalize(train.images[:PREPARING], train))
        tested.load_state_dict(model.state_dict())  # from there an average begins
    trainer = Trainer(model, optimizer, train, config, precision)
    with StopRequest(store.stop_file) as stop, torch.random.fork_rng([device] if device.type == "cuda" else []):
        while not (history.finished(config) or stop.due or 0 < pause_after <= len(history.rows)):
            started = time.perf_counter()
            epoch = len(history.rows)
            scores = trainer.train_epoch(epoch)
            trained = time.perf_counter()
            row = {"epoch": epoch + 1, "learning_rate": lr_at(config, epoch), **scores.row("train")}
            validated = (epoch + 1) % config.val_freq == 0 or epoch + 1 == config.epochs
            if validated and math.isfinite(scores.loss) and len(splits.validation):
                row |= evaluate(tested, splits.validation, config).row("val")
            row |= {"seconds": time.perf_counter() - started, "images_per_second": len(train) / (trained - started)}
            history.rows.append(row)
            store.keep(model, optimizer, history)
            for callback in callbacks:
                callback(history)
    store.write(model, optimizer, history)
    if history.finished(config):
        history.status = "diverged" if history.diverged else "done"
        if tested is not model:
            model.load_state_dict(tested.state_dict())
        store.finish(model)
    return history


class Trainer:
    """The training epochs of one run.

    On CUDA a whole step, from augmentation to optimizer, is captured as a graph and replayed: hundreds of small kernels
    are one launch then. A graph replays on the memory that it was captured with, so what a step uses stays in place:
    `order`, `augmentations` and learning `rates` of the epoch, `positions` (the batch's in the order), `number` (the
    step's in the epoch) and the tally.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, split: Split, config: Config, precision: str):
        self.model, self.optimizer, self.split, self.config, self.precision = model, optimizer, split, config, precision
        self.device = split.images.device
        self.packed = augment.pack(split.images)
        self.order = torch.zeros_like(split.labels)
        self.augmentations = torch.zeros(len(split), augment.PARAMETERS, device=self.device)
        self.positions = torch.arange(config.batch_size, device=self.device)
        self.tally = Tally(split.classes, self.device)
        # Libraries prepare themselves in a stream's first steps, which can't be captured; so all steps run in this one.
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.graph = None
        self.steps, self.capture_after = 0, WARM_UP if self.stream else None
        where = self.device if self.stream else "cpu"  # of what decides the learning rate
        self.rates = torch.zeros(math.ceil(len(split) / config.batch_size), dtype=torch.float64, device=where)
        self.number = torch.zeros(1, dtype=torch.int64, device=where)
        for group in optimizer.param_groups if self.stream else ():
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)

    def train_epoch(self, epoch: int) -> Scores:
        """One pass over the training images in the order that seed and epoch give.

        All random numbers depend on seed and epoch alone, so an epoch is the same after a resume, and order and
        augmentation are the same on every device.
        """
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            self.begin(epoch)
            for _ in range(len(self.order) // self.config.batch_size):
                self._advance()
            rest = len(self.order) % self.config.batch_size
            if rest > 1:  # batch norm has no variance over a left-over single image
                self._step(self.positions[:rest])
            return self.tally.read()

    def begin(self, epoch: int) -> None:
        """Sample the epoch's order and augmentations, work out its learning rates, and go back to the first batch."""
        seed, steps = self.config.seed * 1_000_003 + epoch, len(self.rates)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.order), generator=generator)
        self.order.copy_(order)
        if self.config.augmentation:
            self.augmentations.copy_(augment.sample_parameters(self.config, order, epoch, generator))
        torch.manual_seed(seed)  # of dropout
        moments = (epoch + (step / steps if self.config.lr_by_step else 0) for step in range(steps))
        self.rates.copy_(torch.tensor([lr_at(self.config, moment) for moment in moments], dtype=torch.float64))
        torch.arange(self.config.batch_size, out=self.positions)
        self.number.zero_()
        self.tally.clear()
        self.model.train()

    def _advance(self) -> None:
        """A step on the next whole batch."""
        if self.graph:
            self.graph.replay()
            return
        self._step_and_move()
        self.steps += 1
        if self.steps == self.capture_after:
            self._capture()

    def _capture(self) -> None:
        """Record a step without doing it."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self._step_and_move()
            self.graph = graph
        except RuntimeError as error:
            first = error.__context__ or error  # the end of a broken capture raises a second error
            cause = (str(first) or type(first).__name__).splitlines()[0]
            print(f"no CUDA graph here ({cause}); the same steps are launched kernel by kernel, more slowly")

    def _step_and_move(self) -> None:
        self._step(self.positions)
        self.positions += self.config.batch_size

    def _step(self, positions: Tensor) -> None:
        """Train on the images at `positions` (B,) of the epoch's order."""
        rate = self.rates.index_select(0, self.number)[0]
        for group in self.optimizer.param_groups:
            scaled = rate * group.get("lr_scale", 1.0)
            if self.stream:
                group["lr"].copy_(scaled)
            else:
                group["lr"] = scaled.item()
        self.number += 1
        chosen = self.order[positions]
        if self.config.augmentation:
            pixels = augment.augmented(self.packed, chosen, self.augmentations[positions], self.config)
        else:
            pixels = augment.plain(self.packed, chosen)
        labels = self.split.labels[chosen]
        with autocast(self.device, self.precision):
            logits = self.model(augment.normalize(augment.unpack(pixels), self.split))
        loss = loss_of(logits, labels, self.config, self.config.label_smoothing)
        self.model.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.config.label_smoothing:  # what is recorded compares with the validation loss
            loss = loss_of(logits.detach(), labels, self.config)
        self.tally.add(loss, logits, labels)


@torch.no_grad()  # in inference mode the weights that are moved here could not be trained afterwards
def evaluate(model: nn.Module, split: Split, config: Config, tta: str = "none") -> Scores:
    """Loss, accuracy, confusion and logits of `model` on a whole split, in the configuration's precision.

    tta: the views of `recipe.views` by which the accuracy is taken once more. `model` is moved to the split's device
    and stays in the mode that it was in.
    """
    device = split.images.device
    precision = pick_precision(config.precision, device)
    tally, all_logits, all_averaged, training = Tally(split.classes, device), [], [], model.training
    model.to(device, memory_format=torch.channels_last).eval()
    size = EVALUATION_BATCH if device.type == "cpu" else GPU_EVALUATION_BATCH
    for images, labels in zip(split.images.split(size), split.labels.split(size)):
        with autocast(device, precision):
            logits, averaged = views(model, augment.normalize(images, split), tta)
        tally.add(loss_of(logits, labels, config), logits, labels)
        all_logits.append(logits.float())
        all_averaged.append(averaged.float())
    model.train(training)
    scores, hits = tally.read(), torch.cat(all_averaged).argmax(dim=1) == split.labels
    return replace(scores, logits=torch.cat(all_logits), labels=split.labels,
                   accuracy_with_views=None if tta == "none" else hits.double().mean().item())


def evaluate_checkpoints(model: nn.Module, split: Split, config: Config, folder: Path | str) -> dict[str, Scores]:
    """Scores of the checkpoints in `folder` on the test split; none while there is something left to train.

    A run that diverged at once has no best checkpoints. `model` ends with the weights of the last one.
    """
    folder, scores = Path(folder), {}
    for name in CHECKPOINTS:
        if (folder / f"{name}.pt").exists() and not (folder / STATE).exists():
            model.load_state_dict(load_weights(folder / f"{name}.pt", split.images.device)["weights"])
            scores[name] = evaluate(model, split, config, config.tta)
    return scores
