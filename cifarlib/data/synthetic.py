"""A generated stand-in for CIFAR-10."""

import numpy as np

from ..parts import DATASETS

SYNTHETIC_VERSION = 1


def synthetic() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A generated stand-in of CIFAR-10's shape and sizes, learnable, the same in every call.

    A class is a small texture, shown at a random place, in a random colour and often as its negative, on a smooth background:
    what tells classes apart is local and has no fixed place or sign, so convolutions learn it and a linear model doesn't.
    """
    rng = np.random.default_rng(SYNTHETIC_VERSION)
    textures = np.kron(rng.choice([-1, 1], size=(len(DATASETS["synthetic"].classes), 5, 5)), np.ones((2, 2))).astype(np.int8)
    noise = rng.integers(-24, 25, size=(1000, 3, 32, 32), dtype=np.int8).view(np.uint8)

    def draw(count):
        # Sums of bytes that wrap around: background, noise and texture together stay within 0 and 255.
        labels = rng.permutation(np.arange(count) % len(DATASETS["synthetic"].classes))
        images = rng.integers(86, 170, size=(count, 3, 4, 4), dtype=np.uint8).repeat(8, axis=2).repeat(8, axis=3)
        images += noise[rng.integers(0, len(noise), size=count)]
        colour = rng.integers(35, 60, size=(count, 3, 1, 1), dtype=np.int8) * rng.choice([-1, 1], size=(count, 1, 1, 1)).astype(np.int8)
        rows, columns = rng.integers(0, 23, size=(2, count, 1, 1, 1))
        place = np.arange(count)[:, None, None, None], np.arange(3)[:, None, None], rows + np.arange(10)[:, None], columns + np.arange(10)
        images[place] += (colour * textures[labels][:, None]).view(np.uint8)
        return images, labels

    return *draw(50_000), *draw(10_000)
