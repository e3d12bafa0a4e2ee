"""Grids through papermill for real: several runs at a time, resumed, claimed, isolated from each other's failures."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas
import psutil
import pytest
import torch
from conftest import TINY
from services import differences, until

from cifarlib import device, machine
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


def test_a_grid_goes_on_when_nobody_reads_what_it_prints(tmp_path):
    process = grid(tmp_path, FIXED + "rows: [{seed: [1, 2]}]\n", "--jobs", "1", wait=False)
    process.stdout.close()
    assert process.wait(300) == 0
    assert len(pandas.read_csv(tmp_path / "executed" / "g" / "runs.csv").query("status == 'done'")) == 2


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
    assert not differences(folder, uninterrupted)


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


def test_two_interrupts_end_a_grid_whose_warm_process_hangs_in_an_import(tmp_path):
    (tmp_path / "torch.py").write_text(f"import time\nopen({str(tmp_path / 'begun')!r}, 'w')\ntime.sleep(600)")
    process = grid(tmp_path, LONG, wait=False, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"})
    until((tmp_path / "begun").exists)
    process.send_signal(signal.SIGINT)
    until(lambda: "stopping:" in process.stdout.readline())
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 76 and status_of(run_folder(tmp_path)) == "pending", output


def test_where_no_process_can_be_forked_runs_start_cold_and_give_the_same_numbers(tmp_path, uninterrupted):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[600], daemon=True).start()")
    cold = grid(tmp_path, LONG, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"})
    assert cold.returncode == 0
    assert cold.output.count("no warm start (RuntimeError: an import has started a thread)") == 1
    assert not differences(run_folder(tmp_path), uninterrupted)


def test_a_warm_process_whose_runner_was_killed_meanwhile_ends_without_a_word():
    runner, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(os.devnull) as nothing, theirs:
        socket.send_fds(runner, [b"1"], [nothing.fileno()] * 2)
        runner.close()  # nobody waits for the answer
        ended = subprocess.run([sys.executable, "-m", "cifarlib.batch.warm", str(theirs.fileno())], cwd=PROJECT,
                               pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=120)
    assert ended.stdout + ended.stderr == ""


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
    stopping, options = runner.Stopping(1), Options(executed_dir=str(tmp_path))
    stopping.alike, stopping.progress = ["failed"] * fail_fast, True
    assert runner._exit_code(runs, options, {}, stopping) == code
    stopping.requested = True
    if "running" in statuses:  # others train it: stopped while waiting for them, not all is done
        assert runner._exit_code(runs, options, {}, stopping) == 75


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


def test_a_claim_has_one_owner_among_many(tmp_path):
    barrier = threading.Barrier(16)

    def take(_):
        barrier.wait()
        return Claim.take(tmp_path / "run")

    with ThreadPoolExecutor(16) as pool:
        (owner,) = filter(None, pool.map(take, range(16)))
    assert is_claimed(tmp_path / "run") and Claim.take(tmp_path / "run") is None
    owner.release()
    assert not is_claimed(tmp_path / "run")
    second = Claim.take(tmp_path / "run")
    assert second and second.number == owner.number + 1
    second.release()


def test_a_claim_without_heartbeat_is_taken_over_and_its_owner_notices(tmp_path, monkeypatch):
    owner = Claim.take(tmp_path)
    monkeypatch.setattr(claim.socket, "gethostname", lambda: "another machine")  # its process ids mean nothing here
    with monkeypatch.context() as fast:
        fast.setattr(claim.time, "time", lambda: 1e10)  # this machine's clock; the file system's dates the claim
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


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """Eight cores, 100 GiB of memory, no GPU, no SLURM; the control groups that a test makes in the folder."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * 2**30))
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "DEVICES", tmp_path / "dev")
    for name in os.environ:
        if name.startswith(("SLURM_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return monkeypatch


def sees(cards, reason="", errors=""):
    """A stand-in for subprocess.run, whose process says what torch finds."""
    return lambda *_, **__: subprocess.CompletedProcess([], 0, f"{json.dumps([cards, reason])}\n", errors)


@pytest.fixture
def cards(bare):
    """Two idle cards of 80 GiB."""
    bare.setattr(resources, "sign_of_gpu", lambda: "two cards")
    bare.setattr(resources.subprocess, "run", sees([["0", 80, 80, False], ["1", 80, 80, False]]))
    return bare


def slots(jobs=0, device="auto", *models):
    configs = [Config(device=device, **model) for model in models or [{}] for _ in range(16)]
    return resources.Slots.of_this_machine(jobs, configs)


def test_slots_share_cores_and_cards(cards):
    assert slots() == resources.Slots(10, 1, ("0", "1") * 5)
    assert slots(2) == resources.Slots(2, 4, ("0", "1") * 5)
    assert slots(0, "cpu") == resources.Slots(8, 1, ())
    assert slots(0, "cuda:1") == resources.Slots(5, 1, ("1",) * 5)
    assert slots(12) == resources.Slots(12, 1, ("0", "1") * 5), "as asked for"
    with pytest.raises(InputError, match="device: cuda:2 is not there"):
        slots(0, "cuda:2")
    with pytest.raises(InputError, match="device: expected one for all runs, got cuda:0 and cuda:1"):
        resources.Slots.of_this_machine(0, [Config(device="cuda:0"), Config(device="cuda:1")])
    few = resources.Slots.of_this_machine(0, [Config(device="cpu")] * 3)
    assert few == resources.Slots(3, 2, ()), "no core waits for a run that isn't there"
    cards.setattr(resources, "free_memory", lambda: 9.0)
    assert slots(0, "cpu") == resources.Slots(2, 4, ())
    assert slots() == resources.Slots(2, 4, ("0", "1") * 5)


def test_a_vit_of_the_published_width_needs_more_memory_on_a_cpu(cards):
    cnn, vit = {"model": "cnn"}, {"model": "vit"}
    deep, small = ({"model": "vit", "model_args": sizes} for sizes in ({"depth": 12}, TINY["vit"]))
    assert slots(0, "cpu", cnn, vit).jobs == slots(0, "cpu", deep).jobs == 7 and slots(0, "cpu", small).jobs == 8
    assert slots(0, "auto", cnn, vit).jobs == 10


def test_memory_is_what_a_slurm_job_was_given(bare):
    for given, free in (({"MEM_PER_NODE": "512"}, 0.5), ({"MEM_PER_CPU": "128", "CPUS_ON_NODE": "2"}, 0.25),
                        ({"MEM_PER_NODE": "16G", "CPUS_PER_TASK": ""}, 100)):  # not what SLURM itself writes
        for name, text in given.items():
            bare.setenv(f"SLURM_{name}", text)
        assert machine.free_memory() == free and machine.cores() == 8
        for name in given:
            bare.delenv(f"SLURM_{name}")


STAT = "anon {0}\nfile 7\n", "cache 7\nrss 1\ntotal_rss {0}\n"  # of version 2 and version 1, with so many bytes in use


@pytest.mark.parametrize("own, files", [
    ("0::/job\n", {"job/memory.max": "max", "job/memory.stat": STAT[0].format(2**40), "job/cpu.max": "max 100000",
                   "memory.max": 3 * 2**30, "memory.stat": STAT[0].format(2**29), "cpu.max": "150000 100000"}),
    ("4:memory:/job/step\n1:cpu,cpuacct:/job\n0::/\n", {
        "memory/job/memory.limit_in_bytes": 3 * 2**30, "memory/job/memory.stat": STAT[1].format(2**29),
        "memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.stat": STAT[1].format(2**40),
        "cpu/job/cpu.cfs_quota_us": 150000, "cpu/job/cpu.cfs_period_us": 100000,
        "cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000})])
def test_the_limits_of_all_control_groups_around_a_process_hold(own, files, bare, tmp_path):
    assert (machine.cores(), machine.free_memory()) == (8, 100)
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert (machine.cores(), machine.free_memory()) == (1, 2.5)
    assert slots(0, "cpu") == resources.Slots(1, 1, ())
    torch.set_num_threads(2)
    device.pick_device("cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("found, gpus", [
    ([["0", 80, 40, False], ["1", 80, 79, False]], ("0", "1", "0", "1", "1", "1")),  # somebody else is on card 0
    ([["0", 80, 79, True], ["1", 80, 0, True]], ("0",)),  # exclusive: 1 has its process
    ([["GPU-a", 80, 3, False], ["GPU-b", 24, 5, False]], ("GPU-b",)),  # all in use
    ([["0", 8, 7, False], ["1", 24, 9, False]], ("0",))])
def test_cards_have_room_by_the_memory_that_others_leave(found, gpus, cards, capsys):
    cards.setattr(resources.subprocess, "run", sees(found))
    assert slots().gpus == gpus
    exclusive = found[0][3]
    assert slots(2).jobs == (1 if exclusive else 2), "a second run on an exclusive card would fail"
    assert ("--jobs 2" in capsys.readouterr().err) == exclusive


@pytest.mark.parametrize("visible, names", [
    (None, ["0", "1"]), ("0, 1", ["0", "1"]), ("GPU-b,MIG-c", ["GPU-b", "MIG-c"])])
def test_torch_says_what_is_free_on_which_card(visible, names, bare):
    def free(number):
        if number:
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")
        return 3 * 2**30, 8 * 2**30

    class Driver:
        def cuDeviceGetAttribute(self, mode, attribute, number):
            mode._obj.value = 3 * number

    if visible:
        bare.setenv("CUDA_VISIBLE_DEVICES", visible)
    bare.setattr(torch.cuda, "is_available", lambda: True)
    bare.setattr(torch.cuda, "device_count", lambda: 2)
    bare.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=8 * 2**30))
    bare.setattr(torch.cuda, "mem_get_info", free)
    bare.setattr(device.ctypes, "CDLL", lambda name: Driver())
    assert device.gpus() == [(names[0], 8, 3, False), (names[1], 8, 0, True)]


@pytest.mark.parametrize("sign", ["nvidia-smi lists GPU 0: old", "SLURM_JOB_GPUS=0", "nvidia0"])
def test_a_card_that_torch_cannot_use_is_told_loudly_and_recorded(sign, bare, tmp_path, capsys):
    device.why_no_gpu.cache_clear()
    device.say_once.cache_clear()
    assert slots().gpus == () and device.pick_device().type == "cpu" and capsys.readouterr().err == ""
    device.why_no_gpu.cache_clear()
    for folder in ("bin", "dev"):
        (tmp_path / folder).mkdir()
    if sign.startswith("nvidia-smi"):
        (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: old'\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    elif sign == "nvidia0":
        (tmp_path / "dev" / sign).touch()
    else:
        bare.setenv(*sign.split("="))

    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old\nand more")

    bare.setattr(torch.cuda, "init", fail)
    for _ in range(2):
        assert device.pick_device().type == "cpu"
    told = capsys.readouterr().err
    assert told.count("NO GPU IS USED") == told.count(sign) == told.count("driver on your system is too old)") == 1
    assert sign in device.describe(torch.device("cpu"), "auto") and sign not in device.describe(torch.device("cpu"))
    with pytest.raises(InputError, match="cuda is not there .*too old"):
        device.pick_device("cuda")
    bare.setattr(resources.subprocess, "run", sees([], device.why_no_gpu()))
    bare.setattr(resources, "sign_of_gpu", lambda: sign)
    assert slots().gpus == () and "NO GPU IS USED" in capsys.readouterr().err, "a grid's runs say it in their logs only"
    bare.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.sign_of_gpu() == "", "the user wants none"
    device.why_no_gpu.cache_clear()


def test_an_absolute_data_folder_is_not_published_and_a_run_gets_its_card_and_threads(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexport job=$(cat)\nenv -0 >'{tmp_path}/seen'\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    config = Config(data_dir=str(tmp_path), device="cuda:1")
    options = Options(executed_dir=str(tmp_path / "executed"))
    options.run_folder(config).mkdir(parents=True)

    def execute(**given):
        runner.execute_run(Run(config, (config,)), options, runner.Stopping(), **given)
        seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().split("\0") if line)
        return seen, json.loads(seen["job"])["parameters"]

    for name in launch.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    seen, parameters = execute()
    assert parameters["data_dir"] == "" and seen["CIFAR10_DIR"] == str(tmp_path) and parameters["device"] == "cuda:1"
    assert seen["HOME"] == os.environ["HOME"]
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # an unknown user
    seen, parameters = execute(gpu="1", threads=3)
    assert parameters["device"] == "cuda", "card 1 is the first, and only, one that the run sees"
    assert seen["CUDA_VISIBLE_DEVICES"] == "1" and os.path.isdir(seen["HOME"])
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "3" and launch.ALLOCATOR.items() <= seen.items()
