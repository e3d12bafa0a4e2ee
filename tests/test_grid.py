"""Grid files, the published 864 cells, and their sets."""

import itertools
from pathlib import Path

import pytest

from cifarlib.cli import main
from cifarlib.config import Config
from cifarlib.errors import InputError
from cifarlib.batch.grid import chunk, distinct_runs, read_grid, select, write_sets

PARAMETERS = Path(__file__).parent.parent / "parameters"


def write(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def published_order():
    """The 864 published cells, as the described system orders them."""
    decades = (0.01, 0.001, 0.0001, 1e-05)
    return itertools.product(("resnet", "cnn", "vit"), ("exponential", "step", "cosine"), (False, True), decades, decades,
                             (0.95, 0.97, 0.99))


def test_published_grid_has_the_864_cells_in_order():
    cells = read_grid(PARAMETERS / "published.yaml")
    knobs = ("model", "scheduler", "augmentation", "learning_rate", "weight_decay", "gamma")
    assert [tuple(getattr(cell, knob) for knob in knobs) for cell in cells] == list(published_order())
    assert {(cell.epochs, cell.batch_size) for cell in cells} == {(80, 256)}


def test_cells_that_differ_in_an_inert_knob_share_a_run():
    cells = read_grid(PARAMETERS / "published.yaml")
    runs = distinct_runs(cells)
    assert len(runs) == 672
    assert sorted(len(run.cells) for run in runs) == [1] * 576 + [3] * 96
    assert [cell for run in runs for cell in run.cells if len(run.cells) == 3][0].scheduler == "cosine"


def test_committed_sets_are_what_the_command_writes(tmp_path, capsys):
    assert main(["grid", str(PARAMETERS / "published.yaml"), "--write-sets", str(tmp_path)]) == 0
    committed = sorted((PARAMETERS / "sets").glob("*.yaml"))
    assert [path.name for path in committed] == [f"set_{k:02}.yaml" for k in range(1, 19)]
    for path in committed:
        assert path.read_text() == (tmp_path / path.name).read_text()
    cells = [cell for path in committed for cell in read_grid(path)]
    assert cells == read_grid(PARAMETERS / "published.yaml")
    assert [len(read_grid(path)) for path in committed] == [50] * 17 + [14]


@pytest.mark.parametrize("shared", [{"epochs": 3, "model": "vit", "model_args": {"depth": 1}, "dataset": "synthetic"},
                                    {"split": "published"}, {"protocol": "published"}, {"protocol": "published", "split": "stratified"}])
def test_sets_keep_what_every_cell_shares(tmp_path, shared):
    cells = [Config(seed=seed, **shared) for seed in (1, 2)]
    assert read_grid(write_sets(cells, tmp_path)[0]) == cells


def test_an_override_counts_as_if_it_stood_in_the_file(tmp_path):
    path = write(tmp_path, "rows: [{seed: [1, 2]}]")
    assert read_grid(path, {"protocol": "published", "epochs": 2}) == [
        Config(seed=seed, protocol="published", split="published", epochs=2) for seed in (1, 2)]


def test_product_varies_its_last_list_fastest_and_rows_join_it(tmp_path):
    cells = read_grid(write(tmp_path, "fixed: {epochs: 3}\nproduct: {model: [cnn, vit], gamma: [0.9, 0.8]}\n"))
    assert [(cell.model, cell.gamma, cell.epochs) for cell in cells] == [
        ("cnn", 0.9, 3), ("cnn", 0.8, 3), ("vit", 0.9, 3), ("vit", 0.8, 3)]
    cells = read_grid(write(tmp_path, "product: {seed: [1, 2]}\nrows: [{model: cnn}, {model: vit, model_args: {depth: 2}}]\n"))
    assert [(cell.model, cell.seed, cell.model_args) for cell in cells] == [
        ("cnn", 1, {}), ("cnn", 2, {}), ("vit", 1, {"depth": 2}), ("vit", 2, {"depth": 2})]


def test_a_row_may_take_over_another_with_changes(tmp_path):
    cells = read_grid(write(tmp_path, "rows:\n  - &first {model: cnn, seed: 1}\n  - {<<: *first, seed: 2}\n"))
    assert [(cell.model, cell.seed) for cell in cells] == [("cnn", 1), ("cnn", 2)]


@pytest.mark.parametrize("text, message", [
    ("", "expected the sections"),
    ("models: [cnn]", "expected the sections"),
    ("product: [cnn]", "product should be a mapping"),
    ("rows: {model: cnn}", "rows should be a list"),
    ("rows: [cnn]", "each of the rows"),
    ("fixed: {learning_rate: 1e-4}", "YAML needs the dot"),
    ("fixed: {modle: cnn}", "did you mean model"),
    ("fixed: {model: [unclosed", "is not YAML"),
    ("product: {epochs: [1, 2]}", "makes another study"),
    ("product: {model: []}", "model is a list without values"),
    ("rows: [{model: resnet, seed: []}, {model: cnn}]", "seed is a list without values"),
    ("rows: []", "rows is a list without values"),
    ("product: {seed: [1, 2], model: [cnn], seed: [3]}", "is not YAML .*seed is given twice"),
    ("fixed: {seed: 2024-99-99}", "is not YAML"),
])
def test_a_bad_grid_file_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_grid(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_grid_file_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_grid(tmp_path / "none.yaml")


def test_cells_of_one_run_that_differ_in_more_than_its_name_says_are_an_error(tmp_path):
    path = write(tmp_path, "rows: [{gamma: 0.95, epochs: 10}, {gamma: 0.97, epochs: 20}]")
    with pytest.raises(InputError, match="lr_0.001_wd_0.001 differ in epochs: 10 and 20; make two studies"):
        distinct_runs(read_grid(path))
    with pytest.raises(InputError, match="differ in limit_train: 3840 and 640"):
        distinct_runs(read_grid(PARAMETERS / "demo.yaml", {"model": "cnn", "model_args": {}}))


def test_only_selects_cells():
    cells = read_grid(PARAMETERS / "published.yaml")
    chosen = select(cells, "model=cnn,scheduler=step,augmentation=true,learning_rate=1e-4")
    assert len(chosen) == 12
    assert {(c.model, c.scheduler, c.augmentation, c.learning_rate) for c in chosen} == {("cnn", "step", True, 0.0001)}
    with pytest.raises(InputError, match="did you mean model"):
        select(cells, "modle=cnn")
    for nothing in ("model=vgg", "model=cnn,model=vit"):
        with pytest.raises(InputError, match="no cell"):
            select(cells, nothing)


def test_chunks_are_disjoint_and_together_everything():
    runs = distinct_runs(read_grid(PARAMETERS / "published.yaml"))
    chunks = [chunk(runs, f"{i}/20") for i in range(1, 21)]
    names = [run.name for part in chunks for run in part]
    assert sorted(names) == sorted(run.name for run in runs) and {len(part) for part in chunks} == {33, 34}
    assert all({run.config.model for run in part} == {"cnn", "resnet", "vit"} for part in chunks)
    for share in ("0/2", "3/2", "1", "x/y", "²/²"):
        with pytest.raises(InputError, match="--chunk"):
            chunk(runs, share)
