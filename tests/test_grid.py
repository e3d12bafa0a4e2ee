"""Grid files, the published 864 cells, and their sets."""

import itertools
import re
from pathlib import Path

import pytest

from cifarlib.batch.grid import chunk, distinct_runs, read_grid, select, write_sets
from cifarlib.cli import main
from cifarlib.config import Config
from cifarlib.errors import InputError

PARAMETERS = Path(__file__).parent.parent / "parameters"


def write(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def test_published_grid_has_the_864_cells_in_order():
    cells = read_grid(PARAMETERS / "published.yaml")
    knobs = ("model", "scheduler", "augmentation", "learning_rate", "weight_decay", "gamma")
    decades = (0.01, 0.001, 0.0001, 1e-05)
    published = itertools.product(("resnet", "cnn", "vit"), ("exponential", "step", "cosine"), (False, True), decades,
                                  decades, (0.95, 0.97, 0.99))
    assert [tuple(getattr(cell, knob) for knob in knobs) for cell in cells] == list(published)
    assert {(cell.epochs, cell.batch_size) for cell in cells} == {(80, 256)}
    runs = distinct_runs(cells)  # cells that differ in a knob that does nothing share one
    assert len(runs) == 672
    assert all(len(run.cells) == (3 if run.config.scheduler == "cosine" else 1) for run in runs)


def test_committed_sets_are_what_the_command_writes(tmp_path, capsys):
    assert main(["grid", str(PARAMETERS / "published.yaml"), "--write-sets", str(tmp_path)]) == 0
    committed = sorted((PARAMETERS / "sets").glob("*.yaml"))
    assert [path.name for path in committed] == [f"set_{k:02}.yaml" for k in range(1, 19)]
    assert [path.read_text() for path in committed] == [(tmp_path / path.name).read_text() for path in committed]
    sets = [read_grid(path) for path in committed]
    assert sum(sets, []) == read_grid(PARAMETERS / "published.yaml") and [*map(len, sets)] == [50] * 17 + [14]


@pytest.mark.parametrize("shared", [
    {"epochs": 3, "model": "vit", "model_args": {"depth": 1}, "dataset": "synthetic"}, {"model": "nets.py:Net"},
    {"split": "published"}, {"protocol": "published"}, {"protocol": "published", "split": "stratified"},
])
def test_sets_keep_what_every_cell_shares_and_leave_the_rest_open(tmp_path, shared):
    cells = [Config(**shared), Config(**{**shared, "epochs": 4, "normalization": "imagenet"})]
    (path,) = write_sets(cells, tmp_path)
    assert read_grid(path) == cells and "cosine_period" not in path.read_text()
    assert [cell.given for cell in read_grid(path)] == [cell.given for cell in cells]


def test_any_field_may_be_an_axis(tmp_path):
    text = """
        product: {batch_size: [64, 128], dataset: [cifar10, synthetic], softmax_in_loss: [false, true], epochs: [1, 2]}
        rows: [{model: [cnn, nets.py:Net]}, {model: resnet, model_args: [{}, {depths: [1, 1, 1, 1]}]}]"""
    cells = read_grid(write(tmp_path, text))
    runs = distinct_runs(cells)
    assert len(cells) == 64 == len(runs) == len({run.label for run in runs})
    assert runs[-1].label == "resnet_depths_1-1-1-1_epochs_2_batch_size_128_softmax_in_loss_True_dataset_synthetic"
    assert cells[-1].run_name.endswith("_depths_1-1-1-1_epochs_2_batch_size_128_softmax_in_loss_True_dataset_synthetic")


def test_an_override_counts_as_if_it_stood_in_the_file(tmp_path):
    path = write(tmp_path, "rows: [{seed: [1, 2]}]")
    assert read_grid(path, {"protocol": "published", "epochs": 2}) == [
        Config(seed=seed, protocol="published", split="published", epochs=2) for seed in (1, 2)]


@pytest.mark.parametrize("text, cells", [
    ("fixed: {epochs: 3}\nproduct: {model: [cnn, vit], seed: [1, 2]}", [
        ("cnn", 1, 3, {}), ("cnn", 2, 3, {}), ("vit", 1, 3, {}), ("vit", 2, 3, {})]),
    ("product: {seed: [1, 2]}\nrows: [{model: cnn}, {model: vit, model_args: {depth: 2}}]", [
        ("cnn", 1, 80, {}), ("cnn", 2, 80, {}), ("vit", 1, 80, {"depth": 2}), ("vit", 2, 80, {"depth": 2})]),
    ("rows:\n  - &first {model: cnn, seed: 1}\n  - {<<: *first, seed: 2}", [("cnn", 1, 80, {}), ("cnn", 2, 80, {})]),
], ids=["product", "rows", "merged"])
def test_the_last_list_varies_fastest_and_rows_join_a_product(tmp_path, text, cells):
    read = read_grid(write(tmp_path, text))
    assert [(cell.model, cell.seed, cell.epochs, cell.model_args) for cell in read] == cells


@pytest.mark.parametrize("text, message", [
    ("", "expected the sections"),
    ("models: [cnn]", "expected the sections"),
    ("product: [cnn]", "product should be a mapping"),
    ("rows: {model: cnn}", "rows should be a list"),
    ("rows: [cnn]", "each of the rows"),
    ("fixed: {scheduler: on}", "scheduler: expected text, got True"),
    ("fixed: {model_args: 'depth: 2'}", "model_args: expected a mapping of names to values, such as"),
    ("fixed: {modle: cnn}", "did you mean model"),
    ("fixed: {model: [unclosed", "is not YAML"),
    ("product: {lr: [0.1, 0.2]}", "did you mean learning_rate"),
    ("product: {model: []}", "model is a list without values"),
    ("rows: [{model: resnet, seed: []}, {model: cnn}]", "seed is a list without values"),
    ("rows: []", "rows is a list without values"),
    ("product: {seed: [1, 2], model: [cnn], seed: [3]}", "is not YAML .*seed is given twice"),
    ("fixed: {seed: 2024-99-99}", "is not YAML"),
    ("fixed: {seed: 010}", "010 would be 8; write that, or quotes"),
    ("fixed: {limit_train: 1:30}", "1:30 would be 90; write that, or quotes"),
])
def test_a_bad_grid_file_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_grid(write(tmp_path, text))


def test_a_cell_given_twice_is_one_run(tmp_path):
    cells = read_grid(write(tmp_path, "rows: [{learning_rate: [0.1, 0.01]}, {learning_rate: 0.1, seed: [100, 101]}]"))
    runs = distinct_runs(cells)
    assert len(cells) == 4 and [len(run.cells) for run in runs] == [2, 1, 1]


@pytest.mark.parametrize("rows, field", [
    ("{model: [one.py:Net, other.py:Net]}", "model is 'one.py:Net' and 'other.py:Net'"),
    ("{model: n.py:Net, model_args: [{k: a b}, {k: a-b}]}", "model_args is {'k': 'a b'} and {'k': 'a-b'}"),
    ("{model: n.py:Net, model_args: {seed: 1}}, {model: n.py:Net, seed: 1}", "seed is 100 and 1"),
    ("{dataset: [auto, cifar10]}", "dataset is 'auto' and 'cifar10'"),
])
def test_different_runs_of_one_name_are_one_line(tmp_path, monkeypatch, rows, field):
    monkeypatch.chdir(tmp_path)
    for name in ("one.py", "other.py", "n.py"):
        Path(name).write_text("")
    said = f"^two different runs would be called .*{re.escape(field)}; rename one, or make two studies of them"
    with pytest.raises(InputError, match=said):
        distinct_runs(read_grid(write(tmp_path, f"rows: [{rows}]")))


def test_only_selects_cells():
    cells = read_grid(PARAMETERS / "published.yaml")
    sized = [Config(model="vit", model_args={"dim": dim, "depth": 2}) for dim in (96, 128)]
    assert select(sized, 'model=vit, model_args={"depth": 2, "dim": 96}') == sized[:1]
    chosen = select(cells, "model=cnn,scheduler=step,augmentation=true,learning_rate=1e-4,split=stratified")
    assert len(chosen) == 12
    assert {(c.model, c.scheduler, c.augmentation, c.learning_rate) for c in chosen} == {("cnn", "step", True, 0.0001)}


@pytest.mark.parametrize("wanted, message", [
    ("modle=cnn", "unknown parameter 'modle'; did you mean model?"),
    ("lr=0.1", "unknown parameter 'lr'; did you mean learning_rate?"),
    ("model=ResNet", "got 'ResNet'; did you mean resnet?"),
    ("augmentation=yes", "augmentation: expected true or false, got 'yes'"),
    ("learning_rate=abc", "learning_rate: expected a number, got 'abc'"),
    ("epochs", "epochs: expected a whole number, got ''"),
    ("batch_size=1", "batch_size: expected at least 2, got 1"),
    ("model=n.py:Net", "no cell of the grid matches; there model is resnet, cnn, vit"),
    ("model=cnn,gamma=0.5", "no cell of the grid matches; there model is resnet, cnn, vit; gamma is 0.95, 0.97, 0.99"),
    ("model=cnn,model=vit", "no cell of the grid matches; there model is resnet, cnn, vit"),
])
def test_only_checks_values_as_a_configuration_does(wanted, message):
    with pytest.raises(InputError) as caught:
        select(read_grid(PARAMETERS / "published.yaml"), wanted)
    assert str(caught.value).endswith(message)


def test_chunks_are_disjoint_and_together_everything():
    runs = distinct_runs(read_grid(PARAMETERS / "published.yaml"))
    chunks = [chunk(runs, f"{i}/20") for i in range(1, 21)]
    names = [run.name for part in chunks for run in part]
    assert sorted(names) == sorted(run.name for run in runs) and {len(part) for part in chunks} == {33, 34}
    assert all({run.config.model for run in part} == {"cnn", "resnet", "vit"} for part in chunks)
    for fraction in ("0/2", "3/2", "1", "x/y", "²/²"):
        with pytest.raises(InputError, match="--chunk"):
            chunk(runs, fraction)
