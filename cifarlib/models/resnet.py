"""ResNet-18 with the ImageNet stem (7x7 stride 2, then pooling), applied to 32x32 images.

Source: K. He et al., "Deep Residual Learning for Image Recognition", 2015, with biases in the convolutions as in the
published variant (11,186,442 parameters).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conv2d, Head


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), (B, C, H, W) to (B, C', H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(),
            Conv2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels),
        )
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Sequential() if same else nn.Sequential(Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual(maps) + self.shortcut(maps))


class ResNet(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    widths: channels of the stages, 8 or more; depths: blocks in each, 1 or more. Raises ValueError for less.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), depths: tuple[int, ...] = (2, 2, 2, 2),
                 classes: int = 10):
        super().__init__()
        if min(widths) < 8:
            # oneDNN writes past its memory in strided 1x1 convolutions of fewer channels (torch 2.14 on processors with AVX2).
            raise ValueError("each of widths must be 8 channels or more")
        if min(depths) < 1:
            raise ValueError("each of depths must be 1 block or more")
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, stride=2, padding=3), nn.BatchNorm2d(widths[0]),
            nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(),  # the same in the other order, with four times the work for the ReLU
        )
        stages, in_channels = [], widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = BasicBlock(in_channels, width, stride=1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(depth - 1))))
            in_channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = Head(in_channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)  # (B, 64, 8, 8)
        maps = self.stages(maps)  # (B, 512, 1, 1)
        return self.fc(self.pool(maps).flatten(1))
