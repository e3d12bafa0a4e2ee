"""VGG with batch norm and a single dense layer, as it is used on CIFAR-10.

Source: K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014, whose three dense layers
served 7x7 maps of images of 224x224 pixels (VGG-16 here: 14,728,266 parameters).
"""

from torch import Tensor, nn

from .layers import Conv2d, Head

WIDTHS = (64, 128, 256, 512, 512)  # channels of the stages
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # in each stage, by depth


class VGG(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    depth: layers with weights in the original, 11, 13, 16 or 19; widths: channels of the five stages. Raises ValueError for another depth.
    """

    def __init__(self, depth: int = 16, widths: tuple[int, ...] = WIDTHS, classes: int = 10):
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
