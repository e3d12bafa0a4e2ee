"""Our AdamW against torch's own."""

import subprocess
import sys
from pathlib import Path

import torch
from conftest import tiny

from cifarlib.models import build_model
from cifarlib.training.optimizers import AdamW

LR = 0.01
LATER = 0.003  # as a schedule sets it


def pair():
    """Two equal models with torch's optimizer and ours."""
    models = [build_model(tiny("resnet")).to(memory_format=torch.channels_last) for _ in range(2)]
    groups = [[{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
               {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}] for model in models]
    return models, [torch.optim.AdamW(groups[0], LR, amsgrad=True, fused=True), AdamW(groups[1], LR)]


def train(model, optimizer, steps):
    """Steps on data that are drawn anew, so that the squared gradients fall too, where amsgrad tells."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 3, 32, 32, generator=generator) / (1 + step), torch.randint(10, (8,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = LR if step < 3 else LATER
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def same(models):
    first, second = (list(model.parameters()) for model in models)
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_gives_the_weights_of_torchs_bit_for_bit():
    models, optimizers = pair()
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, range(6))
    assert same(models)


def test_it_goes_on_from_a_saved_state(tmp_path):
    models, (_, first) = pair()
    train(models[1], first, range(4))
    torch.save([models[1].state_dict(), first.state_dict()], tmp_path / "state.pt")
    train(models[1], first, range(4, 8))
    others, (_, second) = pair()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    others[1].load_state_dict(weights)
    second.load_state_dict(state)
    train(others[1], second, range(4, 8))
    assert same([models[1], others[1]])


def test_training_imports_neither_torchs_compiler_nor_torchvision():
    code = ("import sys; from conftest import tiny; from cifarlib import build_model, fit, load_cifar10; config = tiny('resnet'); "
            "fit(build_model(config), load_cifar10(config), config); "
            "sys.exit(' '.join({'torch._dynamo', 'torchvision'} & sys.modules.keys()) or 0)")
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
