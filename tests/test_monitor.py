"""What monitor.ipynb shows: tables, conditions, curves, comparisons, and folders that go or are half written."""

import asyncio
import contextlib
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny

from cifarlib import build_model, fit
from cifarlib.errors import InputError
from cifarlib.notebook import monitor
from cifarlib.notebook.monitor import Monitor, disagreements, look, ordered, select, verdict
from cifarlib.runs.claim import Claim
from cifarlib.runs.history import History
from cifarlib.runs.record import write_failure
from cifarlib.runs.study import note_planned, remembered
from cifarlib.training.finish import finish_run

RATES = {"done": (0.01, 0.02), "failed": (0.03,), "running": (0.04,), "pending": (0.05,)}
DONE, OTHER = tiny("speednet", learning_rate=0.01), tiny("speednet", learning_rate=0.02)


@pytest.fixture(scope="module")
def trained(load, tmp_path_factory):
    """A folder with the study `s`: two runs that are done, one failed, one begun, one pending; `t` has another."""
    folder = tmp_path_factory.mktemp("executed")
    cells = [tiny("speednet", learning_rate=rate) for rates in RATES.values() for rate in rates]
    note_planned(folder / "s", cells)
    for study, config in (("s", DONE), ("s", OTHER), ("t", tiny("speednet", scheduler="step"))):
        run, model, splits = folder / study / config.run_name, build_model(config), load(config)
        finish_run(model, splits, config, run, fit(model, splits, config, run), "none")
    failed, begun = (folder / "s" / tiny("speednet", learning_rate=rate).run_name for rate in (0.03, 0.04))
    failed.mkdir()
    write_failure(failed, tiny("speednet", learning_rate=0.03), "RuntimeError: out of luck")
    begun.mkdir()
    history = History.read(folder / "s" / DONE.run_name / "history.csv")
    History([{**history.rows[0], "seconds": 90.0}]).write(begun / "history.csv")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of it, in which the begun run is being trained."""
    shutil.copytree(trained, tmp_path / "executed")
    claim = Claim.take(tmp_path / "executed" / "s" / tiny("speednet", learning_rate=0.04).run_name)
    yield tmp_path / "executed"
    with contextlib.suppress(FileNotFoundError):  # a test removed the run
        claim.release()


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")] if "claim" not in path.name}


def shown(watching):
    """The rows of the table, as lists of texts."""
    lines = re.findall("<tr.*?</tr>", watching.rows_shown.value)[1:]
    return [[re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", line)][1:] for line in lines]


def test_a_row_for_each_run_with_what_its_folder_says(folder):
    rows, damaged = look(folder, ["s"])
    assert damaged == [] and rows["state"].value_counts().to_dict() == {
        name: len(RATES.get(name, ())) for name in rows["state"].cat.categories}
    record = json.loads((folder / "s" / DONE.run_name / "record.json").read_text())
    row = rows.loc[folder / "s" / DONE.run_name]
    assert (row["epoch"], row["epochs"], row["left"]) == (2, 2, None) and row["learning_rate"] == 0.01
    assert row["accuracy"] == record["metrics"]["val_accuracy_best_val_acc"]
    assert row["test"] == record["metrics"]["test_accuracy_best_val_acc"]
    assert monitor.missing(row["gamma"]), "idle under cosine"
    (running,) = rows[rows["state"] == "running"].itertuples()
    assert (running.epoch, running.epochs, running.left) == (1, 2, 90) and 0 <= running.accuracy <= 1
    (pending,) = rows[rows["state"] == "pending"].itertuples()
    done = [json.loads(path.read_text()) for path in folder.glob("*/*/record.json")]
    each = np.mean([record["seconds"] / 2 for record in done if record["status"] == "done"])
    assert pending.left == pytest.approx(2 * each), "by the epochs of runs of its size"


@pytest.mark.parametrize("wanted, rates", [
    ("", [0.01, 0.02, 0.03, 0.04, 0.05]), ("learning_rate=0.02", [0.02]), ("state=failed", [0.03]),
    ("learning_rate != 0.02, epoch>=1", [0.01, 0.04]), ("learning_rate<=0.03,state!=done", [0.03]),
    ("model=resnet", []), ("gamma=0.97", []), ('model_args={"widths": [8, 8, 16]}, learning_rate>0.04', [0.05]),
])
def test_conditions_on_any_knob(wanted, rates, folder):
    assert sorted(select(look(folder, ["s"])[0], wanted)["learning_rate"]) == rates


@pytest.mark.parametrize("wanted, message", [
    ("lr=0.1", "unknown parameter 'lr'; did you mean learning_rate?"), ("fast", "'fast' is no condition; expected "),
    ("learning_rate=high", "learning_rate: expected a number, got 'high'"), ("model<cnn", "model is no number"),
    ("state=finished", "state: expected one of running, damaged, done"), ("model=rsnet", "did you mean resnet?"),
])
def test_a_condition_that_makes_no_sense_is_one_line(wanted, message, folder):
    watching = Monitor(folder, ["s"])
    before = shown(watching)
    watching.filter.value = wanted
    assert message.replace("'", "&#x27;").replace("<", "&lt;") in watching.message.value
    assert "\n" not in watching.message.value and shown(watching) == before
    watching.filter.value = "state=pending"
    assert watching.message.value == "" and len(shown(watching)) == 1


@pytest.mark.parametrize("by, descending, rates", [
    ("state", False, [0.04, None, None, 0.03, 0.05]), ("learning_rate", True, [0.05, 0.04, 0.03, 0.02, 0.01]),
    ("model_args", False, None), ("gamma", True, None), ("left", False, [0.05, 0.04])])
def test_sorted_by_any_column_what_has_no_value_last(by, descending, rates, folder):
    rows = ordered(look(folder, ["s"])[0], by, descending)
    pairs = zip(rates or [None] * 5, rows["learning_rate"])
    assert len(rows) == 5 and all(rate in (None, found) for rate, found in pairs)


def test_only_files_that_changed_are_read_again(tmp_path):
    path, read = tmp_path / "x", []

    def content(path):
        read.append(path)
        return path.read_text()

    assert remembered(content, path) is None
    for text in ("a", "a", "b", "b"):
        if not path.exists() or path.read_text() != text:
            (tmp_path / "part").write_text(text)
            (tmp_path / "part").replace(path)
        assert remembered(content, path) == text
    assert len(read) == 2
    path.unlink()
    assert remembered(content, path) is None


def test_looking_writes_nothing_and_shows_at_most_so_many_rows(folder):
    before = everything(folder)
    watching = Monitor(folder, ["s", "t"], shown=2)
    watching.refresh()
    assert everything(folder) == before
    assert len(shown(watching)) == 2 and "and 4 more" in watching.rows_shown.value
    assert "<b>6 runs</b>: 1 running, 3 done, 1 failed, 1 pending" in watching.standing.value


@pytest.mark.parametrize("name", ["record.json", "history.csv", "predictions.npz"])
def test_half_written_files_are_said_and_read_once_they_are_complete(name, folder):
    run = folder / "s" / (tiny("speednet", learning_rate=0.04) if name == "history.csv" else DONE).run_name
    watching = Monitor(folder, ["s"])
    complete, before = (run / name).read_bytes(), shown(watching)
    (run / name).write_bytes(complete[:-40])
    watching.refresh()
    assert name in watching.message.value and "damaged" in watching.message.value
    assert ["● damaged" in row for row in shown(watching)].count(True) == (name != "predictions.npz")
    (run / name).write_bytes(complete)
    watching.refresh()
    assert watching.message.value == "" and shown(watching) == before and "<figure>" in watching.gallery.value


def test_runs_and_studies_may_go_between_two_looks(folder, monkeypatch):
    watching = Monitor(folder, ["s", "t"])
    watching.runs.value = watching.runs.options[1][1], watching.runs.options[2][1]
    (folder / "s" / "planned").rename(folder / "s" / "gone")
    shutil.rmtree(folder / "s" / DONE.run_name)
    watching.refresh()
    assert "<b>3 runs</b>" in watching.standing.value and watching.message.value == ""
    assert len(watching.runs.value) == 1 and watching.pair[0].value.parent.name != watching.pair[1].value.parent.name

    def then_remove(study, configs_of=monitor.configs_of):
        found = configs_of(study)
        shutil.rmtree(study)
        return found

    monkeypatch.setattr(monitor, "configs_of", then_remove)
    watching.refresh()
    assert watching.message.value == "" and not list(folder.iterdir())
    watching.refresh()
    assert "none in" in watching.standing.value and shown(watching) == [] and "no two" in watching.verdict.value
    with pytest.raises(InputError, match="no runs in .*x; train one there first"):
        Monitor(folder, ["x"])


def test_curves_are_of_the_chosen_runs_and_redrawn_only_when_one_has_a_further_epoch(folder):
    watching = Monitor(folder, ["s"])
    assert len(watching.drawn) == 3 and bytes(watching.figure.value[1:4]) == b"PNG"
    begun = folder / "s" / tiny("speednet", learning_rate=0.04).run_name
    watching.runs.value = begun, folder / "s" / DONE.run_name
    first = watching.figure.value
    assert sorted(map(len, watching.drawn.values())) == [1, 2]
    watching.refresh()
    assert watching.figure.value is first
    shutil.copy(folder / "s" / DONE.run_name / "history.csv", begun / "history.csv")
    watching.refresh()
    assert watching.figure.value != first and [*map(len, watching.drawn.values())] == [2, 2]


def test_two_runs_image_by_image(folder):
    watching, stored = Monitor(folder, ["s"]), []
    for widget, config in zip(watching.pair, (DONE, OTHER)):
        widget.value = folder / "s" / config.run_name
        with np.load(widget.value / "predictions.npz") as file:
            stored.append((file["labels"], file["best_val_acc"].argmax(axis=1)))
    (labels, first), (_, second) = stored
    assert f"They answer {(first != second).sum()} differently" in watching.verdict.value
    for kind, images in (("all on which they differ", first != second),
                         ("only the second is right", (first != labels) & (second == labels))):
        watching.kind.value = kind
        found = sorted(map(int, re.findall(r">(\d+): <b>", watching.gallery.value)))
        assert set(found) <= set(np.flatnonzero(images)) and len(found) == min(Monitor.PAGE, images.sum())
    assert watching.gallery.value.count("data:image/png") == len(found) > 0


def test_disagreements_are_those_with_the_surest_answers_first():
    def answers(*rows):
        return np.array([0, 1, 1, 0]), np.log(np.array(rows))

    first = answers((0.9, 0.1), (0.6, 0.4), (0.2, 0.8), (0.7, 0.3))
    second = answers((0.8, 0.2), (0.1, 0.9), (0.9, 0.1), (0.6, 0.4))
    frame = disagreements(first, second)
    assert frame["image"].tolist() == [2, 1] and frame["first"].tolist() == [1, 0] and frame["label"].tolist() == [1, 1]
    assert frame["second_p"].tolist() == pytest.approx([0.9, 0.9])
    assert verdict(first, second) == (
        "Of 4 test images the first gets 75.00% right, the second 75.00%. They answer 2 differently: 1 only the first "
        "gets right, 1 only the second (McNemar's exact test: p = 1).")
    with pytest.raises(InputError, match="tested on different images"):
        disagreements(first, (1 - second[0], second[1]))


def test_it_looks_again_until_it_is_paused_replaced_or_the_loop_ends(folder, monkeypatch):
    async def looks():
        before, one = Monitor(folder, ["s"], seconds=0).watch(), SimpleNamespace(task=Monitor.watching)
        watching = Monitor(folder, ["t"], seconds=0).watch()
        seen = []
        monkeypatch.setattr(before, "refresh", lambda: seen.append("before"))
        for pausing in (False, True):
            watching.paused.value = pausing
            watching.standing.value = ""
            await asyncio.sleep(12 * watching.took)
            assert bool(watching.standing.value) != pausing
        assert one.task.cancelled() and not seen and not Monitor.watching.done()

    asyncio.run(looks())
    assert Monitor.watching.cancelled()
