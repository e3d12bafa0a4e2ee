"""A real one-node SLURM in a temporary folder, for tests: munged, slurmctld and slurmd on loopback.

It needs no systemd, no cgroups, no database and no file outside its folder; it is stopped by its own process ids.
"""
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from services import Service, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
USER = pwd.getpwuid(os.getuid()).pw_name
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

# cred_expire is how long a requeued job waits before it may start again (SLURM's default: 120 s; 5 is its least).
# preempt_send_user_signal: a job that is preempted gets its --signal too, at the start of GraceTime.
# CPUs and GPUs are only counted, never bound: config_overrides lets the node claim more than it has.
CONFIG = """\
ClusterName=workbook
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
KillWait=15
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=1,default_queue_depth=100
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=16 RealMemory=64000 Gres=gpu:4
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=node MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def program(name):
    """The path of one of SLURM's programs, or None."""
    return shutil.which(name, path=SEARCH_PATH)


def missing_programs():
    """The programs of SLURM and munge that are not installed, in a list."""
    return [name for name in PROGRAMS if program(name) is None]


def version():
    """SLURM's version as numbers, e.g. (22, 5, 8)."""
    words = subprocess.run([program("slurmctld"), "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in re.search(r"\d[\d.]*\d", words).group().split("."))


class SlurmCluster(Service):
    """A running cluster with one node (16 CPUs, 4 GPUs by name only) and two partitions: `urgent` preempts `main`."""

    def __init__(self):
        # Not below pytest's folder: munged wants every parent of its socket to be searchable by all, and a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.daemons = []

    @property
    def environment(self):
        """The environment in which SLURM's commands find this cluster, without what an outer job left."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return outer | {"PATH": SEARCH_PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self):
        """Write the configuration and start the three daemons. Raises RuntimeError with their logs."""
        host = socket.gethostname().split(".")[0]
        controller_port, node_port = free_ports(2)
        (self.folder / "slurm.conf").write_text(CONFIG.format(
            host=host, user=USER, folder=self.folder, controller_port=controller_port, node_port=node_port))
        if version() >= (23, 11):  # those look for cgroups otherwise, and earlier ones don't know the word
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-3]\n")
        for number in range(4):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munged.pid",
                 "seed-file": self.folder / "munged.seed"}
        # --force: a temporary folder that the group may write is a warning then.
        self._daemon("munged", "--foreground", "--force", *[f"--{name}={path}" for name, path in files.items()])
        self._wait_until(files["socket"].exists, "munged")
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-N", "node")
        idle = ("sinfo", "--noheader", "--format=%T")
        self._wait_until(lambda: self.command(*idle, check=False).stdout.split()[:1] == ["idle"], "the node")

    def _daemon(self, name, *arguments):
        with open(self.folder / f"{name}.out", "wb") as output:
            self.daemons.append(subprocess.Popen(
                [program(name), *arguments], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True))

    def _wait_until(self, condition, what, timeout=30):
        def ready_or_dead():
            return condition() or any(daemon.poll() is not None for daemon in self.daemons)
        try:
            wait_for(ready_or_dead, timeout, what)
            assert condition(), f"a daemon ended while {what} was awaited"
        except (TimeoutError, AssertionError) as error:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.out")))
            raise RuntimeError(f"{error}; the daemons wrote:\n{logs}") from None

    def stop(self):
        """Cancel all jobs, stop the daemons by their process ids, remove the folder."""
        with suppress(TimeoutError, subprocess.TimeoutExpired):  # the daemons have to go in any case
            self.command("scancel", f"--user={USER}", check=False)
            wait_for(lambda: not self.running(), 40, "the last jobs to end")  # they are killed after KillWait
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words, check=True, cwd=None, env=None):
        """Run one of SLURM's commands against this cluster."""
        result = subprocess.run([str(word) for word in words], cwd=cwd, env=self.environment | (env or {}),
                                capture_output=True, text=True, timeout=60)
        assert not check or result.returncode == 0, f"{words}: {result.returncode}: {result.stderr}"
        return result

    def sbatch(self, *words, **options):
        """Submit a job, return its id (text)."""
        return re.search(r"\d+", self.command("sbatch", *words, **options).stdout).group()

    def running(self):
        """Ids of the jobs that are still in the queue; of an array one id for all tasks that wait."""
        return self.command("squeue", "--noheader", "--format=%i", check=False).stdout.split()

    def job(self, job_id):
        """What `scontrol show job` says, as a dict; {} for a job it doesn't know. An array's task: '5_2'."""
        text = self.command("scontrol", "--oneliner", "show", "job", job_id, check=False).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0])) if text else {}

    def wait_for_state(self, job_id, *states, timeout=120):
        """Wait until the job is in one of the states, e.g. COMPLETED; return the job."""
        def arrived():
            job = self.job(job_id)
            return job if job.get("JobState") in states else None
        try:
            return wait_for(arrived, timeout, f"job {job_id} to be {' or '.join(states)}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is: {self.job(job_id)}") from None

    def wait_for_end(self, job_id, timeout=120):
        """Wait until the job has left the node for good; return the job."""
        return self.wait_for_state(job_id, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=timeout)


def free_ports(count):
    """Ports that nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
