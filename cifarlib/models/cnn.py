"""CNNBasic: three blocks of two 3x3 convolutions and four dense layers.

Source: the architecture of the published CNNBasic (13,243,146 parameters).
"""

from torch import Tensor, nn

from .layers import Conv2d, Head


def conv_block(in_channels: int, mid_channels: int, out_channels: int) -> list[nn.Module]:
    """Two 3x3 convolutions, each with batch norm and GELU, then a 2x2 pooling that halves the map."""
    return [
        Conv2d(in_channels, mid_channels, 3, padding=1), nn.BatchNorm2d(mid_channels), nn.GELU(),
        Conv2d(mid_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.GELU(),
        nn.MaxPool2d(2),
    ]


class CNN(nn.Module):
    """Images (B, 3, 32, 32) to logits (B, classes).

    channels: of the six convolutions; hidden: widths of the dense layers before the last; dropout: probability.
    """

    def __init__(self, channels: tuple[int, ...] = (48, 96, 192, 256, 512, 512),
                 hidden: tuple[int, ...] = (1024, 512, 256), dropout: float = 0.15, classes: int = 10):
        super().__init__()
        a, b, c, d, e, f = channels
        blocks = [*conv_block(3, a, b), *conv_block(b, c, d), *conv_block(d, e, f)]
        self.features = nn.Sequential(*blocks, nn.Dropout(dropout))
        widths = [f * 4 * 4, *hidden]
        dense = [layer for n, m in zip(widths, hidden) for layer in (nn.Linear(n, m), nn.GELU(), nn.Dropout(dropout))]
        self.classifier = nn.Sequential(*dense, Head(widths[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)  # (B, 512, 4, 4)
        return self.classifier(maps.flatten(1))
