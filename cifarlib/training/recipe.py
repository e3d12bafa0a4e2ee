"""What is minimized, and by which optimizer."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import Config
from ..parts import OPTIMIZERS, load


def evaluation_loss(logits: Tensor, labels: Tensor, config: Config, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy in float32, of the softmax output, as if that were logits, where `config` says so.

    Early stopping goes by it, and it is what the records hold.
    """
    logits = logits.float()
    outputs = logits.softmax(dim=1) if config.softmax_in_loss else logits
    return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)


def training_loss(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """What a step minimizes: the same for labels of which a fraction is spread evenly over all classes."""
    return evaluation_loss(logits, labels, config, config.label_smoothing)


def make_optimizer(model: nn.Module, config: Config) -> Optimizer:
    """The optimizer that `config` names, with weight decay on weight matrices and kernels, or on all weights."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in weights if p.ndim <= 1],
               "weight_decay": config.weight_decay if config.decayed == "all" else 0.0}]
    return load(OPTIMIZERS[config.optimizer])(groups, config)
