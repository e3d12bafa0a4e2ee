"""Random flip, rotation, crop and cutout of a whole batch as one gather, pixel for pixel what torchvision does.

torchvision rotates about the image's centre with nearest sampling: it takes cos and sin in double, rounds them to
float32, maps each output pixel to a position in the source and rounds that half to even. The same float32 operations in
the same order are done here for all images at once; scaling by powers of two is exact, so it is moved to where it costs
nothing.

Only ties depend on the processor: where Intel's library uses AVX-512, torchvision's matrix product rounds a product and
its sum once instead of twice, and a pixel halfway between two, up to that rounding, may become the other one. Here both
are rounded, as on other processors, so that the images are the same on every machine.
"""

import torch
from torch import Tensor

from ..config import Config
from .splits import Split

SIDE = 34  # an image with its frame of one black pixel: whatever falls outside is read from the frame
PARAMETERS = 7  # of an image


def as_parameters(flip: Tensor, angle: Tensor, *corners: Tensor) -> Tensor:
    """How each of N images is changed: float32 (N, 7), flip, cos and sin of the rotation, then the corners.

    flip: 0 or 1; angle: in degrees, counter-clockwise, float64; corners: top and left of the crop, below zero in the
    padding, then of the cutout's square in the crop; all of shape (N,).
    """
    radians = torch.deg2rad(-angle)
    return torch.stack([each.float() for each in (flip, radians.cos(), radians.sin(), *corners)], dim=1)


def sample_parameters(config: Config, order: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
    """Random parameters (N, 7) of one epoch for all N images, which come in this `order` (N,), as `config` has them.

    Sampled on the CPU even when training on a GPU: a seed then gives the same augmentation on every device. An
    alternating flip mirrors half of the images in even epochs, the others in odd ones.
    """
    count = len(order)
    flip = torch.rand(count, generator=generator) < 0.5
    if config.flip == "alternating":
        in_even = torch.rand(count, generator=torch.Generator().manual_seed(config.seed)) < 0.5
        flip = in_even[order] ^ (epoch % 2 == 1)
    elif config.flip == "none":
        flip = torch.zeros_like(flip)
    angle = torch.empty(count, dtype=torch.float64).uniform_(-config.rotation, config.rotation, generator=generator)
    corner = torch.randint(0, 2 * config.crop + 1, (2, count), generator=generator) - config.crop
    cut = torch.randint(0, 33 - config.cutout, (2, count), generator=generator)
    return as_parameters(flip, angle, *corner, *cut)


def pack(images: Tensor) -> Tensor:
    """uint8 (N, 3, 32, 32) as int32 (N, 34*34): a pixel's three bytes in one word, which a gather moves together."""
    packed = images.new_zeros(len(images), SIDE, SIDE, 4)
    packed[:, 1:-1, 1:-1, :3] = images.permute(0, 2, 3, 1)
    return packed.view(torch.int32).view(len(images), SIDE * SIDE)


def unpack(pixels: Tensor) -> Tensor:
    """int32 (B, 32*32) packed pixels as uint8 (B, 3, 32, 32)."""
    return pixels.view(torch.uint8).view(-1, 32 * 32, 4)[..., :3].permute(0, 2, 1).contiguous().view(-1, 3, 32, 32)


def normalize(images: Tensor, split: Split) -> Tensor:
    """uint8 (B, 3, 32, 32) as float32 without the mean and standard deviation of a split or a trained model."""
    scale, shift = 1 / (255 * split.std), split.mean / split.std
    return images.float().mul_(scale[:, None, None]).sub_(shift[:, None, None])


def source_pixels(parameters: Tensor, config: Config) -> Tensor:
    """Which of its framed image's 34*34 pixels each output pixel shows, as int32 (B, 32*32); the frame is black."""
    flip, cos, sin, top, left, *cut = parameters[:, :, None].unbind(1)  # each (B, 1)
    pixel = torch.arange(32, device=cos.device)
    y, x = pixel + top, pixel + left  # (B, 32): in the rotated image
    if config.padding == "reflect":
        y, x = (31 - (31 - position.abs()).abs() for position in (y, x))
    # What is outside the rotated image is sent far away, where the clamp below finds the frame.
    far_x, far_y = 1e4 * ((x < 0) | (x > 31)), 1e4 * ((y < 0) | (y > 31))
    x, y = x - 15.5, y - 15.5
    column = _to_source((x * cos + far_x)[:, None, :], (y * sin + far_y)[:, :, None])  # (B, 32, 32)
    row = _to_source((x * -sin)[:, None, :], (y * cos)[:, :, None])
    # The flip comes before the rotation: it mirrors the column that is read.
    column.mul_((1 - 2 * flip)[:, :, None]).add_((1 + 31 * flip)[:, :, None])
    pixels = row.add_(1).mul_(SIDE).add_(column)
    if config.cutout:
        cut_y, cut_x = ((pixel >= first) & (pixel < first + config.cutout) for first in cut)
        pixels.masked_fill_(cut_y[:, :, None] & cut_x[:, None, :], 0)  # the frame's corner
    return pixels.to(torch.int32).view(-1, 32 * 32)


def _to_source(a: Tensor, b: Tensor) -> Tensor:
    """torchvision's ((g + 1) * 32 - 1) / 2 with g = (a + b) / 16, rounded half to even, kept within the frame."""
    return (a + b).add_(16).sub_(0.5).round_().clamp_(-1, 32)


def augmented(packed: Tensor, indices: Tensor, parameters: Tensor, config: Config) -> Tensor:
    """The images of `packed` at `indices` (B,), each with its own parameters, as packed pixels int32 (B, 32*32).

    parameters: (B, 7); config: says how images are padded, and how large the square is that is cut out.
    """
    pixels = source_pixels(parameters, config).add_(indices.to(torch.int32)[:, None], alpha=SIDE * SIDE)
    return packed.view(-1).index_select(0, pixels.view(-1)).view(-1, 32 * 32)


def plain(packed: Tensor, indices: Tensor) -> Tensor:
    """The images of `packed` at `indices` (B,) as they are, as packed pixels int32 (B, 32*32)."""
    return packed.view(-1, SIDE, SIDE)[indices][:, 1:-1, 1:-1].reshape(-1, 32 * 32)
