"""Layers that the models share: a convolution that costs less than torch's, and the last layer, which keeps fp32."""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Linear):
    """Features (B, C) to logits (B, classes), in the weights' precision under autocast too: in bf16 logits may tie."""

    def forward(self, features: Tensor) -> Tensor:
        kind = features.device.type
        if not torch.amp.is_autocast_available(kind):  # the meta device
            return super().forward(features)
        with torch.autocast(kind, enabled=False):
            return super().forward(features.to(self.weight.dtype))


class Winograd(NamedTuple):
    """Winograd's minimal filtering F(tile, 3): `tile` outputs of a kernel g are A^T @ ((G @ g) * (B^T @ inputs)).

    input, kernel, output: B^T, G and A^T, each as its Kronecker product with itself, for a square that is flattened.
    Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.
    """

    tile: int
    input: Tensor  # ((tile + 2)^2, (tile + 2)^2)
    kernel: Tensor  # ((tile + 2)^2, 9)
    output: Tensor  # (tile^2, (tile + 2)^2)
    # Channels in times channels out from which the products saved outweigh the transforms (measured on AVX2, AVX-512).
    worthwhile: int

    @classmethod
    def of(cls, input: list, kernel: list, output: list, worthwhile: int) -> "Winograd":
        squares = (torch.kron(matrix, matrix) for matrix in map(torch.tensor, (input, kernel, output)))
        return cls(len(output), *squares, worthwhile)


# 16 multiplications instead of 36, with factors that bf16 holds exactly: outputs and gradients are off by 0.5%, by
# torch's own bf16 0.2%.
F_2X2 = Winograd.of([[1., 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
                    [[1., 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
                    [[1., 1, 1, 0], [0, 1, -1, -1]], worthwhile=192 * 192)
# 36 multiplications instead of 144, with factors that only fp32 is precise enough for.
F_4X4 = Winograd.of([[4., 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
                    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
                     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1.]],
                    [[1., 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
                    worthwhile=48 * 96)
SMALL = 8  # pixels across: there torch's gradients of a strided convolution take up to twice as long as the product's


class Conv2d(nn.Conv2d):
    """nn.Conv2d with square kernels, strides and paddings (with zeros), without groups or dilation.

    Where a kernel covers the whole map from each output, only the kernel weights that overlap the map are used: on a
    32x32 image the ResNet's last stages work on 2x2 and 1x1 maps, where most of a 3x3 kernel multiplies padding. On a
    CPU 1x1 kernels, and in fp32 strided ones on small maps, multiply a copy of the pixels that they meet, and wide 3x3
    convolutions go by Winograd's filtering. What is exported has torch's.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return super().forward(maps)
        if offsets := self._offsets(maps):
            return self._by_overlap(maps, offsets)
        if maps.device.type != "cpu":
            return super().forward(maps)
        small_strided = self.stride != (1, 1) and maps.shape[-1] <= SMALL and not torch.is_autocast_enabled("cpu")
        if self.kernel_size == (1, 1) or small_strided:
            return self._by_im2col(maps)
        winograd = self._winograd_for(maps)
        return self._by_winograd(maps, winograd) if winograd else super().forward(maps)

    def _offsets(self, maps: Tensor) -> list[int] | None:
        """For each row of outputs, the kernel's row over the map's first row; the same for columns.

        None unless the kernel lies over the whole map at each of them.
        """
        (kernel, _), (stride, _), (pad, _), size = self.kernel_size, self.stride, self.padding, maps.shape[-1]
        outputs = (size + 2 * pad - kernel) // stride + 1
        offsets = [pad - stride * output for output in range(outputs)]
        covers = maps.shape[-2] == size and all(0 <= offset <= kernel - size for offset in offsets)
        return offsets if covers else None

    def _by_overlap(self, maps: Tensor, offsets: list[int]) -> Tensor:
        """All outputs as one product of the flattened maps with the kernel weights that overlap them."""
        size, outputs = maps.shape[-1], len(offsets)
        overlaps = [(slice(y, y + size), slice(x, x + size)) for y in offsets for x in offsets]
        weight = _StackedSlices.apply(self.weight.permute(0, 2, 3, 1), overlaps, 0).flatten(2).flatten(0, 1)
        bias = None if self.bias is None else self.bias.repeat(outputs**2)
        output = F.linear(maps.permute(0, 2, 3, 1).flatten(1), weight, bias)  # (B, outputs^2 * C'), channels last
        return output.view(len(maps), outputs, outputs, -1).permute(0, 3, 1, 2)

    def _by_im2col(self, maps: Tensor) -> Tensor:
        """All outputs as one product of the kernel with the pixels that it meets, put in a row for each output."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pixels = self._windows(maps, kernel, stride, 3).flatten(3)  # (B, H', W', kernel^2 * C)
        return F.linear(pixels, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)

    def _windows(self, maps: Tensor, side: int, stride: int, dim: int) -> Tensor:
        """Windows of side x side pixels, `stride` apart, on the padded maps.

        (B, H', W', C) with the offset in a window as dimension `dim`.
        """
        maps, (pad, _) = maps.permute(0, 2, 3, 1), self.padding
        maps = F.pad(maps, (0, 0, pad, pad, pad, pad)) if pad else maps  # a pad of nothing would copy them too
        rows, columns = ([slice(first, first + size - side + 1, stride) for first in range(side)]
                         for size in maps.shape[1:3])
        return _StackedSlices.apply(maps, list(itertools.product(rows, columns)), dim)

    def _winograd_for(self, maps: Tensor) -> Winograd | None:
        """The variant that is quicker for `maps` than torch's convolution; None if there is none."""
        if self.kernel_size != (3, 3) or self.stride != (1, 1) or self.padding != (1, 1):
            return None
        if torch.is_autocast_enabled("cpu"):
            # AMX multiplies so fast in bf16 that the transforms would cost more than they save.
            winograd = None if torch.cpu._is_amx_tile_supported() else F_2X2
        else:
            winograd = F_4X4 if maps.dtype == torch.float32 else None
        worthwhile = winograd and self.in_channels * self.out_channels >= winograd.worthwhile
        return winograd if worthwhile and all(size % winograd.tile == 0 for size in maps.shape[-2:]) else None

    def _by_winograd(self, maps: Tensor, winograd: Winograd) -> Tensor:
        """Square tiles of outputs from overlapping tiles of inputs, two pixels wider, channels last."""
        tile, (count, _, height, width) = winograd.tile, maps.shape
        tiles = self._windows(maps, tile + 2, tile, 0)  # (offsets, B, H/tile, W/tile, C)
        with torch.autocast("cpu", enabled=False):  # rounded once, after the transform
            kernels = winograd.kernel @ self.weight.permute(2, 3, 0, 1).reshape(9, -1)  # (offsets, C' * C)
        inputs = (winograd.input @ tiles.flatten(1)).view(len(tiles), -1, self.in_channels)
        kernels = kernels.view(len(tiles), self.out_channels, self.in_channels)
        products = inputs @ kernels.mT  # (offsets, B * tiles, C')
        output = (winograd.output @ products.flatten(1)).view(tile, tile, count, height // tile, width // tile, -1)
        output = output.permute(2, 3, 0, 4, 1, 5).reshape(count, height, width, -1)
        output = output.contiguous()  # a map of one tile comes as a view
        return (output if self.bias is None else output + self.bias.to(output.dtype)).permute(0, 3, 1, 2)


class _StackedSlices(torch.autograd.Function):
    """Parts (N, h, w, C) of a tensor (N, H, W, C), stacked as dimension `dim`; the gradient adds up where they overlap.

    slices: (rows, columns) of each part. Channels are last as they lie in memory, so that whole rows are copied.
    torch's own slices give each part a gradient of the whole tensor's size.
    """

    @staticmethod
    def forward(ctx, whole: Tensor, slices: list[tuple[slice, slice]], dim: int) -> Tensor:
        ctx.shape, ctx.slices, ctx.dim = whole.shape, slices, dim
        return torch.stack([whole[:, rows, columns] for rows, columns in slices], dim)

    @staticmethod
    def backward(ctx, gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = gradients.new_zeros(ctx.shape)
        for (rows, columns), gradient in zip(ctx.slices, gradients.unbind(ctx.dim)):
            whole[:, rows, columns] += gradient
        return whole, None, None
