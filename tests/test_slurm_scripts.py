"""What the scripts of cifarlib/slurm decide; stand-ins for conda, python and SLURM note how they are called."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from services import until

ROOT = Path(__file__).parent.parent
RUN = ["run_cluster.sh", "1", "32", "vit", "step", "True", "0.001", "0.0001", "0.97"]
CONDA = """
echo "conda $*" >>calls
case "$1 $2" in
    "env list") echo "base  *  /opt/conda"; for each in envs/*; do echo "${each#envs/}  $PWD/$each"; done ;;
    "create --yes") mkdir -p envs/cifar/bin; ln -s "$(command -v python3)" envs/cifar/bin/python ;;
    "shell.bash hook") echo 'conda() { PATH=$2/bin:$PATH; }' ;;
    "env update") [[ $PYTHONNOUSERSITE ]] ;;
esac
"""
PYTHON3 = """
echo "python $*" >>calls
[[ "$1 $2" != "-m venv" ]] || { mkdir -p .venv/bin; ln -s "$0" .venv/bin/python; }
"""
STOPPABLE = """
[[ $1 == -c ]] && exit
trap '' TERM
trap "$ON_USR1" USR1
touch started
while sleep 0.1; do :; done
"""
SCONTROL = """
echo "scontrol $*" >>calls
[[ $2 != show ]] || echo "JobId=7 $KNOWN GroupId=x"
"""


@pytest.fixture
def project(tmp_path):
    """A folder with the package, in which the stand-ins leave their `calls`."""
    folder = tmp_path / "the project"
    shutil.copytree(ROOT / "cifarlib", folder / "cifarlib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "calls").touch()
    return folder


def install(project, **programs):
    """Put programs of bash on the PATH of `start`."""
    for name, text in programs.items():
        path = project.parent / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)


def start(project, script, *arguments, **environment):
    """A script, started with this environment alone."""
    environment["PATH"] = f"{project.parent / 'bin'}:/usr/bin:/bin"
    return subprocess.Popen(["bash", f"cifarlib/slurm/{script}", *arguments], cwd=project, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    """(exit code, stdout, stderr) of a script."""
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def calls(project):
    return (project / "calls").read_text().splitlines()


def test_line_ends_survive_a_git_that_writes_those_of_windows(project):
    shutil.copy(ROOT / ".gitattributes", project)
    (project / "other").mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"], ["clone", "-q", ".", "other"]):
        subprocess.run([*git, *command], cwd=project, env=os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}, check=True)
    code, _, stderr = ended(start(project / "other", "run_cluster_sets.sh", "0"))
    assert (code, stderr) == (2, "run_cluster_sets.sh: SET: expected a number from 1 to 18, got '0'\n")


def test_a_set_up_without_conda_makes_a_venv(project):
    install(project, python3=PYTHON3)
    code, stdout, stderr = ended(start(project, "setup_env.sh"))
    assert (code, stdout) == (0, f"setup_env.sh: done; jobs will use {project}/.venv/bin/python\n"), stderr
    assert "python -m pip install --editable ." in calls(project)


def test_a_set_up_makes_condas_environment_and_updates_only_its_own(project):
    install(project, conda=CONDA, python3=PYTHON3)
    (project / "envs/cifar10").mkdir(parents=True)  # another's
    update = "conda env update --name cifar --file environment.yml --prune"
    for times in (1, 2):
        code, stdout, stderr = ended(start(project, "setup_env.sh"))
        assert (code, stdout) == (0, f"setup_env.sh: done; jobs will use {project}/envs/cifar/bin/python\n"), stderr
        assert calls(project).count(update) == times
    assert "conda create --yes --quiet --name cifar" in calls(project) and not (project / ".venv").exists()


def test_a_set_up_leaves_an_environment_that_it_did_not_make(project):
    install(project, conda=CONDA, python3=PYTHON3, sbatch='echo "sbatch $*" >>calls')
    (project / "envs/cifar/bin").mkdir(parents=True)
    code, stdout, stderr = ended(start(project, "setup_env.sh"))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1) and "was not made by this script" in stderr
    assert set(calls(project)) == {"conda env list"} and os.listdir(project / "envs/cifar") == ["bin"]
    (project / ".venv/bin").mkdir(parents=True)  # one of the ways out, which jobs then take
    (project / ".venv/bin/python").symlink_to(project.parent / "bin/python3")
    assert ended(start(project, *RUN)) == (0, "", "")
    assert calls(project)[-1] == f"sbatch cifarlib/slurm/{' '.join(RUN)}"
    assert "conda shell.bash hook" not in calls(project)


@pytest.mark.parametrize("python, environment, reason", [
    (sys.executable, {"PYTHONPATH": sysconfig.get_path("purelib")}, "OSError: libcudart.so.0: cannot open"),
    (sys.executable, {"PYTHONHOME": "/none"}, "No module named 'encodings'"),  # as a module of another python sets it
    ("/apps/python/bin/python3", {}, "No such file or directory"),
])
def test_a_python_that_cannot_be_used_is_named_with_its_reason_and_its_modules(python, environment, reason, project):
    install(project, python=STOPPABLE)  # which must not be used instead
    (project / "torch.py").write_text("import ctypes; ctypes.CDLL('libcudart.so.0')")
    (project / ".venv/bin").mkdir(parents=True)
    base = Path(python).resolve()
    (project / ".venv/bin/python").symlink_to(base)
    (project / ".venv/pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (project / ".venv/made_by_setup_env").write_text("gcc/12.2:python/3.11.5\n")
    code, stdout, stderr = ended(start(project, *RUN, SLURM_JOB_ID="7", **environment))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert f"{project}/.venv/bin/python can't be used here: " in stderr and reason in stderr
    assert f"(gcc/12.2 python/3.11.5 python from {base.parent})" in stderr


RUNNING, PREEMPTED = "JobState=RUNNING PreemptTime=None", "JobState=RUNNING PreemptTime=2030-01-01T00:00:00"
ENDING = "JobState=COMPLETING PreemptTime=None Reason="
LONGER, EARLIER = "submit it with a longer --time", "submit with an earlier one"


@pytest.mark.parametrize("sent, on_usr1, known, code, requeued, advice", [
    ("USR1", "exit 75", RUNNING, 75, True, []),
    ("USR1", "exit 75", f"{ENDING}None", 75, False, []),  # cancelled meanwhile
    ("USR1", "exit 76", RUNNING, 76, False, [LONGER]),
    ("USR1", "exit 76", PREEMPTED, 76, True, []),
    ("USR1", "-", RUNNING, 138, False, [LONGER]),  # killed by the signal
    ("USR1", "-", PREEMPTED, 138, True, []),
    ("USR1", "exit 0", RUNNING, 0, False, []),
    ("USR1", "exit 1", RUNNING, 1, False, []),
    ("TERM", "exit 75", f"{ENDING}TimeLimit", 75, False, [EARLIER]),  # an epoch longer than the warning
    ("TERM", "exit 75", f"{ENDING}None", 75, False, []),
])
def test_a_warned_job_is_requeued_only_if_that_leads_on(sent, on_usr1, known, code, requeued, advice, project):
    install(project, python=STOPPABLE.replace('"$ON_USR1"', f"'{on_usr1}'"), scontrol=SCONTROL)
    job = start(project, *RUN, SLURM_JOB_ID="7", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2", KNOWN=known)
    until((project / "started").exists)
    job.send_signal(signal.Signals[f"SIG{sent}"])
    ended_with, _, stderr = ended(job)
    assert ended_with == code and ("scontrol requeue 5_2" in calls(project)) == requeued
    assert [text for text in (LONGER, EARLIER) if text in stderr] == advice
