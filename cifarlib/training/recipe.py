"""What is minimized, and by which optimizer."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import Config
from ..parts import OPTIMIZERS, load


def training_loss(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """What a step minimizes: mean cross entropy in float32; of the softmax output, as if that were logits, if `config` says so."""
    logits = logits.float()
    return F.cross_entropy(logits.softmax(dim=1) if config.softmax_in_loss else logits, labels)


def evaluation_loss(logits: Tensor, labels: Tensor, config: Config) -> Tensor:
    """What early stopping and the records go by: the training loss without what only regularizes it."""
    logits = logits.float()
    return F.cross_entropy(logits.softmax(dim=1) if config.softmax_in_loss else logits, labels)


def make_optimizer(model: nn.Module, config: Config) -> Optimizer:
    """The optimizer that `config` names, with weight decay on weight matrices and kernels, or on all weights."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    other_decay = config.weight_decay if config.decayed == "all" else 0.0
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": other_decay}]
    return load(OPTIMIZERS[config.optimizer])(groups, config)
