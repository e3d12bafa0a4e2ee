"""The batch augmentation against torchvision's, image by image, and its parameters against their distributions."""

import itertools
import math

import pytest
import torch
from conftest import tiny
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cifarlib import Config
from cifarlib.data import augment

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
COUNT = 3000
PUBLISHED = Config(augmentation=True)  # flip, 15 degrees, a crop after padding by 4 black pixels
MODERN = Config(protocol="modern", cutout=8)  # alternating flip, a crop after reflecting 2 pixels


@pytest.fixture(scope="module")
def images():
    """Noise: no two neighbouring pixels are alike, so that a pixel taken from the wrong position shows."""
    return torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def one_by_one(images, flip, angle, top, left, padding="constant"):
    """What the described system does to each image: torchvision's flip, rotation, padding and crop, in this order."""
    results = []
    for image, flip, angle, top, left in zip(images, *(values.tolist() for values in (flip, angle, top, left))):
        image = F.horizontal_flip(image) if flip else image
        image = F.rotate(image, angle, interpolation=InterpolationMode.NEAREST, fill=0)
        results.append(F.crop(F.pad(image, [16] * 4, padding_mode=padding), top + 16, left + 16, 32, 32))
    return torch.stack(results)


@pytest.fixture
def rounded(monkeypatch):
    """torchvision's matrix product with each product rounded before it is added, as on most processors."""
    def bmm(grid, matrix):
        return sum(grid[..., k:k + 1] * matrix[:, k:k + 1] for k in range(3))

    monkeypatch.setattr(torch.Tensor, "bmm", bmm)


def in_a_batch(images, *parameters, device="cpu", config=PUBLISHED):
    packed, indices = augment.pack(images.to(device)), torch.arange(len(images), device=device)
    corners = [torch.zeros(len(images), dtype=torch.int64)] * (6 - len(parameters))
    parameters = augment.as_parameters(*parameters, *corners).to(device)
    return augment.unpack(augment.augmented(packed, indices, parameters, config)).cpu()


def sampled(config, count, seed, epoch=0):
    return augment.sample_parameters(config, torch.arange(count), epoch, torch.Generator().manual_seed(seed))


# The smallest, the largest and no rotation; one with ties in the rounding; some for which float32 gives other pixels.
ANGLES = [-15.0, 15.0, 0.0, -0.0, 45.0, -45.0, -11.943745, -6.716547, -3.110391, 2.309204, 11.849763]


@pytest.fixture(scope="module")
def cases(images):
    """(images, flip, angle, top, left): edges first, then random ones."""
    edges = list(itertools.product([False, True], ANGLES, [-4, 0, 4], [-4, 0, 4]))
    random, rest = torch.Generator().manual_seed(2), COUNT - len(edges)
    flip = torch.rand(rest, generator=random) < 0.5
    angle = torch.rand(rest, dtype=torch.float64, generator=random) * 30 - 15
    top, left = torch.randint(-4, 5, (2, rest), generator=random)
    return images, *(torch.cat([torch.tensor(edge, dtype=more.dtype), more])
                     for edge, more in zip(zip(*edges), (flip, angle, top, left)))


@pytest.mark.parametrize("device", DEVICES)
def test_equals_torchvision_pixel_for_pixel(cases, rounded, device):
    assert torch.equal(in_a_batch(*cases, device=device), one_by_one(*cases))


def test_torchvision_on_this_processor_differs_at_most_in_ties(cases):
    """Where its matrix product rounds only once it may take another pixel, but one as near, up to that rounding."""
    _, _, angle, top, left = (values.view(COUNT, *values.shape[1:], 1, 1) for values in cases)
    different = (in_a_batch(*cases) != one_by_one(*cases)).any(dim=1)
    y, x, radians = torch.arange(32)[:, None] + top - 15.5, torch.arange(32) + left - 15.5, torch.deg2rad(angle)
    for position in (x * radians.cos() - y * radians.sin(), x * radians.sin() + y * radians.cos()):
        different &= (position - position.round()).abs() > 1e-5  # whole numbers are the borders of pixels
    assert not different.any()


def test_sampled_parameters_fit_their_distributions():
    count = 20_000
    parameters = sampled(PUBLISHED, count, seed=6)
    flip, cos, sin, top, left, *_ = parameters.double().unbind(1)
    angle = torch.rad2deg(-torch.atan2(sin, cos))
    assert flip.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(count))
    assert angle.abs().max() <= 15.001 and angle.min() < -14.9 and angle.max() > 14.9
    steps = (angle.sort().values + 15) / 30 - torch.arange(count) / count
    assert steps.abs().max() < 1.63 / math.sqrt(count)  # Kolmogorov's bound at 1%
    for position in (top, left):
        counts = torch.bincount(position.long() + 4, minlength=9).double()
        assert len(counts) == 9
        assert ((counts - count / 9) ** 2 / (count / 9)).sum() < 26.1  # chi square, 8 degrees of freedom, 0.1%
    together = torch.corrcoef(torch.stack([flip, angle, top, left]))
    assert (together - torch.eye(4)).abs().max() < 4 / math.sqrt(count)


def test_reflected_edges_and_cutout_equal_torchvisions(images):
    """Without rotation: it fills with black, before the image is padded."""
    parameters = sampled(MODERN, COUNT, seed=7)
    flip, _, _, top, left, cut_top, cut_left = parameters.long().unbind(1)
    got = augment.unpack(augment.augmented(augment.pack(images), torch.arange(COUNT), parameters, MODERN))
    wanted = one_by_one(images, flip, torch.zeros(COUNT), top, left, padding="reflect")
    for image, *corner in zip(wanted, cut_top.tolist(), cut_left.tolist()):
        F.erase(image, *corner, 8, 8, torch.tensor(0), inplace=True)
    assert torch.equal(got, wanted)
    assert top.unique().tolist() == left.unique().tolist() == [-2, -1, 0, 1, 2]
    assert cut_top.min() == 0 and cut_left.max() == 32 - 8


def test_alternating_flip_mirrors_each_image_every_other_epoch():
    order = torch.randperm(COUNT)
    first, second, third = (sampled(MODERN, COUNT, seed=epoch, epoch=epoch)[:, 0] for epoch in range(3))
    assert torch.equal(first, 1 - second) and torch.equal(first, third) and 0.45 < first.mean() < 0.55
    shuffled = augment.sample_parameters(MODERN, order, 1, torch.Generator())[:, 0]
    assert torch.equal(shuffled, second[order])
    assert not sampled(MODERN.replace(flip="none"), COUNT, seed=1)[:, 0].any()


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_normalize_equals_torchvision(protocol, images, load):
    split = load(tiny(protocol=protocol)).train
    steps = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(split.mean.tolist(), split.std.tolist())])
    torch.testing.assert_close(augment.normalize(images[:100], split), steps(images[:100]), rtol=1e-6, atol=2e-6)
    assert images.dtype == torch.uint8
