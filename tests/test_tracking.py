"""The mirror in Weights & Biases: what an offline run holds, and that whatever fails there never ends a run."""

import json
import re
import struct
import sys
from contextlib import suppress
from glob import glob
from types import SimpleNamespace

import pytest
import wandb
from conftest import tiny
from services import wait_for
from wandb.proto.wandb_internal_pb2 import Record

from cifarlib import build_model, fit
from cifarlib.config import Options
from cifarlib.parts import CIFAR10_CLASSES as CLASSES
from cifarlib.training.tracking import Tracker

RECORD = {"status": "done",
          "metrics": {"test_accuracy_terminal": 0.5, "test_loss_best_val_acc": None, "train_loss": 1.0}}


def tracked(config, splits, folder, mode, error=None, **options):
    """A run as the notebook does it; its history."""
    with Tracker(config, Options(**{"study": "some", "wandb_mode": mode, **options}), folder) as tracker:
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
    """The records of the last run in `folder`, by type; wandb's own process may still be writing the last of them."""
    path = max(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)

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
    assert (run.project, run.run_group, run.display_name, *run.tags) == (
        "cifar-10", "vit", config.run_name[:128], "some")
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


def test_a_malformed_key_is_an_offline_run_and_all_starts_of_an_interrupted_run_are_one(load, tmp_path, monkeypatch,
                                                                                    capsys):
    """In $WANDB_DIR, with a name of the study that is longer than W&B's tags; trained anew it is another one."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "kept"))
    wandb.teardown()  # or it goes by the environment of its first use
    ids = []
    for resume, error in ((True, KeyboardInterrupt), (True, None), (False, None)):
        with suppress(KeyboardInterrupt):
            tracked(tiny(epochs=1), load(tiny()), tmp_path / "run", "auto", error, study="s" * 80, resume=resume)
        found = records(tmp_path / "kept")
        assert found["run"][0].tags == ["s" * 64] and len(found["exit"]) == 1
        ids.append(found["run"][0].run_id)
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wandb ")]
        assert len(said) == 1 and "API key must have 40+" in said[0]
        (path,) = re.findall(r"`wandb sync (.*)`", said[0])
        assert glob(path) and ids[-1] in path
    assert ids[0] == ids[1] != ids[2]


@pytest.fixture
def stand_in(monkeypatch):
    """Put a wandb in place that raises an error at `step`, and return the calls it gets, with their options."""
    def put(step, logged_in, error):
        def call(name, result=None):
            def function(*_, **options):
                calls.append((name, options))
                if step in (name, options.get("mode")):
                    raise error(f"{name} failed\nfor some reason")
                return result
            return function

        calls = []
        run = SimpleNamespace(log=call("log"), finish=call("finish"), summary=SimpleNamespace(update=call("summary")))
        fake = SimpleNamespace(init=call("init", run), login=call("login", logged_in), Settings=call("Settings"),
                               teardown=call("teardown"))
        monkeypatch.setitem(sys.modules, "wandb", None if step == "import" else fake)
        monkeypatch.delenv("WANDB_MODE")
        return calls
    return put


@pytest.mark.parametrize("step", ["import", "Settings", "init", "log", "summary", "finish"])
def test_nothing_it_does_fails_a_run(step, stand_in, load, tmp_path, capsys):
    calls = stand_in(step, False, RuntimeError)
    assert tracked(tiny(), load(tiny()), tmp_path, "auto").status == "done"
    lines = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    assert len(lines) == 1 and lines[0].startswith("wandb is off for this run (")
    names = [name for name, _ in calls]
    assert names[-1:] == ([] if step == "import" else [step]) and names.count(step) <= 1


@pytest.mark.parametrize("step, modes", [("login", ["offline"]), ("online", ["online", "offline"]),
                                         ("finish", ["online"])])
def test_out_of_reach_at_any_time_the_run_is_kept_with_one_line_that_says_how_to_send_it(step, modes, stand_in,
                                                                                         tmp_path, capsys):
    calls = stand_in(step, True, TimeoutError)
    with Tracker(tiny(), Options(wandb_mode="online"), tmp_path):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    assert f" {tmp_path}/wandb/" in line and "`wandb sync " in line
    assert [options["mode"] for name, options in calls if name == "init"] == modes
    settings = dict(calls)["Settings"]
    assert 0 < settings["finish_timeout"] <= 60 and settings["finish_timeout_raises"]


@pytest.mark.parametrize("asked, environment, logged_in, mode", [
    ("auto", {}, False, "offline"), ("auto", {"MODE": ""}, False, "offline"), ("auto", {}, True, "online"),
    ("auto", {"MODE": "offline"}, True, "offline"), ("offline", {"MODE": "online"}, True, "offline"),
    ("online", {"MODE": "offline"}, True, "online"), ("online", {}, False, "offline"),
    ("disabled", {"MODE": "online"}, True, None), ("auto", {"MODE": "disabled"}, True, None),
    ("auto", {"DISABLED": "true", "MODE": "online"}, True, None), ("auto", {"DISABLED": "false"}, True, "online"),
])
def test_mode(asked, environment, logged_in, mode, stand_in, tmp_path, monkeypatch):
    calls = stand_in("", logged_in, RuntimeError)
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with Tracker(tiny(), Options(wandb_mode=asked), tmp_path):
        pass
    assert dict(calls).get("init", {}).get("mode") == mode


def test_without_a_login_the_real_one_is_offline_without_a_word(tmp_path, monkeypatch, capsys):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    with Tracker(tiny(), Options(), tmp_path) as tracker:
        assert tracker.run.settings.mode == "offline"
    assert "wandb" not in capsys.readouterr().out


def test_a_finished_run_that_is_only_shown_again_is_not_mirrored_again(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    for resume in (True, False):
        with Tracker(tiny(), Options(wandb_mode="offline", resume=resume), tmp_path) as tracker:
            assert (tracker.run is None) == resume
