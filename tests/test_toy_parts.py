"""An architecture, an optimizer, a dataset and a hyperparameter, each added in one place, are found everywhere."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOYS = '''
import numpy as np
from torch import nn, optim


class Toy(nn.Module):
    def __init__(self, width=4, classes=10):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.Flatten(), nn.Linear(16 * width, classes))

    def forward(self, images):
        return self.layers(images)


def optimizer(groups, config):
    return optim.SGD(groups, config.learning_rate, momentum=config.toy_grip)


def images(data_dir):
    random, labels = np.random.default_rng(0), np.arange(6600) % 3
    images = random.integers(0, 200, (6600, 3, 32, 32), np.uint8)
    images[np.arange(6600), labels, 8:16] += 20
    return images[:6000], labels[:6000], images[6000:], labels[6000:], "toys 1"
'''
# A row of each kind, and one field: (file, the line before which it is added, what is added).
ADDED = [
    ("cifarlib/parts.py", '    "cnn": Architecture(',
     '    "toy": Architecture("Toy Net", "cifarlib.models.toys:Toy", ("width",), "#123456", "*"),\n'),
    ("cifarlib/parts.py", '    "adamw": "', '    "toyopt": "cifarlib.models.toys:optimizer",\n'),
    ("cifarlib/parts.py", '    "synthetic": Dataset(',
     '    "toys": Dataset("TOYS", ("ball", "doll", "kite"), "cifarlib.models.toys:images"),\n'),
    ("cifarlib/config.py", "    val_freq: int = setting(",
     '    toy_grip: float = setting(0.5, "how firm the toy is held", short="grip", label="toy firmness",\n'
     '                              maximum=0.9, idle_when={"optimizer": ("adamw",)})\n'),
    ("notebooks/experiment.ipynb", '    "val_freq: int',
     '    "toy_grip: float = 0.5  # how firm the toy is held\\n",\n'),
]
GRID = """
fixed: {model: toy, dataset: toys, epochs: 2, batch_size: 50, learning_rate: 0.02, limit_train: 1000, device: cpu}
product: {optimizer: [toyopt, adamw], toy_grip: [0.25, 0.75]}
"""
NAME = "toy_aug_False_scheduler_cosine_lr_0.02_wd_0.001_epochs_2_batch_size_50{}_dataset_toys_limit_train_1000"
NAMES = [NAME.format(part) for part in ("", "_optimizer_toyopt_grip_0.25", "_optimizer_toyopt_grip_0.75")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the toys, in which a grid over two of them has been trained."""
    folder = tmp_path_factory.mktemp("toys")
    for name in ("cifarlib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "cifarlib/models/toys.py").write_text(TOYS)
    for name, line, added in ADDED:
        text = (folder / name).read_text()
        assert text.count(line) == 1
        (folder / name).write_text(text.replace(line, added + line))
    (folder / "toy_study.yaml").write_text(GRID)
    command(folder, "grid", "toy_study.yaml", "--wandb_mode", "disabled", "--jobs", "2")
    return folder


def command(folder, *arguments, code=0):
    """What a command of the copy prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "1000"}
    ended = subprocess.run([sys.executable, "-m", "cifarlib", *arguments], cwd=folder, capture_output=True, text=True,
                           env=environment, timeout=300)
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def test_flags(project):
    text = command(project, "train", "--help")
    assert "--toy_grip FLOAT" in text and "how firm the toy is held (default: 0.5)" in text
    assert all(f"{name}|" in text for name in ("toy", "toyopt", "toys"))
    assert "toy_grip: expected at most 0.9, got 2.0" in command(project, "train", "--toy_grip", "2", code=2)
    assert "did you mean toy_grip?" in command(project, "grid", "toy_study.yaml", "--only", "grip=0.5", code=2)


def test_names_records_and_the_table_of_runs(project):
    paths = (project / "executed/toy_study").glob("*/record.json")
    records = {path.parent.name: json.loads(path.read_text()) for path in paths}
    assert sorted(records) == sorted(NAMES)
    record = records[NAMES[2]]
    assert (record["status"], record["data"]["dataset"], record["data"]["classes"]) == (
        "done", "toys", ["ball", "doll", "kite"])
    wanted = {"model": "toy", "dataset": "toys", "optimizer": "toyopt", "toy_grip": 0.75}
    assert {name: record["config"][name] for name in wanted} == wanted
    assert "test_per_class_accuracy_kite_best_val_acc" in record["metrics"]
    rows = list(csv.DictReader((project / "executed/toy_study/runs.csv").open()))
    assert sorted((row["optimizer"], row["toy_grip"]) for row in rows) == [
        ("adamw", "0.25"), ("toyopt", "0.25"), ("toyopt", "0.75")]


def test_charts_and_texts(project):
    command(project, "results", "--runs", "executed/toy_study/runs.csv")
    folder = project / "executed/toy_study"
    page = (folder / "results.html").read_text()
    assert all(words in page for words in ("TOYS", "Toy Net", "toy firmness", "toyopt"))
    charts = {path.stem: path.read_text() for path in (folder / "figures").glob("*.svg")}
    assert "#123456" in charts["toy_top5"] and "Toy Net" in charts["toy_top5"]
    assert "toy firmness" in charts["importance"].lower() and "optimizer" in charts["importance"].lower()
    assert "kite" in charts["per_class"]
