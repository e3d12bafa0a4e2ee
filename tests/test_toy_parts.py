"""An architecture, an optimizer, a dataset and a hyperparameter, each added in one place, are found everywhere."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE = '''
import numpy as np
from torch import nn, optim


class Toy(nn.Module):
    def __init__(self, width=4, classes=10):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, classes))

    def forward(self, images):
        return self.layers(images)


def toy_optimizer(groups, config):
    return optim.SGD(groups, config.learning_rate, momentum=config.toy_grip)


def toy_images(data_dir=""):
    random = np.random.default_rng(0)
    labels = np.arange(6600) % 3
    images = random.integers(0, 200, (6600, 3, 32, 32), np.uint8)
    images[np.arange(6600), labels, 8:16] += 20
    return images[:6000], labels[:6000], images[6000:], labels[6000:], "toys of version 1"
'''
PLACES = {  # file: (what is there, what is added before it)
    "cifarlib/models/toys.py": ("", MODULE),
    "cifarlib/parts.py": ('    "cnn": Architecture(', '    "toy": Architecture("Toy Net", "cifarlib.models.toys:Toy", ("width",), '
                                                      '"#123456", "*", stages=("layers",)),\n'),
    "cifarlib/parts.py ": ('    "adamw": "', '    "toyopt": "cifarlib.models.toys:toy_optimizer",\n'),
    "cifarlib/parts.py  ": ('    "synthetic": Dataset(', '    "toys": Dataset("TOYS", ("ball", "doll", "kite"), '
                                                         '"cifarlib.models.toys:toy_images"),\n'),
    "cifarlib/config.py": ("    val_freq: int = setting(", '    toy_grip: float = setting(0.5, "how firm the toy is held", short="grip", '
                           'label="toy firmness", minimum=0, maximum=0.9, idle_when={"optimizer": ("adamw",)})\n'),
    "notebooks/experiment.ipynb": ('    "val_freq: int', '    "toy_grip: float = 0.5  # how firm the toy is held\\n",\n'),
}
GRID = """
fixed: {model: toy, dataset: toys, epochs: 2, batch_size: 50, learning_rate: 0.02, limit_train: 1000, device: cpu}
product: {optimizer: [toyopt, adamw], toy_grip: [0.25, 0.75]}
"""
RUN = "toy_aug_False_scheduler_cosine_lr_0.02_wd_0.001{}_epochs_2_batch_size_50{}_dataset_toys_limit_train_1000"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the toys, in which a grid over two of them has been trained."""
    folder = tmp_path_factory.mktemp("toys")
    for name in ("cifarlib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (place, text) in PLACES.items():
        path = folder / name.strip()
        before = path.read_text() if path.exists() else ""
        assert before.count(place) == 1 or not place
        path.write_text(before.replace(place, text + place, 1))
    (folder / "toy_study.yaml").write_text(GRID)
    command(folder, "grid", "toy_study.yaml", "--wandb_mode", "disabled", "--jobs", "2")
    return folder


def command(folder, *arguments, code=0):
    ended = subprocess.run([sys.executable, "-m", "cifarlib", *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
                           env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder), "COLUMNS": "1000"})
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def test_flags(project):
    text = command(project, "train", "--help")
    assert "--toy_grip FLOAT" in text and "how firm the toy is held (default: 0.5)" in text
    assert all(f"|{name}" in text or f"{name}|" in text for name in ("toy", "toyopt", "toys"))
    assert "toy_grip: expected at most 0.9, got 2.0" in command(project, "train", "--toy_grip", "2", code=2)
    assert "did you mean toy_grip?" in command(project, "grid", "toy_study.yaml", "--only", "grip=0.5", code=2)


def test_names_and_records(project):
    names = [RUN.format("", ""), *(RUN.format("", f"_optimizer_toyopt_grip_{grip}") for grip in (0.25, 0.75))]
    folders = {path.parent.name: json.loads(path.read_text()) for path in (project / "executed/toy_study").glob("*/record.json")}
    assert sorted(folders) == sorted(names)
    record = folders[names[2]]
    assert record["status"] == "done" and record["data"]["dataset"] == "toys" and record["data"]["classes"] == ["ball", "doll", "kite"]
    wanted = {"model": "toy", "dataset": "toys", "optimizer": "toyopt", "toy_grip": 0.75}
    assert {name: record["config"][name] for name in wanted} == wanted
    assert "test_accuracy_kite_best_val_acc" in record["metrics"] and len(record["confusion"]["terminal"]) == 3


def test_table_of_runs(project):
    rows = list(csv.DictReader((project / "executed/toy_study/runs.csv").open()))
    assert sorted((row["optimizer"], row["toy_grip"]) for row in rows) == [
        ("adamw", "0.25"), ("toyopt", "0.25"), ("toyopt", "0.75")]


def test_charts_and_texts(project):
    command(project, "results", "--runs", "executed/toy_study/runs.csv")
    folder = project / "executed/toy_study"
    page = (folder / "results.html").read_text()
    assert all(words in page for words in ("TOYS", "Toy Net", "Toy firmness", "toyopt"))
    charts = {path.stem: path.read_text() for path in (folder / "figures").glob("*.svg")}
    assert "#123456" in charts["overall_top5"] and "Toy Net" in charts["overall_top5"]
    assert "toy firmness" in charts["importance"].lower() and "optimizer" in charts["importance"].lower()
    assert "kite" in charts["per_class"]
