"""How fast training is: beside a plain reference, beside the machine's own limits, and what a run costs besides.

Ratios are of times taken in turn, so that whatever else the machine does meets both.
"""

import multiprocessing
import os
import subprocess
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..batch.launch import ALLOCATOR, Warm, notebook_path, start_notebook
from ..config import Config
from ..data.splits import Splits, load_cifar10
from ..device import autocast, describe, pick_device, pick_precision
from ..files import NOTEBOOK
from ..machine import cores
from ..models import build_model
from ..parts import architecture
from ..runs.record import commit
from ..training.loop import Trainer, evaluate
from ..training.recipe import make_optimizer
from ..words import counted
from .reference import Reference


def bench_config(model: str, device: str = "auto", share: float = 1.0, **settings) -> Config:
    """The configuration to measure: augmentation on, batches of 256 or of all images.

    share: the fraction to take of the usual number of images.
    """
    config = Config(model=model, device=device, augmentation=True, **settings)
    images = max(8, int(architecture(model).bench_images[pick_device(device).type == "cuda"] * share))
    return config.replace(batch_size=min(256, images), limit_train=images, limit_val=max(2, images // 4), limit_test=2)


class Ours:
    """Training as `fit` does it."""

    def __init__(self, splits: Splits, config: Config):
        self.splits, self.config, self.number = splits, config, 0
        device = splits.train.images.device
        self.model = build_model(config).to(device, memory_format=torch.channels_last)
        self.trainer = Trainer(self.model, make_optimizer(self.model, config), splits.train, config,
                               pick_precision(config.precision, device))

    def epoch(self) -> None:
        """Train on all training images and validate."""
        self.trainer.train_epoch(self.number)
        evaluate(self.model, self.splits.validation, self.config)
        self.number += 1


def measure(config: Config, rounds: int) -> dict:
    """Ours against the reference, taken in turn `rounds` times after a round of warming up.

    images_per_second: training images by the seconds of training on and validating; ratio: ours over the reference, of
    each round. The reference has a process of its own, without what our runs set for the allocator of theirs.
    """
    splits = load_cifar10(config)
    ours, count = Ours(splits, config), len(splits.train)
    with _plain_process(config) as reference:
        taken = [(reference.submit(_reference_epoch).result(), _seconds(ours.epoch)) for _ in range(rounds + 1)]
    taken = taken[1:]  # without the warm-up
    speeds = {"reference": [count / theirs for theirs, _ in taken], "ours": [count / mine for _, mine in taken]}
    return {"images": count, "batch_size": config.batch_size, "precision": ours.trainer.precision,
            "images_per_second": speeds, "ratio": [theirs / mine for theirs, mine in taken],
            "gflop_per_image": flops(config) / 1e9, "waits_per_epoch": _waits(ours)}


def flops(config: Config, count: int = 16) -> float:
    """Multiplications and additions to train on an image and validate a quarter of one, as our models compute them.

    count: images of the batch, which share what is done once a batch.
    """
    device = pick_device(config.device)
    model, images = build_model(config).to(device), torch.zeros(count, 3, 32, 32, device=device)
    # The counter doesn't know the other kernels of attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), autocast(device, pick_precision(config.precision, device)):
        with FlopCounterMode(display=False) as training:
            model(images).sum().backward()
        with FlopCounterMode(display=False) as validation, torch.no_grad():
            model.eval()(images)
    return (training.get_total_flops() + validation.get_total_flops() / 4) / count


def limits(device: torch.device) -> dict:
    """The machine's own best: matrix products in GFLOP/s, by precision, each tried for a second."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device)
    return {"fp32": 2 * size**3 / _best(lambda: a @ b, device, 1.0) / 1e9,
            "bf16": 2 * size**3 / _best(partial(torch.matmul, a.bfloat16(), b.bfloat16()), device, 1.0) / 1e9}


def at_once(config: Config, ways: list[tuple[int, int]], seconds: float) -> list[dict]:
    """Images a second that several runs train together, for each (runs, threads of each) of `ways`.

    Each is tried for `seconds`. The first that breaks off, mostly for want of memory, ends the list with a line.
    """
    torch.cuda.empty_cache()  # what this process no longer uses
    found = []
    for runs, threads in ways:
        try:
            speed = _together(config, runs, threads, seconds)
            found.append({"runs": runs, "threads": threads, "images_per_second": speed})
        except (RuntimeError, OSError) as error:
            print(f"{counted(runs, 'run')} at a time broke off ({type(error).__name__}); more are not tried")
            break
    return found


def usual_ways(device: torch.device) -> list[tuple[int, int]]:
    """(runs, threads) worth trying: on a CPU from one run on all cores to a run on each; on a GPU up to eight runs."""
    runs = [1, 2, 4, 8] if device.type == "cuda" else [n for n in (2**k for k in range(10)) if cores() % n == 0]
    return [(n, max(1, cores() // n)) for n in runs]


def start_up(rounds: int, **settings) -> dict:
    """Seconds of a tiny run through papermill: from a cold start, and in turn forked from a warm process.

    The latter, `warm`, is missing where runs can't be forked.
    """
    tiny = {"model_args": {"widths": [8, 8, 8, 8]}, "epochs": 1, "batch_size": 32, "limit_train": 64, "limit_val": 64,
            "limit_test": 64, "wandb_mode": "disabled", **settings}
    seconds = {"tiny_run": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder, Warm() as warm:
        run = partial(_execute, notebook_path(NOTEBOOK), Path(folder, "out.ipynb"))
        run({"executed_dir": folder, **tiny}, warm)  # with it the warm process begins
        for number in range(rounds):
            for name, source in (("tiny_run", None), ("warm", warm)):
                parameters = {"executed_dir": f"{folder}/{name}_{number}", **tiny}
                seconds[name].append(_seconds(partial(run, parameters, source)))
    if not warm.possible:
        del seconds["warm"]
    return seconds


def _execute(notebook: Path, output: Path, parameters: dict, warm: Warm | None) -> None:
    """Execute a notebook in silence. Raises RuntimeError if it breaks off."""
    with start_notebook(notebook, output, parameters, warm=warm,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        text = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{notebook} broke off: {text[-500:]}")


def conditions(config: Config) -> dict:
    """Where and with what the measurements were taken."""
    device = pick_device(config.device)
    return {"device": describe(device), "cores": cores(), "torch": torch.__version__, "commit": commit(),
            "dataset": load_cifar10(config).dataset, "kept_memory": "MALLOC_TRIM_THRESHOLD_" in os.environ,
            "date": datetime.now(timezone.utc).date().isoformat()}


@contextmanager
def _plain_process(config: Config):
    """A pool of one process for `_reference_epoch`."""
    kept = {name: os.environ.pop(name) for name in ALLOCATOR if name in os.environ}
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _make_reference, (config,)) as pool:
            yield pool
    finally:
        os.environ.update(kept)


def _make_reference(config: Config) -> None:
    """In the reference's process."""
    global _reference
    _reference = Reference(load_cifar10(config), config)


def _reference_epoch() -> float:
    """In the reference's process: the seconds of an epoch."""
    return _seconds(_reference.epoch)


def _seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _best(work, device: torch.device, seconds: float) -> float:
    """The shortest of as many tries as `seconds` allow."""
    def finished():
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    finished()
    end, times = time.perf_counter() + seconds, []
    while not times or time.perf_counter() < end:
        times.append(_seconds(finished))
    return min(times)


def _waits(ours: Ours) -> int | None:
    """How often the host waits for the GPU in an epoch with its validation; None on a CPU."""
    if ours.trainer.device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours.epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def _together(config: Config, runs: int, threads: int, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(runs, context) as pool:
        return sum(pool.map(partial(_train_for, config, threads, manager.Barrier(runs)), [seconds] * runs))


def _train_for(config: Config, threads: int, barrier, seconds: float) -> float:
    """In a process of its own: train for some seconds, beginning when the others do; images per second."""
    torch.set_num_threads(threads)
    try:
        ours = Ours(load_cifar10(config), config)
        ours.epoch()
    except BaseException:
        barrier.abort()  # nobody has to wait
        raise
    barrier.wait(timeout=600)
    started, before = time.perf_counter(), ours.number
    while time.perf_counter() < started + seconds:
        ours.epoch()
    return (ours.number - before) * len(ours.splits.train) / (time.perf_counter() - started)
