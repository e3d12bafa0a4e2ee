"""The scripts of cifarlib/slurm on a real one-node SLURM, with tiny runs on the synthetic stand-in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from services import file_content, wait_for
from slurm_cluster import SlurmCluster, missing_programs

from cifarlib.config import Config

pytestmark = pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())} "
                                "(Debian: .ci/install_packages.sh)")

SOURCE = Path(__file__).parent.parent
EPOCHS = 24
SIZES = {"depth": 1, "dim": 32, "heads": 1, "head_dim": 8, "mlp_dim": 16}
TINY = {"dataset": "synthetic", "limit_train": 512, "limit_val": 100, "limit_test": 100, "model_args": SIZES,
        "early_stopping_patience": 10_000}
ARGUMENTS = [str(EPOCHS), "32", "vit", "step", "True", "0.001", "0.0001", "0.97"]
CONFIG = Config(model="vit", epochs=EPOCHS, batch_size=32, scheduler="step", augmentation=True, learning_rate=0.001,
                weight_decay=0.0001, gamma=0.97, **TINY)
RUN = CONFIG.run_name
OPTIONS = ["--wandb_mode", "disabled"]
for name, value in TINY.items():
    OPTIONS += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
GRID = {
    "fixed": {"model": "vit", "epochs": 1, "batch_size": 32, "scheduler": "step", **TINY},
    "rows": [{"gamma": 0.95}, {"model_args": {"patch": 5}}, {"gamma": 0.99}],  # 32 pixels make no patches of 5
}


@pytest.fixture(scope="session")
def cluster():
    with SlurmCluster() as running:
        yield running


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A copy of the project in a folder with a space in its name, with a tiny grid."""
    folder = tmp_path_factory.mktemp("slurm") / "the project"
    for name in ("cifarlib", "notebooks", "parameters"):
        shutil.copytree(SOURCE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE / "pyproject.toml", folder)
    (folder / "parameters/tiny.yaml").write_text(yaml.safe_dump(GRID))
    return folder


@pytest.fixture(scope="session")
def environment(cluster):
    """A user's shell on the cluster, with the python of the tests first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    return cluster.environment | {"PATH": path}


@pytest.fixture(scope="session")
def submit(cluster, project, environment):
    """Submit a script by sbatch, return the job's id."""
    def submit(script, *arguments, sbatch=()):
        return cluster.sbatch(*sbatch, f"cifarlib/slurm/{script}", *arguments, cwd=project, env=environment)
    return submit


@pytest.fixture(scope="session")
def first_jobs(project, environment, submit):
    """Two jobs that run while the arguments are tested: a single run, whose script is called without sbatch and submits
    itself, and one cell of a published set."""
    called = call(project, environment | {"SBATCH_JOB_NAME": "alone"}, "run_cluster.sh", *ARGUMENTS, *OPTIONS)
    assert called.returncode == 0, called.stderr
    only = "learning_rate=0.01,weight_decay=0.01,gamma=0.95"
    a_set = submit("run_cluster_sets.sh", "13", *OPTIONS, "--epochs", "1", "--only", only, "--study", "set")
    return {"single": called.stdout.split()[-1], "set": a_set}


@pytest.fixture(scope="session")
def single(cluster, first_jobs):
    """The ended job of a run that nothing disturbed."""
    return cluster.wait_for_end(first_jobs["single"])


@pytest.fixture(scope="session")
def expected(project, single):
    """The history of that run."""
    return history(project / "executed/slurm" / RUN)


def call(project, environment, script, *arguments, cwd=None):
    """Run a script without sbatch."""
    command = ["bash", str(project / "cifarlib/slurm" / script), *arguments]
    return subprocess.run(command, cwd=cwd or project, env=environment, capture_output=True, text=True, timeout=60)


def history(folder):
    """The columns of a run's history.csv without its times."""
    return file_content(folder / "history.csv")


def record(folder):
    return json.loads((folder / "record.json").read_text())


def log(project, job_id):
    """What a job printed; the log's name ends in the job's id, or in ARRAY_TASK."""
    return "".join(path.read_text() for path in project.glob(f"*-{job_id}.log"))


def wait_for_epochs(folder, count):
    """Wait until a run has finished `count` epochs."""
    table = folder / "history.csv"
    wait_for(lambda: table.exists() and len(history(folder)["epoch"]) >= count, 120, f"epoch {count} in {folder.name}")


def processes(job_id, cluster):
    """The processes of a job, by the environment that SLURM gave them."""
    marks = {"SLURM_JOB_ID": job_id, "SLURM_CONF": f"{cluster.folder}/slurm.conf"}
    return [process for process in psutil.process_iter(["environ"])
            if marks.items() <= (process.info["environ"] or {}).items()]


@pytest.mark.usefixtures("first_jobs")
@pytest.mark.parametrize("script, arguments, complaint", [
    ("run_cluster.sh", [], "EPOCHS BATCH MODEL SCHEDULER AUGMENTATION LR WD GAMMA"),
    ("run_cluster.sh", ARGUMENTS[:7], "got 7"),
    ("run_cluster.sh", [*ARGUMENTS, "5"], "'5'"),
    ("run_cluster.sh", [*ARGUMENTS[:4], "Yes", *ARGUMENTS[5:]], "AUGMENTATION"),
    ("run_cluster.sh", [*ARGUMENTS, "--epochz", "3"], "epochz"),
    ("run_cluster.sh", [*ARGUMENTS, "--no-resume"], "remove the run folders"),
    ("run_cluster_sets.sh", [], "1 to 18"),
    ("run_cluster_sets.sh", ["7", "8"], "'8'"),
    ("run_cluster_sets.sh", ["7", "--only", "model=resnt"], "resnt"),
    ("run_grid.sh", [], "GRID"),
    ("run_grid.sh", ["parameters/none.yaml"], "parameters/none.yaml"),
    ("run_grid.sh", ["parameters/tiny.yaml", "--epochs", "0"], "epochs"),
])
def test_bad_arguments_are_one_line_and_nothing_is_queued(cluster, project, environment, script, arguments, complaint):
    known = ("squeue", "--noheader", "--states=all", "--format=%i")
    before = sorted(cluster.command(*known).stdout.split())
    done = call(project, environment, script, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert complaint in done.stderr
    assert sorted(cluster.command(*known).stdout.split()) == before


def test_a_job_from_outside_the_project_says_so(cluster, project, environment, tmp_path):
    script = project / "cifarlib/slurm/run_grid.sh"
    job = cluster.wait_for_end(cluster.sbatch("--array=1", script, "x.yaml", cwd=tmp_path, env=environment))
    assert job["ExitCode"] == "2:0"
    assert "inside the project's folder" in next(tmp_path.glob("*.log")).read_text()


def test_a_script_called_from_elsewhere_submits_from_the_project(cluster, project, environment, tmp_path):
    overrides = {"SBATCH_ARRAY_INX": "2", "SBATCH_JOB_NAME": "far", "SBATCH_TIMELIMIT": "7"}
    grid = os.path.relpath(project / "parameters/tiny.yaml", tmp_path)
    called = call(project, environment | overrides, "run_grid.sh", grid, "--dry-run", cwd=tmp_path)
    assert called.returncode == 0, called.stderr
    job = cluster.wait_for_end(called.stdout.split()[-1])
    assert (job["JobState"], job["TimeLimit"]) == ("COMPLETED", "00:07:00")
    assert "3 cells" in (project / f"far-{job['JobId']}_2.log").read_text()


def test_a_single_run(project, single, expected):
    assert single["JobState"] == "COMPLETED", log(project, single["JobId"])
    assert "gpu:1" in single["TresPerNode"] and single["Requeue"] == "1"
    assert f"epoch {EPOCHS}/{EPOCHS}" in (project / f"alone-{single['JobId']}.log").read_text()
    written = record(project / "executed/slurm" / RUN)
    assert written["status"] == "done" and written["config"]["augmentation"] is True
    assert [*expected["epoch"].values()] == [str(number + 1) for number in range(EPOCHS)]


def test_a_set(cluster, project, first_jobs):
    job = cluster.wait_for_end(first_jobs["set"])
    assert job["JobState"] == "COMPLETED", log(project, job["JobId"])
    [folder] = [path.parent for path in (project / "executed/set").glob("*/record.json")]
    assert folder.name.startswith("vit_aug_True_scheduler_exponential_lr_0.01_wd_0.01_gamma_0.95_depth_1")
    assert record(folder)["status"] == "done" and record(folder)["config"]["batch_size"] == 256


def test_an_array_with_a_throttle_and_a_failing_cell(cluster, project, submit):
    array = submit("run_grid.sh", "parameters/tiny.yaml", "--jobs", "1", "--study", "array", sbatch=["--array=1-3%2"])
    wait_for(lambda: array not in " ".join(cluster.running()), 120, "the array to end")
    assert len(list(project.glob(f"cifar-grid-{array}_[1-3].log"))) == 3
    statuses = [record(folder.parent)["status"] for folder in (project / "executed/array").glob("*/record.json")]
    assert sorted(statuses) == ["done", "done", "failed"]
    printed = log(project, f"{array}_*")
    assert printed.count("  done  ") == 2 and printed.count("  failed  ") == 1
    logs = [log(project, f"{array}_{task}") for task in (1, 2, 3)]
    assert [text.count("  done  ") + text.count("  failed  ") for text in logs] == [1, 1, 1], "each trains its chunk"
    assert "FAILED" in {cluster.job(f"{array}_{task}")["JobState"] for task in (1, 2, 3)}


def test_scancel_stops_a_job_for_good(cluster, project, submit):
    folder = project / "executed/cancelled" / CONFIG.replace(epochs=5000).run_name
    job_id = submit("run_cluster.sh", "5000", *ARGUMENTS[1:], *OPTIONS, "--study", "cancelled")
    wait_for_epochs(folder, 2)
    assert processes(job_id, cluster)
    cluster.command("scancel", job_id)
    job = cluster.wait_for_end(job_id)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    wait_for(lambda: not processes(job_id, cluster), 30, "the job's processes to end")
    assert record(folder)["status"] == "preempted"


def test_only_the_warned_task_of_an_array_goes_back(cluster, project, environment, tmp_path):
    """With a stand-in for python that takes a second to stop, and is through when it is started again."""
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\n"
                      "[[ $1 == -c || $SLURM_RESTART_COUNT ]] && exit\n"
                      "trap '' TERM\n"
                      "trap 'sleep 1; echo stopped; exit 75' USR1\n"
                      "echo started\n"
                      "for i in {1..600}; do sleep 0.1; done\n")
    python.chmod(0o755)
    array = cluster.sbatch("--array=1-3", "cifarlib/slurm/run_grid.sh", "parameters/tiny.yaml", cwd=project,
                           env=environment | {"PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}"})
    wait_for(lambda: log(project, f"{array}_*").count("started") == 3, 30, "the three tasks to start")
    assert cluster.job(f"{array}_3")["JobId"] == array  # the last task's own number is also that of the array
    cluster.command("scancel", "--batch", "--signal=USR1", f"{array}_3")
    cluster.command("scancel", f"{array}_1")
    cluster.wait_for_state(f"{array}_1", "CANCELLED", timeout=30)
    cluster.wait_for_state(f"{array}_3", "COMPLETED", timeout=30)
    jobs = [cluster.job(f"{array}_{task}") for task in (1, 2, 3)]
    cluster.command("scancel", array)
    assert [job["Restarts"] for job in jobs] == ["0", "0", "1"]
    assert [job["JobState"] for job in jobs] == ["CANCELLED", "RUNNING", "COMPLETED"]
    assert log(project, f"{array}_1").endswith("stopped\n")
    assert log(project, f"{array}_3").startswith("started\nstopped\nrun_grid.sh: job")  # requeued when it had stopped


def test_a_preempted_and_then_warned_job_is_requeued_and_continues(cluster, project, submit, expected):
    """Preempted before its first epoch, warned after its second, it goes back to the queue and on to the same end."""
    folder = project / "executed/preempted" / RUN
    job_id = submit("run_cluster.sh", *ARGUMENTS, *OPTIONS, "--study", "preempted", sbatch=["--exclusive"])
    wait_for((folder / "run.log").exists, 60, "the run to start")
    urgent = cluster.sbatch("--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert cluster.wait_for_end(urgent)["JobState"] == "COMPLETED"
    assert (record(folder)["status"], record(folder)["epochs_run"]) == ("preempted", 0)
    wait_for_epochs(folder, 2)
    cluster.command("scancel", "--batch", "--signal=USR1", job_id)
    job = cluster.wait_for_end(job_id)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "2"), log(project, job_id)
    assert log(project, job_id).count("goes back to the queue") == 2  # before SLURM does it, after GraceTime
    assert history(folder) == expected


def test_a_warning_before_the_first_epoch_ends_a_job(cluster, project, submit):
    job_id = submit("run_cluster.sh", *ARGUMENTS, *OPTIONS, "--study", "early")
    wait_for((project / "executed/early" / RUN / "run.log").exists, 60, "the run to start")
    cluster.command("scancel", "--batch", "--signal=USR1", job_id)
    job = cluster.wait_for_end(job_id)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "76:0", "0")
    assert "submit it with a longer --time" in log(project, job_id).splitlines()[-1]
