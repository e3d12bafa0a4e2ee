"""The three published architectures; each maps normalized images (B, 3, 32, 32) to logits (B, 10)."""

import torch
from torch import Tensor, nn

from ..config import Config, InputError
from .cnn import CNN
from .resnet import ResNet
from .vit import ViT

MODELS = {"cnn": CNN, "resnet": ResNet, "vit": ViT}


def build_model(config: Config) -> nn.Module:
    """The model that `config` names, on the CPU, with weights that depend on the seed alone.

    Raises InputError for model_args that the model can't be built with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = MODELS[config.model](**config.model_args)
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, 32, 32))
        except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
            reason = " ".join(str(error).splitlines()[:2])  # without the frames of C++ that torch may add
            raise InputError(f"model_args: {config.model} can't be built with {config.model_args} ({reason})")
    return model.train()


@torch.no_grad()
def predict_proba(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (B, 10) of normalized images (B, 3, 32, 32), in the mode that `model` is in: call `eval()` first."""
    return model(images).softmax(dim=1)


def count_parameters(model: nn.Module) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in model.parameters())
