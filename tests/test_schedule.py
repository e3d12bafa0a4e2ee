"""The learning rate against torch's own schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, StepLR

from cifarlib import Config
from cifarlib.training.schedule import lr_at

EPOCHS = 80


@pytest.mark.parametrize("protocol, steps_an_epoch, t_max", [("corrected", 1, EPOCHS), ("published", 2, 10)])
@pytest.mark.parametrize("scheduler", ["exponential", "step", "cosine"])
def test_torchs_schedulers(scheduler, protocol, steps_an_epoch, t_max):
    config = Config(scheduler=scheduler, protocol=protocol, gamma=0.97, epochs=EPOCHS, learning_rate=0.01)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.01)
    theirs = {"exponential": lambda: ExponentialLR(optimizer, 0.97), "step": lambda: StepLR(optimizer, 3, 0.97),
              "cosine": lambda: CosineAnnealingLR(optimizer, t_max)}[scheduler]()
    for epoch in range(EPOCHS):
        assert lr_at(config, epoch) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12), epoch
        for _ in range(steps_an_epoch):
            optimizer.step()
            theirs.step()


def test_linear_falls_to_zero_by_step():
    """In the 7 steps of each epoch as torch's schedule that is stepped every step."""
    config = Config(protocol="modern", epochs=3, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = LinearLR(optimizer, 1.0, 0.0, total_iters=21)
    for step in range(21):
        assert lr_at(config, step / 7) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
