"""Successive halving: which runs go on, and that they, dropped ones and killed ones end as if never stopped."""

import math
import re
import subprocess
import sys

import pandas
import psutil
import pytest
from conftest import TINY
from services import until
from torture import kill

from cifarlib.batch import halving
from cifarlib.batch.grid import distinct_runs
from cifarlib.batch.halving import choose, score_at
from cifarlib.batch.runner import Stopping
from cifarlib.cli import main
from cifarlib.config import Config, Options
from cifarlib.runs.halving import rungs, survivors
from cifarlib.runs.history import History
from cifarlib.runs.record import recorded, write_failure

GRID = """
fixed: {dataset: synthetic, limit_train: 96, limit_val: 64, limit_test: 64, batch_size: 16, epochs: 4, device: cpu,
        precision: fp32, model: resnet, model_args: {widths: [8, 8, 8, 8], depths: [1, 1, 1, 1]}}
product: {learning_rate: [0.01, 0.003, 0.001]}
"""


@pytest.fixture
def line(tmp_path):
    """The arguments of `python -m cifarlib` for a grid, by default GRID."""
    def write(*arguments, text=GRID, study="halved"):
        (tmp_path / "g.yaml").write_text(text)
        return ["grid", str(tmp_path / "g.yaml"), "--study", study, "--executed_dir", str(tmp_path / "executed"),
                "--wandb_mode", "disabled", "--jobs", "2", *arguments]

    return write


@pytest.fixture
def grid(line, capsys):
    """`python -m cifarlib grid` in this process; (exit code, what it printed)."""
    return lambda *arguments, **how: (main(line(*arguments, **how)), "".join(capsys.readouterr()))


@pytest.mark.parametrize("epochs, rate, expected", [(8, 2, [1, 2, 4]), (80, 3, [2, 8, 26]), (1, 2, []), (5, 8, [])])
def test_rungs(epochs, rate, expected):
    assert rungs(epochs, rate) == expected


def test_survivors_are_the_best_part_rounded_up_and_nan_ranks_last():
    assert survivors([0.1, math.nan, 0.3, 0.3, 0.2], 2) == [2, 3, 4]
    assert survivors([0.5, 0.5, 0.5], 2) == [0, 1] and survivors([math.nan], 3) == [0]


def test_each_model_and_size_keeps_its_own_best():
    configs = [Config(model="resnet", learning_rate=rate, model_args=sizes)
               for sizes in ({}, TINY["resnet"]) for rate in (0.01, 0.001)]
    runs = distinct_runs(configs)
    scores = dict(zip((run.name for run in runs), (0.9, 0.8, 0.1, 0.2)))
    assert [scores[run.name] for run in choose(runs, scores, 2)] == [0.9, 0.2]


def test_a_halved_grid_trains_as_the_whole_one_does_and_is_finished_without_it(grid, line, tmp_path):
    assert grid(study="whole")[0] == 0
    code, said = grid("--halving", "2", "--dry-run")
    assert code == 0 and "3 to epoch 1, 2 to epoch 2, 1 to epoch 4; 58% of the grid's epochs" in said
    killed = subprocess.Popen([sys.executable, "-m", "cifarlib", *line("--halving", "2")])
    until(lambda: any((tmp_path / "executed" / "halved").glob("*/last.pt")))
    kill([runner := psutil.Process(killed.pid), *runner.children(recursive=True)])
    killed.wait()
    code, said = grid("--halving", "2")  # the same line goes on
    assert code == 0 and "three runs to epoch 1" in said and "two runs to epoch 2" in said
    studies = {study: tmp_path / "executed" / study for study in ("whole", "halved")}
    table = pandas.read_csv(studies["halved"] / "runs.csv").set_index("run")
    whole = pandas.read_csv(studies["whole"] / "runs.csv").set_index("run")
    assert sorted(table["epochs_run"]) == [1, 2, 4]
    assert sorted(table["status"]) == ["done", "dropped", "dropped"]
    (best,) = table.index[table["status"] == "done"]
    first = {run: score_at(studies["whole"] / run, 1) for run in whole.index}
    assert first[table.index[table["epochs_run"] == 1][0]] == min(first.values())
    assert table.loc[best, "test_accuracy_terminal"] == whole.loc[best, "test_accuracy_terminal"]
    before = (studies["halved"] / best / "record.json").stat().st_mtime_ns
    code, said = grid("--halving", "2")  # the same choice again, so nothing is left to train
    assert code == 0 and " done " not in said and " preempted " not in said
    main(["status", "halved", "--executed_dir", str(tmp_path / "executed")])
    assert (studies["halved"] / best / "record.json").stat().st_mtime_ns == before
    assert grid()[0] == 0  # what was dropped goes on
    (studies["whole"] / best / "history.csv").unlink()
    assert math.isnan(score_at(studies["whole"] / best, 0)), "nobody knows any more"
    numbers = [name for name in whole if re.match("(test|val|train)_(accuracy|loss)", name)]
    finished = pandas.read_csv(studies["halved"] / "runs.csv").set_index("run")
    pandas.testing.assert_frame_equal(finished[numbers], whole[numbers], check_exact=True)


@pytest.fixture
def rungs_of(tmp_path, monkeypatch):
    """Halves three runs whose epochs are made up: `ends(run, epochs)` says how a run ends at a rung."""
    def halve(ends):
        runs = distinct_runs([Config(model="resnet", epochs=4, seed=seed) for seed in (1, 2, 3)])
        options, trained = Options(study="s", executed_dir=str(tmp_path)), []

        def run_all(competing, options, slots, stopping, **how):
            trained.append([run.config.seed for run in competing])
            for run in competing:
                folder, epochs = options.run_folder(run.config), options.pause_after or 4
                if not recorded(folder, "status") or recorded(folder, "status") == "preempted":
                    ends(run, folder, epochs, stopping)
            return 75

        monkeypatch.setattr(halving, "run_all", run_all)
        with Stopping() as stopping:
            code = halving.run_halving(runs, options, None, stopping, 2)
        return code, trained, {run.config.seed: recorded(options.run_folder(run.config), "status") for run in runs}

    return halve


def train(folder, epochs, accuracy):
    folder.mkdir(parents=True, exist_ok=True)
    History([{"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": accuracy,
              "seconds": 1.0} for epoch in range(1, epochs + 1)]).write(folder / "history.csv")


def test_a_stop_at_a_rung_drops_nothing(rungs_of):
    def ends(run, folder, epochs, stopping):
        train(folder, epochs, run.config.seed / 10)
        stopping.request()

    assert rungs_of(ends) == (75, [[1, 2, 3]], {1: None, 2: None, 3: None})


def test_what_failed_stays_failed_and_is_not_tried_again(rungs_of):
    def ends(run, folder, epochs, stopping):
        train(folder, epochs, run.config.seed / 10)
        if run.config.seed == 3:
            write_failure(folder, run.config, "boom")
        elif epochs == 4:
            write_failure(folder, run.config, "", status="done")

    code, trained, statuses = rungs_of(ends)
    assert trained == [[1, 2, 3], [2], [2]] and statuses == {1: "dropped", 2: "done", 3: "failed"} and code == 1


@pytest.mark.parametrize("arguments, text, problem", [
    (["--halving", "2", "--chunk", "1/2"], GRID, "let several runners share"),
    (["--halving", "9"], GRID, "expected at most the number of epochs, 4"),
    (["--halving", "1"], GRID, "expected a whole number from 2"),
    (["--halving", "2", "--no-resume"], GRID, "--no-resume forbids"),
    (["--halving", "2"], GRID.replace("product: {", "product: {epochs: [2, 4], "), "equally many"),
    (["--halving", "2"], GRID.replace("epochs: 4", "epochs: 4, split: all"), "expected a split with validation"),
])
def test_what_can_not_be_halved_says_so(grid, arguments, text, problem, capsys):
    try:
        code, said = grid(*arguments, text=text)
    except SystemExit as ended:  # argparse's
        code, said = ended.code, capsys.readouterr().err
    assert code == 2 and problem in said
