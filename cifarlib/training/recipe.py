"""What is minimized, by which optimizer, and how a test looks at an image."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import Config
from ..parts import OPTIMIZERS, load
from .optimizers import Together


def loss_of(logits: Tensor, labels: Tensor, config: Config, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy in float32, of the softmax output, as if that were logits, where `config` says so.

    label_smoothing: the part of each label that is spread evenly over all classes in what a step minimizes; early
    stopping and the records go by the loss without it.
    """
    logits = logits.float()
    outputs = logits.softmax(dim=1) if config.softmax_in_loss else logits
    return F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)


def make_optimizer(model: nn.Module, config: Config) -> Optimizer:
    """The optimizer that `config` names, with weight decay on weight matrices and kernels, or on all weights.

    If the configuration averages weights, the optimizer does.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": config.weight_decay},
              {"params": [p for p in weights if p.ndim <= 1],
               "weight_decay": config.weight_decay if config.decayed == "all" else 0.0}]
    optimizer = load(OPTIMIZERS[config.optimizer])(groups, config)
    return Averaging(optimizer, model, config.weight_average) if config.weight_average else optimizer


class Averaging(Together):
    """An optimizer that also keeps an exponential moving average of a model's weights and running statistics."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, decay: float):
        super().__init__(optimizer)
        self.model, self.average, self.decay = model, copy.deepcopy(model).requires_grad_(False), decay

    def step(self) -> None:
        super().step()
        for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values()):
            if value.is_floating_point():
                mean.lerp_(value, 1 - self.decay)
            else:  # a count of batches
                mean.copy_(value)

    def state_dict(self) -> list:
        return [*super().state_dict(), self.average.state_dict()]

    def load_state_dict(self, saved: list) -> None:
        super().load_state_dict(saved[:-1])
        self.average.load_state_dict(saved[-1])


def tested_model(model: nn.Module, optimizer: Optimizer) -> nn.Module:
    """The model whose weights are validated, kept and tested: `model`, or the optimizer's average of it."""
    return getattr(optimizer, "average", model)


def views(model: nn.Module, images: Tensor, tta: str) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) of images (B, 3, H, W), and the mean logits over the views that `tta` names.

    `none` is the image alone; `flip` the image and its mirror image; `flip_shift` adds the same two of the image
    shifted diagonally by a pixel, either way, all four together with the weight of the first two. Source: K. Jordan,
    "94% on CIFAR-10 in 3.29 Seconds on a Single A100", 2024.
    """
    def mirrored(images: Tensor) -> Tensor:
        return model(images.flip(3).contiguous(memory_format=torch.channels_last))

    logits = averaged = model(images)
    if tta != "none":
        averaged = (logits + mirrored(images)) / 2
    if tta == "flip_shift":
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shifted = padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]
        averaged = averaged / 2 + sum(model(view) + mirrored(view) for view in shifted) / 8
    return logits, averaged
