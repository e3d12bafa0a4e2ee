"""Convolutions with fewer multiplications: nn.Conv2d's weights, outputs and gradients, up to rounding, by matrix products."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Winograd's filtering of 4 outputs by 3 taps from 6 inputs: output @ ((kernel @ taps) * (input @ inputs)), in 6 multiplications
# instead of 12; in two dimensions 36 instead of 144. Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
# Networks", 2015. Each matrix is squared by Kronecker's product to transform a flattened square at once.
FROM_INPUT = torch.tensor([[4., 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                           [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])
FROM_KERNEL = torch.tensor([[6., 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
TO_OUTPUT = torch.tensor([[1., 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
FROM_INPUT, FROM_KERNEL, TO_OUTPUT = (torch.kron(matrix, matrix) for matrix in (FROM_INPUT, FROM_KERNEL, TO_OUTPUT))
WORTHWHILE = 96  # channels, in and out, from which the products saved outweigh the transforms (measured on AVX2)


class Conv2d(nn.Conv2d):
    """nn.Conv2d with square kernels, strides and paddings, without groups or dilation.

    Where a kernel covers the whole map from each output, only the taps that fall on the map are used: on a 32x32 image the ResNet's
    last stages work on 2x2 and 1x1 maps, where most of a 3x3 kernel multiplies padding. Wide 3x3 convolutions in fp32 on a CPU go by
    Winograd's filtering, which the libraries of a GPU choose of themselves.
    """

    def forward(self, maps: Tensor) -> Tensor:
        first_taps = self._first_taps(maps)
        if first_taps:
            return self._product(maps, first_taps)
        return self._winograd(maps) if self._saves(maps) else super().forward(maps)

    def _first_taps(self, maps: Tensor) -> range | None:
        """For each row (and column) of the output, the tap that falls on the map's first row; None if a kernel doesn't cover the map."""
        (kernel, _), (stride, _), (pad, _), size = self.kernel_size, self.stride, self.padding, maps.shape[-1]
        first = range(pad, pad - (size + 2 * pad - kernel) // stride * stride - 1, -stride)
        return None if maps.shape[-2] != size or first[0] + size > kernel or first[-1] < 0 else first

    def _product(self, maps: Tensor, first: range) -> Tensor:
        """All outputs as one product of the flattened maps with the taps that fall on them."""
        size = maps.shape[-1]
        taps = self.weight.permute(0, 2, 3, 1)  # channels last, as they lie in memory: whole rows are copied
        weight = torch.stack([taps[:, y:y + size, x:x + size] for y in first for x in first]).flatten(2).flatten(0, 1)
        bias = None if self.bias is None else self.bias.repeat(len(first) ** 2)
        output = F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, bias)  # (B, outputs * C'), channels last as the maps are
        return output.view(len(maps), len(first), len(first), -1).permute(0, 3, 1, 2)

    def _saves(self, maps: Tensor) -> bool:
        """Whether Winograd's filtering applies to `maps` and is quicker."""
        height, width = maps.shape[-2:]
        return (self.kernel_size == (3, 3) and self.stride == self.padding == (1, 1) and height % 4 == width % 4 == 0
                and min(self.in_channels, self.out_channels) >= WORTHWHILE and maps.dtype == torch.float32
                and maps.device.type == "cpu" and not torch.is_autocast_enabled("cpu"))

    def _winograd(self, maps: Tensor) -> Tensor:
        """Tiles of 4x4 outputs from overlapping tiles of 6x6 inputs, channels last."""
        count, rows, columns = len(maps), maps.shape[2] // 4, maps.shape[3] // 4
        tiles = _Tiles.apply(F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)))  # (36, B * tiles * C)
        kernels = FROM_KERNEL @ self.weight.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)  # (36, C' * C)
        inputs = (FROM_INPUT @ tiles).view(36, -1, self.in_channels)
        products = inputs @ kernels.view(36, self.out_channels, self.in_channels).mT  # (36, B * tiles, C')
        output = (TO_OUTPUT @ products.flatten(1)).view(4, 4, count, rows, columns, self.out_channels).permute(2, 3, 0, 4, 1, 5)
        output = output.reshape(count, 4 * rows, 4 * columns, self.out_channels)
        return (output if self.bias is None else output + self.bias).permute(0, 3, 1, 2)


class _Tiles(torch.autograd.Function):
    """Padded maps (B, H + 2, W + 2, C) as their overlapping tiles (6 * 6, B * H/4 * W/4 * C); the gradient adds up where they overlap."""

    @staticmethod
    def forward(ctx, maps: Tensor) -> Tensor:
        ctx.shape = maps.shape
        return torch.stack(list(_Tiles.parts(maps))).flatten(1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        maps = gradient.new_zeros(ctx.shape)
        parts = list(_Tiles.parts(maps))
        for part, tile in zip(parts, gradient.view(36, *parts[0].shape)):
            part += tile
        return maps

    @staticmethod
    def parts(maps: Tensor) -> Iterator[Tensor]:
        """For each place in a tile the values that all tiles have there (B, H/4, W/4, C), as views."""
        height, width = maps.shape[1] - 2, maps.shape[2] - 2
        return (maps[:, y:y + height - 3:4, x:x + width - 3:4] for y in range(6) for x in range(6))
