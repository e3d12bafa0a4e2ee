"""ResNet-18 with the ImageNet stem (7x7 stride 2, then pooling) or the usual one for 32x32 images (3x3 stride 1).

Source: K. He et al., "Deep Residual Learning for Image Recognition", 2015, with biases in the convolutions as in the
published variant (11,186,442 parameters with the ImageNet stem).
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
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.extend([Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)])

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual(maps) + self.shortcut(maps))


class ResNet(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    widths: channels of the stages, 8 or more; depths: blocks in each, 1 or more; stem: 7x7 or 3x3. Raises ValueError
    for others.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), depths: tuple[int, ...] = (2, 2, 2, 2),
                 stem: str = "7x7", classes: int = 10):
        super().__init__()
        if min(widths) < 8:
            # In strided 1x1 convolutions of fewer channels oneDNN writes past its memory (torch 2.14, with AVX2).
            raise ValueError("each of widths must be 8 channels or more")
        if min(depths) < 1:
            raise ValueError("each of depths must be 1 block or more")
        if stem not in ("7x7", "3x3"):
            raise ValueError("stem must be 7x7 or 3x3")
        if stem == "7x7":
            self.stem = nn.Sequential(
                nn.Conv2d(3, widths[0], 7, stride=2, padding=3), nn.BatchNorm2d(widths[0]),
                nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(),  # in this order the ReLU has a quarter of the work
            )
        else:
            self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages, in_channels = [], widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = BasicBlock(in_channels, width, stride=1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(depth - 1))))
            in_channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = Head(in_channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)  # (B, 64, 8, 8), or (B, 64, 32, 32) from the 3x3 stem
        maps = self.stages(maps)  # (B, 512, 1, 1), or (B, 512, 4, 4)
        return self.fc(self.pool(maps).flatten(1))
