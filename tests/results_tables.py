"""Tables of runs made up for tests: the columns of executed/STUDY/runs.csv, with run folders on request."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from cifarlib.config import CHECKPOINTS, Config
from cifarlib.parts import CIFAR10_CLASSES as CLASSES

RATES = (0.01, 0.001, 0.0001, 0.00001)
GRID = dict(learning_rate=RATES, weight_decay=RATES, gamma=(0.95, 0.97, 0.99),
            scheduler=("exponential", "step", "cosine"), augmentation=(False, True))
BEST = {"cnn": (0.92, 1e-4), "resnet": (0.88, 1e-3), "vit": (0.86, 1e-4)}


def row(config: Config, accuracy: float, noise: np.random.Generator) -> dict:
    """One cell of a table with the given test accuracy."""
    val = accuracy + noise.normal(0, 0.003)
    sizes = {"cnn": (700, 13_240_000), "resnet": (150, 11_190_000), "vit": (4000, 92_500_000)}
    seconds, parameters = sizes.get(config.model, (60, 200_000))
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model", "data_dir", "device")}
    cell = settings | dict(
        Modelname=config.model, Group=config.model, Full_Modelname=config.cell_name, study="made_up",
        run=config.run_name, shared_with="", status="done", model_args=json.dumps(config.model_args),
        epochs_run=config.epochs, precision="bf16", device="cuda: H200", seconds=seconds * noise.uniform(0.9, 1.1),
        parameters=parameters, train_images=40_000, val_images=10_000, test_images=10_000, data_fingerprint="abc123",
        commit="0123abc", train_accuracy=0.99, train_loss=0.03, val_accuracy=val, val_loss=1.5 - val)
    offsets = np.linspace(-0.06, 0.06, 10)[[7, 9, 2, 0, 5, 1, 6, 4, 8, 3]]
    for checkpoint, cost in zip(CHECKPOINTS, (0, 0.002, 0.004)):
        test = round(accuracy - cost, 4)
        classes = np.clip(test + offsets, 0, 1) if test > 0.12 else np.eye(10)[0]
        cell |= {f"test_accuracy_{checkpoint}": test, f"test_loss_{checkpoint}": 1.5 - accuracy,
                 f"test_per_class_accuracy_{checkpoint}": test, f"val_accuracy_{checkpoint}": round(val - cost, 4),
                 f"val_loss_{checkpoint}": 1.5 - val, f"epoch_{checkpoint}": config.epochs}
        cell |= {f"test_per_class_accuracy_{name}_{checkpoint}": value for name, value in zip(CLASSES, classes)}
    return cell


def table(models=("cnn", "resnet", "vit"), seeds=(100,), finalist_seeds=(), **grid) -> pd.DataFrame:
    """A grid of runs (GRID where not told otherwise); cosine cells that differ in gamma share one run."""
    grid, noise, rows, done = {"model": models, "seed": seeds, **GRID, **grid}, np.random.default_rng(0), [], {}
    for values in itertools.product(*grid.values()):
        config = Config(**dict(zip(grid, values)))
        if real := done.get(config.run_name):
            rows.append(real | {"Full_Modelname": config.cell_name, "gamma": config.gamma,
                                "shared_with": real["Full_Modelname"]})
        else:
            done[config.run_name] = row(config, accuracy(config, noise), noise)
            rows.append(done[config.run_name])
    if finalist_seeds:
        frame = pd.DataFrame(rows)
        for model in models:
            own = frame[(frame["Modelname"] == model) & (frame["shared_with"] == "")]
            for _, best in own.nlargest(3, "val_accuracy_best_val_acc").iterrows():
                for seed in finalist_seeds:
                    config = Config(model=model, seed=seed, **{knob: best[knob] for knob in GRID})
                    rows.append(row(config, best["test_accuracy_best_val_acc"] - 0.003 + noise.normal(0, 0.002), noise))
    return pd.DataFrame(rows)


def accuracy(config: Config, noise: np.random.Generator) -> float:
    """A plausible test accuracy: each model has its learning rate, likes augmentation, and varies a little."""
    peak, rate = BEST.get(config.model, (0.9, 1e-3))
    steps = np.log10(config.learning_rate / rate)
    if config.model == "cnn" and steps >= 2:
        return 0.1
    peak -= 0.05 * (not config.augmentation) + 0.01 * (config.scheduler != "cosine")
    return peak - 0.07 * steps**2 + noise.normal(0, 0.002)


def diverge(frame: pd.DataFrame, *rows: int) -> pd.DataFrame:
    """The same table with some rows diverged before their first checkpoint."""
    scores = [c for c in frame if c.startswith(("test_a", "test_p", "test_l", "val_a", "val_l", "epoch_"))]
    frame = frame.copy()
    frame.loc[list(rows), scores], frame.loc[list(rows), "status"] = np.nan, "diverged"
    return frame


def write_study(folder: Path, frame: pd.DataFrame, images: int = 10_000, runs: int = 1000) -> Path:
    """runs.csv, and the run folders of the best runs with their histories and predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "runs.csv", index=False)
    real = frame[(frame["shared_with"] == "") & (frame["status"] == "done")].nlargest(runs, "val_accuracy_best_val_acc")
    labels = np.random.default_rng(1).permutation(np.arange(images) % 10)
    for number, (_, cell) in enumerate(real.iterrows()):
        place = folder / cell["run"]
        place.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place / "predictions.npz", labels=labels,
                            **{c: logits(labels, cell[f"test_accuracy_{c}"], number) for c in CHECKPOINTS})
        history(cell).to_csv(place / "history.csv", index=False)
    return folder / "runs.csv"


def logits(labels: np.ndarray, share_right: float, seed: int) -> np.ndarray:
    """Logits (N, 10) of which about the given share is right; the same images are hard for every run."""
    own, common = np.random.default_rng(seed), np.random.default_rng(2)
    margin = common.normal(0, 1, len(labels)) + own.normal(0, 0.5, len(labels))
    margin -= np.quantile(margin, 1 - share_right)
    wrong = np.where(common.random(len(labels)) < 0.5, (labels + 2) % 10,
                     common.integers(1, 10, len(labels)) + labels) % 10
    scores = own.normal(0, 0.5, (len(labels), 10))
    rows, right = np.arange(len(labels)), margin > 0
    scores[rows, np.where(right, wrong, labels)] += 2
    scores[rows, np.where(right, labels, wrong)] = scores.max(axis=1) + 0.1 + 4 * abs(margin)
    return scores.astype(np.float16)


def history(cell) -> pd.DataFrame:
    """Epochs that end at the cell's accuracies."""
    epochs = np.arange(1, int(cell["epochs"]) + 1)
    rise = 1 - np.exp(-epochs / (len(epochs) / 4))
    wobble = np.random.default_rng(3).normal(0, 0.006, len(epochs))
    rate = cell["learning_rate"] * (1 + np.cos(np.pi * (epochs - 1) / len(epochs))) / 2
    final = cell["val_accuracy_best_val_acc"]
    return pd.DataFrame({"epoch": epochs, "learning_rate": rate, "train_loss": 2.3 - 2.2 * rise,
                         "train_accuracy": 0.1 + 0.89 * rise,
                         "val_loss": 2.3 - 2 * rise * final + 0.3 * rise**8,
                         "val_accuracy": np.minimum(0.1 + (final - 0.1) * rise + wobble, final), "seconds": 2.0})
