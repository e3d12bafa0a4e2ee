"""CIFAR-10's and CIFAR-100's files: found or downloaded, verified, and opened once; without torch.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import fcntl
import hashlib
import http.client
import os
import pickle
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import project_path, replacing
from .synthetic import synthetic

CACHE = "cifarlib.npz"  # beside the batches: images and labels of all, and the stamp of the files


@dataclass(frozen=True)
class Archive:
    """A published archive of pickled batches: 50,000 training images, then 10,000 test images.

    name: as texts call it; batches: the folder in it; label_key: what a batch calls its labels; md5: of each batch, in
    order. The MD5s are torchvision's (a test compares them): without its import a run starts two seconds earlier.
    """

    name: str
    batches: str
    label_key: str
    md5: dict[str, str]

    @property
    def key(self) -> str:
        """`CIFAR10`, as torchvision's class and the variable $CIFAR10_DIR are called."""
        return self.name.replace("-", "")

    @property
    def home(self) -> str:
        """`cifar-10`, the folder in the project's that is searched, and downloaded into."""
        return self.name.lower()

    def read(self, data_dir: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
        """What parts.Dataset asks of a reader. Raises InputError if the data can't be had, or is damaged."""
        return *self.arrays(self.find(data_dir)), " ".join([self.key.lower(), *self.md5.values()])

    def find(self, data_dir: str = "") -> Path:
        """The folder of the batches: `data_dir`, $CIFAR10_DIR, ./cifar-10, or a fresh download into ./cifar-10.

        Raises InputError if a folder that was named holds no batches, or the download fails.
        """
        return self.local(data_dir) or self.download()

    def local(self, data_dir: str = "") -> Path | None:
        """As `find`, but None instead of a download."""
        variable = f"{self.key}_DIR"
        for named, source in ((data_dir, "data_dir"), (os.environ.get(variable, ""), f"${variable}")):
            if named:
                if found := self._batches_in(project_path(named)):
                    return found
                raise InputError(f"{source}: no {self.name} in {named}; expected {self.batches}/ or its "
                                 f"{', '.join(self.md5)} there; name the right folder, or none to search ./{self.home} "
                                 "and else download")
        return self._batches_in(project_path(self.home))

    def _batches_in(self, folder: Path) -> Path | None:
        candidates = folder / self.batches, folder
        return next((found for found in candidates if any((found / name).exists() for name in self.md5)), None)

    def download(self) -> Path:
        """Fetch the archive with torchvision, which shows a progress bar; only complete batches are moved in place.

        One process at a time downloads, where files can be locked; the others wait and take what it brought. A download
        that fails leaves nothing. Raises InputError if the data can't be had.
        """
        import torchvision.datasets

        theirs, timeout = getattr(torchvision.datasets, self.key), socket.getdefaulttimeout()
        home = project_path(self.home)
        try:
            home.mkdir(parents=True, exist_ok=True)
            # The folder comes before the lock: while any process waits, `home` is not empty and stays.
            with tempfile.TemporaryDirectory(dir=home, prefix=".download-") as part, (home / ".lock").open("w") as lock:
                with suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._batches_in(home):
                    socket.setdefaulttimeout(10)
                    theirs(part, download=True)
                    os.rename(Path(part) / self.batches, home / self.batches)
        # no network, a broken-off transfer, a full or read-only disk
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            raise InputError(f"{self.name} could not be downloaded ({error}); fetch {theirs.url} elsewhere and unpack "
                             f"it so that {home / self.batches} is there, or name its folder (data_dir or "
                             f"${self.key}_DIR), or take the stand-in (dataset synthetic)") from None
        finally:
            socket.setdefaulttimeout(timeout)
            with suppress(OSError):  # others may still need them
                (home / ".lock").unlink(missing_ok=True)
                home.rmdir()
        return self._batches_in(home)

    def arrays(self, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(images uint8 (50000, 3, 32, 32), labels int64 (50000,), test images, test labels) of a folder's batches.

        The first call keeps what it read beside the batches, if it may write there; later ones read that file, a fifth
        of the work, as long as no batch has changed. Raises InputError for a missing or damaged batch.
        """
        states = [path.stat() for path in map(folder.joinpath, self.md5) if path.exists()]
        stamp = np.array([(state.st_size, state.st_mtime_ns) for state in states])
        try:
            with np.load(folder / CACHE) as kept:  # whose checksums are compared as it is read
                images, labels = kept["images"], kept["labels"]
                as_written = images.dtype == np.uint8 and images.shape == (len(labels), 3, 32, 32)
                fresh = as_written and np.array_equal(kept["stamp"], stamp)
        except Exception:  # there is none, or it is damaged, which zipfile and numpy say in ten ways
            fresh = False
        if not fresh:
            images, labels = self._opened(folder)
            with suppress(OSError), replacing(folder / CACHE) as part, part.open("wb") as file:
                np.savez(file, images=images, labels=labels, stamp=stamp)
        train = len(labels) * 5 // 6
        return images[:train], labels[:train], images[train:], labels[train:]

    def _opened(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of all batches. A pickle is code: its MD5 is checked before it is opened."""
        images, labels = [], []
        for name, wanted in self.md5.items():
            try:
                blob = (folder / name).read_bytes()
            except OSError as error:
                raise InputError(f"{name} in {folder} can't be read ({error.strerror}); expected "
                                 f"{', '.join(self.md5)} there; unpack {self.name} again") from None
            if hashlib.md5(blob).hexdigest() != wanted:
                raise InputError(f"{name} in {folder} is damaged (its MD5 is not {wanted}); remove it and unpack or "
                                 f"download {self.name} again")
            batch = pickle.loads(blob, encoding="latin1")
            images.append(batch["data"].reshape(-1, 3, 32, 32))
            labels.append(np.array(batch[self.label_key], np.int64))
        return np.concatenate(images), np.concatenate(labels)


CIFAR10 = Archive("CIFAR-10", "cifar-10-batches-py", "labels", {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
})
CIFAR100 = Archive("CIFAR-100", "cifar-100-python", "fine_labels", {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
})
# As parts.DATASETS names them.
read_cifar10, local_cifar10 = CIFAR10.read, CIFAR10.local
read_cifar100, local_cifar100 = CIFAR100.read, CIFAR100.local


def available(data_dir: str = "") -> str:
    """The dataset that `auto` stands for: cifar10 if it can be had, else synthetic, which a line on stderr says.

    A folder that is named must hold CIFAR-10.
    """
    if not CIFAR10.local(data_dir):
        try:
            CIFAR10.download()
        except InputError as error:
            print(f"cifarlib: SYNTHETIC DATA, NOT CIFAR-10, is taken: {error}", file=sys.stderr, flush=True)
            return "synthetic"
    return "cifar10"


def cifar10_or_stand_in(data_dir: str = ""):
    """The reader of the dataset `auto`."""
    return CIFAR10.read(data_dir) if available(data_dir) == "cifar10" else synthetic()
