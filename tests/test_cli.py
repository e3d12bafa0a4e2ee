"""The commands: flags, help, and one line with exit code 2 for everything a user can get wrong."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cifarlib import cli
from cifarlib.batch import runner
from cifarlib.config import Config, Options
from cifarlib.runs import study
from cifarlib.runs.history import History
from cifarlib.runs.study import note_planned

PUBLISHED = "-d ./cifar-10 -e 50 -b 64 -m resnet -s step -a -l 0.001 -w 0.0001 -g 0.97 -f 5 -p 10".split()
LONG = {"-d": "--base_dataset_path", "-e": "--num_epochs", "-b": "--batch_size", "-m": "--model_type",
        "-s": "--scheduler", "-a": "--data_augmentation", "-l": "--learning_rate", "-w": "--weight_decay",
        "-g": "--gamma", "-f": "--val_freq", "-p": "--early_stopping_patience"}
TINY = ["train", *"--dataset synthetic --limit_train 64 --limit_val 64 --limit_test 64 -b 32 -e 1".split(),
        *"--wandb_mode disabled --device cpu --model_args".split(), '{"widths": [8, 8, 8, 8]}']


def parsed(arguments):
    namespace = cli.make_parser().parse_args(["train", *arguments])
    return tuple(cls(**cls.among(vars(namespace))) for cls in (Config, Options))


def train(folder, *arguments, **environment):
    """`python -m cifarlib train` on a small run, as a user would call it from the project's root."""
    command = [sys.executable, "-m", "cifarlib", *TINY, "--executed_dir", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def test_the_published_command_line_means_what_it_says():
    expected = Config(data_dir="./cifar-10", epochs=50, batch_size=64, model="resnet", scheduler="step",
                      augmentation=True, learning_rate=0.001, weight_decay=0.0001, gamma=0.97, val_freq=5,
                      early_stopping_patience=10)
    assert parsed(PUBLISHED)[0] == expected
    assert parsed([LONG.get(word, word) for word in PUBLISHED])[0] == expected
    assert parsed([]) == (Config(), Options())


def test_grid_takes_the_options_of_train_and_keeps_the_best_weights_unless_told_otherwise():
    def given(options):
        return vars(cli.make_parser().parse_args(["grid", "g.yaml", *options.split()]))

    assert Config.among(given("-d x --num_epochs 3 -a")) == {"data_dir": "x", "epochs": 3, "augmentation": True}
    kept = {"": "best", "--no-checkpoints": "none", "--checkpoints all": "all"}
    assert {options: given(options)["checkpoints"] for options in kept} == kept


def test_a_dry_run_estimates_from_runs_of_the_same_model_and_size(tmp_path, capsys):
    (tmp_path / "g.yaml").write_text("fixed: {epochs: 30, scheduler: step}\nrows: [{gamma: [0.9, 0.8, 0.7]}]\n")
    base = Config(scheduler="step", epochs=30)

    def estimate(*arguments):
        command = ["grid", str(tmp_path / "g.yaml"), "--dry-run", "--executed_dir", str(tmp_path), "--jobs", "2"]
        assert cli.main([*command, *arguments]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    def record(folder, config, **more):
        (tmp_path / "g" / folder).mkdir(parents=True)
        content = {"status": "done", "config": config.to_dict(), "epochs_run": 10, "seconds": 1.0, **more}
        (tmp_path / "g" / folder / "record.json").write_text(json.dumps(content))

    assert estimate() == f"no estimate: no run of resnet of this size is recorded in {tmp_path} yet"
    done, failed, stopped = (base.replace(gamma=gamma) for gamma in (0.9, 0.8, 0.7))
    record(done.run_name, done, seconds=200.0)
    record("other", base.replace(gamma=0.5), seconds=300.0)
    record("small", base.replace(model_args={"depths": [1, 1, 1, 1]}))
    record("part", base.replace(limit_train=10))
    text = "about {} for the rest, {} at a time, if none stops early"
    assert estimate() == text.format("12 min", 2)  # two runs of 30 epochs of 25 s, side by side
    assert estimate("--only", "gamma=0.7") == text.format("12 min", 1)  # nothing is beside it
    assert estimate("--limit_train", "10", "--only", "gamma=0.7") == text.format("3 s", 1)
    assert "resnet of this size" in estimate("--limit_train", "20")
    assert estimate("--no-resume") == text.format("19 min", 2)
    record(failed.run_name, failed, status="failed", epochs_run=0)  # left alone, unless it is to be tried again
    assert estimate() == text.format("12 min", 1)
    assert estimate("--retry-failed") == text.format("12 min", 2)
    folder = tmp_path / "g" / stopped.run_name  # what was cut off has only its rest to go: 30 - 24 epochs
    folder.mkdir()
    (folder / "last.pt").touch()
    History([{"epoch": epoch, "train_loss": 1.0} for epoch in range(1, 25)]).write(folder / "history.csv")
    assert estimate() == text.format("2 min", 1)
    assert estimate("--no-resume") == text.format("12 min", 2)


def test_every_field_is_an_option_and_help_shows_its_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split()).partition("options:")[2]
    for spec in (*dataclasses.fields(Config), *dataclasses.fields(Options)):
        after = re.split(rf"--{spec.name}[ ,]", text, maxsplit=1)[1]
        default = {} if spec.type is dict else "the protocol's" if spec.default is None else spec.default
        assert after.partition("(default: ")[2].startswith(f"{default})"), spec.name
    assert text.count("(default: all)") == 1, "--no-checkpoints has none"


def test_what_the_protocol_decides_can_be_said():
    options = "-m a/b.py:Net --protocol published --softmax_in_loss --split stratified --schedule_steps 3"
    assert parsed(options.split())[0] == Config(
        model="a/b.py:Net", protocol="published", softmax_in_loss=True, split="stratified", schedule_steps=3)
    assert parsed("-m cnn --protocol published --no-softmax_in_loss".split())[0].softmax_in_loss is False


@pytest.mark.parametrize("arguments, message", [
    ("--modle cnn", "unrecognized arguments: --modle cnn (did you mean --model?)"),
    ("--no-res --dry-run", "unrecognized arguments: --no-res (did you mean --no-resume?)"),
    ("--lr 0.1", "unrecognized arguments: --lr 0.1 (did you mean --learning_rate?)"),
    ("-m ResNet", "model: expected one of cnn, resnet, vit"), ("-m ResNet", "got 'ResNet'; did you mean resnet?"),
    ("-m none.py:Net --dry-run", "none.py can't be read"), ("-s linear", "scheduler: expected one of exponential"),
    ("-e x", "epochs: expected a whole number, got 'x'"), ("-e 0", "at least 1"), ("-l x", "expected a number, got"),
    ("-l nan", "finite"), ("--study ../x", "letters, digits"), ("--device tpu", "device: expected auto"),
    ("--model_args {depth:1}", "as JSON, got '{depth:1}'"), ("--model_args [1]", "expected a mapping"),
])
def test_bad_values_are_one_line_and_exit_code_2(capsys, arguments, message):
    try:
        code = cli.main(["train", *arguments.split()])
    except SystemExit as ended:
        code = ended.code
    output = capsys.readouterr()
    assert code == 2 and message in output.err and output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize("arguments, message", [
    ([], "required: COMMAND"), (["nothing"], "invalid choice: 'nothing'"), (["grid"], "required: file"),
    (["grid", "none.yaml"], "none.yaml can't be read"), (["status", "none"], "no runs in "),
    (["runs", "none"], "no run with a record.json in "),
    (["results", "--runs", "none.csv"], "none.csv: no table of runs"),
    (["grid", "parameters/demo.yaml", "--jobs", "many"], "expected a whole number from 0, got 'many'"),
    (["status", "s", "--lr"], "unrecognized arguments: --lr; see"),
])
def test_commands_without_what_they_need_are_one_line_and_exit_code_2(capsys, tmp_path, arguments, message):
    if arguments[:1] in (["status"], ["runs"]):
        arguments = [*arguments, "--executed_dir", str(tmp_path)]
    if arguments[:1] == ["results"]:
        arguments = [*arguments, "--report", str(tmp_path)]
    try:
        code = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    output = capsys.readouterr()
    assert code == 2 and output.err.startswith("cifarlib: ") and message in output.err and output.err.count("\n") == 1


def test_train_prints_the_run_folder_last_and_keeps_everything_there(tmp_path):
    ended = train(tmp_path, "--study", "one", "-m", "resnet", "-s", "step")
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "one" / ("resnet_aug_False_scheduler_step_lr_0.001_wd_0.001_gamma_0.97_widths_8-8-8-8_epochs_1_"
                                 "batch_size_32_dataset_synthetic_limit_train_64_limit_val_64_limit_test_64")
    assert ended.stdout.splitlines()[-1] == str(folder)
    assert {"experiment.ipynb", "history.csv", "predictions.npz", "best_val_acc.pt", "best_val_loss.pt", "terminal.pt",
            "record.json", "run.log"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "last.pt").exists()
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "done" and record["data"]["dataset"] == "synthetic"
    assert "epoch 1/1" in ended.stdout and "SYNTHETIC" in ended.stdout

    before = (folder / "record.json").stat().st_mtime_ns
    again = train(tmp_path, "--study", "one", "-m", "resnet", "-s", "step")
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == str(folder)
    assert (folder / "record.json").stat().st_mtime_ns == before, "a finished run is not trained again"

    anew = train(tmp_path, "--study", "one", "-m", "resnet", "-s", "step", "--no-resume", "--device", "mps")
    assert anew.returncode == 2 and "mps" in anew.stderr
    assert json.loads((folder / "record.json").read_text()) == record, "nothing is lost"


def damaged(folder):
    """Make a folder that claims to hold CIFAR-10, with a first batch that is not the official one."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (batches / name).write_bytes(b"\x80\x04N.")


@pytest.mark.parametrize("arguments, message", [
    (["--dataset", "cifar10", "-d", "DAMAGED"], " is damaged (its MD5 is not"),
    (["--device", "cuda"], "device: cuda is not there"),
])
def test_what_only_the_kernel_can_tell_is_one_line_and_exit_code_2_too(tmp_path, arguments, message):
    """Two for all: test_notebooks.py has the others without a kernel."""
    damaged(tmp_path / "damaged")
    arguments = [word.replace("DAMAGED", str(tmp_path / "damaged")) for word in arguments]
    ended = train(tmp_path / "executed", *arguments, CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 2 and message in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "executed").write_text("a file in the folder's place")
    ended = train(tmp_path / "executed")
    assert ended.returncode == 2 and "can't be written" in ended.stderr and ended.stderr.count("\n") == 1


def test_files_that_cannot_be_written_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["grid", "parameters/demo.yaml", "--write-sets", str(tmp_path / "file" / "sets")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cifarlib: ") and "file/sets: Not a directory" in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [["train"], ["grid", "g.yaml", "--study", "single"]])
def test_a_dry_run_finds_another_run_in_its_folder(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text("one")
    Path("g.yaml").write_text("rows: [{}]\n")
    config, command = Config(model="nets.py:Net"), [*command, "--dry-run", "-m", "nets.py:Net"]

    def refused(*arguments):
        assert cli.main([*command, *arguments]) == 2
        return capsys.readouterr().err

    assert cli.main(command) == 0
    folder = Options().run_folder(config)
    folder.mkdir(parents=True)
    plan, record = folder / "plan.json", folder / "record.json"  # a published study has records alone
    identity = config.identity()
    plan.write_text(json.dumps({**identity, "precision": "fp32"}))
    assert cli.main(command) == 0 and "a run in fp32, not in bf16" in refused("--precision", "bf16")
    Path("nets.py").write_text("another of the same name")
    assert "holds a run of another nets.py" in refused()
    assert cli.main([*command, "--no-resume"]) == 0
    plan.unlink()
    for done, message in ((config.replace(seed=3), "holds a run with seed 3, this one has 100"),
                          (config, "a run in fp32, not in bf16")):
        record.write_text(json.dumps({"status": "done", "config": done.to_dict(), "precision": "fp32"}))
        assert message in refused("--precision", "bf16")
    assert cli.main([*command, "--device", "cpu"]) == 0


def test_a_foreign_record_in_another_study_is_no_matter_for_an_estimate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("g.yaml").write_text("rows: [{}]\n")
    for name, config in (("old", {"lr": 1}), ("older", [])):
        Path("executed/x", name).mkdir(parents=True)
        record = {"status": "done", "config": config, "epochs_run": 3, "seconds": 9}
        Path("executed/x", name, "record.json").write_text(json.dumps(record))
    assert cli.main(["grid", "g.yaml", "--dry-run"]) == 0 and "no estimate" in capsys.readouterr().out


def interrupt(*_):
    raise KeyboardInterrupt


def test_status_counts_what_was_asked_for_until_the_list_is_removed(tmp_path, capsys, monkeypatch):
    models = ("cnn", "nets.py:My_Net")
    configs = [Config(model=model, scheduler="step", gamma=gamma) for model in models for gamma in (0.9, 0.8)]
    study, done = tmp_path / "s", configs[0]
    note_planned(study, configs)
    (study / done.run_name).mkdir()
    record = {"status": "done", "config": done.to_dict(), "epochs_run": 10, "seconds": 100.0,
              "metrics": {"val_accuracy_best_val_acc": 0.5}}
    (study / done.run_name / "record.json").write_text(json.dumps(record))

    def status(*arguments):
        assert cli.main(["status", "s", "--executed_dir", str(tmp_path), *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    monkeypatch.setattr(time, "sleep", interrupt)  # Ctrl-C while it waits for the next look
    for shown in (status(), status("--watch")):
        counts = {line.split()[0]: line.split()[1:] for line in shown[1:4]}
        assert counts == {"cnn": list("100001"), "My_Net": list("000002"), "all": list("100003")}
        assert shown[4:] == [f"best so far: {done.run_name}, validation accuracy 0.5000",
                             f"no estimate: no run of My_Net of this size is recorded in {tmp_path} yet"]
    shutil.rmtree(study / "planned")
    assert status()[1].split() == ["cnn", *"100000"] and status()[-1] == "nothing is left to do"


def test_records_of_older_versions_have_the_defaults_and_unknown_fields_are_one_line(tmp_path, capsys):
    folder = tmp_path / "s" / "resnet_an_older_name"
    folder.mkdir(parents=True)
    record = {"status": "done", "epochs_run": 3, "seconds": 9.0, "commit": None, "metrics": {},
              "config": {"model": "resnet", "protocol": "published", "learning_rate": 0.01}}
    (folder / "record.json").write_text(json.dumps(record))
    assert cli.main(["runs", "s", "--executed_dir", str(tmp_path)]) == 0
    (row,) = csv.DictReader((tmp_path / "s" / "runs.csv").open())
    defaults = Config(protocol="published", learning_rate=0.01)
    assert {name: row[name] for name in Config.names_of("knob", "condition", "repeat")} == {
        name: str(getattr(defaults, name)) for name in Config.names_of("knob", "condition", "repeat")}
    assert (row["run"], row["Full_Modelname"]) == (folder.name, defaults.cell_name)
    own = {**record, "config": {"model": "nets.py:Net"}, "model_source": "1a2b"}
    (folder / "record.json").write_text(json.dumps(own))
    assert cli.main(["runs", "s", "--executed_dir", str(tmp_path)]) == 0
    (row,) = csv.DictReader((tmp_path / "s" / "runs.csv").open())
    assert (row["Modelname"], row["model_source"]) == ("nets.py:Net", "1a2b")
    (folder / "record.json").write_text(json.dumps({**record, "config": {"model": "resnet", "dropout": 0.1}}))
    assert cli.main(["runs", "s", "--executed_dir", str(tmp_path)]) == 2
    assert "is not a run of this version (unknown parameter 'dropout'; known are" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_an_interrupted_command_is_one_line_and_exit_code_130(monkeypatch, capsys):
    monkeypatch.setattr(study, "write_table", interrupt)
    assert cli.main(["runs", "s"]) == 130 and capsys.readouterr().err == "cifarlib: interrupted\n"


def test_braces_in_a_path_and_a_long_temporary_folder(tmp_path):
    """papermill would fill in the braces; a socket's path has at most 107 characters."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    ended = train(tmp_path / "a {model} {b}", "-m", "resnet", TMPDIR=str(long))
    assert ended.returncode == 0 and (Path(ended.stdout.splitlines()[-1]) / "experiment.ipynb").exists(), ended.stderr


def test_ctrl_c_at_once_is_one_line(tmp_path):
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    command = [sys.executable, "-m", "cifarlib", "status"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 130 and ended.stderr == "cifarlib: interrupted\n"


# missed by the command, by the run's process and by its kernel
@pytest.mark.parametrize("package", ["pandas", "papermill", "torch"])
@pytest.mark.parametrize("cause", [
    "raise ImportError('half installed')", "import ctypes; ctypes.CDLL('half installed.so.12')"])
def test_a_broken_environment_is_one_line(package, cause, tmp_path):
    (tmp_path / f"{package}.py").write_text(cause)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    command = [sys.executable, "-m", "cifarlib", *TINY, "--executed_dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 2 and "Traceback" not in ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cifarlib: a package is missing or broken (half installed")


DATA, DEVICE = ("--data_dir nowhere", "data_dir: no CIFAR-10 in nowhere"), ("--device mps", "device: mps is not there")


@pytest.mark.parametrize("command, what, message", [
    ("train", *DATA), ("train --dry-run", *DATA), ("grid", *DATA), ("grid --dry-run", *DATA),
    ("grid", *DEVICE), ("grid --dry-run", *DEVICE)])
def test_data_and_devices_are_missed_before_any_run_starts(command, what, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "execute_run", lambda *arguments: pytest.fail("a run was started"))
    (tmp_path / "g.yaml").write_text("fixed: {dataset: auto}\nproduct: {model: [cnn, resnet]}\n")
    name, *options = command.split()
    file = [str(tmp_path / "g.yaml")] if name == "grid" else ["--dataset", "auto"]
    assert cli.main([name, *file, *options, *what.split(), "--executed_dir", str(tmp_path / "executed")]) == 2
    assert capsys.readouterr().err.startswith(f"cifarlib: {message}") and not (tmp_path / "executed").exists()
