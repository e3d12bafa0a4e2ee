"""SpeedNet: a small convolutional network that learns CIFAR-10 to 94% within ten epochs; about 2.0 million weights.

Sources: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single A100", 2024, for the whitening stem, the identity start
and the scaled head, and the residual groups of its larger networks; D. Page, "How to Train Your ResNet", 2018. Here the
stem keeps 32x32 pixels, so that maps halve evenly, and maps are pooled before norm and GELU, a quarter of the work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conv2d, Head

PATCH = 2  # pixels across, of the stem's kernels
COLOURS = 3
FLAT = 5e-4  # added to the variances of the patches: directions in which they hardly vary are noise


class SpeedNet(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    widths: channels of each group, which halves the map; depth: convolutions of a group, with a residual connection
    around those after the first if there are more than two; stem: `whitened` or `trained`.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256), depth: int = 2, stem: str = "whitened",
                 classes: int = 10):
        super().__init__()
        if stem not in ("whitened", "trained"):
            raise ValueError("stem must be whitened or trained")
        filters = 2 * COLOURS * PATCH**2
        self.stem = nn.Conv2d(COLOURS, filters, PATCH)
        self.stem.weight.requires_grad_(stem == "trained")
        nn.init.zeros_(self.stem.bias)
        self.groups = nn.Sequential(*(Group(n, m, depth) for n, m in zip([filters, *widths], widths)))
        self.fc = Head(widths[-1], classes, bias=False)
        with torch.no_grad():
            self.fc.weight.div_(self.fc.weight.std())

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the stem from normalized training images (N, 3, 32, 32): its outputs are uncorrelated, of variance one.

        Each kernel is an eigenvector of the covariance of the images' 2x2 patches, and again with the other sign.
        """
        patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (N, 3, 31, 31, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)  # (N * 961, 12)
        variances, directions = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu())
        kernels = (directions / (variances + FLAT).sqrt()).T.view(-1, COLOURS, PATCH, PATCH)
        self.stem.weight.copy_(torch.cat([kernels, -kernels]))

    def forward(self, images: Tensor) -> Tensor:
        maps = F.gelu(self.stem(F.pad(images, (0, PATCH - 1, 0, PATCH - 1))))  # (B, 24, 32, 32)
        features = self.groups(maps).amax(dim=(2, 3))
        return self.fc(features.float() / features.shape[1])  # weights of one: large rates change them slowly


class Group(nn.Module):
    """Maps (B, in_channels, H, W) to (B, out_channels, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, depth: int):
        super().__init__()
        first = identity_convolution(in_channels, out_channels)
        self.first = nn.Sequential(first, nn.MaxPool2d(2), norm(out_channels), nn.GELU())
        later = [(identity_convolution(out_channels, out_channels), norm(out_channels), nn.GELU())
                 for _ in range(depth - 1)]
        self.later = nn.Sequential(*(layer for layers in later for layer in layers))
        self.residual = depth > 2

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.first(maps)
        return maps + self.later(maps) if self.residual else self.later(maps)


def identity_convolution(in_channels: int, out_channels: int) -> Conv2d:
    """A 3x3 convolution whose first outputs are its inputs, at the start."""
    convolution = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:in_channels])
    return convolution


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm whose scale stays one: the next kernel can scale."""
    layer = nn.BatchNorm2d(channels)
    layer.weight.requires_grad_(False)
    return layer
