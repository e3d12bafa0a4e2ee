"""Answers from trained weights: what they carry, pictures of every kind, and one line where there is no answer."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image

from cifarlib import InputError, build_model, fit, load_model, predict
from cifarlib.cli import main
from cifarlib.data import augment
from cifarlib.training.finish import finish_run


@pytest.fixture(scope="module")
def study(load, tmp_path_factory):
    """Two runs of a CNN, the second one longer, and their splits."""
    folder = tmp_path_factory.mktemp("study")
    for epochs in (1, 6):
        config = tiny("cnn", epochs=epochs, seed=epochs)
        splits, run = load(config), folder / config.run_name
        model = build_model(config)
        finish_run(model, splits, config, run, fit(model, splits, config, run))
    return folder, splits


def test_answers_are_those_of_the_test(study):
    folder, splits = study
    records = {run: json.loads((run / "record.json").read_text())["metrics"] for run in folder.iterdir()}
    best = max(records, key=lambda run: records[run]["val_accuracy_best_val_acc"])
    for run in (best, folder, best / "best_val_acc.pt"):
        trained = load_model(run)
        right = predict(trained, splits.test.images).argmax(dim=1) == splits.test.labels
        assert right.double().mean().item() == pytest.approx(records[best]["test_accuracy_best_val_acc"])
        assert trained.classes == splits.test.classes and not trained.model.training
    images = augment.normalize(splits.test.images, splits.test)
    torch.testing.assert_close(trained.preprocess(splits.test.images), images, rtol=1e-5, atol=1e-5)


def test_every_kind_of_picture(study, tmp_path):
    folder, splits = study
    trained, pixels = load_model(folder), splits.test.images[0].permute(1, 2, 0).numpy()
    picture, path = Image.fromarray(pixels), tmp_path / "picture.png"
    picture.save(path)
    wanted = predict(trained, splits.test.images[:1])
    for image in (path, str(path), picture, pixels, splits.test.images[0], [path], picture.convert("RGBA")):
        torch.testing.assert_close(predict(trained, image), wanted)
    together = predict(trained, [path, pixels], tta="flip_shift")
    assert together.shape == (2, 10) and torch.allclose(together.sum(dim=1), torch.ones(2))
    twice = picture.resize((64, 64), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (128, 64))
    wide.paste(twice, (32, 0))
    found, middle = trained.preprocess(wide)[..., 2:-2], trained.preprocess(twice)[..., 2:-2]
    torch.testing.assert_close(found, middle)  # but for the edge, into which the black sides reach
    grey = trained.preprocess(np.full((5, 9), 51, np.uint8)) * trained.std[:, None, None] + trained.mean[:, None, None]
    torch.testing.assert_close(grey, torch.full((1, 3, 32, 32), 0.2))
    clear = trained.preprocess(Image.new("RGBA", (32, 32), (0, 0, 0, 0))) * trained.std[:, None, None]
    torch.testing.assert_close(clear + trained.mean[:, None, None], torch.ones(1, 3, 32, 32))


def test_the_command(study, tmp_path, capsys):
    folder, splits = study
    Image.fromarray(splits.test.images[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    chances = predict(load_model(folder), splits.test.images[:1])[0]
    name = splits.test.classes[chances.argmax()]
    assert main(["predict", str(folder), str(tmp_path / "picture.png")]) == 0
    assert f"picture.png  {name} {chances.max():.1%}  " in capsys.readouterr().out
    assert main(["predict", str(folder), str(tmp_path / "picture.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[str(tmp_path / "picture.png")]
    assert list(found.values()) == pytest.approx(chances.tolist(), abs=1e-6)
    assert main(["predict", "nothing", "picture.png"]) == 2
    assert capsys.readouterr().err.startswith("cifarlib: nothing: no such run; expected")


def broken(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


NO_PICTURE = {
    "not there": (lambda path: path / "no.png", "No such file"),
    "no picture": (lambda path: broken(path, "a.png", b"text"), "not a picture"),
    "half a picture": (lambda path: broken(path, "b.png", PNG[:200]), "not a picture"),
    "folder": (lambda path: path, "Is a directory"),
    "floats": (lambda path: torch.zeros(3, 32, 32), "expected uint8"),
    "number": (lambda path: 5, "not a picture"),
}


@pytest.mark.parametrize("image, message", NO_PICTURE.values(), ids=NO_PICTURE)
def test_no_picture_is_one_line(image, message, study, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        predict(load_model(study[0]), [image(tmp_path)])
    assert "\n" not in str(caught.value)


def test_an_enormous_picture_is_one_line(study, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="too large; expected at most 1,000 pixels"):
        predict(load_model(study[0]), tmp_path / "large.png")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_no_weights_are_one_line_and_no_code(study, tmp_path, capsys):
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    torch.save({"weights": {}}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "record.json").write_text("{}")
    (tmp_path / "half.pt").write_bytes(next(study[0].glob("*/terminal.pt")).read_bytes()[:5000])
    for run, message in (("evil.pt", "damaged"), ("half.pt", "damaged"), ("other.pt", "no weights of this version"),
                         ("bare", "keeps no weights"), ("nothing", "no such run"), ("empty", "no run with weights")):
        with pytest.raises(InputError, match=message) as caught:
            load_model(tmp_path / run)
        assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def _png() -> bytes:
    import io
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()
