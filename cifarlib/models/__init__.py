"""The models: each maps normalized images (B, 3, 32, 32) to logits (B, classes)."""

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import InputError
from ..parts import architecture, load


def build_model(config: Config) -> nn.Module:
    """The model that `config` names, on the CPU, with weights that depend on the seed alone.

    Raises InputError for a model that can't be built, or doesn't map images to the dataset's classes.
    """
    row, sizes, classes = architecture(config.model), config.model_args, len(config.classes)
    if row.sizes is not None:
        sizes = {**sizes, "classes": classes}
    make = load(row.home)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(config.seed)
        try:
            model = make(**sizes)
            shape = tuple(model.eval()(torch.zeros(2, 3, 32, 32)).shape)
        except Exception as error:  # whatever a model of the user's own raises
            reason = " ".join(str(error).splitlines()[:2])  # without the frames of C++ that torch may add
            raise InputError(f"model_args: {config.model} can't be built with {config.model_args} ({reason})") from None
    if shape != (2, classes):
        raise InputError(f"model: {config.model} maps two images to {shape}, expected logits of shape (2, {classes})")
    return model.train()


@torch.no_grad()
def predict_proba(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (B, classes) of normalized images (B, 3, 32, 32), in the mode that `model` is in: call `eval()` first."""
    return model(images).softmax(dim=1)


def count_parameters(model: nn.Module) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in model.parameters())
