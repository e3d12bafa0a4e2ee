"""One notebook through papermill in a process of its own: `python -m cifarlib.execute NOTEBOOK OUTPUT < PARAMETERS.json`.

One process a run, because a long-lived one that loops over notebooks leaks. The exit code says how it ended: 0 executed to the end,
1 an error, 2 bad input, 75 preempted; on an error the last lines on stderr say what it was.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

OK, FAILED, BAD_INPUT, PREEMPTED = 0, 1, 2, 75
START_ATTEMPTS = 3


def execute(notebook: str, output: str, parameters: dict) -> int:
    """Execute `notebook` with `parameters` into `output`, passing on what its cells print; return the exit code."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config as Traits

    for attempt in range(START_ATTEMPTS):
        try:
            # Ports can collide when many kernels start at once; sockets in a folder of their own can't.
            with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as sockets:
                traits = Traits({"KernelManager": {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}})
                papermill.execute_notebook(notebook, output, parameters, kernel_name="python3", start_timeout=300,
                                           progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, config=traits)
            return OK
        except PapermillExecutionError as error:
            code = {"InputError": BAD_INPUT, "Preempted": PREEMPTED}.get(error.ename, FAILED)
            print(f"{error.ename if code == FAILED else 'cifarlib'}: {error.evalue}", file=sys.stderr)
            return code
        except Exception as error:
            if _begun(output) or attempt == START_ATTEMPTS - 1:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                return FAILED
            time.sleep(attempt + 1)


def _begun(output: str) -> bool:
    """Whether any cell was executed: only a kernel that failed to start is worth a second try."""
    try:
        cells = json.loads(Path(output).read_text())["cells"]
    except (OSError, ValueError):
        return False
    return any(cell.get("execution_count") for cell in cells)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone (the kernel ends with this one): no run goes on without an owner."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(FAILED)


if __name__ == "__main__":
    # A cancelled cluster job sends its signal to every process. The runner alone decides what it means, and the kernel (which
    # inherits this, and sets its own handlers while it trains) ends at its epoch's end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.exit(execute(sys.argv[1], sys.argv[2], json.load(sys.stdin)))
