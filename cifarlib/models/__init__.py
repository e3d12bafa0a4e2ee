"""The models: each maps normalized images (B, 3, 32, 32) to logits (B, classes)."""

import copy

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import InputError
from ..parts import architecture, is_own, load, reason, source_digest


def build_model(config: Config) -> nn.Module:
    """The model that `config` names, on the CPU, with weights that depend on the seed alone.

    Raises InputError for a model that can't be built, or doesn't map images to the dataset's classes.
    """
    row, classes = architecture(config.model), len(config.classes)
    sizes = config.model_args if row.sizes is None else {**config.model_args, "classes": classes}
    make, doing = load(row.home), "be built"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = make(**sizes)
            doing = "be trained on images of 32x32 pixels"
            problem = _problem(model, classes, config)
        except Exception as error:  # whatever a model of the user's own raises
            raise InputError(f"model_args: {config.model} can't {doing} with {config.model_args} "
                             f"({reason(error, config.model)})") from None
    if problem:
        raise InputError(f"model: {config.model} {problem}")
    model.source_digest = source_digest(config.model)  # a user's file may change before the model is trained
    return model.train()


def _problem(model: nn.Module, classes: int, config: Config) -> str | None:
    """What keeps `model` from mapping two images to logits (2, classes); None if nothing does.

    A model of the user's own also tries a training step as `fit` does it: stored channels last and, unless the
    configuration excludes it, in bf16; a copy of it, since that moves running statistics.
    """
    if not isinstance(model, nn.Module):
        return f"gives a {type(model).__name__}, expected a torch.nn.Module"
    images = torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        outputs = [model.eval()(images)]
    if own := is_own(config.model):
        trial = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "fp32"):
            outputs.append(trial(images))
    for output in outputs:
        if not isinstance(output, Tensor):
            return f"maps images to a {type(output).__name__}, expected logits"
        if output.shape != (2, classes):
            hint = f"; say how many classes, such as model_args {{num_classes: {classes}}}" if output.ndim == 2 else ""
            return f"maps two images to {tuple(output.shape)}, expected logits of shape (2, {classes}){hint}"
    if own:
        outputs[-1].float().sum().backward()


def count_parameters(model: nn.Module) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in model.parameters())
