"""Every notebook that the package executes, through papermill in a process of its own."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from ..files import PACKAGE, project_path
from ..runs.claim import Claim
from .kernel import BAD_INPUT, OK, PR_SET_CHILD_SUBREAPER, prctl

# glibc returns every large block to the kernel and has it zeroed again at the next step; kept, a step is up to a
# quarter faster.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}
# In place of what the user's account may say, so that a batch run is the same for everybody (see kernel.py, too).
NOT_THE_USERS = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": os.devnull,
                 "PYTHONSTARTUP": ""}


def notebook_path(name: str) -> Path:
    """A notebook of the project: in ./notebooks, else beside the package."""
    here = project_path("notebooks") / name
    return here if here.exists() else Path(os.path.relpath(PACKAGE.parent / "notebooks" / name))


def check_notebook(path: Path, parameters: dict) -> None:
    """Raise InputError for a notebook in which `parameters` don't arrive; say if its code isn't the committed one.

    What somebody tried in it would be part of every run. The cell of parameters doesn't count: papermill replaces it.
    """
    try:
        cells = [cell for cell in json.loads(path.read_bytes())["cells"] if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no notebook; restore it")
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if parameters and not {*parameters} & {*re.findall(r"^\w+", "".join(tagged[:1]), re.MULTILINE)}:
        raise InputError(f"{path}: the cell of parameters has lost its tag `parameters`, without which nothing that is "
                         f"given arrives; give it back in JupyterLab, or restore the notebook: git checkout {path}")
    command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    with suppress(OSError, subprocess.CalledProcessError, ValueError):  # not in git, or no notebook there
        committed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        if _code(committed["cells"]) != _code(cells):
            tqdm.write(f"{path} is executed as it is now: its code isn't the committed one (git diff {path} shows what "
                       f"was changed, git checkout {path} restores it)", file=sys.stderr)


def _code(cells: list[dict]) -> list[str]:
    """The code of all cells but that of parameters."""
    return ["".join(cell["source"]).strip() for cell in cells
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])]


class Fork(subprocess.Popen):
    """A child of this process that was forked, by it or by the warm process: a Popen that starts nothing.

    It overrides private parts of Popen, `_execute_child` and `_child_created`, which a later Python may change.
    """

    def __init__(self, pid: int, stdin=None, stdout=None):
        self.forked = pid
        super().__init__([])
        self.stdin, self.stdout = stdin, stdout

    def _execute_child(self, *_) -> None:
        """Where Popen starts its process."""
        self.pid, self._child_created = self.forked, True


class Warm:
    """A context with a warm process (see warm.py), from which runs are forked; where that can't be, they start cold.

    It begins with the first run, and anew if it was killed. All runs have the first one's environment, but for what no
    import reads, such as their cards. possible: False starts all of them cold.
    """

    def __init__(self, possible: bool = True):
        self.process, self.socket, self.possible = None, None, possible
        self.one_at_a_time = threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self._end()

    def start(self, environment: dict[str, str], locks: list[int]) -> Fork | None:
        """A process that reads its job from `stdin` and prints on `stdout` (see warm.py), or None."""
        (its_stdin, stdin), (stdout, its_stdout) = os.pipe(), os.pipe()
        with self.one_at_a_time, open(its_stdin), open(its_stdout, "w"):
            pid = self._fork(environment, [its_stdin, its_stdout, *locks]) if self.possible else None
        if pid:
            return Fork(pid, open(stdin, "w"), open(stdout, errors="replace"))
        os.close(stdin)  # what the warm process may have forked before it was killed ends, too, when nothing comes
        os.close(stdout)

    def _fork(self, environment: dict[str, str], files: list[int]) -> int | None:
        """The id of a process with these files; None, after a line that says why, if there is none."""
        try:
            if not self.process or self.process.poll() is not None:
                self._end()
                self._begin(environment)
            socket.send_fds(self.socket, [b"1"], files)
            answer = self.socket.recv(1000).decode()
        except OSError as error:
            answer = str(error)
        if answer.isdecimal():
            return int(answer)
        self._end()
        self.possible = not answer  # killed, it may begin anew
        reason = answer or "the warm process was killed"
        tqdm.write(f"no warm start ({reason}): a cold one takes longer", file=sys.stderr)

    def kill(self) -> None:
        """End the warm process, even if it hangs in an import; the next start begins another one."""
        if process := self.process:
            process.kill()

    def _begin(self, environment: dict[str, str]) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # this process adopts what the warm one forks twice
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "cifarlib.batch.warm", str(theirs.fileno())]
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                            start_new_session=True, pass_fds=[theirs.fileno()])

    def _end(self) -> None:
        if self.process:
            self.socket.close()
            self.process.kill()
            self.process.wait()
            self.process = None


def start_notebook(notebook: Path, output: Path, parameters: dict, environment: dict[str, str] | None = None,
                   claim: Claim | None = None, warm: Warm | None = None, **streams) -> subprocess.Popen:
    """Start a process that executes `notebook` with `parameters` into `output` (see kernel.py) and ends with this one.

    environment: variables that differ from this process's; claim: the process ends when it is lost; warm: where to fork
    it, with all it prints on stdout; streams: stdout and stderr of one that starts cold, as for Popen.
    """
    environment = {**ALLOCATOR, **os.environ, **NOT_THE_USERS, "PYTHONUNBUFFERED": "1", **(environment or {})}
    if os.path.expanduser("~") == "~":  # no HOME and an unknown user, as in containers: Jupyter wants a folder
        environment["HOME"] = tempfile.gettempdir()
    if os.path.isabs(parameters.get("data_dir", "")):  # parameters are published with the notebook
        environment["CIFAR10_DIR"], parameters = parameters["data_dir"], {**parameters, "data_dir": ""}
    locks = [claim.lock] if claim else []
    process = warm and warm.start(environment, locks)
    if not process:
        process = subprocess.Popen([sys.executable, "-m", "cifarlib.batch.kernel", *map(str, locks)], env=environment,
                                   stdin=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
                                   pass_fds=locks, **streams)
    job = {"environment": environment, "folder": os.getcwd(), "notebook": str(notebook), "output": str(output),
           "parameters": parameters, "runner": os.getpid(), "claim": str(claim.path) if claim else ""}
    with suppress(BrokenPipeError), process.stdin:  # killed before it could read it; its exit code tells
        process.stdin.write(json.dumps(job))
    return process


def execute_notebook(name: str, parameters: dict, folder: Path) -> Path:
    """Execute notebooks/NAME with `parameters` into `folder` and return the executed notebook's path.

    What its cells print is passed on. Raises InputError for what can't be used, with the notebook's own line. A
    notebook that was there stays until the new one is complete.
    """
    output, part = folder / name, folder / f".{name}"
    check_notebook(notebook_path(name), parameters)
    folder.mkdir(parents=True, exist_ok=True)
    with start_notebook(notebook_path(name), part, parameters, stderr=subprocess.PIPE) as process:
        try:
            lines = process.stderr.read().strip().splitlines() or [f"{name} ended without a word"]
        except BaseException:  # an interrupt
            process.kill()
            raise
    if process.returncode == BAD_INPUT:
        part.unlink(missing_ok=True)
        raise InputError(lines[-1].removeprefix("cifarlib: "))
    if process.returncode != OK:
        raise InputError(f"{name} failed: {lines[-1]}; see {part}")
    return part.replace(output)
