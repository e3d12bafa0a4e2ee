"""A process that has imported what runs need and computed nothing: `python -m cifarlib.batch.warm SOCKET`.

- The runner (see launch.py) sends the files of a run over SOCKET, a file descriptor: its stdin, its output, the lock of
  its claim.
- This process forks one that forks the run and exits, and answers with the run's id. So the run becomes the runner's
  own child, which neither the end of this process nor that of another run touches.
- The run forks the process that will be its kernel. Then it reads its job from stdin, as one that starts cold does, and
  goes on in the environment and the folder that the job names.
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
from contextlib import suppress
from pathlib import Path

from ..files import PACKAGE
from ..runs.record import commit
from . import kernel
from .launch import Fork

OTHERS = ("torch._dynamo", "papermill", "jupyter_client.provisioning", "ipykernel.kernelapp", "ipykernel.ipkernel",
          "IPython.core.pylabtools", "matplotlib.backends.backend_agg", "wandb")
GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


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
        runner.recv(1)  # or it would lose the answer
        runner.send(f"{type(error).__name__}: {error}".encode())
        return
    files = []
    with suppress(ConnectionError):  # the runner was killed while it waited for an answer
        files = serve(runner)
    if files:
        codes.append(run(*files))


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
        if not name.endswith("__main__"):
            importlib.import_module(name)
    sys.modules["nbformat"].validate(sys.modules["nbformat"].v4.new_notebook())  # compiles what checks all notebooks
    commit()  # remembered: that of the code which was imported
    gc.freeze()  # or collecting garbage would copy the memory that forks share
    if os.fork() == 0:  # numpy's BLAS has threads, which it ends when a fork is near
        os._exit(0)
    os.wait()
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread")
    if any(os.path.realpath(file).startswith(GPUS) for file in Path("/proc/self/fd").iterdir()):
        raise RuntimeError("an import has opened a GPU")


def serve(runner: socket.socket) -> list[int]:
    """Fork a process for each request and return its files in it; none here, when the runner is gone."""
    while True:
        request, files, *_ = socket.recv_fds(runner, 1, 3)
        if not request:
            return []
        reading, writing = os.pipe()
        first = os.fork()
        if first == 0:
            with suppress(OSError):  # no more processes, or nobody to answer any more
                second = os.fork()
                if second == 0:
                    for file in (runner.detach(), reading, writing):
                        os.close(file)
                    return files
                os.write(writing, str(second).encode())
            os._exit(0)
        os.waitpid(first, 0)  # from here on the second is the runner's child
        os.close(writing)
        runner.send(os.read(reading, 20) or b"no process can be forked")
        for file in (reading, *files):
            os.close(file)


def run(stdin: int, output: int, *locks: int) -> int:
    """In a run's process: do its job and return the exit code."""
    named("cifarlib run")
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    provisioner = forked_kernel(but_not=stdin)
    return kernel.main(take_job(stdin), locks, provisioner)


def forked_kernel(but_not: int) -> type:
    """Fork a process that waits to be this run's kernel; return jupyter_client's provisioner that makes it one.

    but_not: an open file that the kernel doesn't inherit.
    """
    from jupyter_client.provisioning import LocalProvisioner

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        named("cifarlib kernel")
        os.setsid()
        kernel.end_with(os.getppid())
        os.close(writing)
        os.close(but_not)
        sys.argv[1:] = take_job(reading)["arguments"]
        runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
        sys.exit()
    os.close(reading)
    waiting = [Fork(pid)]

    class Forked(LocalProvisioner):
        async def launch_kernel(self, cmd, **options):
            if not waiting or "ipykernel_launcher" not in cmd:  # another kernel: from cold
                return await super().launch_kernel(cmd, **options)
            self.process = waiting.pop()
            self.pid = self.pgid = self.process.pid
            arguments = [*cmd[cmd.index("ipykernel_launcher") + 1:], f"--IPKernelApp.parent_handle={os.getpid()}"]
            folder = options.get("cwd") or os.getcwd()
            job = {"environment": options["env"], "folder": folder, "arguments": arguments}
            with suppress(BrokenPipeError), open(writing, "w") as pipe:  # killed meanwhile, it will be found dead
                json.dump(job, pipe)
            return self.connection_info

    return Forked


def take_job(file: int) -> dict:
    """Read a job and go on in its environment and folder; end this process if whoever was to write it is gone."""
    with open(file) as pipe:
        text = pipe.read()
    if not text:
        sys.exit(kernel.FAILED)
    job = json.loads(text)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.modules["numpy"].random.seed()  # or what is drawn without a seed would be the same in all forks
    return job


def named(name: str) -> None:
    """Show a name of at most 15 letters in ps and top."""
    Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
