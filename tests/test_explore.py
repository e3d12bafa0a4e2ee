"""The tables and pictures of the explore notebook."""

from dataclasses import replace

import pytest
import results_tables as made
import torch
from conftest import tiny
from matplotlib.figure import Figure

from cifarlib import parts
from cifarlib.notebook import explore
from cifarlib.parts import ARCHITECTURES
from cifarlib.parts import CIFAR10_CLASSES as CLASSES
from cifarlib.results.table import check_table


@pytest.fixture(scope="module")
def models():
    return explore.model_table()


@pytest.mark.parametrize("name, gflops", [("cnn", 0.870), ("vit", 11.87)])
def test_flops_of_an_image(name, gflops, models):
    assert list(models.index) == list(ARCHITECTURES)
    assert models["GFLOPs per image"][name] == pytest.approx(gflops, rel=1e-3)


def test_flop_of_a_run_are_three_passes_of_each_image_and_epoch():
    table = check_table(made.table(("cnn",), learning_rate=(0.001,)).assign(train_images=1_000, epochs_run=7))
    assert explore.with_flop(table).rows["flop"].to_numpy() == pytest.approx(3 * 0.870e9 * 1_000 * 7, rel=1e-3)


@pytest.mark.parametrize("name, outputs", [
    ("cnn", ["3 x 32 x 32", "48 x 32 x 32", "96 x 32 x 32", "96 x 16 x 16", "192 x 16 x 16", "256 x 16 x 16",
             "256 x 8 x 8", "512 x 8 x 8", "512 x 8 x 8", "512 x 4 x 4", "1024", "512", "256", "10"]),
    ("resnet", ["3 x 32 x 32", "64 x 16 x 16", "64 x 8 x 8", "64 x 8 x 8", "128 x 4 x 4", "256 x 2 x 2", "512 x 1 x 1",
                "512 x 1 x 1", "10"]),
    ("vit", ["3 x 32 x 32", "64 x 2048", *["64 x 2048"] * 8, "64 x 2048", "10"]),
])
def test_stages(name, outputs):
    assert explore.stage_table(name)["output"].tolist() == outputs


def test_stages_of_other_sizes():
    small = explore.stage_table("vit", depth=1)
    assert list(small.index)[2:] == ["blocks.0 (Block)", "norm (LayerNorm)", "head (Head)"]


OWN = """
from pathlib import Path

import torch

SCALE = torch.tensor(float((Path(__file__).parent / "scale.txt").read_text()))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.head = torch.nn.Flatten(), torch.nn.Linear(3072, 10)

    def forward(self, images):
        return self.head(self.flat(images)) * SCALE
"""


def test_stages_of_a_network_of_ones_own(tmp_path):
    (tmp_path / "net.py").write_text(OWN)
    (tmp_path / "scale.txt").write_text("2.0")
    table = explore.stage_table(f"{tmp_path}/net.py:Net")
    assert table["output"].to_dict() == {"image": "3 x 32 x 32", "flat (Flatten)": "3072", "head (Linear)": "10"}
    assert parts.load(f"{tmp_path}/net.py:SCALE").device.type == "cpu", "its module is made for training too"


def test_parts_of_the_vit_add_up(models):
    parts = [int(text.replace(",", "")) for text in explore.stage_table("vit")["parameters"] if text]
    assert f"{sum(parts):,}" == models["parameters"]["vit"]


def test_class_counts(load):
    splits = load(tiny(limit_train=0, limit_val=0, limit_test=0))
    table = explore.class_counts(splits)
    assert list(table.index) == [*CLASSES, "all"]
    assert table.loc["all"].tolist() == [40_000, 10_000, 10_000]
    assert (table.loc[list(CLASSES)] == [4000, 1000, 1000]).all(axis=None)
    few = explore.class_counts(load(tiny(limit_train=50, limit_val=40, limit_test=1)))
    assert few.loc["all"].tolist() == [50, 40, 1] and few.loc[list(CLASSES)].sum().tolist() == [50, 40, 1]


def test_grid_shows_images_of_each_class(load):
    splits = load(tiny(limit_train=2000))
    figure = explore.class_grid(splits.train, seed=1, columns=3)
    assert isinstance(figure, Figure) and len(figure.axes) == 30
    for row, name in enumerate(CLASSES):
        assert figure.axes[3 * row].get_ylabel() == name
        shown = figure.axes[3 * row + 1].images[0].get_array()
        same = (splits.train.images == torch.as_tensor(shown).permute(2, 0, 1)).all(dim=(1, 2, 3))
        assert splits.train.labels[same].tolist() == [row]


def test_of_a_hundred_classes_a_part_is_shown(load):
    few, names = load(tiny(limit_train=2000)), tuple(f"class {number}" for number in range(100))
    many = replace(few.train, labels=torch.arange(2000) % 100, classes=names)
    counts = explore.class_counts(replace(few, train=many, validation=many, test=many))
    assert counts["train"].tolist() == [20, 20, 2000]
    figure = explore.class_grid(many, seed=1, columns=2)
    shown = [axis.get_ylabel() for axis in figure.axes[::2]]
    assert len(set(shown)) == 20 and shown == sorted(shown, key=names.index)


def test_grid_of_augmentations(load):
    split = load(tiny()).train
    figure = explore.augmentation_grid(split, tiny(), images=2, samples=3)
    titles = [axes.get_title() for axes in figure.axes[:9]]
    assert titles[0] == "original" and len(figure.axes) == 2 * len(titles) and len(set(titles)) == 9
    original, flipped = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert (flipped == original[:, ::-1]).all()
    assert (split.images.permute(0, 2, 3, 1).numpy() == original).all(axis=(1, 2, 3)).any()
    crops = dict(zip(titles, (axes.images[0].get_array() for axes in figure.axes)))
    assert (crops["crop ↖"][4:, 4:] == original[:-4, :-4]).all() and (crops["crop ↖"][:4] == 0).all()
    assert (crops["crop ↘"][:-4, :-4] == original[4:, 4:]).all() and (crops["crop ↘"][-4:] == 0).all()
    assert (crops["rotate 15°"] != crops["rotate −15°"]).any()
