"""Config and Options: every field is checked, and the names of runs are the published ones."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell

from cifarlib.config import Config, Options
from cifarlib.errors import InputError
from cifarlib.files import project_path

FIELDS = dataclasses.fields(Config)
DEFAULTS = Config().to_dict()
CHOICES = [(spec.name, choice) for spec in FIELDS for choice in spec.metadata["choices"] or ()]
NAMES = ("model epochs batch_size scheduler augmentation learning_rate weight_decay gamma val_freq early_stopping_patience seed protocol "
         "split dataset data_dir device precision limit_train limit_val limit_test model_args").split()


def test_fields_are_the_documented_ones():
    assert [spec.name for spec in FIELDS] == NAMES
    assert [spec.name for spec in dataclasses.fields(Options)] == ["study", "executed_dir", "wandb_mode", "checkpoints", "resume"]


def test_study_defaults():
    wanted = {"epochs": 80, "batch_size": 256, "val_freq": 1, "early_stopping_patience": 20, "seed": 100, "protocol": "corrected"}
    assert {name: DEFAULTS[name] for name in wanted} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_each_field_alone_with_its_default(name):
    assert Config(**{name: DEFAULTS[name]}) == Config()


@pytest.mark.parametrize("name, value", CHOICES)
def test_each_choice_alone(name, value):
    config = Config(**{name: value})
    assert getattr(config, name) == value or (name, value) == ("split", "auto")


@pytest.mark.parametrize("name, value", [("learning_rate", 1), ("weight_decay", 0), ("gamma", 1)])
def test_whole_numbers_are_numbers(name, value):
    kept = getattr(Config(**{name: value}), name)
    assert isinstance(kept, float) and kept == value


def test_a_path_is_text(tmp_path):
    assert Config(data_dir=tmp_path).data_dir == str(tmp_path)


@pytest.mark.parametrize("name, value", [
    ("learning_rate", "1e-4"), ("learning_rate", "0.1"), ("learning_rate", True), ("learning_rate", None), ("learning_rate", [0.1]),
    ("learning_rate", math.nan), ("learning_rate", math.inf), ("weight_decay", -math.inf),
    ("augmentation", "false"), ("augmentation", "True"), ("augmentation", 1), ("augmentation", None),
    ("epochs", True), ("epochs", 1.0), ("epochs", "3"), ("seed", None),
    ("model", 1), ("model", "vgg"), ("model", "CNN"), ("scheduler", "linear"), ("protocol", ""), ("data_dir", None),
    ("device", "gpu"), ("device", "cuda:"), ("device", "cuda:x"), ("device", "cuda:01"), ("device", "cpu:0 "), ("precision", "fp16"),
    ("model_args", "depth=2"), ("model_args", None), ("model_args", [("depth", 2)]),
    ("model_args", {"widths": math.nan}), ("model_args", {"widths": math.log}),
])
def test_wrong_value_is_one_line_that_names_the_field(name, value):
    with pytest.raises(InputError) as caught:
        Config(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ") and "\n" not in message


LIMITS = {  # name: (allowed values, values just outside)
    "epochs": ([1], [0, -1]), "batch_size": ([2], [1, 0]), "val_freq": ([1], [0]), "early_stopping_patience": ([1], [0]),
    "seed": ([0, 2**31], [-1, 2**31 + 1]), "limit_train": ([0], [-1]), "limit_val": ([0], [-1]), "limit_test": ([0], [-1]),
    "learning_rate": ([1e-12, 10.0], [0.0, -0.1, 10.1]), "weight_decay": ([0.0, 10.0], [-1e-9, 10.1]), "gamma": ([1e-9, 1.0], [0.0, 1.01]),
}


@pytest.mark.parametrize("name", LIMITS)
def test_ranges(name):
    allowed, outside = LIMITS[name]
    for value in allowed:
        assert getattr(Config(**{name: value}), name) == value
    for value in outside:
        with pytest.raises(InputError, match=f"^{name}: expected "):
            Config(**{name: value})


def test_every_number_has_a_range():
    assert {spec.name for spec in FIELDS if spec.type in (int, float)} == set(LIMITS)


@pytest.mark.parametrize("text", ["1e-4", "1E5", "+2e3"])
def test_yaml_string_gets_a_hint_that_yaml_reads_as_the_number(text):
    value = yaml.safe_load(f"weight_decay: {text}")["weight_decay"]
    assert isinstance(value, str)
    with pytest.raises(InputError) as caught:
        Config(weight_decay=value)
    hint = str(caught.value).rsplit("as in ")[1].rstrip(")")
    assert yaml.safe_load(hint) == pytest.approx(float(text))


@pytest.mark.parametrize("cls, name, near", [
    (Config, "learning_rte", "learning_rate"), (Config, "Epochs", "epochs"), (Config, "augment", "augmentation"),
    (Options, "wandb", "wandb_mode"), (Options, "studdy", "study"),
])
def test_unknown_name_gets_the_nearest_known_one(cls, name, near):
    with pytest.raises(InputError, match=f"unknown parameter '{name}'; did you mean {near}[?]"):
        cls.from_dict({name: 1})


def test_name_like_no_other_gets_them_all():
    with pytest.raises(InputError) as caught:
        Config.from_dict({"xyzzy": 1})
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("protocol, split, resolved", [
    ("corrected", "auto", "stratified"), ("published", "auto", "published"),
    ("corrected", "published", "published"), ("published", "stratified", "stratified"),
])
def test_split_goes_by_the_protocol_unless_named(protocol, split, resolved):
    assert Config(protocol=protocol, split=split).split == resolved


@pytest.mark.parametrize("changes, cell, run", [
    (dict(model="cnn", augmentation=True, scheduler="step", learning_rate=0.0001, weight_decay=0.0001, gamma=0.99),
     "cnn_aug_True_scheduler_step_lr_0.0001_wd_0.0001_gamma_0.99", "cnn_aug_True_scheduler_step_lr_0.0001_wd_0.0001_gamma_0.99"),
    (dict(augmentation=True), "resnet_aug_True_scheduler_cosine_lr_0.001_wd_0.001_gamma_0.97",
     "resnet_aug_True_scheduler_cosine_lr_0.001_wd_0.001"),
    (dict(model="vit", scheduler="exponential", learning_rate=0.00001, weight_decay=1e-05, gamma=0.95),
     "vit_aug_False_scheduler_exponential_lr_1e-05_wd_1e-05_gamma_0.95", "vit_aug_False_scheduler_exponential_lr_1e-05_wd_1e-05_gamma_0.95"),
    (dict(model="vit", seed=7, model_args={"dim": 192, "depth": 2}),
     "vit_aug_False_scheduler_cosine_lr_0.001_wd_0.001_gamma_0.97_depth_2_dim_192_seed_7",
     "vit_aug_False_scheduler_cosine_lr_0.001_wd_0.001_depth_2_dim_192_seed_7"),
])
def test_names(changes, cell, run):
    config = Config(**changes)
    assert (config.cell_name, config.run_name) == (cell, run)


@pytest.mark.parametrize("model_args", [{1: 2}, {1: 2, "widths": [8]}, {"../widths": 2}, {"": 2}, {"dim": 8}])
def test_sizes_of_another_model_are_one_line(model_args):
    with pytest.raises(InputError, match="^model_args: resnet has no .*; known are widths, depths$"):
        Config(model="resnet", model_args=model_args)


@pytest.mark.parametrize("model_args", [
    {"channels": [8, 8, 16]}, {"hidden": ()}, {"dropout": 0.5}, {"hidden": "../../etc"}, {"hidden": "a b/c\\d\n*"}, {"hidden": {"y": [1]}},
    {"hidden": None},
])
def test_run_name_is_a_file_name(model_args, tmp_path):
    name = Config(model="cnn", model_args=model_args).run_name
    assert not set(name) & set("/\\ \n*?:'\"<>|") and not name.startswith((".", "-"))
    (tmp_path / name).mkdir()


def test_order_of_model_args_does_not_matter():
    one, other = {"dim": 8, "depth": 1}, {"depth": 1, "dim": 8}
    assert Config(model="vit", model_args=one).run_name == Config(model="vit", model_args=other).run_name


@pytest.mark.parametrize("scheduler, same", [("cosine", True), ("step", False), ("exponential", False)])
def test_gamma_is_part_of_the_identity_where_it_does_something(scheduler, same):
    one, other = (Config(scheduler=scheduler, gamma=gamma) for gamma in (0.95, 0.99))
    assert (one.identity() == other.identity()) is same
    assert (one.run_name == other.run_name) is same
    assert one.cell_name != other.cell_name


OTHER = dict(model="cnn", epochs=3, batch_size=3, scheduler="step", augmentation=True, learning_rate=0.5, weight_decay=0.5, val_freq=3,
             early_stopping_patience=3, seed=3, protocol="published", split="published", dataset="synthetic", data_dir="there", device="cpu",
             precision="fp32", limit_train=3, limit_val=3, limit_test=3, model_args={"depths": [1, 1, 1, 1]})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gamma"])
def test_identity_holds_all_but_where_it_is_computed(name):
    changed = Config(**{name: OTHER[name]})
    assert changed != Config()
    assert (changed.identity() == Config().identity()) is (name in ("data_dir", "device", "precision"))


def test_is_frozen_and_copies_are_checked():
    config = Config(model="cnn", model_args={"dropout": 0.1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    assert config.replace(epochs=3) == Config(model="cnn", epochs=3, model_args={"dropout": 0.1})
    with pytest.raises(InputError):
        config.replace(epochs="3")


def test_survives_json():
    config = Config(model="vit", learning_rate=1e-5, model_args={"depth": 2}, protocol="published")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name, value", [
    ("study", ""), ("study", "a/b"), ("study", ".."), ("study", "a b"), ("executed_dir", ""), ("wandb_mode", "on"), ("resume", "no"), ("checkpoints", "last"),
])
def test_wrong_options(name, value):
    with pytest.raises(InputError, match=f"^{name}: expected "):
        Options(**{name: value})


@pytest.mark.parametrize("here, wanted", [("project", "executed"), ("project/notebooks", "../executed")])
def test_run_folder_is_the_same_from_the_notebooks_folder(here, wanted, tmp_path, monkeypatch):
    (tmp_path / here).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / here)
    assert Options(study="s").run_folder(Config()) == Path(wanted) / "s" / Config().run_name
    assert project_path(tmp_path) == tmp_path


def test_notebook_shows_one_line_for_bad_input(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell().run_cell("from cifarlib import Config; Config(epochs=0)")
    assert capsys.readouterr().out.strip() == "InputError: epochs: expected at least 1, got 0"


def test_commands_need_no_torch():
    names = ", ".join(f"cifarlib.{name}" for name in ("config", "grid", "claim", "runs", "batch", "cli", "execute"))
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_public_names():
    import cifarlib

    assert all(callable(getattr(cifarlib, name)) for name in cifarlib.__all__)
    assert {"Config", "load_cifar10", "build_model", "fit", "evaluate"} <= set(cifarlib.__all__)
    with pytest.raises(AttributeError, match="nothing_such"):
        cifarlib.nothing_such
