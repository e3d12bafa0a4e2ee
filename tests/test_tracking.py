"""The mirror in Weights & Biases: what an offline run holds, and that whatever fails there never ends a run."""

import json
import struct
import sys
from types import SimpleNamespace

import pytest
from conftest import tiny
from services import wait_for
from wandb.proto.wandb_internal_pb2 import Record

from cifarlib import build_model, fit
from cifarlib.config import Options
from cifarlib.parts import CIFAR10_CLASSES as CLASSES
from cifarlib.training.tracking import Tracker

RECORD = {"status": "done",
          "metrics": {"test_accuracy_terminal": 0.5, "test_loss_best_val_acc": None, "train_loss": 1.0}}


def tracked(config, splits, folder, mode, error=None):
    """A run as the notebook does it; its history."""
    with Tracker(config, Options(study="some", wandb_mode=mode), folder) as tracker:
        history = fit(build_model(config), splits, config, folder, on_epoch=tracker.log_epoch)
        if error:
            raise error
        tracker.log_test(RECORD)
    return history


def parsed(content):
    """The records in the bytes of a .wandb file.

    It is a LevelDB log: after a header of 7 bytes, blocks of 32 KiB with chunks of checksum, length, type and content.
    """
    offset, whole = 7, b""
    while offset + 7 <= len(content):
        if 32_768 - offset % 32_768 < 7:  # no room for a chunk at the end of a block
            offset += 32_768 - offset % 32_768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, offset)
        whole += content[offset + 7:offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4) and offset <= len(content):  # a record's only or last chunk
            yield Record.FromString(whole)
            whole = b""


def records(folder):
    """The records of the one run in `folder`, by type; wandb's own process may still be writing the last of them."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")

    def complete():
        found = {}
        for record in parsed(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
        return found if "exit" in found else None

    return wait_for(complete, 30, "the end of wandb's file", 0.05)


def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def mirrored(load, tmp_path_factory):
    """(configuration, history, records) of an offline run."""
    config, folder = tiny("vit", epochs=3, val_freq=2, data_dir="private"), tmp_path_factory.mktemp("mirrored") / "run"
    history = tracked(config, load(config), folder, "offline")
    return config, history, records(folder)


def test_run_has_its_names_and_hyperparameters(mirrored):
    config, _, found = mirrored
    run = found["run"][0]
    assert (run.project, run.run_group, run.display_name, *run.tags) == ("cifar-10", "vit", config.run_name, "some")
    settings = {item.key: json.loads(item.value_json) for item in run.config.update if not item.key.startswith("_")}
    assert settings == {name: value for name, value in config.to_dict().items() if name != "data_dir"}


def test_one_commit_an_epoch_with_the_published_names(mirrored):
    _, history, found = mirrored
    commits = [values(row.item) for row in found["history"]]
    logged = [{name: value for name, value in commit.items() if not name.startswith("_")} for commit in commits]
    assert [commit["_step"] for commit in commits] == [1, 2, 3]
    for row, commit in zip(history.rows, logged, strict=True):
        finite = {name: value for name, value in row.items() if value == value}
        assert {name: commit[name] for name in finite} == pytest.approx(finite) and commit.keys() == row.keys()
    names = {f"{split}_per_class_accuracy_{c}" for split in ("train", "val") for c in CLASSES}
    assert names < logged[1].keys() and "val_loss" not in logged[0]


def test_test_scores_are_the_summary(mirrored):
    _, _, found = mirrored
    summary = {}
    for change in found["summary"]:
        summary |= values(change.update)
    assert summary["test_accuracy_terminal"] == 0.5 and summary["status"] == "done"


def test_finished_run_exits_with_0_and_a_failed_one_with_1(mirrored, load, tmp_path):
    assert [end.exit_code for end in mirrored[2]["exit"]] == [0]
    with pytest.raises(ZeroDivisionError):
        tracked(tiny(epochs=1), load(tiny()), tmp_path, "offline", error=ZeroDivisionError())
    assert [end.exit_code for end in records(tmp_path)["exit"]] == [1]


# wandb that fails, with a stand-in for it.

def failing(step):
    """A wandb that raises at `step`, with the calls it got."""
    calls = []

    def call(name, result=None):
        def function(*arguments, **options):
            calls.append(name)
            if name == step:
                raise RuntimeError(f"{name} failed\nfor some reason")
            return result
        return function

    run = SimpleNamespace(log=call("log"), finish=call("finish"), summary=SimpleNamespace(update=call("summary")))
    return SimpleNamespace(init=call("init", run), login=call("login", False), Settings=call("Settings"), calls=calls)


@pytest.mark.parametrize("step", ["import", "login", "Settings", "init", "log", "summary", "finish"])
def test_nothing_it_does_fails_a_run(step, load, tmp_path, monkeypatch, capsys):
    fake = failing(step)
    monkeypatch.setitem(sys.modules, "wandb", None if step == "import" else fake)
    monkeypatch.delenv("WANDB_MODE")
    assert tracked(tiny(), load(tiny()), tmp_path, "auto").status == "done"
    lines = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    assert len(lines) == 1 and lines[0].startswith("wandb is off for this run (")
    assert fake.calls[-1:] == ([] if step == "import" else [step]) and fake.calls.count(step) <= 1


def test_out_of_reach_the_run_is_kept_offline(tmp_path, monkeypatch, capsys):
    modes = []

    def init(mode, **_):
        modes.append(mode)
        if mode == "online":
            raise TimeoutError("no answer")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    with Tracker(tiny(), Options(wandb_mode="online"), tmp_path):
        pass
    said = capsys.readouterr().out
    assert modes == ["online", "offline"]
    assert said.startswith("wandb can't be reached (TimeoutError); the run is kept offline")


@pytest.mark.parametrize("asked, environment, logged_in, mode", [
    ("auto", None, False, "offline"), ("auto", "", False, "offline"), ("auto", None, True, "online"),
    ("auto", "offline", True, "offline"), ("offline", "online", True, "offline"),
    ("online", "offline", False, "online"), ("disabled", "online", True, None), ("auto", "disabled", True, None),
])
def test_mode(asked, environment, logged_in, mode, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    got = {}
    fake = SimpleNamespace(login=lambda prompt: logged_in, Settings=dict, init=lambda **options: got.update(options))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Tracker(tiny(), Options(wandb_mode=asked), tmp_path):
        pass
    assert got.get("mode") == mode


def test_without_a_login_the_real_one_is_offline(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert Tracker(tiny(), Options(), tmp_path)._mode() == "offline"


def test_a_finished_run_that_is_only_shown_again_is_not_mirrored_again(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    for resume in (True, False):
        with Tracker(tiny(), Options(wandb_mode="offline", resume=resume), tmp_path) as tracker:
            assert (tracker.run is None) == resume
