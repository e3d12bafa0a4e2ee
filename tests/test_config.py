"""Config and Options: every field is checked and told apart by names, and the published names are as they were."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from cifarlib.config import Config, Options
from cifarlib.errors import InputError
from cifarlib.files import project_path
from cifarlib.parts import ARCHITECTURES, PROTOCOLS

FIELDS = dataclasses.fields(Config)
ROLES = ("model", "knob", "condition", "repeat", "place")


def another(spec):
    """A value of the field other than its default's."""
    value = getattr(Config(), spec.name)
    if spec.metadata["choices"]:
        return next(choice for choice in spec.metadata["choices"] if choice not in (value, "auto"))
    others = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value / 2 or 0.5,
              str: lambda: "cpu", dict: lambda: {"depths": [1, 1, 1, 1]}}
    return others[spec.type]()


def test_each_field_says_what_it_is():
    names = [spec.name for spec in FIELDS]
    shorts = [spec.metadata["short"] for spec in FIELDS if spec.metadata["short"]]
    assert all(spec.metadata["help"] and spec.metadata["role"] in ROLES for spec in FIELDS)
    assert all((spec.metadata["minimum"], spec.metadata["above"]) != (None, None)
               for spec in FIELDS if spec.type in (int, float)), "every number has a range"
    assert len({*names, *shorts}) == len(names) + len(shorts)
    assert {name for spec in FIELDS for name in spec.metadata["idle_when"]} <= set(names)
    for values in PROTOCOLS.values():
        assert set(values) == {spec.name for spec in FIELDS if spec.default is None}
    for row in ARCHITECTURES.values():
        assert all(own.keys() <= PROTOCOLS[name].keys() for name, own in row.protocols.items())


def test_paths_are_text_and_whole_numbers_are_numbers(tmp_path):
    config = Config(data_dir=tmp_path, learning_rate=1, weight_decay=0, gamma=1)
    assert config.data_dir == str(tmp_path)
    assert [repr(value) for value in (config.learning_rate, config.weight_decay, config.gamma)] == ["1.0", "0.0", "1.0"]


@pytest.mark.parametrize("name, value", [
    ("learning_rate", "0,1"), ("learning_rate", True),
    ("learning_rate", [0.1]), ("learning_rate", math.nan), ("learning_rate", math.inf), ("learning_rate", 0.0),
    ("weight_decay", -1e-9), ("gamma", 1.01), ("epochs", True), ("epochs", 1.5), ("epochs", "1e-4"), ("epochs", 0),
    ("epochs", "nan"), ("epochs", math.inf), ("augmentation", "yes"), ("augmentation", 1), ("batch_size", 1),
    ("seed", None), ("seed", 2**31 + 1), ("scheduler", "lin"),
    ("model", 1), ("model", "mlp"), ("model", "CNN"), ("model", "n.py"), ("model", "n.py:a b"), ("model", "a-b:Net"),
    ("protocol", ""), ("split", "auto"), ("data_dir", None), ("precision", "fp16"),
    ("device", "gpu"), ("device", "cuda:"), ("device", "cuda:x"), ("device", "cuda:01"), ("device", "cpu:0 "),
    ("model_args", "depth=2"), ("model_args", None), ("model_args", [("depth", 2)]),
    ("model_args", {"widths": math.nan}), ("model_args", {"widths": math.log}),
    ("study", ""), ("study", "a/b"), ("study", ".."), ("study", "a b"), ("executed_dir", ""), ("wandb_mode", "on"),
    ("resume", "no"), ("checkpoints", "last"),
])
def test_wrong_value_is_one_line_that_names_the_field(name, value):
    with pytest.raises(InputError, match=f"^{name}: expected "):
        (Config if hasattr(Config(), name) else Options)(**{name: value})


@pytest.mark.parametrize("name, text, value", [
    ("weight_decay", "1e-4", 0.0001), ("epochs", "80", 80), ("epochs", "1e2", 100), ("epochs", 1e2, 100),
    ("augmentation", "True", True), ("resume", "false", False), ("model_args", '{"stem": "3x3"}', {"stem": "3x3"}),
    ("study", 2024, "2024"), ("study", yaml.safe_load("2024-01-05"), "2024-01-05"),
])
def test_values_are_read_from_text_and_names_from_numbers(name, text, value):
    """YAML reads 1e-4 as text, and papermill's -p everything but plain numbers; 2024 it takes for a number."""
    found = getattr((Config if hasattr(Config(), name) else Options)(**{name: text}), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("cls, name, near", [
    (Config, "learning_rte", "learning_rate"), (Config, "Epochs", "epochs"), (Config, "augment", "augmentation"),
    (Config, "lr", "learning_rate"), (Config, "wd", "weight_decay"), (Config, "aug", "augmentation"),
    (Options, "wandb", "wandb_mode"), (Options, "studdy", "study"),
])
def test_unknown_name_gets_the_nearest_known_one(cls, name, near):
    with pytest.raises(InputError, match=f"unknown parameter '{name}'; did you mean {near}[?]"):
        cls.from_dict({name: 1})


def test_name_like_no_other_gets_them_all():
    with pytest.raises(InputError) as caught:
        Config.from_dict({"xyzzy": 1})
    assert all(spec.name in str(caught.value) for spec in FIELDS)


def test_what_is_left_open_goes_by_the_protocol_and_what_is_set_wins():
    assert (Config().split, Config(protocol="published").split, Config(protocol="published").softmax_in_loss) == (
        "stratified", "published", False)
    one = Config(protocol="published", split="stratified", model="cnn")
    assert (one.split, one.normalization, one.schedule_steps, one.cosine_period, one.softmax_in_loss) == (
        "stratified", "imagenet", 2, 10, True)
    other = one.replace(protocol="corrected", epochs=7)
    assert (other.split, other.normalization, other.cosine_period, other.softmax_in_loss) == (
        "stratified", "dataset", 7, False)
    assert Config.from_dict(json.loads(json.dumps(one.to_dict()))) == one  # as a record has it: resolved


@pytest.mark.parametrize("changes, cell, run", [  # run: None where it is the cell's
    (dict(model="cnn", augmentation=True, scheduler="step", learning_rate=0.0001, weight_decay=0.0001, gamma=0.99),
     "cnn_aug_True_scheduler_step_lr_0.0001_wd_0.0001_gamma_0.99", None),
    (dict(model="vit", scheduler="exponential", learning_rate=0.00001, weight_decay=1e-05, gamma=0.95),
     "vit_aug_False_scheduler_exponential_lr_1e-05_wd_1e-05_gamma_0.95", None),
    (dict(augmentation=True), "resnet_aug_True_scheduler_cosine_lr_0.001_wd_0.001_gamma_0.97",
     "resnet_aug_True_scheduler_cosine_lr_0.001_wd_0.001"),
    (dict(model="vit", seed=7, scheduler="step", protocol="published", model_args={"dim": 192, "depth": 2}),
     "vit_aug_False_scheduler_step_lr_0.001_wd_0.001_gamma_0.97_depth_2_dim_192_seed_7_protocol_published", None),
    (dict(model="deep/nets.py:Net", scheduler="step", schedule_steps=2, model_args={"gamma": -1}),
     "Net_aug_False_scheduler_step_lr_0.001_wd_0.001_gamma_0.97_gamma_-1_schedule_steps_2", None),
])
def test_names(changes, cell, run):
    config = Config(**changes)
    assert (config.cell_name, config.run_name) == (cell, run or cell)


@pytest.mark.parametrize("model, model_args, message", [
    *(("resnet", sizes, "resnet has no .*; known are widths, depths")
      for sizes in ({1: 2, "widths": [8]}, {"": 2}, {"dim": 8})),
    *(("nets.py:Net", sizes, "expected names of arguments of nets.py:Net, got ")
      for sizes in ({1: 2}, {"../widths": 2}, {"": 2}, {"a b": 8})),
], ids=str)
def test_sizes_that_a_model_does_not_have_are_one_line(model, model_args, message):
    with pytest.raises(InputError, match=f"^model_args: {message}"):
        Config(model=model, model_args=model_args)


@pytest.mark.parametrize("model_args", [
    {"channels": [8, 8, 16]}, {"hidden": ()}, {"dropout": 0.5}, {"hidden": "../../etc"}, {"hidden": "a b/c\\d\n*"},
    {"hidden": {"y": [1]}}, {"hidden": None}, {"channels": [64] * 200}, {"hidden": "ä" * 200},
])
def test_run_name_is_a_file_name(model_args, tmp_path):
    name = Config(model="cnn", model_args=model_args).run_name
    assert not set(name) & set("/\\ \n*?:'\"<>|") and not name.startswith((".", "-"))
    (tmp_path / name).mkdir()
    assert name != Config(model="cnn", model_args={**model_args, "dropout": 0.3}).run_name


@pytest.mark.parametrize("spec", FIELDS, ids=lambda spec: spec.name)
def test_names_and_identity_tell_what_changes_a_result(spec):
    by_name = {spec.name: spec for spec in FIELDS}
    acting = {name: next(value for value in (*(by_name[name].metadata["choices"] or ()), another(by_name[name]))
                         if value not in values) for name, values in spec.metadata["idle_when"].items()}
    one, other = Config(**acting), Config(**{**acting, spec.name: another(spec)})
    same = spec.metadata["role"] == "place"
    assert one != other and (one.identity() == other.identity()) is same and (one.run_name == other.run_name) is same


@pytest.mark.parametrize("here, wanted", [("project", "executed"), ("project/notebooks", "../executed")])
def test_run_folder_is_the_same_from_the_notebooks_folder(here, wanted, tmp_path, monkeypatch):
    (tmp_path / here).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / here)
    assert Options(study="s").run_folder(Config()) == Path(wanted) / "s" / Config().run_name
    assert project_path(tmp_path) == tmp_path
