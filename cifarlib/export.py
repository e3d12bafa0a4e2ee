"""A trained model as a file that other programs read, checked against the model's own outputs."""

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .data.augment import normalize
from .errors import InputError
from .files import project_path, replacing
from .parts import reason
from .trained import Trained

CLOSE = 1e-4  # how far probabilities from the file may be off: programs sum in another order


class Packaged(nn.Module):
    """Images uint8 (N, 3, 32, 32), in RGB, to probabilities float32 (N, classes): it normalizes them itself."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.model = trained.model
        self.register_buffer("mean", trained.mean)
        self.register_buffer("std", trained.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(normalize(images, self)).float().softmax(dim=1)


def write_onnx(model: Packaged, images: Tensor, facts: dict[str, str], path: Path) -> Tensor:
    """The model with inputs `images` and outputs `probabilities`, for any number of images."""
    import onnx.reference

    count = torch.export.Dim("count", min=1)
    program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=({0: count},), input_names=["images"],
                                output_names=["probabilities"], verbose=False)
    program.model.metadata_props.update(facts)
    program.save(path)
    return torch.from_numpy(onnx.reference.ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})[0])


def write_torchscript(model: Packaged, images: Tensor, facts: dict[str, str], path: Path) -> Tensor:
    """The model for torch.jit.load in Python or C++; the facts are extra files in it."""
    torch.jit.trace(model, images).save(str(path), _extra_files=facts)
    return torch.jit.load(str(path))(images)


def write_safetensors(model: Packaged, images: Tensor, facts: dict[str, str], path: Path) -> Tensor:
    """The weights alone, without normalization; the facts are the file's metadata."""
    from safetensors.torch import load_model, save_model

    save_model(model.model, str(path), metadata=facts)
    fresh = copy.deepcopy(model)
    for weight in fresh.parameters():
        weight.data.zero_()
    load_model(fresh.model, str(path))
    return fresh(images)


FORMATS = {"onnx": write_onnx, "torchscript": write_torchscript, "safetensors": write_safetensors}


@torch.no_grad()
def export(trained: Trained, format: str, path: str | Path) -> Path:
    """Write the model in one of FORMATS and return the path; the file comes into being once its outputs are checked.

    Its metadata say what the model expects: classes, mean and std of pixels in [0, 1], and the run's configuration.
    Raises InputError if a library is missing, or the model can't be written so.
    """
    path, name = project_path(path), trained.config.model
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"output: expected a file in a folder that is there, got {path}")
    facts = {"classes": list(trained.classes), "mean": trained.mean.tolist(), "std": trained.std.tolist(),
             "config": trained.config.to_dict()}
    facts = {name: json.dumps(value) for name, value in facts.items()}
    model = Packaged(trained).eval()
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with replacing(path) as part:
        try:
            with warnings.catch_warnings(action="ignore"):  # that TorchScript is old; that sizes are constants
                written = FORMATS[format](model, images, facts, part)
        except ImportError as error:
            raise InputError(f"format: {format} needs the package {error.name}, which is not installed; "
                             "pip install --editable '.[export]'") from None
        except OSError:
            raise
        except Exception as error:  # whatever a model of the user's own, or a library, raises
            raise InputError(f"format: {name} can't be written as {format} ({reason(error, name)})") from None
        part.chmod(0o644)  # safetensors' are for their owner alone
        if not torch.allclose(written, model(images), atol=CLOSE):
            raise InputError(f"format: {name} written as {format} gives other outputs than the model; nothing is kept")
    return path
