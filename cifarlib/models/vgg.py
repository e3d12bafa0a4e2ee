"""VGG as it is used on CIFAR-10: with batch norm, and a single dense layer (VGG-16: 14,728,266 parameters).

Source: K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014.
"""

from torch import Tensor, nn

from .layers import Conv2d, Head

# In each stage, by the number of layers that have weights; the original ends in two dense layers more than ours.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    depth: 11, 13, 16 or 19; widths: channels of the five stages. Raises ValueError for others.
    """

    def __init__(self, depth: int = 16, widths: tuple[int, ...] = (64, 128, 256, 512, 512), classes: int = 10):
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}")
        stages, in_channels = [], 3
        for width, convolutions in zip(widths, CONVOLUTIONS[depth], strict=True):
            layers = []
            for _ in range(convolutions):
                layers += [Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))  # halves the map
        self.stages = nn.Sequential(*stages)
        self.fc = Head(in_channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(images)  # (B, 512, 1, 1)
        return self.fc(maps.flatten(1))
