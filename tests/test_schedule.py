"""The learning rate against closed forms and against torch's own schedulers."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, StepLR

from cifarlib import Config
from cifarlib.training.schedule import lr_at

EPOCHS = 80


def config(scheduler, protocol="corrected", gamma=0.97, epochs=EPOCHS):
    return Config(scheduler=scheduler, protocol=protocol, gamma=gamma, epochs=epochs, learning_rate=0.01)


@pytest.mark.parametrize("gamma", [0.95, 0.99])
@pytest.mark.parametrize("scheduler, factor", [
    ("exponential", lambda gamma, epoch: gamma**epoch),
    ("step", lambda gamma, epoch: gamma ** math.floor(epoch / 3)),
    ("cosine", lambda gamma, epoch: 0.5 + 0.5 * math.cos(math.pi * epoch / EPOCHS)),
])
def test_closed_forms(scheduler, factor, gamma):
    for epoch in range(EPOCHS):
        assert lr_at(config(scheduler, gamma=gamma), epoch) == pytest.approx(0.01 * factor(gamma, epoch), rel=1e-12)


@pytest.mark.parametrize("protocol, steps_an_epoch, t_max", [("corrected", 1, EPOCHS), ("published", 2, 10)])
@pytest.mark.parametrize("scheduler", ["exponential", "step", "cosine"])
def test_torchs_schedulers(scheduler, protocol, steps_an_epoch, t_max):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.01)
    theirs = {"exponential": lambda: ExponentialLR(optimizer, 0.97), "step": lambda: StepLR(optimizer, 3, 0.97),
              "cosine": lambda: CosineAnnealingLR(optimizer, t_max)}[scheduler]()
    for epoch in range(EPOCHS):
        wanted = pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        assert lr_at(config(scheduler, protocol), epoch) == wanted, epoch
        for _ in range(steps_an_epoch):
            optimizer.step()
            theirs.step()


def test_cosine_starts_at_the_learning_rate_and_ends_near_zero():
    rates = [lr_at(config("cosine"), epoch) for epoch in range(EPOCHS)]
    assert rates[0] == 0.01 and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 1e-5
    assert lr_at(config("cosine", epochs=1), 0) == 0.01


def test_published_cosine_is_zero_in_the_6th_16th_epoch_and_rises_again():
    rates = [lr_at(config("cosine", "published"), epoch) for epoch in range(EPOCHS)]
    zero = [number for number, rate in enumerate(rates, start=1) if rate < 1e-12]
    assert zero == [6, 16, 26, 36, 46, 56, 66, 76]
    assert [rates[number] for number in (0, 10, 20, 70)] == pytest.approx([0.01] * 4)
    assert rates[-1] > 0.009  # near its peak when training ends
