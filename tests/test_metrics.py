"""Metrics against plain loops over the images."""

import math

import pytest
import torch
import torch.nn.functional as F

from cifarlib.parts import CIFAR10_CLASSES as CLASSES
from cifarlib.training.metrics import Tally

SIZES = [7, 1, 32, 60]  # of batches


def tally(logits, labels):
    """Scores of all images, added batch by batch; reading in between changes nothing, and no gradients are kept."""
    running, logits = Tally(CLASSES, torch.device("cpu")), logits.clone().requires_grad_()
    for x, y in zip(logits.split(SIZES), labels.split(SIZES)):
        running.add(F.cross_entropy(x, y), x, y)
        running.read()
    assert not running.loss.requires_grad
    return running.read()


@pytest.fixture(scope="module")
def outputs():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (sum(SIZES),), generator=random)
    return torch.randn(sum(SIZES), 10, generator=random) + 2 * F.one_hot(labels, 10), labels


def test_equal_plain_loops(outputs):
    logits, labels = outputs
    scores = tally(logits, labels)
    guesses = [max(range(10), key=row.__getitem__) for row in logits.tolist()]
    pairs = list(zip(labels.tolist(), guesses))
    assert scores.accuracy == sum(a == b for a, b in pairs) / len(pairs)
    per_class = []
    for c in range(10):
        members = [b for a, b in pairs if a == c]
        per_class.append(sum(b == c for b in members) / len(members))
        assert scores.confusion[c].tolist() == [members.count(guess) for guess in range(10)]
    assert scores.per_class == per_class
    assert scores.per_class_accuracy == pytest.approx(sum(per_class) / 10, abs=1e-15)
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits.tolist(), labels.tolist())]
    assert scores.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_class_without_images(outputs):
    logits, labels = outputs
    scores = tally(logits, labels.where(labels != 3, torch.tensor(4)))
    rest = [value for c, value in enumerate(scores.per_class) if c != 3]
    assert math.isnan(scores.per_class[3]) and scores.per_class_accuracy == pytest.approx(sum(rest) / 9)
    assert math.isnan(scores.row("val")["val_per_class_accuracy_cat"])


def test_many_images_lose_no_precision():
    """As many as the training split, in one accumulator."""
    running, random = Tally(CLASSES, torch.device("cpu")), torch.Generator().manual_seed(1)
    losses = torch.rand(40_000 // 250, generator=random) + 2
    for loss in losses:
        running.add(loss, torch.zeros(250, 10), torch.zeros(250, dtype=torch.int64))
    assert running.read().loss == pytest.approx(losses.double().mean().item(), rel=1e-6)
