"""The plain way to train, as one would write it first: what ours is measured beside."""

from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..config import Config
from ..data.splits import Split, Splits
from ..machine import cores
from ..models import build_model
from ..models.layers import Conv2d

WORKERS = 6  # of the reference's loaders, as published, where there are as many cores


class Reference:
    """The plain way: images transformed one by one in worker processes, fp32, metrics in a loop over the samples."""

    def __init__(self, splits: Splits, config: Config):
        from torchvision import transforms

        self.device = splits.train.images.device
        self.model = build_model(config).to(self.device)
        for module in self.model.modules():
            if isinstance(module, Conv2d):
                module.forward = partial(nn.Conv2d.forward, module)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate, amsgrad=True,
                                           weight_decay=config.weight_decay)
        normalize = transforms.Normalize(splits.train.mean.tolist(), splits.train.std.tolist())
        to_tensor = [transforms.ToTensor(), normalize]
        changes = [transforms.RandomHorizontalFlip(), transforms.RandomRotation(15),
                   transforms.RandomCrop(32, padding=4)]
        self.train = _loader(splits.train, transforms.Compose([*changes, *to_tensor]), config.batch_size, shuffle=True)
        self.validation = _loader(splits.validation, transforms.Compose(to_tensor), config.batch_size, shuffle=False)

    def epoch(self) -> None:
        """Train on all training images and validate."""
        self.model.train()
        self._pass(self.train, self._step)
        self.model.eval()
        with torch.no_grad():
            self._pass(self.validation, self._loss)

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return nn.functional.cross_entropy(logits, labels), logits

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self._loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss, logits

    def _pass(self, loader: DataLoader, step) -> None:
        """A pass with the published code's bookkeeping: a wait for the device a batch and a loop over its samples."""
        total, right, count = 0.0, [0] * 10, [0] * 10
        for images, labels in loader:
            loss, logits = step(images.to(self.device), labels.to(self.device))
            total += loss.item() * len(labels)
            for predicted, label in zip(logits.argmax(dim=1).cpu().numpy(), labels.numpy()):
                right[label] += int(predicted == label)
                count[label] += 1


class _Images(Dataset):
    """A split image by image, as torchvision's CIFAR10 gives it."""

    def __init__(self, split: Split, transform):
        self.images, self.labels = split.images.permute(0, 2, 3, 1).cpu().numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def _loader(split: Split, transform, batch_size: int, shuffle: bool) -> DataLoader:
    # Forking a process that has used its threads or a GPU is no good start for a worker.
    return DataLoader(_Images(split, transform), batch_size, shuffle, num_workers=min(WORKERS, cores()),
                      persistent_workers=True, multiprocessing_context="forkserver")
