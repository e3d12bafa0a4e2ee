"""Answers from trained weights: what they carry, pictures of every kind, and one line where there is no answer."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors
import torch
import torch.nn.functional as nnf
from conftest import tiny
from onnx.reference import ReferenceEvaluator
from PIL import Image, ImageEnhance
from torchvision.models import VisionTransformer
from torchvision.transforms.v2 import functional as F

from cifarlib import Config, InputError, build_model, export, fit, load_model, predict
from cifarlib.cli import main
from cifarlib.data import augment
from cifarlib.notebook import answers
from cifarlib.training.checkpoint import carried
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
    for image in (path, str(path), path.read_bytes(), picture, pixels, splits.test.images[0], [path],
                  picture.convert("RGBA")):
        torch.testing.assert_close(predict(trained, image), wanted)
    together = predict(trained, [path, pixels], tta="flip_shift")
    assert together.shape == (2, 10) and torch.allclose(together.sum(dim=1), torch.ones(2))
    turned, orientation = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    orientation[0x0112] = 6  # to be shown turned clockwise, as a phone that was held upright writes it
    turned.save(tmp_path / "turned.png", exif=orientation)
    torch.testing.assert_close(predict(trained, tmp_path / "turned.png"), wanted)
    twice = picture.resize((64, 64), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (128, 64))
    wide.paste(twice, (32, 0))
    found, middle = trained.preprocess(wide)[..., 2:-2], trained.preprocess(twice)[..., 2:-2]
    torch.testing.assert_close(found, middle)  # but for the edge, into which the black sides reach
    grey = trained.preprocess(np.full((5, 9), 51, np.uint8)) * trained.std[:, None, None] + trained.mean[:, None, None]
    torch.testing.assert_close(grey, torch.full((1, 3, 32, 32), 0.2))
    deep = Image.fromarray(np.full((32, 32), 257 * 51, np.uint16))  # grey in 16 bits
    torch.testing.assert_close(trained.preprocess(deep), trained.preprocess(np.full((32, 32), 51, np.uint8)))
    assert trained.preprocess(Image.new("RGB", (1, 900_000))).shape == (1, 3, 32, 32), "and no gigabyte on the way"
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
    (tmp_path / "text.png").write_bytes(b"text")
    assert main(["predict", str(folder), "no.png", str(tmp_path / "picture.png"), str(tmp_path / "text.png")]) == 2
    answered, refused = capsys.readouterr()
    assert answered.count("\n") == 1 and f"picture.png  {name} " in answered
    missing, unread = refused.splitlines()
    assert missing.startswith("cifarlib: no.png: No such file") and "text.png: not a picture" in unread
    assert main(["predict", str(folder), "no.png"]) == 2 and capsys.readouterr().out == ""
    assert main(["predict", "nothing", str(tmp_path / "picture.png")]) == 2
    assert capsys.readouterr().err.startswith("cifarlib: nothing: no such run; expected")


def broken(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


NO_PICTURE = {
    "not there": (lambda path: path / "no.png", "No such file"),
    "no picture": (lambda path: broken(path, "a.png", b"text"), "not a picture"),
    "half a picture": (lambda path: broken(path, "b.png", PNG[:200]), "b.png: not a picture"),
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
    (tmp_path / "text.pt").write_text("hello")
    flipped = bytearray(next(study[0].glob("*/terminal.pt")).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    (tmp_path / "half.pt").write_bytes(next(study[0].glob("*/terminal.pt")).read_bytes()[:5000])
    for run, message in (("evil.pt", "damaged"), ("half.pt", "damaged"), ("text.pt", "damaged"),
                         ("flipped.pt", "damaged"), ("other.pt", "no weights of this version"),
                         ("bare", "keeps no weights"), ("nothing", "no such run"), ("empty", "no run with weights")):
        with pytest.raises(InputError, match=message) as caught:
            load_model(tmp_path / run)
        assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.fixture
def resnet(study, tmp_path):
    """A file of random weights; all ways of our convolution but Winograd's are in it."""
    config = tiny("resnet")
    torch.save({"weights": build_model(config).state_dict(), **carried(config, study[1].train)}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def read_onnx(path, images):
    model = onnx.load(path)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert "Conv" in {node.op_type for node in model.graph.node}
    return facts, ReferenceEvaluator(model).run(None, {"images": images.numpy()})[0]


def read_torchscript(path, images):
    files = dict.fromkeys(("classes", "mean", "std", "config"), "")
    found = torch.jit.load(path, _extra_files=files)(images).detach().numpy()
    return {name: json.loads(text) for name, text in files.items()}, found


def read_safetensors(path, images):
    with safetensors.safe_open(path, "pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items()}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    network = build_model(Config(**facts["config"])).eval()
    network.load_state_dict(weights)
    mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
    return facts, network((images / 255 - mean) / std).softmax(dim=1).detach().numpy()


READERS = {"onnx": read_onnx, "torchscript": read_torchscript, "safetensors": read_safetensors}


@pytest.mark.parametrize("format", READERS)
def test_exported_models_answer_as_the_model_does(format, resnet, study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(resnet), "--format", format]) == 0
    written = capsys.readouterr().out.splitlines()[-1]
    facts, found = READERS[format](written, study[1].test.images)
    assert found == pytest.approx(predict(load_model(resnet), study[1].test.images).numpy(), abs=1e-5)
    assert facts["classes"] == list(study[1].test.classes)


def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(resnet, tmp_path, monkeypatch):
    trained = load_model(resnet)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"needs the package onnx.*\.\[export\]"):
        patch.setitem(sys.modules, "onnx", None)
        export.export(trained, "onnx", tmp_path / "x")
    monkeypatch.setitem(export.FORMATS, "onnx", lambda model, images, facts, path: path.touch() or model(images) + 0.01)
    with pytest.raises(InputError, match="other outputs than the model"):
        export.export(trained, "onnx", tmp_path / "x")
    monkeypatch.setattr(trained.model, "forward", lambda images: 1 / 0)
    with pytest.raises(InputError, match="can't be written as torchscript .ZeroDivisionError"):
        export.export(trained, "torchscript", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt"]


def untrained(study, model, seed=100):
    """A network with random weights in place of the study's, and two images for it."""
    torch.manual_seed(0)
    network = model if isinstance(model, torch.nn.Module) else build_model(tiny(model, seed=seed))
    return replace(load_model(study[0]), model=network.eval()), torch.randn(2, 3, 32, 32)


AFTER_THE_MAP = {  # up to the last map of 4x4 pixels or more, and from there to the logits
    "cnn": (lambda net, images: net.features(images), lambda net, maps: net.classifier(maps.flatten(1))),
    "resnet": (lambda net, images: net.stages[:2](net.stem(images)),
               lambda net, maps: net.fc(net.stages[2:](maps).mean(dim=(2, 3)))),
    "vgg": (lambda net, images: net.stages[3][:-1](net.stages[:3](images)),
            lambda net, maps: net.fc(net.stages[4](net.stages[3][-1](maps)).flatten(1))),
    "speednet": (lambda net, images: net.groups(nnf.gelu(net.stem(nnf.pad(images, (0, 1, 0, 1))))),
                 lambda net, maps: net.fc(maps.amax(dim=(2, 3)) / maps.shape[1])),
}


@pytest.mark.parametrize("model", AFTER_THE_MAP)
def test_grad_cam(model, study):
    trained, images = untrained(study, model, seed=2 if model == "vgg" else 100)  # whose map isn't all zero
    before, after = AFTER_THE_MAP[model]
    maps = before(trained.model, images).detach().requires_grad_()
    assert min(maps.shape[2:]) == 4
    sum(row[row.argmax()] for row in after(trained.model, maps)).backward()
    cam = torch.einsum("nchw,nc->nhw", maps, maps.grad.mean(dim=(2, 3))).clamp_min(0).detach()
    kind, heat = answers.looked_at(trained, images)
    assert kind == "Grad-CAM" and cam.amax() > 0
    torch.testing.assert_close(heat, enlarged(cam), rtol=1e-3, atol=1e-3)


def enlarged(heat):
    """A map (N, 4, 4) as (N, 32, 32), from 0 to 1."""
    large = nnf.interpolate(heat[None], size=(32, 32), mode="bilinear")[0]
    large -= large.amin(dim=(1, 2), keepdim=True)
    return large / large.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def test_attention(study):
    trained, images = untrained(study, "vit")
    blocks, tokens, flow = trained.model.blocks, [], torch.eye(16)
    for block in blocks:
        block.register_forward_pre_hook(lambda block, inputs: tokens.append(inputs[0]))
    with torch.no_grad(), answers.AttentionWeights() as found:
        trained.model(images)
        for block, each, weights in zip(blocks, tokens, found.weights, strict=True):
            q, k, _ = block.attention.qkv(block.attention.norm(each)).view(2, 16, 3, 2, 8).unbind(dim=2)
            wanted = torch.einsum("nqhc,nkhc->nhqk", q, k).div(8**0.5).softmax(dim=3)
            torch.testing.assert_close(weights, wanted)
            flow = torch.einsum("nhij,njk->nik", wanted / 4, flow.expand(2, 16, 16)) + flow / 2
    torch.testing.assert_close(answers.rollout(found.weights), flow)
    torch.testing.assert_close(flow.sum(dim=2), torch.ones(2, 16))
    kind, heat = answers.looked_at(trained, images)
    assert kind == "attention (rollout)"
    torch.testing.assert_close(heat, enlarged(flow.mean(dim=1).view(2, 4, 4)))


def test_where_models_of_ones_own_looked(study):
    theirs = VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24,
                               num_classes=10)
    trained, images = untrained(study, theirs)
    layer, seen = theirs.encoder.layers[0], []
    layer.ln_1.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    kind, heat = answers.looked_at(trained, images)
    of_class_token = layer.self_attention(*seen[:1] * 3)[1][:, 0, 1:].detach()
    assert kind == "attention (rollout)"
    torch.testing.assert_close(heat, enlarged(of_class_token.view(2, 4, 4)))
    dense = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    assert answers.looked_at(*untrained(study, dense)) is None


def test_neighbours_are_those_of_all_pairs(study):
    trained, split = load_model(study[0]), study[1].test
    found = answers.features(trained, split.images)
    with torch.no_grad():
        logits = trained.model.classifier[-1](found)
    torch.testing.assert_close(logits.softmax(dim=1), predict(trained, split.images))
    indices, similarities = answers.neighbours(found[:3], found, 4)
    found = found.double().numpy()
    for query, row, values in zip(found, indices, similarities):
        cosines = [other @ query / np.linalg.norm(other) / np.linalg.norm(query) for other in found]
        assert values.tolist() == pytest.approx(sorted(cosines, reverse=True)[:4])
        assert [cosines[index] for index in row] == pytest.approx(values.tolist())


def blurred(pixels, sd):
    """Pillow's is an approximation."""
    kernel = np.exp(-np.arange(-4, 5)**2 / (2 * sd**2))
    padded = np.pad(pixels.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), mode="valid")
    return padded


def as_jpeg(pixels, quality):
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file)


BY_OTHERS = {"blur": blurred, "JPEG": as_jpeg,
             "contrast": lambda pixels, factor: ImageEnhance.Contrast(Image.fromarray(pixels)).enhance(factor),
             "brightness": lambda pixels, factor: ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor),
             "rotation": lambda pixels, angle: Image.fromarray(pixels).rotate(angle)}


@pytest.mark.parametrize("kind", answers.CORRUPTIONS)
def test_corruptions(kind, study):
    image = study[1].test.images[:1]
    change, _, strengths = answers.CORRUPTIONS[kind]
    for strength in strengths:
        if kind == "noise":
            grey = torch.full((1, 3, 100, 100), 128, dtype=torch.uint8)
            assert change(grey, strength).double().std() / 255 == pytest.approx(strength, rel=0.05)
        else:
            changed, pixels = (each[0].permute(1, 2, 0).numpy() for each in (change(image, strength), image))
            off = np.abs(changed - np.asarray(BY_OTHERS[kind](pixels, strength), float))
            assert np.quantile(off, 0.99) <= 2 and (changed != pixels).any(), strength


def test_accuracy_under_corruptions(study):
    trained, split = load_model(study[0]), study[1].test
    models = {"a": trained, "b": untrained(study, "speednet")[0]}
    table = answers.robustness(models, split, seed=3)
    assert len(table) == 1 + 5 * len(answers.CORRUPTIONS) and list(table) == ["a", "b"]
    for row, images in ((("none", 0), split.images), (("rotation", 30), F.rotate(split.images, 30)),
                        (("JPEG", 40), F.jpeg(split.images, 40))):
        right = predict(trained, images).argmax(dim=1) == split.labels
        assert table.loc[row, "a"] == pytest.approx(right.double().mean().item())
    assert table.equals(answers.robustness(models, split, seed=3)), "the noise is seeded"
    assert [len(axis.lines) for axis in answers.robustness_chart(table, len(split)).axes] == [2] * 6
    with pytest.raises(InputError, match="others: b has other classes"):
        answers.robustness({"b": replace(trained, classes=("x",))}, split)


def test_pictures_by_number_and_by_path(study, tmp_path):
    split = study[1].test
    Image.fromarray(split.images[5].permute(1, 2, 0).numpy()).save(tmp_path / "mine.png")
    pixels, names = answers.pictures([7, str(tmp_path / "mine.png")], split)
    assert torch.equal(pixels, split.images[[7, 5]])
    assert names == [f"test image 7 ({split.classes[split.labels[7]]})", "mine.png"]
    for images, message in (([40], "numbers from 0 to 39, got 40"), ([], "got none"), ([None], "not a picture")):
        with pytest.raises(InputError, match=message):
            answers.pictures(images, split)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()
