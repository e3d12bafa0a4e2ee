"""The last layer of every model."""

import torch
from torch import Tensor, nn

from ..config import CLASSES


class Head(nn.Linear):
    """Features (B, C) to logits (B, 10), in the weights' precision under autocast too: in bf16 an image's two highest logits may tie."""

    def __init__(self, features: int):
        super().__init__(features, len(CLASSES))

    def forward(self, features: Tensor) -> Tensor:
        kind = features.device.type
        if not torch.amp.is_autocast_available(kind):  # the meta device
            return super().forward(features)
        with torch.autocast(kind, enabled=False):
            return super().forward(features.to(self.weight.dtype))
