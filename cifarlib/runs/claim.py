"""Claims on runs: several runners (terminals, array tasks, machines on a shared file system) never train the same one.

A claim is a file `claim.N` created with O_EXCL, which is atomic on POSIX file systems and NFS; the highest N is in
force. Its owner renews its modification time. Whoever finds it stale creates `claim.N+1`: only one can, and the old
owner, should it only have been slow, sees the higher number. Nothing is deleted while it counts, so no two can believe
that they own a run.

The owner also locks the file, and the processes that train inherit the lock: on one machine a claim counts until the
last of them is gone, even if the runner was killed and they live on for a moment.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

HEARTBEAT = 15.0  # seconds between two renewals
STALE = 120.0  # seconds without one after which an owner on another machine counts as dead


class Claim:
    """The right to train in a run folder, from `take` until `release`.

    lock: a file descriptor for the processes that train to inherit.
    """

    def __init__(self, path: Path, lock: int):
        self.path, self.lock = path, lock
        self.folder, self.number = path.parent, int(path.suffix[1:])
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    @classmethod
    def take(cls, folder: Path) -> "Claim | None":
        """A claim on `folder`, or None if it has a living owner."""
        folder.mkdir(parents=True, exist_ok=True)
        number = _highest(folder)
        if number and not _stale(folder / f"claim.{number}"):
            return None
        path = folder / f"claim.{number + 1}"
        try:
            lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return None  # somebody was faster
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, f"{_machine()}\n{os.getpid()}\n{_started(os.getpid())}".encode())
        if is_lost(path):  # others took and released the next claims, and removed this number, since we looked
            path.unlink(missing_ok=True)
            os.close(lock)
            return None
        return cls(path, lock)

    @property
    def lost(self) -> bool:
        """Whether somebody took this claim over, believing its owner dead."""
        return is_lost(self.path)

    def release(self) -> None:
        """Let others claim the folder at once; older claim files go, the last one stays as the counter."""
        self._ended.set()
        self._heart.join()
        if not self.lost:
            os.utime(self.path, (0, 0))  # a renewal that lies in the far past
            for number in range(1, self.number):
                (self.folder / f"claim.{number}").unlink(missing_ok=True)
        os.close(self.lock)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a shared file system out of reach for a moment; the next renewal tells
                os.utime(self.path)


def is_claimed(folder: Path) -> bool:
    """Whether a living owner trains in `folder`."""
    number = _highest(folder)
    return bool(number) and not _stale(folder / f"claim.{number}")


def is_lost(path: Path) -> bool:
    """Whether the claim file `path` is no longer the one in force."""
    return _highest(path.parent) > int(path.suffix[1:])


def _highest(folder: Path) -> int:
    return max((int(path.suffix[1:]) for path in folder.glob("claim.*") if path.suffix[1:].isdigit()), default=0)


def _stale(path: Path) -> bool:
    """Whether the owner released the claim, is dead on this machine with all that it started, or is silent for long."""
    try:
        renewed, text = path.stat().st_mtime, path.read_text()
    except OSError:
        return False  # gone because a newer one exists
    machine, pid, started = [*text.splitlines(), "", "", ""][:3]  # empty: being written, or its owner died over that
    if renewed and machine == _machine():
        if _locked(path):
            return False
        if started:
            return started != _started(pid)
    return not renewed or _now(path.parent) - renewed > STALE


def _now(folder: Path) -> float:
    """The time by the clock that dates the files in `folder`: of a share the server's, which may differ from ours."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may only be read
        return time.time()


def _locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock of a claim file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # gone, or a file system without locks
    return False


def _machine() -> str:
    """What tells machines and containers apart: a process id means something only within one."""
    try:
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = ""
    return f"{socket.gethostname()} {boot} {space}"


def _started(pid: int | str) -> str:
    """When process `pid` of this machine started, by which a reused number is told apart; empty if it is gone.

    In clock ticks since boot: psutil's times are those of a clock that may be set meanwhile.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        return ""
