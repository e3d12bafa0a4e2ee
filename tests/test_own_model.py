"""A network of the user's own, from a file or from another package: trained, kept, or refused in one line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import tiny

from cifarlib import InputError, build_model, evaluate, fit
from cifarlib.runs.record import write_failure
from cifarlib.training.finish import finish_run

SMALL_NET = """
from torch import nn

class SmallNet(nn.Module):
    def __init__(self, width=8, classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.spare = nn.Linear(3, 3)  # not used: gets no gradients
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images):
        return self.head(self.features(images).flatten(1))

def frozen(width):
    net = SmallNet(width)
    net.features[0].requires_grad_(False)
    return net
"""
BAD = """
import torch
from torch import nn
from my_nets import SmallNet

class Net(SmallNet):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        if fault == "built":
            raise ValueError("no such net")

    def forward(self, images):
        maps = self.features(images)
        if self.fault == "view":
            return self.head(maps.view(2, -1))
        if self.fault == "sizes":
            return self.head(maps)
        if self.fault == "pair":
            return self.head(maps.flatten(1)), maps
        if self.fault == "cut" and self.training:
            return self.head(maps.flatten(1)).detach()
        logits = torch.zeros(len(maps), 10)
        logits[torch.arange(len(maps))] = self.head(maps.flatten(1))
        return logits

def listed():
    return [nn.Linear(1, 1)]
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The working directory is a project's folder with a file of networks."""
    (tmp_path / "my_nets.py").write_text(SMALL_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_nets", None)


def own(**changes):
    return tiny(**{"model": "my_nets.py:SmallNet", **changes})


@pytest.mark.parametrize("changes", [
    {"optimizer": "adamw", "model_args": {"width": 4}}, {"optimizer": "sgd"}, {"optimizer": "muon"},
    {"precision": "bf16"}, {"model": "my_nets.py:frozen", "model_args": {"width": 4}},
], ids=str)
def test_a_network_from_a_file_is_trained_kept_and_named(changes, project, load):
    config, folder = own(**changes), project / "run"
    splits, model = load(config), build_model(config)
    assert not model.features[1].running_mean.any()  # as if it had never seen an image
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record = finish_run(model, splits, config, folder, fit(model, splits, config, folder))
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    still = {"spare.weight", "spare.bias"} | ({"features.0.weight"} if "frozen" in config.model else set())
    assert moved == set(dict(model.named_parameters())) - still
    assert (record["status"], record["model_file"], record["config"]["model"]) == ("done", "my_nets.py", config.model)
    assert (folder / "my_nets.py").read_text() == SMALL_NET
    # The file is lost: what was trained is still there.
    os.remove("my_nets.py")
    again = build_model(config.replace(model=f"{folder}/my_nets.py:{config.model.rpartition(':')[2]}", seed=1))
    again.load_state_dict(torch.load(folder / "best_val_acc.pt", weights_only=True)["weights"])
    assert evaluate(again, splits.test, config).accuracy == record["metrics"]["test_accuracy_best_val_acc"]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("published", [False, True])
def test_a_changed_file_is_another_run(finished, published, project, load):
    config, folder = own(epochs=1 if finished else 2), project / "run"
    splits, model = load(config), build_model(config)
    history = fit(model, splits, config, folder, on_epoch=lambda _: (folder / "stop").touch())
    if finished:
        finish_run(model, splits, config, folder, history)
    elif published:
        write_failure(folder, config, "broke off")
    if finished and published:
        (folder / "plan.json").unlink()
    (project / "my_nets.py").write_text(SMALL_NET.replace("ReLU()", "GELU()"))
    with pytest.raises(InputError, match="another my_nets.py .* has changed since; use another study, or train anew "):
        fit(build_model(config), splits, config, folder)
    assert (folder / "my_nets.py").read_text() == SMALL_NET
    (project / "my_nets.py").write_text(SMALL_NET)
    assert fit(build_model(config), splits, config, folder).status == "done"
    (project / "my_nets.py").write_text(SMALL_NET.replace("ReLU()", "GELU()"))
    with pytest.raises(InputError, match="my_nets.py:SmallNet has changed since this model was built"):
        fit(model, splits, config)
    changed = build_model(config)
    assert "GELU" in str(changed) and fit(changed, splits, config, folder, resume=False).rows[0] != history.rows[0]
    assert "GELU" in (folder / "my_nets.py").read_text()


def test_the_command_trains_it(project):
    command = [sys.executable, "-m", "cifarlib", "train", "--model", "my_nets.py:SmallNet", "--wandb_mode", "disabled",
               "--dataset", "synthetic", "--device", "cpu", "--epochs", "1", "--batch_size", "16",
               "--limit_train", "32", "--limit_val", "32", "--limit_test", "32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((project / done.stdout.splitlines()[-1] / "record.json").read_text())
    assert (record["status"], record["model_file"]) == ("done", "my_nets.py")
    assert record["name"].startswith("SmallNet_aug_False_")


@pytest.mark.parametrize("model, model_args, parameters", [
    ("torchvision.models:resnet18", {"num_classes": 10}, 11_181_642), ("my_nets:SmallNet", {}, 2062),
    ("torchvision.models.shufflenetv2:ShuffleNetV2",
     {"num_classes": 10, "stages_repeats": [1, 1, 1], "stages_out_channels": [4, 8, 8, 8, 16]}, 1078),
])
def test_classes_and_functions_of_packages(model, model_args, parameters):
    network = build_model(own(model=model, model_args=model_args))
    assert network.training and sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("model, model_args, said", [
    ("my_nets.py:SmalNet", {}, "my_nets.py has no SmalNet; did you mean SmallNet?"),
    ("nets.py:SmallNet", {}, "nets.py can't be read (No such file or directory); expected a file of Python"),
    ("broken.py:Net", {}, "broken.py can't be imported (SyntaxError: expected ':' (broken.py, line 3))"),
    ("failing.py:Net", {}, "failing.py can't be imported (NameError: name 'nn' is not defined; line 3 of failing.py)"),
    ("no_such.nets:Net", {}, "no_such.nets can't be imported (ModuleNotFoundError: No module named 'no_such')"),
    ("torchvision.models:resnet1", {}, "torchvision.models has no resnet1; did you mean resnet1"),
    ("torchvision.models:resnet18", {}, "maps two images to (2, 1000), expected logits of shape (2, 10); say how many "
     "classes, such as model_args {num_classes: 10}"),
    ("torchvision.models:googlenet", {"num_classes": 10, "init_weights": False}, "maps images to a GoogLeNetOutputs"),
    ("my_nets.py:SmallNet", {"depth": 3}, "can't be built with {'depth': 3} (TypeError: "),
    ("my_nets.py:frozen", {}, "missing 1 required positional argument: 'width'"),
    ("my_nets.py:nn", {}, "TypeError: 'module' object is not callable"),
    ("bad.py:listed", {}, "gives a list, expected a torch.nn.Module"),
    ("bad.py:Net", {"fault": "built"}, "be built with {'fault': 'built'} (ValueError: no such net; line 11 of bad.py)"),
    ("bad.py:Net", {"fault": "sizes"}, "shapes cannot be multiplied (64x2 and 64x10); line 18 of bad.py)"),
    ("bad.py:Net", {"fault": "pair"}, "maps images to a tuple, expected logits"),
    ("bad.py:Net", {"fault": "view"}, "line 16 of bad.py"),  # that works but for maps stored channels last
    ("bad.py:Net", {"fault": "cut"}, "does not require grad"),
])
def test_bad_input_is_one_line(model, model_args, said, project):
    (project / "bad.py").write_text(BAD)
    (project / "broken.py").write_text("from torch import nn\nclass Net(nn.Module):\n    def forward(self, x)\n")
    (project / "failing.py").write_text("import torch\n\nclass Net(nn.Module):\n    pass\n")
    with pytest.raises(InputError) as caught:
        build_model(own(model=model, model_args=model_args))
    assert said in str(caught.value)


def test_bf16_is_tried_where_it_may_be_used(project):
    (project / "bad.py").write_text(BAD)
    for precision in ("auto", "bf16"):
        with pytest.raises(InputError, match="line 24 of bad.py"):
            build_model(own(model="bad.py:Net", model_args={"fault": "types"}, precision=precision))
    assert build_model(own(model="bad.py:Net", model_args={"fault": "types"}, precision="fp32"))
