"""CIFAR-10's files: found or downloaded, verified, opened once and then mapped into memory; without torch.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import fcntl
import hashlib
import http.client
import os
import pickle
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import project_path, replacing

BATCHES = "cifar-10-batches-py"
# The MD5s that torchvision checks too (a test compares the two): without its import a run starts two seconds earlier.
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CACHE = "cifarlib.cache"  # beside the batches: their pixels, their labels and the stamp of the files they came from
PIXELS = 3 * 32 * 32  # bytes of an image


def find_cifar10(data_dir: str = "") -> Path:
    """The folder that holds the batches: `data_dir`, $CIFAR10_DIR, ./cifar-10, or a fresh download into ./cifar-10.

    Raises InputError if a folder that was named holds no batches, or the download fails.
    """
    return local_cifar10(data_dir) or download(project_path("cifar-10"))


def local_cifar10(data_dir: str = "") -> Path | None:
    """As find_cifar10, but None instead of a download."""
    for named, source in ((data_dir, "data_dir"), (os.environ.get("CIFAR10_DIR", ""), "$CIFAR10_DIR")):
        if named:
            if found := _batches_in(project_path(named)):
                return found
            raise InputError(f"{source}: no CIFAR-10 in {named}; expected {BATCHES}/ or its data_batch_1..5 and test_batch there; "
                             "name the right folder, or none to search ./cifar-10 and else download")
    return _batches_in(project_path("cifar-10"))


def _batches_in(folder: Path) -> Path | None:
    places = folder / BATCHES, folder
    return next((place for place in places if any((place / name).exists() for name in MD5)), None)


def download(home: Path) -> Path:
    """Fetch CIFAR-10 with torchvision into `home`; it shows its progress bar, and only a complete archive is moved in place.

    One process at a time downloads; the others wait and take what it brought. Raises InputError if it can't be had.
    """
    from torchvision.datasets import CIFAR10

    timeout = socket.getdefaulttimeout()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if found := _batches_in(home):
                return found
            socket.setdefaulttimeout(10)
            with tempfile.TemporaryDirectory(dir=home, prefix=".download-") as part:
                CIFAR10(part, download=True)
                shutil.move(Path(part) / BATCHES, home / BATCHES)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:  # no network, a broken-off transfer, a full or read-only disk
        reason = " ".join(str(error).split())
        raise InputError(f"CIFAR-10 could not be downloaded into {home} ({reason}); download cifar-10-python.tar.gz elsewhere and "
                         "unpack it there, name its folder (data_dir or $CIFAR10_DIR), or take the stand-in (dataset synthetic)")
    finally:
        socket.setdefaulttimeout(timeout)
    return home / BATCHES


def read_batches(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 (50000, 3, 32, 32), labels int64 (50000,), test images, test labels) from the official batches.

    The first call keeps what it read beside the batches, if it may write there; later ones map that file into memory as long as no
    batch has changed. Raises InputError for a missing or damaged batch.
    """
    stamp = _stamp(folder)
    content = _kept(folder / CACHE, stamp)
    if content is None:
        content = np.concatenate([*_opened(folder), stamp])
        with suppress(OSError), replacing(folder / CACHE) as part:
            content.tofile(part)
    count = (len(content) - len(stamp)) // (PIXELS + 1)  # of images: the pixels of all, the labels of all, the stamp
    images, labels = content[:count * PIXELS].reshape(count, 3, 32, 32), content[count * PIXELS:-len(stamp)].astype(np.int64)
    train = count * 5 // 6
    return images[:train], labels[:train], images[train:], labels[train:]


def _stamp(folder: Path) -> np.ndarray:
    """Size and time of change of each batch, digested: uint8 (16,)."""
    states = [(folder / name).stat() if (folder / name).exists() else None for name in MD5]
    text = repr([(state.st_size, state.st_mtime_ns) if state else None for state in states])
    return np.frombuffer(hashlib.md5(text.encode()).digest(), np.uint8)


def _kept(cache: Path, stamp: np.ndarray) -> np.ndarray | None:
    """The content of the cache; None if there is none, or the batches have changed since."""
    try:
        content = np.memmap(cache, np.uint8, mode="c")  # copied where it is written to; the file stays as it is
    except (OSError, ValueError):
        return None
    return content if np.array_equal(content[-len(stamp):], stamp) else None


def _opened(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of all batches in a row, uint8. A pickle is code: every file's MD5 is checked before it is opened."""
    batches = []
    for name, wanted in MD5.items():
        try:
            blob = (folder / name).read_bytes()
        except OSError as error:
            message = f"{name} in {folder} can't be read ({error.strerror}); expected all six CIFAR-10 batches in one folder; unpack them again"
            raise InputError(message)
        if hashlib.md5(blob).hexdigest() != wanted:
            raise InputError(f"{name} in {folder} is damaged (its MD5 is not {wanted}); remove it and unpack or download CIFAR-10 again")
        batches.append(pickle.loads(blob, encoding="latin1"))
    return np.concatenate([batch["data"].reshape(-1) for batch in batches]), np.array([batch["labels"] for batch in batches], np.uint8).reshape(-1)
