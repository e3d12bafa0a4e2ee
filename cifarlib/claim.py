"""Claims on runs, so that several runners (terminals, array tasks, machines on a shared file system) never train the same one.

A claim is a file `claim.N` created with O_EXCL, which is atomic on POSIX file systems and NFS; the highest N is in force. Its owner
renews its modification time. Whoever finds it stale creates `claim.N+1`: only one can, and the old owner, should it only have been
slow, sees the higher number. Nothing is deleted while it counts, so no two can believe that they own a run.
"""

import json
import os
import socket
import threading
import time
from pathlib import Path

HEARTBEAT = 15.0  # seconds between two renewals
STALE = 120.0  # seconds without one after which an owner counts as dead


class Claim:
    """The right to train in a run folder, from `take` until `release`; `lost` tells that somebody took it over meanwhile."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.path = folder, folder / f"claim.{number}"
        self.number = number
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
        try:
            handle = os.open(folder / f"claim.{number + 1}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None  # somebody was faster
        with os.fdopen(handle, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
        return cls(folder, number + 1)

    @property
    def lost(self) -> bool:
        """Whether somebody took this claim over, believing its owner dead."""
        return _highest(self.folder) > self.number

    def release(self) -> None:
        """Let others claim the folder at once; older claim files go, the last one stays as the counter."""
        self._ended.set()
        self._heart.join()
        if not self.lost:
            os.utime(self.path, (0, 0))  # a renewal that lies in the far past
            for number in range(1, self.number):
                (self.folder / f"claim.{number}").unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except OSError:
                pass  # a shared file system out of reach for a moment; the next renewal tells


def is_claimed(folder: Path) -> bool:
    """Whether a living owner trains in `folder`."""
    number = _highest(folder)
    return bool(number) and not _stale(folder / f"claim.{number}")


def _highest(folder: Path) -> int:
    return max((int(path.suffix[1:]) for path in folder.glob("claim.*") if path.suffix[1:].isdigit()), default=0)


def _stale(path: Path) -> bool:
    """Whether the owner released the claim, is a dead process of this host, or has not renewed it for STALE seconds."""
    try:
        age = time.time() - path.stat().st_mtime
        owner = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return False  # being written, or gone because a newer one exists
    if age > STALE:
        return True
    return owner.get("host") == socket.gethostname() and owner.get("started") != _started(owner.get("pid"))


def _started(pid: int | None) -> str | None:
    """When process `pid` of this host started, in clock ticks since boot (so that a reused number is told apart); None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        return None
