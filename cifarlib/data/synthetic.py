"""A generated stand-in for CIFAR-10."""

import numpy as np

VERSION = 2
# Five of the icosahedron's six diagonals: colours as far from each other, and from each other's negative, as can be.
COLOURS = np.array([[0, 34, 55], [0, 34, -55], [34, 55, 0], [34, -55, 0], [55, 0, 34]])


def synthetic(data_dir: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """What parts.Dataset asks of a reader, in CIFAR-10's shape and sizes, the same in every call; it needs no folder.

    A class is a square in one of five colours, plain or striped. It lies at a random position on a noisy background,
    half of the time in its colour's negative: so neither single pixels nor their mean tell classes apart, and a linear
    model hardly learns what networks soon do.
    """
    rng = np.random.default_rng(VERSION)
    noise = rng.integers(-24, 25, size=(1000, 3, 32, 32), dtype=np.int8).view(np.uint8)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(count) % 10)
        strength = rng.choice([-1, 1], size=count) * rng.uniform(0.6, 1, size=count)
        colour = (COLOURS[labels % 5] * strength[:, None]).astype(np.int8)
        # The square has 10x10 blocks of the image's 16x16.
        top, left = rng.integers(0, 7, size=(2, count, 1, 1))
        row, column = np.arange(16)[:, None] - top, np.arange(16) - left
        square = (0 <= row) & (row < 10) & (0 <= column) & (column < 10)
        square &= (labels < 5)[:, None, None] | (row % 2 == 0)
        # Sums of bytes wrap around: background, square and noise together stay within 0 and 255.
        images = rng.integers(100, 156, size=(count, 3, 4, 4), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
        images += (square[:, None] * colour[:, :, None, None]).view(np.uint8)
        images = images.repeat(2, axis=2).repeat(2, axis=3)
        images += noise[rng.integers(0, len(noise), size=count)]
        return images, labels

    return *draw(50_000), *draw(10_000), f"synthetic {VERSION}"
