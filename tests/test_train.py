"""Training against a plain loop; the same numbers after any interruption; checkpoints, early stopping, bad folders."""

import json
import math
import os
import signal
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarlib import InputError, build_model, evaluate, evaluate_checkpoints, fit
from cifarlib import device, files
from cifarlib.data import augment
from cifarlib.runs import record
from cifarlib.training import checkpoint, finish, loop, recipe
from cifarlib.config import CHECKPOINTS
from cifarlib.errors import OtherMachine
from cifarlib.parts import CIFAR10_CLASSES as CLASSES, OPTIMIZERS, PROTOCOLS
from cifarlib.runs.history import History
from cifarlib.runs.stop import SIGNALS
from cifarlib.training.metrics import Scores
from cifarlib.training.finish import finish_run
from cifarlib.training.schedule import lr_at

MODELS = ["cnn", "resnet", "vit"]
THOROUGH = checkpoint.EVERY_EPOCH  # before a test changes it


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def numbers(history):
    """The rows without what the clock says."""
    clock = ("seconds", "images_per_second")
    return [{name: value for name, value in row.items() if name not in clock} for row in history.rows]


def run(config, splits, folder=None, **options):
    """A fresh model trained; (history, its weights)."""
    model = build_model(config)
    return fit(model, splits, config, folder, **options), weights(model)


def in_folder(folder):
    """What a finished run folder holds: the rows of its table and the weights of its checkpoints."""
    checkpoints = {name: torch.load(folder / f"{name}.pt", weights_only=True)["weights"] for name in CHECKPOINTS}
    return numbers(History.read(folder / "history.csv")), checkpoints


def assert_same_run(folder, other):
    (rows, checkpoints), (other_rows, other_checkpoints) = in_folder(folder), in_folder(other)
    assert rows == other_rows
    assert all(same(checkpoints[name], other_checkpoints[name]) for name in CHECKPOINTS)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(other))


# What training computes.

def plain_training(config, splits):
    """The run as plain code with torch's own optimizer; (rows of loss and accuracy, the model)."""
    published, model = config.protocol == "published", build_model(config).to(memory_format=torch.channels_last)
    decayed = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    others = [p for p in model.parameters() if all(p is not q for q in decayed)]
    groups = [{"params": decayed}, {"params": others, "weight_decay": config.weight_decay if published else 0}]
    rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, **rates, momentum=config.momentum, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, **rates, amsgrad=True, fused=True)

    def loss_of(images, labels):
        outputs = model(augment.normalize(images, splits.train))
        if published and config.model == "cnn":
            outputs = outputs.softmax(dim=1)
        smooth = F.cross_entropy(outputs, labels, label_smoothing=config.label_smoothing)
        return smooth, F.cross_entropy(outputs, labels), (outputs.argmax(dim=1) == labels).sum().item()

    rows = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(splits.train), generator=generator)
        augmentations = augment.sample_parameters(config, order, epoch, generator)
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        model.train()
        total = right = 0
        for step, batch in enumerate(torch.arange(len(order)).split(config.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(config, epoch + step / 3 if config.protocol == "modern" else epoch)
            images = splits.train.images[order[batch]]
            if config.augmentation:
                packed, every = augment.pack(images), torch.arange(len(images))
                pixels = augment.augmented(packed, every, augmentations[batch], config)
                images = augment.unpack(pixels)
            minimized, loss, hits = loss_of(images, splits.train.labels[order[batch]])
            optimizer.zero_grad()
            minimized.backward()
            optimizer.step()
            total, right = total + loss.item() * len(images), right + hits
        with torch.no_grad():
            model.eval()
            _, loss, hits = loss_of(splits.validation.images, splits.validation.labels)
        rows.append({"train_loss": total / len(order), "train_accuracy": right / len(order), "val_loss": loss.item(),
                     "val_accuracy": hits / len(splits.validation)})
    return rows, model


@pytest.mark.parametrize("changes", [
    {"scheduler": "exponential", "optimizer": "adamw"}, {"augmentation": True, "optimizer": "adamw"},
    {"optimizer": "sgd", "momentum": 0.8, "label_smoothing": 0.2},
], ids=lambda changes: "-".join(map(str, changes.values())))
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_a_plain_loop(model, protocol, changes, load):
    # 40 images in batches of 16: the last of each epoch is smaller. The strong decay shows where it is amiss.
    config = tiny(model, protocol=protocol, gamma=0.5, weight_decay=0.5, limit_train=40, epochs=4, **changes)
    splits = load(config)
    wanted, plain = plain_training(config, splits)
    history, got = run(config, splits)
    for row, plain_row in zip(history.rows, wanted, strict=True):
        assert {name: row[name] for name in plain_row} == pytest.approx(plain_row, rel=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=lambda text: f"{name}: {text}")


def recipe_of(config, load):
    """What each field of the recipe decides, as training does it."""
    splits, network = load(config), build_model(config)
    groups = recipe.make_optimizer(network, config).param_groups
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    logits, labels = 1000.0 * F.one_hot(torch.arange(10), 10), torch.arange(10)
    step, exponential, cosine = ([lr_at(config.replace(scheduler=name), epoch) for epoch in range(8)]
                                 for name in ("step", "exponential", "cosine"))
    return {"split": splits.train.labels.tolist(),
            "normalization": splits.train.mean.tolist() == pytest.approx([0.485, 0.456, 0.406]),
            "decayed": [decays[p] for p in network.parameters()],
            "softmax_in_loss": [recipe.loss_of(logits, labels, config, part) for part in (config.label_smoothing, 0.0)],
            "schedule_steps": [step, exponential], "cosine_period": cosine}


CORRECTED = tiny("cnn", epochs=8, gamma=0.5)
PUBLISHED = CORRECTED.replace(protocol="published")


@pytest.mark.parametrize("name", [name for name in PROTOCOLS["published"]
                                  if getattr(PUBLISHED, name) != getattr(CORRECTED, name)])
def test_each_difference_of_the_published_protocol_alone(name, load):
    alone = CORRECTED.replace(**{name: getattr(PUBLISHED, name)})
    before, after, wanted = (recipe_of(config, load) for config in (CORRECTED, alone, PUBLISHED))
    assert {field for field in before if after[field] != before[field]} == {name}
    assert after[name] == wanted[name] or name == "cosine_period"  # whose steps are half as many here
    mended = {name: getattr(CORRECTED, name)}
    assert PUBLISHED.replace(**mended).to_dict() == {**PUBLISHED.to_dict(), **mended}


def test_weights_are_averaged_as_torch_averages_them(load):
    """The averaged model is the one that is validated, kept and left; torch's begins at the first step's weights."""
    config = tiny("cnn", weight_average=0.9, epochs=1)
    splits, model = load(config), build_model(config)
    plain = model.to(memory_format=torch.channels_last)
    theirs = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.n_averaged += 1  # so that it begins at the initial weights, too
    optimizer = recipe.make_optimizer(plain, config.replace(weight_average=0.0))
    trainer = loop.Trainer(plain, optimizer, splits.train, config, "fp32")
    optimizer.register_step_post_hook(lambda *_: theirs.update_parameters(plain))
    trainer.train_epoch(0)
    history, weights = run(config, splits)
    wanted = {name: value for name, value in theirs.module.state_dict().items() if value.is_floating_point()}
    assert same({name: weights[name] for name in wanted}, wanted)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_model_prepares_itself_once_and_an_average_begins_there(average, load, tmp_path):
    config = tiny("speednet", weight_average=average, epochs=1)
    splits, prepared = load(config), build_model(config)
    weights = run(config, splits, tmp_path)[1]
    prepared.prepare(augment.normalize(splits.train.images, splits.train))
    assert torch.equal(weights["stem.weight"], prepared.stem.weight)
    assert same(run(config, splits, tmp_path)[1], weights), "the finished run's, from terminal.pt"


def test_nothing_validates_if_all_images_train(load, tmp_path):
    config = tiny("resnet", split="all", protocol="modern", optimizer="sgd", tta="flip_shift")
    splits = load(config)
    assert len(splits.validation) == 0 and torch.equal(splits.train.labels, load(tiny()).train.labels) is False
    model = build_model(config)
    history = fit(model, splits, config, tmp_path)
    record = finish_run(model, splits, config, tmp_path, history, "best")
    assert record["metrics"]["test_accuracy_terminal"] is not None and list(record["confusion"]) == ["terminal"]
    assert not any(name.startswith("val_") for name in history.last) and (tmp_path / "terminal.pt").exists()
    views = record["metrics"]["test_accuracy_with_views_terminal"]
    images, labels = augment.normalize(splits.test.images, splits.test), splits.test.labels
    padded, model = F.pad(images, (1, 1, 1, 1), mode="reflect"), model.eval()
    with torch.no_grad():
        pairs = [(model(view) + model(view.flip(3))) / 2
                 for view in (images, padded[:, :, :32, :32], padded[:, :, 2:, 2:])]
    averaged = pairs[0] / 2 + pairs[1] / 4 + pairs[2] / 4
    assert views == pytest.approx((averaged.argmax(dim=1) == labels).double().mean().item())


@pytest.mark.parametrize("count, used", [(16, 16), (17, 16), (18, 18), (33, 32)])
def test_a_left_over_single_image_is_left_out(count, used, load):
    config = tiny("resnet", limit_train=count)
    splits, model = load(config), build_model(config)
    optimizer = recipe.make_optimizer(model, config)
    scores = loop.Trainer(model, optimizer, splits.train, config, "fp32").train_epoch(0)
    assert scores.confusion.sum() == used


def test_without_a_graph_the_steps_are_the_same(load, capsys):
    """As on a card or with a driver where a step can't be captured: one line, and training goes on."""
    config = tiny("resnet", augmentation=True)
    splits, scores = load(config), []
    for capture in (False, True):
        model = build_model(config)
        trainer = loop.Trainer(model, recipe.make_optimizer(model, config), splits.train, config, "fp32")
        trainer.capture_after = trainer.capture_after or int(capture)
        scores.append([trainer.train_epoch(epoch).loss for epoch in range(2)])
    assert scores[0] == scores[1]
    assert capsys.readouterr().out.count("no CUDA graph here") == (not torch.cuda.is_available())


def test_without_cuda_no_other_accelerator_is_asked_for_streams(load, monkeypatch):
    """torch.cuda.stream(None) asks whatever accelerator there is for its current device, and torch.mps can't tell."""
    monkeypatch.setattr(torch._utils, "_get_available_device_type", lambda: "mps")
    history, _ = run(config := tiny("resnet", epochs=1), load(config))
    assert len(history.rows) == 1


def test_bf16_is_close_to_fp32(load):
    rows = {}
    for precision in ("fp32", "bf16"):
        config = tiny("resnet", precision=precision, learning_rate=0.001, epochs=1)
        history, state = run(config, load(config))
        rows[precision] = history.last
        assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert rows["bf16"]["train_loss"] == pytest.approx(rows["fp32"]["train_loss"], rel=0.02)
    assert rows["bf16"]["val_loss"] == pytest.approx(rows["fp32"]["val_loss"], rel=0.02)
    assert rows["bf16"]["train_loss"] != rows["fp32"]["train_loss"]


# The same seed gives the same run.

@pytest.mark.parametrize("model", MODELS)
def test_same_run_whatever_came_before(model, load):
    config = tiny(model, augmentation=True)
    splits = load(config)
    images = splits.train.images.clone()
    history, state = run(config, splits)
    torch.manual_seed(1)
    torch.rand(7)
    run(tiny("cnn", seed=5), splits)
    generator = torch.get_rng_state()
    model = build_model(config)
    evaluate(model.eval(), splits.test, config)
    again = fit(model, splits, config)
    assert numbers(again) == numbers(history) and same(weights(model), state)
    assert torch.equal(torch.get_rng_state(), generator) and torch.equal(splits.train.images, images)


# Evaluation.

def test_evaluate_equals_a_single_batch(load, monkeypatch):
    config = tiny("resnet", limit_test=100)
    split, model = load(config).test, build_model(config)
    fit(model, load(config), config)
    before = weights(model)
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 33)
    scores = evaluate(model, split, config)
    assert model.training and same(weights(model), before)
    logits = model.eval()(augment.normalize(split.images, split)).detach()
    torch.testing.assert_close(scores.logits, logits, rtol=1e-4, atol=1e-5)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-4)
    assert scores.accuracy == (scores.logits.argmax(dim=1) == split.labels).sum().item() / 100
    assert evaluate(model, split, config) and not model.training


# Validation, early stopping, checkpoints.

@pytest.fixture
def scripted(monkeypatch):
    """Makes the validations give chosen losses and accuracies (of 100 images), one after the other."""
    def script(losses, hits=None):
        results = iter(zip(losses, hits or [10] * len(losses)))

        def evaluate(model, split, config):
            loss, right = next(results)
            confusion = torch.zeros(10, 10, dtype=torch.int64)
            confusion[0, 0], confusion[0, 1] = right, 100 - right
            return Scores(float(loss), confusion, CLASSES)

        monkeypatch.setattr(loop, "evaluate", evaluate)
    return script


@pytest.mark.parametrize("losses, patience, val_freq, epochs_run", [
    ([3, 1, 2, 2, 2], 2, 1, 4), ([3, 1, 2, 2, 2], 2, 2, 8), ([1, 1, 1, 1], 2, 1, 3), ([*range(9, -1, -1)], 1, 1, 10),
    ([3, 4, 2, 3, 1, 2, 3], 2, 1, 7), ([1, 2], 1, 3, 6),
])
def test_patience_counts_validations_without_a_lower_loss(losses, patience, val_freq, epochs_run, scripted, load,
                                                          tmp_path):
    scripted(losses)
    config = tiny(epochs=10, val_freq=val_freq, early_stopping_patience=patience)
    history, _ = run(config, load(config), tmp_path)
    assert len(history.rows) == epochs_run and history.status == "done"
    assert str(run(config, load(config), tmp_path)[0]) == str(history)  # only read back; some classes are NaN


@pytest.mark.parametrize("val_freq, disk", [(1, "quick"), (2, "quick"), (1, "slow")])
def test_checkpoints_hold_the_weights_of_their_epochs(val_freq, disk, scripted, load, tmp_path, request):
    if disk == "slow":  # the best weights wait in memory while training goes on
        request.getfixturevalue("slow_disk")
    scripted([3, 2, 1, 4], [10, 50, 50, 30])  # of two that are equal, the first
    config, after = tiny("cnn", epochs=4 * val_freq, val_freq=val_freq), []
    model = build_model(config)
    history = fit(model, load(config), config, tmp_path, on_epoch=lambda history: after.append(weights(model)))
    epochs = {"best_val_acc": 2 * val_freq, "best_val_loss": 3 * val_freq, "terminal": 4 * val_freq}
    for name, epoch in epochs.items():
        assert same(torch.load(tmp_path / f"{name}.pt", weights_only=True)["weights"], after[epoch - 1]), name
        assert history.best(name)["epoch"] == epoch
    assert {*os.listdir(tmp_path)} == {"history.csv", "plan.json", *(f"{name}.pt" for name in CHECKPOINTS)}


def test_stored_logits_name_the_class_that_was_scored(tmp_path):
    logits = torch.tensor([[9.0001, 9.0003, 0], [-7.002, -7.0018, -7.0019]])
    assert logits.half().argmax(dim=1).tolist() != logits.argmax(dim=1).tolist()  # half precision alone would move them
    scores = Scores(0.0, torch.zeros(10, 10), CLASSES, logits, torch.tensor([1, 1]))
    finish._write_predictions(tmp_path, {"terminal": scores})
    stored = torch.from_numpy(np.load(tmp_path / "predictions.npz")["terminal"]).float()
    assert stored.argmax(dim=1).tolist() == [1, 1]
    torch.testing.assert_close(stored.softmax(dim=1), logits.softmax(dim=1), rtol=0, atol=1e-3)


def test_record_names_the_commit_that_training_began_with(load, tmp_path, monkeypatch):
    config = tiny()
    record.commit.cache_clear()
    commits = iter(["__init__.py", "began", "", "__init__.py", "ended", ""])
    monkeypatch.setattr(record.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(commits)))
    model, splits = build_model(config), load(config)
    history = fit(model, splits, config, tmp_path)
    assert finish_run(model, splits, config, tmp_path, history)["commit"] == "began"
    record.commit.cache_clear()


def test_history_is_a_table_with_the_published_columns(load, tmp_path):
    config = tiny(epochs=3, val_freq=2, limit_val=15)  # few images: not every class has one
    history, _ = run(config, load(config), tmp_path)
    header, *lines = (tmp_path / "history.csv").read_text().splitlines()
    names = ["loss", "accuracy", "per_class_accuracy", *(f"per_class_accuracy_{c}" for c in CLASSES)]
    scores = [f"{split}_{name}" for split in ("train", "val") for name in names]
    wanted = ["epoch", "learning_rate", *scores, "seconds", "images_per_second"]
    assert header.split(",") == wanted and len(lines) == 3
    assert [line.split(",")[wanted.index("val_loss")] == "" for line in lines] == [True, False, False]
    for read, row in zip(History.read(tmp_path / "history.csv").rows, history.rows):
        assert read.keys() == row.keys()
        assert all(read[name] == row[name] or math.isnan(row[name]) for name in row)
    assert history.last["images_per_second"] > 0 and history.last["seconds"] > 0


def test_trains_in_a_thread_too_and_without_a_folder_writes_nothing(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tiny(), load(tiny()))[0].status))
    thread.start()
    thread.join()
    assert results == ["done"] and os.listdir() == []


# Interrupted and continued.

@pytest.fixture(scope="module")
def uninterrupted(load, tmp_path_factory):
    """The folder of the run that the interrupted ones must equal."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(INTERRUPTED, load(INTERRUPTED), folder)
    return folder


INTERRUPTED = tiny("cnn", augmentation=True, epochs=3, scheduler="cosine")
BATCHES = 3  # training losses an epoch


@pytest.fixture
def at_loss(monkeypatch):
    """Does something just before the n-th training loss of the process is computed: in the middle of an epoch."""
    def plan(number, action):
        count, loss_of = iter(range(1, 1000)), loop.loss_of

        def counted(*arguments):
            if len(arguments) == 4 and next(count) == number:  # the fourth is the smoothing
                action()
            return loss_of(*arguments)

        monkeypatch.setattr(loop, "loss_of", counted)
    return plan


@pytest.mark.parametrize("request_, epoch, disk", [
    ("SIGHUP", 1, "quick"), ("SIGTERM", 2, "quick"), ("SIGINT", 2, "quick"), ("file", 1, "quick"),
    ("SIGUSR1", 2, "slow"), ("SIGUSR1", 3, "quick")])
def test_stops_at_the_end_of_the_epoch_and_goes_on(request_, epoch, disk, load, tmp_path, at_loss, uninterrupted,
                                                   request):
    """A request in the last epoch changes nothing; epochs that a slow disk made wait are written before a stop."""
    if disk == "slow":
        request.getfixturevalue("slow_disk")
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    ask = (tmp_path / "stop").touch if request_ == "file" else lambda: signal.raise_signal(signal.Signals[request_])
    at_loss((epoch - 1) * BATCHES + 2, ask)
    model, splits = build_model(INTERRUPTED), load(INTERRUPTED)
    history = fit(model, splits, INTERRUPTED, tmp_path)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
    assert not (tmp_path / "stop").exists()
    assert history.status == ("done" if epoch == 3 else "preempted") and len(history.rows) == epoch
    if epoch < 3:
        assert len(torch.load(tmp_path / "last.pt", weights_only=True)["rows"]) == epoch
        assert evaluate_checkpoints(model, splits.test, INTERRUPTED, tmp_path) == {}
        assert not (tmp_path / "terminal.pt").exists()
    assert run(INTERRUPTED, splits, tmp_path)[0].status == "done"
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_goes_on_to_the_numbers_of_an_uninterrupted_run(optimizer, precision, load, tmp_path):
    """By the modern protocol, whose rates fall by step and whose flips alternate; the averaged weights go on, too."""
    config = tiny("speednet", protocol="modern", optimizer=optimizer, precision=precision, epochs=4, weight_average=0.5)
    whole, stopped, seen = tmp_path / "whole", tmp_path / "stopped", []
    run(config, load(config), whole)
    run(config, load(config), stopped, on_epoch=lambda history: len(history.rows) == 2 and (stopped / "stop").touch())
    run(config, load(config), stopped, on_epoch=[lambda history: seen.append(len(history.rows))] * 2)
    assert seen == [3, 3, 4, 4]
    assert_same_run(stopped, whole)


@pytest.fixture
def slow_disk(monkeypatch):
    """As on a GPU where writing takes so long that it is done after the first epoch and the last, never in between."""
    monkeypatch.setattr(checkpoint, "EVERY_EPOCH", ())
    monkeypatch.setattr(checkpoint, "QUICK", 0)
    monkeypatch.setattr(checkpoint, "SPACING", 1e9)


@pytest.mark.parametrize("every_epoch, written", [((), 1), (THOROUGH, 2)], ids=["gpu", "cpu"])
def test_a_second_interrupt_breaks_off_at_once_and_loses_what_is_not_written(
        every_epoch, written, load, tmp_path, at_loss, slow_disk, uninterrupted, monkeypatch):
    """That is the epoch in progress; on a GPU also those that are quicker than writing."""
    monkeypatch.setattr(checkpoint, "EVERY_EPOCH", every_epoch)
    handler = signal.getsignal(signal.SIGINT)
    at_loss(2 * BATCHES + 2, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run(INTERRUPTED, load(INTERRUPTED), tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(torch.load(tmp_path / "last.pt", weights_only=True)["rows"]) == written
    run(INTERRUPTED, load(INTERRUPTED), tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_on_a_gpu_writing_takes_at_most_a_tenth_of_the_time(load, tmp_path, monkeypatch):
    """By a clock that an epoch moves by two seconds and a writing by one."""
    clock, written, save = [0], [], checkpoint.save

    def slow(content, path):
        if path.name == "last.pt":
            clock[0] += 1
            written.append(len(content["rows"]))
        save(content, path)

    def epoch(history):
        clock[0] += 2

    monkeypatch.setattr(checkpoint, "EVERY_EPOCH", ())
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(checkpoint, "save", slow)
    run(tiny(epochs=12), load(tiny()), tmp_path, on_epoch=epoch)
    assert written == [1, 6, 11, 12]


class Crash(BaseException):
    """The process is gone."""


def test_goes_on_from_a_crash_at_any_write(load, tmp_path, monkeypatch, uninterrupted):
    """Cut off just after each file of the run is put in place, and so before the next, until a run gets through."""
    replace, number, crashed = os.replace, 0, True
    while crashed:
        number, crashed, count = number + 1, False, iter(range(1, 1000))

        def counted(source, target):
            if next(count) != number:
                return replace(source, target)
            replace(source, target)
            raise Crash

        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", counted)
            try:
                run(INTERRUPTED, load(INTERRUPTED), folder)
            except Crash:
                crashed = True
        run(INTERRUPTED, load(INTERRUPTED), folder)
        assert_same_run(folder, uninterrupted)
    assert number > 10


def test_best_weights_are_those_of_an_epoch_that_counts(load, tmp_path, monkeypatch):
    """Also where the epoch, trained again, would not give the same ones."""
    def crash(*_):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(checkpoint.Store, "_write_best", crash)
        run(INTERRUPTED, load(INTERRUPTED), tmp_path)
    assert not (tmp_path / "best_val_acc.pt").exists()
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop.Trainer, "train_epoch", crash)
        run(INTERRUPTED, load(INTERRUPTED), tmp_path)
    first = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    best = torch.load(tmp_path / "best_val_acc.pt", weights_only=True)["weights"]
    assert all(torch.equal(best[name], first[name]) for name in first)


@pytest.fixture
def finished(load, tmp_path):
    """A finished run: (configuration, splits, folder, history, weights)."""
    config = tiny("cnn")
    return config, load(config), tmp_path / "run", *run(config, load(config), tmp_path / "run")


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir() if path.stem != "plan"}


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(loop.Trainer, "train_epoch", lambda *_: pytest.fail("nothing may be trained here"))


@pytest.mark.parametrize("kept", [CHECKPOINTS, ("best_val_acc",), ()])
def test_finished_run_is_only_read_back(kept, finished, no_training):
    """Also on another kind of machine, with other values of what does nothing, and if it kept few or no weights."""
    config, splits, folder, history, state = finished
    for name in {*CHECKPOINTS} - {*kept}:
        (folder / f"{name}.pt").unlink()
    plan = (folder / "plan.json").read_text()
    if kept != CHECKPOINTS:
        (folder / "record.json").write_text('{"status": "done"}')
        plan = plan.replace('"cpu"', '"cuda"').replace('"fp32"', '"bf16"')
        (folder / "plan.json").write_text(plan)
    before = contents(folder)
    alike = config.replace(gamma=0.5, data_dir="elsewhere")
    again, other_state = run(alike, splits, folder, on_epoch=lambda history: pytest.fail("no epoch"))
    assert again == history and contents(folder) == before and (folder / "plan.json").read_text() == plan
    assert same(other_state, state) == (kept == CHECKPOINTS)


@pytest.mark.parametrize("name, content", [
    ("plan.json", b""), ("record.json", b"[1]"), ("record.json", b"null"), ("record.json", b"<<<<<<< HEAD"),
    ("record.json", b'{"status": "weird"}'), ("record.json", b'{"status": "done", "metrics": null}'),
    ("record.json", b'{"status": "failed", "error": 5}'), ("history.csv", b"epoch\n1\n"),
    ("history.csv", b"epoch,train_loss,train_accuracy,seconds\ninf,1,1,1\n"), ("history.csv", b"\0" * 300_000),
    ("last.pt", b""), ("terminal.pt", b"PK half of it"), ("history.csv", b"epoch;train_loss\n1;2.0\n"),
    ("last.pt", {"model": {}, "optimizer": [], "rows": [], "best": {}}),
])
def test_a_damaged_file_is_named_and_nothing_is_trained_over_it(name, content, finished, no_training):
    config, splits, folder, *_ = finished
    if isinstance(content, dict):
        torch.save(content, folder / name)
        said = f"{name} is of another version of this package; train the run anew"
    else:
        (folder / name).write_bytes(content)
        said = f"{name} is damaged.* restore it, or "
    with pytest.raises(InputError, match=said):
        run(config, splits, folder)
    if name == "record.json":
        with pytest.raises(InputError, match="record.json is damaged"):
            record.status_of(folder)
    elif name != "plan.json":
        record.write_failure(folder, config, "broke off")
        assert record.recorded(folder, "status") == "failed"


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 0.02, "epochs": 1}], ids=["same", "other"])
def test_without_resume_any_configuration_starts_anew(changes, finished):
    config, splits, folder, history, _ = finished
    (folder / "record.json").write_text('{"status": "done"}')
    again, state = run(config.replace(**changes), splits, folder, resume=False)
    assert [row["epoch"] for row in again.rows] == ([1] if changes else [1, 2])
    assert (numbers(again) == numbers(history)) == (not changes)
    assert same(in_folder(folder)[1]["terminal"], state) and not (folder / "record.json").exists()


@pytest.mark.parametrize("name, value", [
    ("learning_rate", 0.02), ("augmentation", True), ("protocol", "published"), ("seed", 1), ("precision", "bf16"),
    ("model", "vit"), ("model_args", {"dropout": 0.0}), ("limit_train", 47), ("label_smoothing", 0.1),
])
def test_another_configuration_is_an_error_and_touches_nothing(name, value, finished):
    config, splits, folder, *_ = finished
    plan = json.loads((folder / "plan.json").read_text())
    plan.pop("label_smoothing")  # as of a run from before there was such a field: it had the default
    (folder / "plan.json").write_text(json.dumps(plan))
    before, other = contents(folder), config.replace(**{name: value, **({"model_args": {}} if name == "model" else {})})
    plan = (folder / "plan.json").read_bytes()
    with pytest.raises(OtherMachine if name == "precision" else InputError, match="holds a run with "):
        fit(nn.Linear(1, 1), splits, other, folder)
    assert contents(folder) == before and (folder / "plan.json").read_bytes() == plan


def test_other_images_are_an_error(finished, load):
    config, _, folder, *_ = finished
    with pytest.raises(InputError, match="holds a run with data "):
        run(config, load(config.replace(limit_test=39)), folder)


@pytest.mark.parametrize("path", ["file", "file/run"])
@pytest.mark.parametrize("resume", [True, False])
def test_folder_that_cannot_be_written(path, resume, load, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="can't be written"):
        run(tiny(), load(tiny()), tmp_path / path, resume=resume)
    assert (tmp_path / "file").read_text() == "not a folder"


# Divergence.

def spoil(model):
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)


@pytest.mark.parametrize("before", [0, 2])
def test_diverges(before, load, tmp_path):
    """At once there are no best checkpoints."""
    config = tiny("cnn", epochs=5)
    model, splits = build_model(config), load(config)
    if before == 0:
        spoil(model)
    history = fit(model, splits, config, tmp_path, lambda history: len(history.rows) == before and spoil(model))
    assert history.status == "diverged" and len(history.rows) == before + 1
    assert math.isnan(history.last["train_loss"]) and "val_loss" not in history.last
    scores = evaluate_checkpoints(model, splits.test, config, tmp_path)
    assert tuple(scores) == (CHECKPOINTS if before else ("terminal",))
    assert all(math.isfinite(scores[name].loss) == (name != "terminal") for name in scores)
    again = fit(build_model(config), splits, config, tmp_path)  # only read back
    assert again.status == "diverged" and len(again.rows) == before + 1


def test_diverges_in_validation(scripted, load, tmp_path):
    scripted([2, math.inf], [50, 60])
    config = tiny(epochs=5)
    history, _ = run(config, load(config), tmp_path)
    assert history.status == "diverged" and len(history.rows) == 2
    assert history.best("best_val_acc")["epoch"] == 1


# Device and precision.

@pytest.mark.parametrize("name, there, wanted", [
    ("auto", {"cuda", "mps"}, "cuda"), ("auto", {"mps"}, "mps"), ("auto", {}, "cpu"), ("cpu", {"cuda", "mps"}, "cpu"),
    ("cuda", {}, None), ("cuda:0", {}, None), ("cuda:1", {"cuda"}, None), ("mps", {}, None)])
def test_auto_takes_cuda_then_mps_then_cpu_and_what_is_not_there_is_one_line(name, there, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int("cuda" in there))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    with nullcontext() if wanted else pytest.raises(InputError, match=f"device: {name} is not there .*cpu"):
        assert device.pick_device(name).type == wanted


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_goes_by_the_hardware(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert device.pick_precision("auto", torch.device("cpu")) == ("bf16" if native else "fp32")
    assert device.pick_precision("auto", torch.device("mps")) == "fp32"
    assert [device.pick_precision(name, torch.device("cpu")) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    for capability, wanted in {(7, 5): "fp32", (8, 0): "bf16", (9, 0): "bf16"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert device.pick_precision("auto", torch.device("cuda")) == wanted
