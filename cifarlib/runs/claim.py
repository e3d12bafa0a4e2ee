"""Claims on runs: several runners (terminals, array tasks, machines on a shared file system) never train the same one.

A claim is a file `claim.N` created with O_EXCL, which is atomic on POSIX file systems and NFS; the highest N is in
force. Its owner renews its modification time. Whoever finds it stale creates `claim.N+1`: only one can, and the old
owner, should it only have been slow, sees the higher number. Nothing is deleted while it counts, so no two can believe
that they own a run.

Where files can be locked, the owner also locks it, and the processes that train inherit the lock: on one machine such a
claim counts until the last of them is gone, even if the runner was killed and they live on for a moment.
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
STALE = 120.0  # seconds without one after which an owner on another machine, or without locks, counts as dead
LOCKED = "locked"  # the second line of a claim file that its owner could lock; the first names the machine


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
        kind = LOCKED
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network file systems have no locks
            kind = ""
        os.write(lock, f"{_machine()}\n{kind}".encode())
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
    if renewed and text.splitlines() == [_machine(), LOCKED] and (locked := _locked(path)) is not None:
        return not locked
    return not renewed or _now(path.parent) - renewed > STALE


def _now(folder: Path) -> float:
    """The time by the clock that dates the files in `folder`: of a share the server's, which may differ from ours."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may only be read
        return time.time()


def _locked(path: Path) -> bool | None:
    """Whether a process of this machine holds the lock of a claim file; None if that can't be told."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # gone, or no locks at the moment
        return None


def _machine() -> str:
    """What tells machines and containers apart: others may not see each other's locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"
