"""Convolutions with fewer multiplications: nn.Conv2d's weights, outputs and gradients, up to rounding, by matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Winograd's filtering of 4 outputs by 3 taps from 6 inputs: TO_OUTPUT @ ((FROM_KERNEL @ taps) * (FROM_INPUT @ inputs)), in 6
# multiplications instead of 12; in two dimensions 36 instead of 144. Kronecker's product of each matrix with itself transforms a
# flattened square. Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.
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
    Winograd's filtering.
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
        places = [(slice(y, y + size), slice(x, x + size)) for y in first for x in first]
        weight = _Parts.apply(self.weight.permute(0, 2, 3, 1), places).flatten(2).flatten(0, 1)
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
        count, _, height, width = maps.shape
        places = [(slice(y, y + height - 3, 4), slice(x, x + width - 3, 4)) for y in range(6) for x in range(6)]
        tiles = _Parts.apply(F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)), places)  # (36, B, H/4, W/4, C)
        kernels = FROM_KERNEL @ self.weight.permute(2, 3, 0, 1).reshape(9, -1)  # (36, C' * C)
        inputs = (FROM_INPUT @ tiles.flatten(1)).view(36, -1, self.in_channels)
        products = inputs @ kernels.view(36, self.out_channels, self.in_channels).mT  # (36, B * tiles, C')
        output = (TO_OUTPUT @ products.flatten(1)).view(4, 4, count, height // 4, width // 4, -1).permute(2, 3, 0, 4, 1, 5)
        output = output.reshape(count, height, width, -1)
        return (output if self.bias is None else output + self.bias).permute(0, 3, 1, 2)


class _Parts(torch.autograd.Function):
    """Parts of a tensor (N, H, W, C), equal in size, in a row: (parts, N, h, w, C); the gradient adds up where they overlap.

    places: (rows, columns) of each part, as slices. Channels are last as they lie in memory, so that whole rows are copied. torch's
    own slices give each part a gradient of the whole tensor's size.
    """

    @staticmethod
    def forward(ctx, whole: Tensor, places: list[tuple[slice, slice]]) -> Tensor:
        ctx.shape, ctx.places = whole.shape, places
        return torch.stack([whole[:, rows, columns] for rows, columns in places])

    @staticmethod
    def backward(ctx, gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients.new_zeros(ctx.shape)
        for (rows, columns), gradient in zip(ctx.places, gradients):
            whole[:, rows, columns] += gradient
        return whole, None
