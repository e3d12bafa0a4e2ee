"""Runners, papermill and kernels that are killed at any moment: a short torture, and what chance may never bring."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pandas
import pytest
import torch
from services import until
from torture import torture

from cifarlib.batch import kernel, launch, runner
from cifarlib.batch.grid import Run
from cifarlib.batch.kernel import FAILED, OK, PREEMPTED
from cifarlib.batch.resources import Slots
from cifarlib.batch.runner import run_all
from cifarlib.config import Config, Options
from cifarlib.errors import InputError
from cifarlib.files import write_json
from cifarlib.runs import claim, study
from cifarlib.runs.claim import Claim
from cifarlib.runs.record import read_record, status_of, write_failure
from cifarlib.runs.study import write_table

CONFIG = Config(dataset="synthetic")
SHOW_AND_SLEEP = """
import json, matplotlib, os, signal, sys, time
import numpy, torch
files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
print(json.dumps({
    "pid": os.getpid(), "alone": os.getsid(0) == os.getpid() != os.getppid(), "random": numpy.random.random(),
    "folder": os.listdir(), "claims": [file for file in files if "claim." in file], "environment": dict(os.environ),
    "path": sys.path, "signals": [str(signal.getsignal(number)) for number in (1, 2, 10, 15)],
    "threads": torch.get_num_threads(), "backend": matplotlib.get_backend(), "main": __name__}), flush=True)
time.sleep(seconds)
"""
CLAIM_AND_START = """
import subprocess, sys
from pathlib import Path
from cifarlib.runs.claim import Claim
owned = Claim.take(Path(sys.argv[1]))
print(subprocess.Popen(["sleep", "600"], pass_fds=[owned.lock], stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""


def test_a_short_torture():
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are too deep for sockets
        report = torture(Path(folder), kills=5, workers=2, cells=3, minutes=1, pause=3)
    assert not report.problems, report
    assert report.counts["runs done"] == 2 * report.counts["rounds"] >= 2 and report.kills.total() >= 1, report


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook that shows its folder and open files and sleeps, named from the working directory."""
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": SHOW_AND_SLEEP}
    parameters = {**cell, "metadata": {"tags": ["parameters"]}, "source": "seconds = 0"}
    content = {"cells": [parameters, cell], "nbformat": 4, "nbformat_minor": 4,
               "metadata": {"language_info": {"name": "python"}}}
    (tmp_path / "n.ipynb").write_text(json.dumps(content))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Path("../n.ipynb")


@pytest.fixture
def source():
    """A warm process."""
    with launch.Warm() as warm:
        yield warm


def shown(process):
    """What the kernel of `notebook` finds."""
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("warm", [False, True])
def test_a_kernel_keeps_the_lock_of_the_claim_and_ends_when_the_claim_is_lost(warm, notebook, source, tmp_path):
    owned = Claim.take(tmp_path / "run")
    with launch.start_notebook(notebook, Path("../out.ipynb"), {"seconds": 90}, claim=owned, warm=warm and source,
                               stdout=subprocess.PIPE) as process:
        found = shown(process)
        assert found["claims"] == [str(owned.path)]
        assert found["folder"] == [], "no socket in the working directory"
        if warm:
            source.process.kill()  # which touches no run
            assert source.process.wait() == -signal.SIGKILL
            assert found["claims"] and process.poll() is None
        (tmp_path / "run" / f"claim.{owned.number + 1}").touch()
        assert process.stdout.read() == ""  # until the last of them is gone
    assert process.returncode == FAILED and owned.lost
    assert not Path(f"/proc/{found['pid']}/fd/0").exists()


def test_a_forked_kernel_finds_what_a_cold_one_finds(notebook, source, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "n.ipynb")  # of a runner in a notebook, which a person looks at
    found = []
    for number, warm in enumerate((None, source, source)):
        environment = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": str(min(number, 1))}
        with launch.start_notebook(notebook, Path("../out.ipynb"), {"seconds": 0}, environment, warm=warm,
                                   stdout=subprocess.PIPE) as process:
            found.append(shown(process))
            if number == 1:
                source.process.kill()  # another one takes its place
                source.process.wait()
        assert process.returncode == OK
    cold, *warm = found
    assert len({kernel.pop("random") for kernel in found}) == len({kernel.pop("pid") for kernel in found}) == 3
    assert cold["environment"].pop("CUDA_VISIBLE_DEVICES") == "0" and cold["environment"].pop("JPY_PARENT_PID")
    assert [kernel["environment"].pop("CUDA_VISIBLE_DEVICES") for kernel in warm] == ["1", "1"]
    assert warm == [cold, cold] and cold["alone"] and "JPY_SESSION_NAME" not in cold["environment"]


@pytest.mark.parametrize("spoilt, reason", [
    ("threading.Thread(target=time.sleep, args=[600], daemon=True).start()", "has started a thread"),
    ("warm.GPUS = ('/dev/null',)", "has opened a GPU")])
def test_a_process_with_threads_or_a_gpu_is_not_forked(spoilt, reason):
    code = f"import threading, time; from cifarlib.batch import warm; {spoilt}; warm.prepare()"
    ended = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert reason in ended.stderr.splitlines()[-1]


def test_a_run_whose_runner_died_before_it_began_ends_at_once(notebook):
    gone = subprocess.Popen(["true"])
    gone.wait()
    job = {"notebook": str(notebook), "output": "../out.ipynb", "parameters": {"seconds": 600}, "runner": gone.pid,
           "claim": ""}
    ended = subprocess.run([sys.executable, "-m", "cifarlib.batch.kernel"], input=json.dumps(job), text=True,
                           stderr=subprocess.PIPE, timeout=120)
    assert (ended.returncode, ended.stderr) == (FAILED, "")


def test_a_claim_counts_until_the_last_process_under_it_is_gone(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", CLAIM_AND_START, str(tmp_path)], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    try:
        assert claim.is_claimed(tmp_path) and Claim.take(tmp_path) is None
    finally:
        os.kill(child, signal.SIGKILL)
    until(lambda: not claim.is_claimed(tmp_path), 10)
    heir = Claim.take(tmp_path)
    assert heir.number == 2
    heir.release()


def test_a_living_owner_of_this_machine_needs_no_heartbeat(tmp_path):
    owner = Claim.take(tmp_path)
    os.utime(owner.path, (1, 1))  # as if it had been suspended (Ctrl-Z), while its kernel goes on
    assert Claim.take(tmp_path) is None
    owner.release()


def test_without_locks_a_claim_counts_until_it_is_silent_for_long(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(claim.fcntl, "flock", none)
    owner = Claim.take(tmp_path)
    assert Claim.take(tmp_path) is None
    os.utime(owner.path, (1, time.time() - 2 * claim.STALE))  # as if it were gone
    assert not claim.is_claimed(tmp_path)
    owner.release()


def test_who_was_slow_to_claim_has_not_got_it(tmp_path, monkeypatch):
    """Between the look at claim 1 and the creation of claim 2 others take and release 2, take 3 and so remove 2."""
    Claim.take(tmp_path).release()
    stale = claim._stale

    def slow(path):
        monkeypatch.setattr(claim, "_stale", stale)
        Claim.take(tmp_path).release()
        Claim.take(tmp_path).release()
        others.append(Claim.take(tmp_path))
        return True

    others = []
    monkeypatch.setattr(claim, "_stale", slow)
    assert Claim.take(tmp_path) is None
    assert not others[0].lost and [path.name for path in tmp_path.glob("claim.*")].count("claim.2") == 0
    others[0].release()


def failing(run, options, *_):
    """In place of execute_run."""
    write_failure(options.run_folder(run.config), run.config, "no luck")
    return FAILED


def run_seeds(folder, count=1, resume=True, most=runner.ALIKE, **options):
    """Runs that differ in their seed, one at a time; the exit code and their folders."""
    every = [Run(config, (config,)) for config in (CONFIG.replace(seed=seed) for seed in range(count))]
    with runner.Stopping(most) as stopping:
        code = run_all(every, Options(executed_dir=str(folder), resume=resume), Slots(1, 1, ()), stopping, **options)
    return code, [folder / "single" / run.name for run in every]


def test_a_failed_run_that_another_runner_tries_again_at_once_is_still_reported(tmp_path, monkeypatch, capsys):
    def release(self, inner=Claim.release):
        inner(self)
        (self.folder / "record.json").unlink()

    monkeypatch.setattr(runner, "execute_run", failing)
    monkeypatch.setattr(Claim, "release", release)
    run_seeds(tmp_path)
    assert "no luck" in capsys.readouterr().out


def test_a_run_that_another_runner_took_over_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "execute_run",
                        lambda run, options, *_: (options.run_folder(run.config) / "claim.2").touch() or PREEMPTED)
    code, (folder,) = run_seeds(tmp_path, wait_for_others=False)
    assert code == OK and read_record(folder) is None


def test_what_breaks_after_a_finished_record_does_not_undo_it(tmp_path):
    write_json(tmp_path / "record.json", {"status": "done"})
    runner._outcome(FAILED, tmp_path, CONFIG, ["Kernel died"])
    assert read_record(tmp_path) == {"status": "done"}


@pytest.mark.parametrize("another", ["comes", "goes"])
def test_a_table_of_runs_lacks_no_record_that_came_while_it_was_written(another, tmp_path, monkeypatch):
    """Else the older table of two runners may be the one that stays. One that goes, to be tried again, is no error."""
    write_failure(made(tmp_path / "a"), CONFIG, "")

    def slow(folder, planned, inner=study.table_rows):
        rows = inner(folder, planned)
        if another == "comes" and not (tmp_path / "b").exists():
            write_failure(made(tmp_path / "b"), CONFIG, "")
        if another == "goes":
            (folder / "record.json").unlink()
        return rows

    monkeypatch.setattr(study, "table_rows", slow)
    assert list(pandas.read_csv(write_table(tmp_path)).run) == (["a", "b"] if another == "comes" else ["a"])


@pytest.mark.parametrize("lines, fail_fast, trained, code, statuses, later", [
    (["kaput", "kaput", "odd", "kaput", "kaput", "kaput", "kaput"], False, 7, FAILED, {"failed"}, 0),
    (["kaput"] * 7, False, 5, FAILED, {"failed", "pending"}, 2),
    (["kaput"] * 7, True, 1, FAILED, {"failed", "pending"}, 5),
    (["OSError: [Errno 28] No space left on device"] * 7, False, 1, runner.NO_PROGRESS, {"pending"}, 1)])
def test_what_fails_run_after_run_stops_a_grid_and_the_rest_stays_pending(
        lines, fail_fast, trained, code, statuses, later, tmp_path, monkeypatch, capsys):
    started = []

    class Process:
        returncode, __enter__, __exit__ = FAILED, lambda self: self, lambda *_: None

        def __init__(self, *_, **__):
            self.stdout = [f"{lines[len(started)]}\n"]
            started.append(self)

    monkeypatch.setattr(runner, "start_notebook", Process)
    ended, folders = run_seeds(tmp_path, 7, most=1 if fail_fast else runner.ALIKE)
    assert (ended, len(started), set(map(status_of, folders))) == (code, trained, statuses)
    assert (lines[-1] in capsys.readouterr().err) == (trained < 7 and not fail_fast), "why it stops"
    run_seeds(tmp_path, 7)
    assert len(started) == trained + later, "a later start goes on with the rest"


def test_torch_says_in_known_words_that_a_disk_is_full():
    with pytest.raises((OSError, RuntimeError)) as caught:
        torch.save(torch.zeros(10**6), "/dev/full")
    assert any(sign in str(caught.value) for sign in runner.NO_ROOM), caught.value


@pytest.mark.parametrize("code, line", [(FAILED, "DeadKernelError: Kernel died"), (-9, "epoch 1"),
                                        (FAILED, "OutOfMemoryError: CUDA out of memory.")])
def test_a_run_without_memory_says_so_with_the_remedies(code, line, tmp_path):
    assert runner._outcome(code, tmp_path, CONFIG, [line]) == FAILED
    error = read_record(tmp_path)["error"]
    assert line in error and "ran out of memory" in error.splitlines()[-1] and "--jobs" in error.splitlines()[-1]


HANG_UP = """
import time
from cifarlib.batch.runner import Stopping
with Stopping() as stopping:
    print("begun", flush=True)
    while not stopping.requested:
        time.sleep(0.01)
    print("an epoch ends", flush=True)
raise SystemExit(75)
"""


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_stops_a_grid_as_sigterm_does_but_not_under_nohup(nohup):
    def begin():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)

    ours, theirs = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", HANG_UP], stdin=theirs, stdout=theirs, stderr=theirs,
                               preexec_fn=begin)
    os.close(theirs)
    try:
        with open(ours) as terminal:
            assert terminal.readline() == "begun\n"
        # The terminal is gone: printing to it is an error.
        if nohup:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.terminate()
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()


def test_sockets_go_where_they_can(monkeypatch, tmp_path, capsys):
    real = kernel.socket.socket

    class Without(real):
        """As on a file system without sockets."""

        def bind(self, path):
            if path.startswith(refused):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            super().bind(path)

    monkeypatch.setattr(kernel.socket, "socket", Without)
    monkeypatch.setattr(kernel.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kernel, "execute", lambda notebook, output, parameters, folder, *_: print(folder) or OK)
    monkeypatch.setattr(kernel, "_end_without_owner", lambda *_: None)
    job = {"notebook": "n", "output": "o", "parameters": {}, "runner": 1, "claim": ""}
    refused = str(tmp_path)
    assert kernel.main(job, []) == OK and capsys.readouterr().out.startswith("/tmp/kernel-")
    refused = "/"
    assert kernel.main(job, []) == kernel.BAD_INPUT
    assert f"cifarlib: TMPDIR: no socket can be made in {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [{"config": {"lr": 1}}, {"config": []}, {"config": CONFIG.to_dict()}])
def test_one_foreign_record_stops_a_grid_before_it_starts_or_not_at_all(content, tmp_path, monkeypatch, capsys):
    foreign = made(tmp_path / "single") / "old" / "record.json"
    trained = []

    def train_one(run, options, *_):
        trained.append(run.name)
        foreign.parent.mkdir(exist_ok=True)
        write_json(foreign, {"status": "done", **content})
        return failing(run, options)

    monkeypatch.setattr(runner, "execute_run", train_one)
    with pytest.raises(InputError, match="old/record.json is not a run of this version"):
        run_seeds(tmp_path, 2)
    assert len(trained) == 2 and "old/record.json is not a run of this version" in capsys.readouterr().err
    with pytest.raises(InputError, match="not a run of this version"):
        run_seeds(tmp_path, 2, retry_failed=True)
    assert len(trained) == 2, "told before anything starts"
    foreign.unlink()
    assert run_seeds(tmp_path, 2, resume=False)[0] == FAILED
    assert len(trained) == 2 and "left alone: two runs that failed before" in capsys.readouterr().err


def made(folder):
    folder.mkdir()
    return folder
