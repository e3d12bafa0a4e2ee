"""Answers from a trained model: the class of any picture, and how sure the model is."""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from .config import Config
from .data.augment import normalize
from .device import autocast, pick_device, pick_precision
from .errors import InputError
from .files import PACKAGE, RECORD, project_path
from .models import build_model
from .parts import source_file
from .runs.record import read_record
from .training.checkpoint import load_weights
from .training.recipe import views

OWN_WEIGHTS = PACKAGE / "weights"  # of this package: NAME.pt, with the record of the run that trained them beside it
BATCH = 250  # images at a time
SIDE = 32


@dataclass(frozen=True)
class Trained:
    """A model in eval mode, and what its weights carry.

    config: of its run; classes: their names; mean, std: (3,), of pixels in [0, 1], by which images are normalized, on
    the model's device.
    """

    model: nn.Module
    config: Config
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def preprocess(self, images) -> Tensor:
        """Images, as `predict` takes them, normalized: float32 (N, 3, 32, 32), on the model's device."""
        if isinstance(images, (str, bytes, Path, Image.Image, np.ndarray, Tensor)) and getattr(images, "ndim", 3) < 4:
            images = [images]
        return normalize(torch.stack([as_tensor(image) for image in images]).to(self.mean.device), self)


def load_model(run: str | Path, device: str = "cpu") -> Trained:
    """The model that a run trained, by its best validation accuracy, or its last weights where nothing validated.

    run: a run's folder; a study's name or folder, for its run of the highest validation accuracy; a file of weights; or
    the name of weights that come with this package, such as `speednet`; device: as the field of a configuration. Raises
    InputError if there are no weights, or they are damaged. Only numbers and text are read from them, never code.
    """
    path, place = _weights_of(run), pick_device(device)
    saved = load_weights(path, torch.device("cpu"))
    try:
        config = Config.from_dict({**saved["config"], "device": device})
        if (own := source_file(config.model)) and (path.parent / own.name).exists():  # the file may have changed since
            config = config.replace(model=f"{path.parent / own.name}:{config.model.rpartition(':')[2]}")
        model = build_model(config)
        model.load_state_dict({name: value.float() if value.is_floating_point() else value
                               for name, value in saved["weights"].items()})
        mean, std = (torch.tensor(saved[name], device=place) for name in ("mean", "std"))
        if not len(mean) == len(std) == 3 or len(saved["classes"]) != len(config.classes):
            raise ValueError
        return Trained(model.eval().to(place), config, tuple(saved["classes"]), mean, std)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError):
        raise InputError(f"{path} holds no weights of this version; train the run anew with resume False "
                         "(--no-resume)") from None


def _weights_of(run: str | Path) -> Path:
    """The file of weights that `run` names."""
    if (own := OWN_WEIGHTS / f"{run}.pt").exists():
        return own
    folder = project_path(run)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        folder = project_path("executed") / run
    if not folder.is_dir():
        names = ", ".join(sorted(path.stem for path in OWN_WEIGHTS.glob("*.pt")))
        raise InputError(f"{run}: no such run; expected a run's folder, a study, a file of weights, or one of {names}")
    if not (folder / RECORD).exists() and not any(folder.glob("*.pt")):
        folder = _best_run(folder)
    for name in ("best_val_acc", "terminal"):
        if (folder / f"{name}.pt").exists():
            return folder / f"{name}.pt"
    raise InputError(f"{folder} keeps no weights (they are not in git, and --no-checkpoints removes them); train the "
                     "run again with --no-resume, or in another study")


def _best_run(study: Path) -> Path:
    """The run of a study, of those that keep weights, with the highest validation accuracy; the first without any."""
    runs = [path.parent for path in sorted(study.glob(f"*/{RECORD}")) if any(path.parent.glob("*.pt"))]
    if not runs:
        raise InputError(f"{study}: no run with weights there; they are not in git, so train one first")
    return max(runs, key=lambda run: read_record(run)["metrics"].get("val_accuracy_best_val_acc") or 0.0)


def as_tensor(image) -> Tensor:
    """A picture as uint8 (3, 32, 32): its shorter side is resized to 32 pixels, and the middle is cut out.

    image: a path, a file's bytes, a PIL image, or uint8 pixels as an array (H, W), (H, W, 3) or (H, W, 4) or a tensor
    (3, H, W). What is transparent becomes white. Raises InputError for what is no picture.
    """
    if isinstance(image, Tensor):
        pixels = image
    else:
        pixels = F.pil_to_tensor(_opened(image))
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
        raise InputError(f"image: expected uint8 of shape (3, H, W), got {pixels.dtype} of shape {tuple(pixels.shape)}")
    middle = F.center_crop(pixels, [min(pixels.shape[1:])])  # first: resized, a long strip would be enormous
    return F.resize(middle, [SIDE, SIDE], antialias=True)


def _opened(image) -> Image.Image:
    """A path, a file's bytes, an array or a PIL image, as a PIL image in RGB."""
    name = image if isinstance(image, (str, Path)) else "image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, (str, Path)):
                image = Image.open(project_path(image))
            elif isinstance(image, bytes):
                image = Image.open(io.BytesIO(image))
            elif isinstance(image, np.ndarray):
                image = Image.fromarray(image)
            image = ImageOps.exif_transpose(image)  # as the camera was held
            if image.mode.startswith("I"):  # grey in 16 bits, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("RGBA")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{name}: too large; expected at most {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "not a picture that Pillow reads, or a part of one"
        raise InputError(f"{name}: {reason}; expected a picture such as a PNG or JPEG") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@torch.inference_mode()
def predict(trained: Trained, images: Iterable, tta: str = "none") -> Tensor:
    """Probabilities float32 (N, classes) of images: a list, or one alone, of what `as_tensor` takes.

    In the precision of the run's configuration, as its test. tta: the views whose logits are averaged, as the field of
    a configuration has it.
    """
    device, batches = trained.mean.device, trained.preprocess(images).split(BATCH)
    with autocast(device, pick_precision(trained.config.precision, device)):
        return torch.cat([views(trained.model, batch, tta)[1].float().softmax(dim=1) for batch in batches])
