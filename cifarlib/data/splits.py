"""The dataset that a configuration names, split into uint8 tensors on the training device."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..device import pick_device
from ..errors import InputError
from ..parts import DATASETS, load

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPLIT_SEED = 10  # of the stratified split: the same for every run, whatever the run's own seed


@dataclass(frozen=True)
class Split:
    """Images of one split with the constants that normalize them.

    images: uint8 (N, 3, 32, 32); labels: int64 (N,); mean, std: float32 (3,), of pixels in [0, 1], all on one device;
    classes: the names that the labels stand for.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """The three splits, the dataset that was read, and a fingerprint of exactly these images in this order."""

    train: Split
    validation: Split
    test: Split
    dataset: str
    fingerprint: str

    @property
    def banner(self) -> str:
        """One line for the head of a notebook."""
        sizes = f"{len(self.train):,} training, {len(self.validation):,} validation, {len(self.test):,} test images"
        return f"{DATASETS[self.dataset].label}: {sizes}, fingerprint {self.fingerprint}"


def load_splits(config: Config) -> Splits:
    """The splits that `config` asks for, on its device.

    Raises InputError if the data can't be had, is damaged, is not what a reader should give, or is less than one batch.
    """
    device = pick_device(config.device)
    images, labels, test_images, test_labels, content = load(DATASETS[config.dataset].reader)(config.data_dir)
    _check(config, images, labels)
    _check(config, test_images, test_labels)
    train, validation = split_indices(labels, config.split)
    mean, std = _normalization(_rows(images, train), config.normalization)
    train, validation = train[:config.limit_train or None], validation[:config.limit_val or None]
    test = np.arange(len(test_labels))[:config.limit_test or None]
    if len(train) < config.batch_size:
        raise InputError(f"batch_size: {config.batch_size} images a batch, but the training split has {len(train)}; "
                         "lower batch_size or raise limit_train")

    def split(images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Split:
        tensors = _rows(images, indices), _rows(labels, indices), mean, std
        return Split(*(tensor.to(device) for tensor in tensors), config.classes)

    digest = hashlib.sha256(content.encode())
    for indices in (train, validation, test):
        digest.update(indices.astype("<i8").tobytes() + b"|")
    return Splits(split(images, labels, train), split(images, labels, validation),
                  split(test_images, test_labels, test), content.split()[0], digest.hexdigest()[:12])


def _check(config: Config, images: np.ndarray, labels: np.ndarray) -> None:
    """Raise InputError unless a reader gave what parts.Dataset asks for."""
    count, last = len(labels), len(config.classes) - 1
    as_arrays = images.dtype == np.uint8 and images.shape == (count, 3, 32, 32) and labels.dtype == np.int64
    if not as_arrays or count == 0 or labels.min() < 0 or labels.max() > last:
        raise InputError(f"dataset: the reader of {config.dataset} gave {images.dtype} images {images.shape} and "
                         f"{count} {labels.dtype} labels; expected uint8 (N, 3, 32, 32) and N int64 up to {last}")


def split_indices(labels: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the validation images.

    `published` takes CIFAR-10's batches 1-4 and batch 5; `stratified` validates on a fifth of each class, drawn with a
    fixed seed; `all` trains on all images and validates on none.
    """
    if split == "all":
        return np.arange(len(labels)), np.arange(0)
    if split == "published":
        return np.arange(40_000), np.arange(40_000, 50_000)
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    of_class = [shuffled[labels[shuffled] == c] for c in range(labels.max() + 1)]
    validation = np.sort(np.concatenate([indices[:len(indices) // 5] for indices in of_class]))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def _rows(rows: np.ndarray, indices: np.ndarray) -> Tensor:
    """A copy of some rows; on images forty times faster than numpy's indexing."""
    return torch.from_numpy(rows).index_select(0, torch.from_numpy(indices))


def _normalization(images: Tensor, of: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel: of the training split, or ImageNet's."""
    if of == "imagenet":
        return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    # From the histogram of the 256 values a channel: exact, and no copy of the images in floating point.
    counts = np.stack([torch.bincount(images[:, channel].flatten(), minlength=256).numpy() for channel in range(3)])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(counts @ values**2 / counts.sum(axis=1) - mean**2)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


load_cifar10 = load_splits  # its name in scripts and notebooks, which mostly load that
