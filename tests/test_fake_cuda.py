"""Training as on a GPU, with tensors that hold nothing (torch's fake tensor mode): those on a wrong device are found.

Only the backward pass needs a real device: in its place every weight is given a gradient.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cifarlib.parts import ARCHITECTURES, OPTIMIZERS, load as part
from cifarlib.training import loop
from cifarlib.training.metrics import Scores, Tally
from cifarlib.training.recipe import make_optimizer

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
ONE_TYPE = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.index_add_}


class OneType(TorchDispatchMode):
    """Operations of which a GPU takes no tensors of mixed types, which the fakes of torch let pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtypes = {tensor.dtype for tensor in args if isinstance(tensor, Tensor)}
        assert len(dtypes) == 1 or func.overloadpacket not in ONE_TYPE, (func, dtypes)
        return func(*args, **(kwargs or {}))


def fused_update(params, grads, *states, lr, **_):
    """In place of kernels of which torch has no fakes that take the learning rate as a tensor."""
    tensors = [*params, *grads, *(tensor for state in states for tensor in state), lr]
    assert {(tensor.device, tensor.dtype) for tensor in tensors} == {(CUDA, torch.float32)}


@pytest.fixture
def on_gpu(load, monkeypatch):
    """For a configuration: its model, stored channels last, and a split, both on a GPU that seems to be there."""
    split = vars(load(tiny()).train)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # autocast would be off
    monkeypatch.setattr(nn.Module, "to", lambda model, *_, **__: model)  # torch can't move a model of fake weights
    for name in ("_fused_adamw_", "_fused_sgd_"):
        monkeypatch.setattr(torch, name, fused_update)

    def make(config):
        with CUDA:
            model = part(ARCHITECTURES[config.model].home)(**config.model_args)
            for module in model.modules():
                for name, p in module.named_parameters(recurse=False):
                    if p.ndim == 4:
                        setattr(module, name, nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last)))
            fakes = {name: torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value
                     for name, value in split.items()}
        return model, loop.Split(**fakes)

    with FakeTensorMode(), OneType():
        yield make


STEPS = [*((name, "adamw", True) for name in ARCHITECTURES), *(("vgg", name, False) for name in OPTIMIZERS),
         ("speednet", "muon_sgd", True)]


@pytest.mark.parametrize("name, optimizer, augmentation", STEPS)
def test_steps_as_they_are_captured(name, optimizer, augmentation, on_gpu, monkeypatch):
    config = tiny(name, optimizer=optimizer, augmentation=augmentation, label_smoothing=0.1,
                  lr_by_step=True, cutout=4, padding="reflect")
    model, split = on_gpu(config)
    losses = []

    def backward(loss):
        losses.append(loss)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)

    monkeypatch.setattr(Tensor, "backward", backward)
    trainer = loop.Trainer(model, make_optimizer(model, config), split, config, "bf16")
    for epoch in range(2):
        trainer.begin(epoch)
        trainer._step_and_move()
    assert {(loss.device, loss.dtype, loss.shape) for loss in losses} == {(CUDA, torch.float32, ())}
    kept = [*vars(trainer).values(), *(group["lr"] for group in trainer.optimizer.param_groups)]
    assert {tensor.device for tensor in kept if isinstance(tensor, Tensor)} == {CUDA}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_evaluation_in_bf16(name, on_gpu, monkeypatch):
    config = tiny(name, precision="bf16")
    model, split = on_gpu(config)
    products = []
    for layer in (module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))):
        layer.register_forward_hook(lambda layer, inputs, output: products.append(output.dtype))
    monkeypatch.setattr(Tally, "read", lambda tally: Scores(0.0, tally.confusion, tally.classes))
    scores = loop.evaluate(model, split, config)
    assert {*products[:-1]} == {torch.bfloat16} and products[-1] == torch.float32
    assert {tensor.device for tensor in (scores.confusion, scores.logits, scores.labels)} == {CUDA}
