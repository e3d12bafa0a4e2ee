"""One notebook through papermill in a process of its own: `python -m cifarlib.batch.kernel [LOCK]`.

One process a run, because a long-lived one that loops over notebooks leaks. Its job is read as JSON from stdin (see
launch.py). The exit code says how it ended: 0 executed to the end, 1 an error, 2 bad input, 75 preempted; on an error
the last lines on stderr say what it was. LOCK, the descriptor of a claim's lock, stays open until the run has ended.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..errors import InputError, OtherMachine, Preempted
from ..runs.claim import is_lost
from ..runs.stop import SIGNALS

OK, FAILED, BAD_INPUT, PREEMPTED = 0, 1, 2, 75
# By the name of an error's class, which is what a kernel says of it.
CODES = {InputError.__name__: BAD_INPUT, Preempted.__name__: PREEMPTED, OtherMachine.__name__: PREEMPTED}
IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError")
BROKEN = "a package is missing or broken ({}); set the environment up by `make setup` or from environment.yml"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # options of Linux's prctl


def execute(notebook: str, output: str, parameters: dict, folder: str, locks: list[int],
            provisioner: type | None = None) -> int:
    """Execute `notebook` with `parameters` into `output`, passing on what its cells print; return the exit code.

    folder: an empty one for the kernel's sockets and its profile; locks: file descriptors that the kernel inherits;
    provisioner: jupyter_client's class that starts the kernel, if not the usual one.
    """
    import papermill  # here, since a broken package is told in one line
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config as Traits

    class Kernel(AsyncKernelManager):
        # This Python and an empty profile: the user's account may have a `python3` of another environment, and start-up
        # files that change the numbers.
        kernel_spec = KernelSpec(**get_kernel_dict([f"--ipython-dir={folder}"]))

        async def start_kernel(self, **options):
            if provisioner:
                self.provisioner = provisioner(kernel_spec=self.kernel_spec, parent=self)
            await super().start_kernel(**options, pass_fds=locks, preexec_fn=partial(end_with, os.getpid()))

    # Ports can collide when many kernels start at once; sockets in a folder of their own can't (jupyter's default is
    # the working directory, where two kernels that start at once take the same names).
    traits = Traits({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}})
    try:
        papermill.execute_notebook(_literal(notebook), _literal(output), parameters, kernel_name="python3",
                                   start_timeout=300, progress_bar=False, stdout_file=sys.stdout,
                                   stderr_file=sys.stderr, config=traits, kernel_manager_class=Kernel)
        return OK
    except PapermillExecutionError as error:
        broken = is_broken(error.ename, error.evalue)
        code = BAD_INPUT if broken else CODES.get(error.ename, FAILED)
        text = BROKEN.format(error.evalue) if broken else error.evalue
        print(f"{error.ename if code == FAILED else 'cifarlib'}: {text}", file=sys.stderr)
        return code
    except Exception as error:  # the kernel didn't start, or it died
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def is_broken(name: str, message: str) -> bool:
    """Whether an error, by the name of its class and its message, says that a package can't be imported.

    ctypes, by which torch loads CUDA's libraries, raises an OSError for that: "libcudart.so.12: cannot open shared
    object file: ...".
    """
    return name in IMPORT_ERRORS or (
        name == "OSError" and re.match(r"(?!\[Errno).*\.so[.\d]*: |dlopen\(", message) is not None)


def _literal(path: str) -> str:
    """A path for papermill, which would replace what stands in braces."""
    return path.replace("{", "{{").replace("}", "}}")


def _end_without_owner(runner: int, claim: str, folder: str) -> None:
    """End this process, and so its kernel, when the runner is gone or has lost the claim."""
    while _owned(runner, claim):
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(FAILED)


def _owned(runner: int, claim: str) -> bool:
    try:
        return os.getppid() == runner and not (claim and is_lost(Path(claim)))
    except OSError:
        return True  # a shared file system out of reach for a moment


def prctl(option: int, value: int) -> None:
    """Linux's function of that name, for this process. Raises OSError where there is none."""
    function = getattr(ctypes.CDLL(None), "prctl", None)
    if not function or function(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError("this system has no such prctl")


def end_with(parent: int) -> None:
    """Let this process be killed when its parent ends, where the system can; a kernel by itself takes a second."""
    with suppress(OSError):
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # already gone
            os._exit(FAILED)


def ignore_signals() -> None:
    """Leave it to the runner what a signal means: a cancelled cluster job sends it to every process.

    The kernel, which inherits this, sets its own handlers while it trains.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _takes_sockets(parent: str) -> bool:
    """Whether a kernel's sockets can be in a folder of `parent`: some file systems have none, and paths are short."""
    try:
        with (tempfile.TemporaryDirectory(prefix="kernel-", dir=parent) as folder,
              socket.socket(socket.AF_UNIX) as probe):
            probe.bind(f"{folder}/kernel-ipc-5")
    except OSError:
        return False
    return True


def main(job: dict, locks: list[int], provisioner: type | None = None) -> int:
    """Execute a job's notebook as long as it has an owner; return the exit code.

    The runner is the process that started this one: without it, or the claim, the run ends.
    """
    os.environ.pop("JPY_SESSION_NAME", None)  # of a notebook that started this process: nobody looks at this one's
    parent = next(filter(_takes_sockets, (tempfile.gettempdir(), "/tmp")), None)
    if not parent:
        print(f"cifarlib: TMPDIR: no socket can be made in {tempfile.gettempdir()}, nor in /tmp; name another folder, "
              "of a short path and on a disk of this machine", file=sys.stderr)
        return BAD_INPUT
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=parent, ignore_cleanup_errors=True) as folder:
        # The runner's id is given: it may be gone, and another process be the parent, before this line is reached.
        threading.Thread(target=_end_without_owner, args=(job["runner"], job["claim"], folder), daemon=True).start()
        try:
            return execute(job["notebook"], job["output"], job["parameters"], folder, locks, provisioner)
        except (ImportError, OSError) as error:
            if not is_broken(type(error).__name__, str(error)):
                raise
            print(f"cifarlib: {BROKEN.format(error)}", file=sys.stderr)
            return BAD_INPUT


if __name__ == "__main__":
    ignore_signals()
    sys.exit(main(json.load(sys.stdin), [*map(int, sys.argv[1:])]))
