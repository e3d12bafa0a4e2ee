"""A process that has imported what runs need and computed nothing: `python -m cifarlib.batch.warm SOCKET`.

Over SOCKET, a file descriptor, the runner (see launch.py) sends a run's job as JSON (environment, folder, and what
kernel.main takes) together with the files for its output and the lock of its claim. The answer is the id of the run's
process. It was forked twice and so is the runner's own child: neither the end of the warm process nor that of another
run touches it. Before it does anything else, it forks the process that will be its kernel.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..files import PACKAGE
from ..runs.record import commit
from . import kernel
from .launch import Fork

OTHERS = ("papermill", "jupyter_client.provisioning", "ipykernel.kernelapp", "ipykernel.ipkernel",
          "IPython.core.pylabtools", "matplotlib.backends.backend_agg")
GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri")
LARGEST_JOB = 2**20  # bytes


def main(descriptor: str) -> None:
    """Serve the runner until it is gone. Returns in the processes of its runs, too, when they have done their jobs."""
    codes = [kernel.FAILED]
    atexit.register(leave, codes)
    kernel.ignore_signals()
    named("cifarlib warm")
    runner = socket.socket(fileno=int(descriptor))
    try:
        prepare()
    except Exception as error:
        runner.send(f"{type(error).__name__}: {error}".encode())
        return
    if request := serve(runner):
        codes.append(run(*request))


def leave(codes: list[int]) -> None:
    """End this process with the last of `codes`, before Python frees its memory.

    Registered first, it is called last. A fork would copy the memory that it shares, only to free it: a third of a
    second.
    """
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(codes[-1])


def prepare() -> None:
    """Import this package and OTHERS. Raises RuntimeError if this process can't be forked then."""
    own = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], f"{PACKAGE.name}.")]
    for name in [*OTHERS, *own]:
        if not name.endswith(("__main__", ".warm")):
            importlib.import_module(name)
    commit()  # remembered: that of the code which was imported
    gc.freeze()  # or collecting garbage would copy the memory that forks share
    if os.fork() == 0:  # numpy's BLAS has threads, which it ends when a fork is near
        os._exit(0)
    os.wait()
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread")
    if any(file.startswith(GPUS) for file in open_files()):
        raise RuntimeError("an import has opened a GPU")


def open_files() -> list[str]:
    """The paths of what this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # of the listing itself
            found.append(os.readlink(path))
    return found


def serve(runner: socket.socket) -> tuple | None:
    """Fork a process for each request, and return (job, output, locks) in it; None here, when the runner is gone."""
    while True:
        request, files, *_ = socket.recv_fds(runner, LARGEST_JOB, 2)
        if not request:
            return None
        reading, writing = os.pipe()
        first = os.fork()
        if first == 0:
            with suppress(OSError):
                between, second = os.getpid(), os.fork()
                if second == 0:
                    while os.getppid() == between:  # a run whose parent isn't its runner ends itself
                        time.sleep(0.001)
                    for file in (runner.detach(), reading, writing):
                        os.close(file)
                    return json.loads(request), *files
                os.write(writing, str(second).encode())
            os._exit(0)
        os.waitpid(first, 0)  # from here on the second is the runner's child
        os.close(writing)
        runner.send(os.read(reading, 20) or b"no process can be forked")
        for file in (reading, *files):
            os.close(file)


def run(job: dict, output: int, *locks: int) -> int:
    """In a run's process: do its job and return the exit code."""
    named("cifarlib run")
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    provisioner = forked_kernel()
    move(job)
    return kernel.main(job["parameters"], *job["arguments"], *map(str, locks), provisioner=provisioner)


def forked_kernel() -> type:
    """Fork a process that waits to be this run's kernel; return jupyter_client's provisioner that makes it one."""
    from jupyter_client.provisioning import LocalProvisioner

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        named("cifarlib kernel")
        os.setsid()
        os.close(writing)
        kernel.end_with(os.getppid())
        with open(reading) as pipe:
            text = pipe.read()
        if text:  # else papermill has ended without a kernel
            job = json.loads(text)
            move(job)
            sys.argv[1:] = job["arguments"]
            runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
        sys.exit()
    os.close(reading)
    waiting = [Fork(pid)]

    class Forked(LocalProvisioner):
        async def launch_kernel(self, cmd, **options):
            if not waiting or "ipykernel_launcher" not in cmd:  # a second attempt, or another kernel: from cold
                return await super().launch_kernel(cmd, **options)
            job = {"environment": options["env"], "folder": options.get("cwd") or os.getcwd(),
                   "arguments": cmd[cmd.index("ipykernel_launcher") + 1:]}
            with open(writing, "w") as pipe:
                json.dump(job, pipe)
            self.process = waiting.pop()
            self.pid = self.pgid = self.process.pid
            return self.connection_info

    return Forked


def move(job: dict) -> None:
    """Go on in the environment and the folder of a job."""
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.modules["numpy"].random.seed()  # or what is drawn without a seed would be the same in all forks


def named(name: str) -> None:
    """Show a name of at most 15 letters in ps and top."""
    Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
