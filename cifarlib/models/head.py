"""The last layer of every model."""

import torch
from torch import Tensor, nn


def logits(head: nn.Linear, features: Tensor) -> Tensor:
    """Features (B, C) to logits (B, 10), as precise as the weights under autocast too: in bf16 an image's two highest logits may tie."""
    kind = features.device.type
    if not torch.amp.is_autocast_available(kind):  # the meta device
        return head(features)
    with torch.autocast(kind, enabled=False):
        return head(features.to(head.weight.dtype))
