"""The batch augmentation against torchvision's functions image by image, and its draws against their distributions."""

import itertools
import math

import pytest
import torch
from conftest import tiny
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cifarlib.data import augment
from cifarlib.data.augment import Draws

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
COUNT = 3000


@pytest.fixture(scope="module")
def images():
    """Noise: no two neighbouring pixels are alike, so that a pixel taken from the wrong place shows."""
    return torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def one_by_one(images, flip, angle, top, left):
    """What the described system does to each image: torchvision's flip, rotation, padding and crop, in this order."""
    results = []
    for image, mirrored, degrees, row, column in zip(images, flip.tolist(), angle.tolist(), top.tolist(), left.tolist()):
        image = F.horizontal_flip(image) if mirrored else image
        image = F.rotate(image, degrees, interpolation=InterpolationMode.NEAREST, fill=0)
        results.append(F.crop(F.pad(image, [4, 4, 4, 4], fill=0), row, column, 32, 32))
    return torch.stack(results)


def in_a_batch(images, *choices, device="cpu"):
    packed = augment.pack(images.to(device))
    places = torch.arange(len(images), device=device)
    return augment.unpack(augment.augmented(packed, places, Draws.of(*choices).to(device))).cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_equals_torchvision_pixel_for_pixel(images, device):
    random = torch.Generator().manual_seed(2)
    flip = torch.rand(COUNT, generator=random) < 0.5
    angle = torch.empty(COUNT, dtype=torch.float64).uniform_(-15, 15, generator=random)
    top, left = torch.randint(0, 9, (2, COUNT), generator=random)
    wanted, got = one_by_one(images, flip, angle, top, left), in_a_batch(images, flip, angle, top, left, device=device)
    different = (wanted != got).any(dim=1).sum().item()  # pixels
    # A GPU contracts multiply and add into one rounding, which may tip a rare tie.
    assert different <= (0 if device == "cpu" else 1e-6 * COUNT * 32 * 32)


# The smallest, the largest and no rotation; one with ties in the rounding; some for which cos and sin in float32 give other pixels.
ANGLES = [-15.0, 15.0, 0.0, -0.0, 45.0, -45.0, -11.943745, -6.716547, -3.110391, 2.309204, 11.849763]


def test_equals_torchvision_at_the_edges(images):
    cases = list(itertools.product([False, True], ANGLES, [0, 4, 8], [0, 4, 8]))
    flip, angle, top, left = (torch.tensor(choice, dtype=kind) for choice, kind in zip(zip(*cases), (torch.bool, torch.float64, torch.int64, torch.int64)))
    few, choices = images[:len(cases)], (flip, angle, top, left)
    assert torch.equal(in_a_batch(few, *choices), one_by_one(few, *choices))


def test_is_what_training_draws(images):
    """Draws from `draw` do what their angle says: torchvision with the angle that cos and sin give agrees but for rare ties."""
    draws = augment.draw(500, torch.Generator().manual_seed(3))
    angle = torch.rad2deg(-torch.atan2(draws.sin.double(), draws.cos.double()))
    got = augment.unpack(augment.augmented(augment.pack(images), torch.arange(500), draws))
    wanted = one_by_one(images[:500], draws.flip, angle, draws.top, draws.left)
    assert (got != wanted).float().mean() < 1e-4


def test_chosen_images_get_their_own_draws(images):
    packed, draws = augment.pack(images), augment.draw(64, torch.Generator().manual_seed(4))
    chosen = torch.randperm(COUNT, generator=torch.Generator().manual_seed(5))[:64]
    together = augment.augmented(packed, chosen, draws)
    alone = [augment.augmented(packed, chosen[i:i + 1], draws[i:i + 1]) for i in range(64)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[10:20], augment.augmented(packed, chosen[10:20], draws[10:20]))


def test_draws_fit_their_distributions():
    count = 20_000
    draws = augment.draw(count, torch.Generator().manual_seed(6))
    angle = torch.rad2deg(-torch.atan2(draws.sin.double(), draws.cos.double()))
    assert draws.flip.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(count))
    assert angle.abs().max() <= 15.001 and angle.min() < -14.9 and angle.max() > 14.9
    steps = (angle.sort().values + 15) / 30 - torch.arange(count) / count
    assert steps.abs().max() < 1.63 / math.sqrt(count)  # Kolmogorov's bound at 1%
    for place in (draws.top, draws.left):
        counts = torch.bincount(place, minlength=9).double()
        assert len(counts) == 9
        assert ((counts - count / 9) ** 2 / (count / 9)).sum() < 26.1  # chi square, 8 degrees of freedom, 0.1%
    together = torch.corrcoef(torch.stack([draws.flip.double(), angle, draws.top.double(), draws.left.double()]))
    assert (together - torch.eye(4)).abs().max() < 4 / math.sqrt(count)


def test_draws_follow_the_generator_alone():
    def draw(seed):
        torch.rand(3)  # the global generator is another one
        draws = augment.draw(50, torch.Generator().manual_seed(seed))
        return torch.stack([draws.flip.double(), draws.cos.double(), draws.sin.double(), draws.top.double(), draws.left.double()])

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_plain_images_are_as_they_were(images):
    chosen = torch.tensor([5, 0, COUNT - 1, 5])
    packed = augment.pack(images)
    assert torch.equal(augment.unpack(augment.plain(packed, chosen)), images[chosen])
    still = Draws.of(torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.float64), torch.full((4,), 4), torch.full((4,), 4))
    assert torch.equal(augment.unpack(augment.augmented(packed, chosen, still)), images[chosen])


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_normalize_equals_torchvision(protocol, images, load):
    split = load(tiny(protocol=protocol)).train
    steps = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(split.mean.tolist(), split.std.tolist())])
    torch.testing.assert_close(augment.normalize(images[:100], split), steps(images[:100]), rtol=1e-6, atol=2e-6)
    assert images.dtype == torch.uint8
