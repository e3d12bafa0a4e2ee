"""How fast training is: beside a plain reference, beside the machine's own limits, and what a run costs besides.

Ratios are of times taken in turn, so that whatever else the machine does meets both.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial

import nbformat
import pandas
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from . import augment
from .batch import ALLOCATOR, notebook_path
from .config import Config, project_path
from .data import Split, Splits, load_cifar10
from .device import autocast, describe, pick_device, pick_precision
from .figures import throughput
from .files import NOTEBOOK, write_json
from .models import build_model
from .models.conv import Conv2d
from .runs import commit
from .sentences import markdown
from .train import Trainer, evaluate, make_optimizer
from .words import counted, listed

# Training images a round: seconds of work. A quarter as many are validated, the proportion of CIFAR-10's splits.
IMAGES = {"cpu": {"cnn": 256, "resnet": 2_560, "vit": 64}, "cuda": {"cnn": 20_000, "resnet": 40_000, "vit": 5_120}}
WORKERS = 6  # of the reference's loaders, as published, where there are as many cores


def bench_config(model: str, device: str = "auto", share: float = 1.0, **settings) -> Config:
    """The configuration to measure: augmentation on, batches of 256 or of all images, `share` of the usual number of images."""
    config = Config(model=model, device=device, augmentation=True, **settings)
    images = max(8, int(IMAGES["cuda" if pick_device(device).type == "cuda" else "cpu"][model] * share))
    return config.replace(batch_size=min(256, images), limit_train=images, limit_val=max(2, images // 4), limit_test=2)


# ------------------------------------------------------------------ the two ways


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


class Reference:
    """The plain way: images transformed one by one in worker processes, fp32, whole kernels, metrics in a loop over the samples."""

    def __init__(self, splits: Splits, config: Config):
        from torchvision import transforms

        self.device = splits.train.images.device
        self.model = build_model(config).to(self.device)
        for module in self.model.modules():
            if isinstance(module, Conv2d):
                module.forward = partial(nn.Conv2d.forward, module)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay, amsgrad=True)
        to_tensor = [transforms.ToTensor(), transforms.Normalize(splits.train.mean.tolist(), splits.train.std.tolist())]
        changes = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(15), transforms.RandomCrop(32, padding=4)]
        self.train = _loader(splits.train, transforms.Compose([*changes, *to_tensor]), config.batch_size, shuffle=True)
        self.validation = _loader(splits.validation, transforms.Compose(to_tensor), config.batch_size, shuffle=False)

    def epoch(self) -> None:
        """Train on all training images and validate."""
        self.model.train()
        self._pass(self.train, self._step)
        self.model.eval()
        with torch.no_grad():
            self._pass(self.validation, self._loss)

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return nn.functional.cross_entropy(logits, labels), logits

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self._loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss, logits

    def _pass(self, loader: DataLoader, step) -> None:
        """A pass with the published code's bookkeeping, a wait for the device a batch and a loop over its samples; nobody reads the sums."""
        total, right, count = 0.0, [0] * 10, [0] * 10
        for images, labels in loader:
            loss, logits = step(images.to(self.device), labels.to(self.device))
            total += loss.item() * len(labels)
            for predicted, label in zip(logits.argmax(dim=1).cpu().numpy(), labels.numpy()):
                right[label] += int(predicted == label)
                count[label] += 1


class _Images(Dataset):
    """A split image by image, as torchvision's CIFAR10 gives it."""

    def __init__(self, split: Split, transform):
        self.images, self.labels = split.images.permute(0, 2, 3, 1).cpu().numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def _loader(split: Split, transform, batch_size: int, shuffle: bool) -> DataLoader:
    workers = min(WORKERS, os.cpu_count() or 1)
    # Forking a process that has used its threads or a GPU is no good start for a worker.
    return DataLoader(_Images(split, transform), batch_size, shuffle, num_workers=workers, persistent_workers=True,
                      multiprocessing_context="forkserver")


# ------------------------------------------------------------------ measurements


def measure(config: Config, rounds: int) -> dict:
    """Ours against the reference, taken in turn `rounds` times after a round of warming up.

    images_per_second: training images by the seconds of training on and validating; ratio: ours over the reference, of each round.
    The reference has a process of its own, without what our runs set for the allocator of theirs.
    """
    splits = load_cifar10(config)
    ours, count = Ours(splits, config), len(splits.train)
    with _plain_process(config) as reference:
        taken = [(reference.submit(_reference_epoch).result(), _seconds(ours.epoch)) for _ in range(rounds + 1)][1:]  # without the warm-up
    speeds = {"reference": [count / theirs for theirs, _ in taken], "ours": [count / mine for _, mine in taken]}
    return {"images": count, "batch_size": config.batch_size, "precision": ours.trainer.precision, "images_per_second": speeds,
            "ratio": [theirs / mine for theirs, mine in taken],
            "gflop_per_image": flops(config) / 1e9, "loader_share": _loader_share(ours), "waits_per_epoch": _waits(ours)}


def flops(config: Config, count: int = 16) -> float:
    """Multiplications and additions to train on an image and validate a quarter of one, as our models compute them there.

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
    """The machine's own best: matrix products in GFLOP/s, by precision, and copies in GB/s (read and written), each tried for a second."""
    size = 8192 if device.type == "cuda" else 1024
    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best[name] = 2 * size**3 / _best(lambda: a @ b, device, 1.0) / 1e9
    block = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)  # larger than any cache
    other = torch.empty_like(block)
    best["copy"] = 2 * block.nbytes / _best(lambda: other.copy_(block), device, 1.0) / 1e9
    return best


def at_once(config: Config, ways: list[tuple[int, int]], seconds: float) -> list[dict]:
    """Images a second that several runs train together, for each (runs, threads of each) of `ways`, tried for `seconds`.

    The first way that breaks off, mostly for want of memory, ends the list with a line.
    """
    torch.cuda.empty_cache()  # what this process no longer uses
    found = []
    for runs, threads in ways:
        try:
            found.append({"runs": runs, "threads": threads, "images_per_second": _together(config, runs, threads, seconds)})
        except (RuntimeError, OSError) as error:
            print(f"{counted(runs, 'run')} at a time broke off ({type(error).__name__}); more are not tried")
            break
    return found


def usual_ways(device: torch.device) -> list[tuple[int, int]]:
    """(runs, threads) worth trying: on a CPU from one run on all cores to a run on each; on a GPU up to eight runs."""
    cores = os.cpu_count() or 1
    runs = [1, 2, 4, 8] if device.type == "cuda" else [n for n in (2**k for k in range(cores.bit_length())) if cores % n == 0]
    return [(n, max(1, cores // n)) for n in runs]


def start_up(rounds: int, **settings) -> dict:
    """Seconds of papermill, process and kernel for a notebook of the experiment's imports alone, and for a tiny run of the experiment."""
    source = nbformat.read(notebook_path(NOTEBOOK), 4)
    lines = [line for cell in source.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    source.cells = [nbformat.v4.new_code_cell("\n".join(line for line in lines if line.startswith(("import ", "from "))))]
    tiny = {"model_args": {"widths": [8, 8, 8, 8]}, "epochs": 1, "batch_size": 32, "limit_train": 64, "limit_val": 64, "limit_test": 64,
            "wandb_mode": "disabled", **settings}
    seconds = {"imports": [], "tiny_run": []}
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(source, f"{folder}/imports.ipynb")
        for number in range(rounds):
            for name, notebook, values in (("imports", f"{folder}/imports.ipynb", {}),
                                           ("tiny_run", notebook_path(NOTEBOOK), {**tiny, "executed_dir": f"{folder}/{number}"})):
                command = [sys.executable, "-m", "cifarlib.execute", str(notebook), f"{folder}/out.ipynb"]
                seconds[name].append(_seconds(partial(subprocess.run, command, input=json.dumps(values), text=True, check=True,
                                                      capture_output=True)))
    return seconds


def conditions(config: Config) -> dict:
    """Where and with what the measurements were taken."""
    device = pick_device(config.device)
    return {"device": describe(device), "cores": os.cpu_count(), "torch": torch.__version__, "commit": commit(),
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


def _loader_share(ours: Ours) -> float:
    """The part of an epoch of training that goes into the images: drawing, augmenting, normalizing."""
    trainer = ours.trainer

    def images():
        trainer.begin(0)
        for start in range(0, len(trainer.order), trainer.config.batch_size):
            places = slice(start, start + trainer.config.batch_size)
            pixels = augment.augmented(trainer.packed, trainer.order[places], trainer.draws[places])
            augment.normalize(augment.unpack(pixels), trainer.split)

    return _best(images, trainer.device, 0.5) / _seconds(lambda: trainer.train_epoch(0))


def _waits(ours: Ours) -> int | None:
    """How often the host waits for the GPU in an epoch with its validation; None on a CPU, which has nothing to wait for."""
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


# ------------------------------------------------------------------ what came of it


def spread(values: list[float], digits: int = 2) -> str:
    """The median with the lowest and the highest."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def limit_share(results: dict, model: str) -> float:
    """The part of the machine's measured matrix rate, in the precision used, that our training and validation reach."""
    found = results["models"][model]
    return statistics.median(found["images_per_second"]["ours"]) * found["gflop_per_image"] / results["limits"][found["precision"]]


def machine_table(results: dict) -> pandas.DataFrame:
    """What the measurements were taken on, and its limits."""
    where, machine = results["conditions"], results["limits"]
    rows = {**where, "fp32, GFLOP/s": f"{machine['fp32']:,.0f}", "bf16, GFLOP/s": f"{machine['bf16']:,.0f}", "copy, GB/s": f"{machine['copy']:.1f}"}
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["this machine"])


def table(results: dict) -> pandas.DataFrame:
    """A row a model: images per second of both ways, ratio, share of the machine's limit, share of the loader, waits."""
    rows = {model: {"reference, img/s": spread(found["images_per_second"]["reference"], 1),
                    "ours, img/s": spread(found["images_per_second"]["ours"], 1), "ratio": spread(found["ratio"]),
                    "of the matrix rate": f"{limit_share(results, model):.0%}", "loader": f"{found['loader_share']:.1%}",
                    "waits an epoch": "" if found["waits_per_epoch"] is None else str(found["waits_per_epoch"])}
            for model, found in results["models"].items()}
    frame = pandas.DataFrame.from_dict(rows, orient="index")
    return frame.loc[:, (frame != "").any()]


def readme_section(results: dict) -> str:
    """The measurements as Markdown, with their conditions."""
    frame, where, machine = table(results), results["conditions"], results["limits"]
    models = markdown([{"model": f"`{model}`", **row} for model, row in frame.to_dict("index").items()])
    together = "; ".join(f"{way['runs']} x {way['threads']}: {way['images_per_second']:,.0f}" for way in results["at_once"]["ways"])
    start = results["start_up"]
    ratio = statistics.median(start["tiny_run"]) / statistics.median(start["imports"])
    sizes = listed(f"{found['images']:,} images ({model}, in batches of {found['batch_size']})" for model, found in results["models"].items())
    used = sorted({found["precision"] for found in results["models"].values()})
    return "\n".join([
        f"**Conditions:** {where['device']}, {where['cores']} cores, torch {where['torch']}, {where['dataset']}, ours in {' and '.join(used)}; "
        f"{where['date']}, commit {where['commit']}. Its limits: {machine['fp32']:,.0f} GFLOP/s in fp32, {machine['bf16']:,.0f} in bf16, "
        f"copies at {machine['copy']:.1f} GB/s.", "", models, "",
        "Images per second: training images divided by the seconds of training and validation, median of the rounds (lowest to highest). The "
        "share of the matrix rate counts only multiplications that are carried out, not those that our convolutions save. Loader: the share of "
        f"a training epoch spent on drawing, augmenting and normalizing the images. A round trains {sizes}.", "",
        f"- **Runs at a time x threads of each**, {results['at_once']['model']}, images per second together: {together}.",
        f"- **Start-up:** a tiny run through papermill takes {spread(start['tiny_run'], 1)} s, a notebook that only imports "
        f"{spread(start['imports'], 1)} s: {ratio:.2f} times.",
    ])


def chart(results: dict) -> Figure:
    """The measurements as figures.throughput draws them."""
    found = results["models"]
    speeds = [[model["images_per_second"][way] for model in found.values()] for way in ("reference", "ours")]
    rates = [f"{results['limits'][kind]:,.0f} GFLOP/s in {kind}" for kind in sorted({model["precision"] for model in found.values()})]
    return throughput(list(found), *speeds, [limit_share(results, model) for model in found], listed(rates))


def write_results(results: dict, path: str) -> None:
    """As JSON, from the project's folder."""
    project_path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(project_path(path), results)
