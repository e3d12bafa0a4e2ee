"""Loss, accuracy and accuracy per class from sums that stay on the device until they are read once an epoch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..parts import MANY


class Tally:
    """Running loss and confusion counts of named classes on `device`; adding a batch never waits for the device."""

    def __init__(self, classes: tuple[str, ...], device: torch.device):
        self.classes = classes
        self.loss = torch.zeros((), device=device)
        self.confusion = torch.zeros(len(classes) ** 2, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: its mean loss (scalar), logits (B, classes) and labels (B,)."""
        self.loss.add_(loss.detach(), alpha=len(labels))
        pairs = labels * len(self.classes) + logits.detach().argmax(dim=1)
        self.confusion.index_add_(0, pairs, torch.ones_like(pairs))

    def clear(self) -> None:
        """Begin anew, in place."""
        self.loss.zero_()
        self.confusion.zero_()

    def read(self) -> "Scores":
        """The metrics so far; nothing else waits for the device."""
        values = torch.cat([self.confusion.float(), self.loss[None]]).cpu()  # float32 counts exactly to 16 million
        confusion = values[:-1].long().view(len(self.classes), -1)
        return Scores(values[-1].item() / int(confusion.sum()), confusion, self.classes)


@dataclass(frozen=True)
class Scores:
    """Metrics of one pass over a split.

    loss: mean over images; confusion: int64 (C, C) on the CPU, row = true class, column = predicted class; classes:
    their names; logits: float32 (N, C) and labels: int64 (N,) on the split's device, of an evaluation only, as is
    accuracy_with_views, None without views.
    """

    loss: float
    confusion: Tensor
    classes: tuple[str, ...]
    logits: Tensor | None = None
    labels: Tensor | None = None
    accuracy_with_views: float | None = None

    @property
    def accuracy(self) -> float:
        """Fraction of images whose class is the predicted one."""
        return self.confusion.diag().sum().item() / self.confusion.sum().item()

    @property
    def per_class(self) -> list[float]:
        """Accuracy on the images of each class; NaN for a class without images."""
        return (self.confusion.diag().double() / self.confusion.sum(dim=1)).tolist()

    @property
    def per_class_accuracy(self) -> float:
        """Mean of the per-class accuracies over the classes that have images."""
        return torch.tensor(self.per_class, dtype=torch.float64).nanmean().item()

    def row(self, prefix: str, suffix: str = "") -> dict[str, float]:
        """The published column names, e.g. `val_per_class_accuracy_cat` or `test_loss_terminal`."""
        values = {"loss": self.loss, "accuracy": self.accuracy, "per_class_accuracy": self.per_class_accuracy}
        if len(self.classes) <= MANY:
            values |= {f"per_class_accuracy_{name}": value for name, value in zip(self.classes, self.per_class)}
        if self.accuracy_with_views is not None:
            values["accuracy_with_views"] = self.accuracy_with_views
        return {f"{prefix}_{name}{suffix}": value for name, value in values.items()}
