"""Grids through papermill for real: several runs at a time, resumed, claimed, isolated from each other's failures."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas
import psutil
import pytest
import torch
from conftest import TINY
from services import until

from cifarlib.batch import launch, resources, runner
from cifarlib.batch.grid import Run
from cifarlib.config import Config, Options
from cifarlib.errors import InputError
from cifarlib.runs import claim
from cifarlib.runs.claim import Claim, is_claimed
from cifarlib.runs.record import read_record, status_of

PROJECT = Path(__file__).resolve().parent.parent
SMALL = "{widths: [8, 8, 8, 8]}"
FIXED = f"""
fixed: {{dataset: synthetic, limit_train: 128, limit_val: 64, limit_test: 64, batch_size: 32, epochs: 2, device: cpu,
        precision: fp32, scheduler: step, model_args: {SMALL}}}
"""
LONG = FIXED.replace("epochs: 2", "epochs: 12").replace("limit_train: 128", "limit_train: 512") + "rows: [{seed: 1}]\n"


STARTED = []  # by grid()


@pytest.fixture(autouse=True)
def no_runner_is_left():
    """Also of a test that failed; a run ends with its runner."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def grid(folder, text, *arguments, wait=True, **options):
    """`python -m cifarlib grid` on a grid of this text; the finished process, or the running one."""
    path = folder / "g.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "cifarlib", "grid", str(path), "--executed_dir", str(folder / "executed"),
               "--wandb_mode", "disabled", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    STARTED.append(process)
    if not wait:
        return process
    process.output = process.communicate(timeout=300)[0]
    return process


def run_folder(folder):
    """The only run folder of the study."""
    (found,) = [path for path in (folder / "executed" / "g").iterdir() if (path / "run.log").exists()]
    return found


def epochs_in(folder):
    path = folder / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def begun(folder):
    """Wait until the study's run has finished two epochs and return its folder."""
    study = folder / "executed" / "g"
    until(lambda: study.exists() and any(epochs_in(path) >= 2 for path in study.iterdir()))
    return run_folder(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of the long run, trained in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert grid(folder, LONG).returncode == 0
    return run_folder(folder)


def assert_same_numbers(folder, other):
    """Same weights and metrics, bit for bit; only times may differ."""
    times = ["seconds", "images_per_second"]
    frames = [pandas.read_csv(place / "history.csv").drop(columns=times) for place in (folder, other)]
    pandas.testing.assert_frame_equal(*frames, check_exact=True)
    weights = [torch.load(place / "best_val_acc.pt", weights_only=True)["weights"] for place in (folder, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    arrays = [np.load(place / "predictions.npz") for place in (folder, other)]
    assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0])


def test_a_grid_shares_runs_isolates_failures_and_resumes(tmp_path):
    text = FIXED + """
rows:
  - {scheduler: cosine, gamma: [0.95, 0.97]}
  - {model: cnn, model_args: {channels: [4, 4, 4, 4, 4, 4], hidden: [8, 8]}}
  - {model: vit, model_args: {dim: 16, depth: 1, heads: 1, head_dim: 8, mlp_dim: 16, patch: 5}}
"""
    ended = grid(tmp_path, text, "--jobs", "2")
    assert ended.returncode == 1, ended.output
    table = pandas.read_csv(tmp_path / "executed" / "g" / "runs.csv", keep_default_na=False)
    assert sorted(table.status) == ["done", "done", "done", "failed"]
    cosine = table[table.scheduler == "cosine"].sort_values("gamma")
    assert cosine.run.nunique() == 1 and list(cosine.gamma.astype(float)) == [0.95, 0.97]
    assert list(cosine.shared_with != "") == [False, True]
    assert cosine.test_accuracy_best_val_acc.nunique() == 1
    assert ended.output.count("  done  ") == 2 and ended.output.count("  failed  ") == 1
    assert "patch" in table[table.status == "failed"].error.item()
    for name in table[table.status == "done"].run:
        folder = tmp_path / "executed" / "g" / name
        assert [path.name for path in folder.glob("*.pt")] == ["best_val_acc.pt"]
        assert (folder / "experiment.ipynb").stat().st_size < 500_000

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "executed" / "g").glob("*/record.json")}
    again = grid(tmp_path, text)
    assert again.returncode == 1 and "  done  " not in again.output, "what is done is skipped, what failed is left"
    assert "left alone: one run that failed before (--retry-failed" in again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    retried = grid(tmp_path, text, "--retry-failed")
    assert retried.output.count("  failed  ") == 1

    command = [sys.executable, "-m", "cifarlib", "status", "g", "--executed_dir", str(tmp_path / "executed")]
    status = subprocess.run(command, capture_output=True, text=True)
    assert status.returncode == 0 and "best so far" in status.stdout and "nothing is left to do" in status.stdout
    counts = {line.split()[0]: line.split()[1:] for line in status.stdout.splitlines()[1:5]}
    assert counts["all"] == ["2", "0", "1", "0", "0", "0"], status.stdout


def test_a_dry_run_counts_and_trains_nothing(tmp_path):
    ended = grid(tmp_path, FIXED + "rows: [{scheduler: cosine, gamma: [0.95, 0.97, 0.99]}, {}]", "--dry-run")
    assert "4 cells, 2 distinct runs: 0 done, 0 diverged, 0 failed, 0 running, 0 preempted, 2 pending" in ended.output
    assert not (tmp_path / "executed").exists()


def test_a_stop_request_ends_at_an_epoch_and_the_rest_gives_the_same_numbers(tmp_path, uninterrupted):
    process = grid(tmp_path, LONG, wait=False)
    folder = begun(tmp_path)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    record = read_record(folder)
    assert record["status"] == "preempted" and 2 <= record["epochs_run"] == epochs_in(folder) < 12
    assert "test_accuracy_best_val_acc" not in record["metrics"], "the test images wait until training is finished"
    other = grid(tmp_path, LONG, "--precision", "bf16")
    assert other.returncode == 2 and "a run in fp32, not in bf16" in other.output and status_of(folder) == "preempted"
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(plan.replace('"cpu"', '"cuda"'))  # begun on another kind of machine: left to it
    other = grid(tmp_path, LONG)
    assert other.returncode == 75 and "another kind of machine" in other.output and status_of(folder) == "preempted"
    (folder / "plan.json").write_text(plan)
    assert "holds a run with device 'cuda', this one has 'cpu'" in (folder / "run.log").read_text()
    assert grid(tmp_path, LONG).returncode == 0
    assert_same_numbers(folder, uninterrupted)


def test_kill_9_of_everything_loses_at_most_the_epoch_in_progress(tmp_path, uninterrupted):
    process = grid(tmp_path, LONG, wait=False)
    folder = begun(tmp_path)
    kernel, child = descendants(process.pid)[::-1][:2]
    for pid in (process.pid, child, kernel):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    reached = epochs_in(folder)
    until(lambda: status_of(folder) == "preempted")  # the claim counts until the last of them is gone, no longer
    resumed = grid(tmp_path, LONG)
    assert resumed.returncode == 0
    first = (folder / "run.log").read_text().partition("epoch ")[2].split("/")[0]
    assert int(first) in (reached, reached + 1, reached + 2), "it goes on after the last finished epoch"
    assert_same_numbers(folder, uninterrupted)


def test_what_a_second_interrupt_kills_has_not_failed(tmp_path):
    process = grid(tmp_path, LONG.replace("limit_train: 512", "limit_train: 4096"), wait=False)  # epochs of seconds
    folder = begun(tmp_path)
    time.sleep(0.2)  # into the next epoch
    process.send_signal(signal.SIGINT)
    until((folder / "stop").exists)  # the first signal was taken
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and read_record(folder) is None, output
    assert not (folder / "stop").exists(), "the next run of this folder would end before its first epoch"
    until(lambda: status_of(folder) == "preempted")


def test_where_no_process_can_be_forked_runs_start_cold_and_give_the_same_numbers(tmp_path, uninterrupted):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[9], daemon=True).start()")
    cold = grid(tmp_path, LONG, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"})
    assert cold.returncode == 0
    assert cold.output.count("no warm start (RuntimeError: an import has started a thread)") == 1
    assert_same_numbers(run_folder(tmp_path), uninterrupted)


def test_code_that_is_edited_while_a_grid_runs_is_not_the_code_of_its_runs(tmp_path):
    for name in ("cifarlib", "notebooks"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def git(*words):
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", "cifarlib")
    git("commit", "-m", "before")
    process = grid(tmp_path, FIXED + "rows: [{seed: [1, 2]}]", "--jobs", "1", wait=False, cwd=tmp_path,
                   env={**os.environ, "PYTHONPATH": str(tmp_path)})
    study = tmp_path / "executed" / "g"
    until(lambda: any(study.glob("*/record.json")))
    before = git("rev-parse", "--short", "HEAD")
    (tmp_path / "cifarlib" / "training" / "loop.py").write_text("raise SystemExit('edited')")
    git("commit", "-a", "-m", "after")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert [json.loads(path.read_text())["commit"] for path in study.glob("*/record.json")] == [before, before]


@pytest.mark.parametrize("statuses, fail_fast, code", [
    (["done"], False, 0), (["done", "diverged"], False, 0), (["done", "failed"], False, 1),
    (["failed", "preempted"], False, 75), (["failed", "pending"], False, 75), (["failed", "pending"], True, 1),
    (["done", "pending"], False, 75), (["done", "running"], False, 0)])
def test_the_exit_code_says_first_what_is_left_to_do(statuses, fail_fast, code, monkeypatch, tmp_path):
    runs = [Run(Config(seed=seed), ()) for seed in range(len(statuses))]
    monkeypatch.setattr(runner, "status_of", lambda folder: statuses[int(folder.name.rpartition("_")[2])])
    assert runner._exit_code(runs, Options(executed_dir=str(tmp_path)), {}, fail_fast, False) == code
    if "running" in statuses:  # others train it: stopped while waiting for them, not all is done
        assert runner._exit_code(runs, Options(executed_dir=str(tmp_path)), {}, fail_fast, True) == 75


def descendants(pid):
    """Process ids below `pid`, nearest first."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def test_a_killed_kernel_is_one_failed_run_and_the_rest_goes_on(tmp_path):
    text = LONG.replace("[{seed: 1}]", "[{seed: 1}, {seed: 2, epochs: 1}]")
    process = grid(tmp_path, text, "--jobs", "1", wait=False)
    study = tmp_path / "executed" / "g"
    until(lambda: study.exists() and any(epochs_in(path) >= 2 for path in study.iterdir()))
    os.kill(descendants(process.pid)[-1], signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    records = {record["seed"]: record for path in study.glob("*/record.json") if (record := read_record(path.parent))}
    assert records[1]["status"] == "failed" and "died" in records[1]["error"].lower()
    assert records[2]["status"] == "done"


def test_two_runners_share_a_study_without_training_anything_twice_and_what_kept_no_weights_is_shown_again(tmp_path):
    text = FIXED + "rows: [{seed: [1, 2, 3]}]"
    runners = [grid(tmp_path, text, "--jobs", "1", "--no-checkpoints", wait=False) for _ in range(2)]
    outputs = [runner.communicate(timeout=300)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], outputs
    assert sum(output.count("  done  ") for output in outputs) == 3
    assert all(output.count("  done  ") >= 1 for output in outputs)

    folders = [path.parent for path in (tmp_path / "executed" / "g").glob("*/record.json")]
    assert len(folders) == 3 and not list((tmp_path / "executed").rglob("*.pt"))
    command = [sys.executable, "-m", "papermill", "notebooks/experiment.ipynb", str(tmp_path / "again.ipynb"),
               "--no-progress-bar", "-y", json.dumps(parameters_of(folders[0], tmp_path))]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    text = (tmp_path / "again.ipynb").read_text()
    assert "done after 2 epochs" in text and "epoch 1/2" not in text


def parameters_of(folder, root):
    """The parameters with which the notebook shows a finished run again."""
    config = read_record(folder)["config"]
    options = {"study": "g", "executed_dir": str(root / "executed"), "wandb_mode": "disabled", "checkpoints": "none"}
    return {**config, **options}


def test_a_claim_has_one_owner_among_many(tmp_path):
    taken, barrier = [], threading.Barrier(16)

    def take():
        barrier.wait()
        taken.append(Claim.take(tmp_path / "run"))

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = [one for one in taken if one]
    assert is_claimed(tmp_path / "run") and Claim.take(tmp_path / "run") is None
    owner.release()
    assert not is_claimed(tmp_path / "run")
    second = Claim.take(tmp_path / "run")
    assert second and second.number == owner.number + 1
    second.release()


def test_a_claim_without_heartbeat_is_taken_over_and_its_owner_notices(tmp_path, monkeypatch):
    owner = Claim.take(tmp_path)
    monkeypatch.setattr(claim.socket, "gethostname", lambda: "another machine")  # its process ids mean nothing here
    assert Claim.take(tmp_path) is None
    long_ago = time.time() - claim.STALE - 1
    os.utime(owner.path, (long_ago, long_ago))
    heir = Claim.take(tmp_path)
    assert heir and owner.lost and not heir.lost
    owner.release()
    assert is_claimed(tmp_path), "the old owner doesn't release what is no longer his"
    heir.release()


def test_a_living_owner_renews_his_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT", 0.05)
    owner = Claim.take(tmp_path)
    os.utime(owner.path, (1, 1))
    until(lambda: owner.path.stat().st_mtime > 1, 10)
    owner.release()


def says(listing):
    """A stand-in for subprocess.run of nvidia-smi."""
    return lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=listing)


@pytest.fixture
def machine(monkeypatch):
    """Eight cores, 100 GiB of memory and two cards of 80 GiB, as nvidia-smi lists them."""
    listing = "0, GPU-aa, 81920\n1, GPU-bb, 81920\n"
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(resources, "_free_memory", lambda: 100.0)
    monkeypatch.setattr(resources.subprocess, "run", says(listing))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def slots(jobs=0, device="auto", *models):
    configs = [Config(device=device, **model) for model in models or [{}] for _ in range(16)]
    return resources.Slots.of_this_machine(jobs, configs)


def test_slots_share_cores_and_cards(machine):
    assert slots() == resources.Slots(10, 1, ("0", "1") * 5)
    assert slots(2) == resources.Slots(2, 4, ("0", "1") * 5)
    assert slots(0, "cpu") == resources.Slots(8, 1, ())
    assert slots(0, "cuda:1") == resources.Slots(5, 1, ("1",) * 5)
    with pytest.raises(InputError, match="device: cuda:2 is not there"):
        slots(0, "cuda:2")
    with pytest.raises(InputError, match="device: expected one for all runs, got cuda:0 and cuda:1"):
        resources.Slots.of_this_machine(0, [Config(device="cuda:0"), Config(device="cuda:1")])
    few = resources.Slots.of_this_machine(0, [Config(device="cpu")] * 3)
    assert few == resources.Slots(3, 2, ()), "no core waits for a run that isn't there"
    machine.setattr(resources, "_free_memory", lambda: 9.0)
    assert slots(0, "cpu") == resources.Slots(2, 4, ())
    assert slots() == resources.Slots(2, 4, ("0", "1") * 5)


def test_a_vit_of_the_published_width_needs_more_memory_on_a_cpu(machine):
    cnn, vit = {"model": "cnn"}, {"model": "vit"}
    deep, small = ({"model": "vit", "model_args": sizes} for sizes in ({"depth": 12}, TINY["vit"]))
    assert slots(0, "cpu", cnn, vit).jobs == slots(0, "cpu", deep).jobs == 7 and slots(0, "cpu", small).jobs == 8
    assert slots(0, "auto", cnn, vit).jobs == 10


def test_memory_is_what_a_slurm_job_was_given(monkeypatch):
    assert resources._free_memory() > 1
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "512")
    assert resources._free_memory() == 0.5
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "128")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert resources._free_memory() == 0.25
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    for name, text in (("MEM_PER_NODE", "16G"), ("CPUS_PER_TASK", "")):  # not what SLURM itself writes
        monkeypatch.setenv(f"SLURM_{name}", text)
    assert resources._free_memory() > 1 and resources._cores() >= 1


@pytest.mark.parametrize("visible, cards", [
    ("1", ("1",) * 5), ("GPU-bb", ("GPU-bb",) * 5), ("", ()), ("NoDevFiles", ()), ("MIG-cc", ("MIG-cc",))])
def test_slots_take_no_card_or_core_of_another_job(machine, visible, cards):
    machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine.setenv("SLURM_CPUS_PER_TASK", "4")
    assert slots(4) == resources.Slots(4, 1, cards)


def test_cards_whose_memory_cannot_be_told_have_room_for_a_run_each(machine):
    machine.setattr(resources.subprocess, "run", says("0, GPU-aa, [N/A]\n1, GPU-bb, 81920\n"))
    assert slots().gpus == ("0", "1", "1", "1", "1", "1")

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    machine.setattr(resources.subprocess, "run", missing)
    assert slots().gpus == ()
    machine.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert slots() == resources.Slots(2, 4, ("0", "3"))


def test_an_absolute_data_folder_is_not_published_and_a_run_gets_its_card_and_threads(tmp_path, monkeypatch):
    seen = {}

    class Process:
        pid, returncode = 1, 1
        stdout = []

        def __init__(self, command, **options):
            seen.update(options["env"])
            self.stdin = Pipe()

        __enter__, __exit__ = lambda self: self, lambda *_: None

    class Pipe(io.StringIO):
        def close(self):
            seen["parameters"] = json.loads(self.getvalue())

    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    monkeypatch.setattr("cifarlib.runs.record.commit", lambda: None)
    config = Config(data_dir=str(tmp_path), device="cuda:1")
    options = Options(executed_dir=str(tmp_path / "executed"))
    options.run_folder(config).mkdir(parents=True)

    def execute(**given):
        seen.clear()
        runner.execute_run(Run(config, (config,)), options, runner.Stopping(), **given)
        return seen["parameters"]

    parameters = execute()
    assert parameters["data_dir"] == "" and seen["CIFAR10_DIR"] == str(tmp_path) and parameters["device"] == "cuda:1"
    assert execute(gpu="1")["device"] == "cuda", "card 1 is the first, and only, one that the run sees"
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "as nvidia-smi, which says how large card 1 is, counts them"
    for name in launch.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    execute(threads=3)
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "3" and launch.ALLOCATOR.items() <= seen.items()
