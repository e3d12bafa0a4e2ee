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
from cifarlib.data.cifar import CIFAR10, Archive
from cifarlib.errors import InputError
from cifarlib.files import project_path
from cifarlib.results import report
from cifarlib.runs import claim, record
from cifarlib.runs.history import History
from cifarlib.runs.record import status_of, write_failure
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


def run(*arguments):
    """A command in this process; its exit code."""
    try:
        return cli.main([*arguments])
    except SystemExit as ended:
        return ended.code


def test_the_published_command_line_means_what_it_says():
    expected = Config(data_dir="./cifar-10", epochs=50, batch_size=64, model="resnet", scheduler="step",
                      augmentation=True, learning_rate=0.001, weight_decay=0.0001, gamma=0.97, val_freq=5,
                      early_stopping_patience=10)
    assert parsed(PUBLISHED)[0] == expected
    assert parsed([LONG.get(word, word) for word in PUBLISHED])[0] == expected
    assert parsed([]) == (Config(), Options())
    options = "-m a/b.py:Net --protocol published --softmax_in_loss --split stratified --schedule_steps 3"
    assert parsed(options.split())[0] == Config(
        model="a/b.py:Net", protocol="published", softmax_in_loss=True, split="stratified", schedule_steps=3)
    assert parsed("-m cnn --protocol published --no-softmax_in_loss".split())[0].softmax_in_loss is False


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

    def record(folder, run, **more):
        (tmp_path / "g" / folder).mkdir(parents=True)
        content = {"status": "done", "config": run.to_dict(), "epochs_run": 10, "seconds": 1.0, **more}
        (tmp_path / "g" / folder / "record.json").write_text(json.dumps(content))

    for folder, foreign in (("old", {"lr": 1}), ("older", [])):  # records of another version tell nothing
        record(folder, base, config=foreign)
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
    rows = [{"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "seconds": 9.0} for epoch in range(1, 25)]
    History(rows).write(folder / "history.csv")
    assert estimate() == text.format("2 min", 1)
    assert estimate("--no-resume") == text.format("12 min", 2)


def test_every_field_is_an_option_and_help_shows_its_default(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split()).partition("options:")[2]
    for spec in (*dataclasses.fields(Config), *dataclasses.fields(Options)):
        after = re.split(rf"--{spec.name}[ ,]", text, maxsplit=1)[1]
        default = {} if spec.type is dict else "the protocol's" if spec.default is None else spec.default
        assert default == "" or after.partition("(default: ")[2].startswith(f"{default})"), spec.name
    assert text.count("(default: all)") == 1, "--no-checkpoints has none"
    assert "(default: )" not in text and "(default: None)" not in text


@pytest.mark.parametrize("arguments, message", [
    ("train --modle cnn", "unrecognized arguments: --modle cnn (did you mean --model?)"),
    ("train --no-res --dry-run", "unrecognized arguments: --no-res (did you mean --no-resume?)"),
    ("train --lr 0.1", "unrecognized arguments: --lr 0.1 (did you mean --learning_rate?)"),
    ("train -m ResNet", "model: expected one of cnn, resnet, vit"), ("train -m ResNet", "did you mean resnet?"),
    ("train -m none.py:Net --dry-run", "none.py can't be read"),
    ("train -e x", "epochs: expected a whole number, got 'x'"), ("train -e 0", "at least 1"),
    ("train -l x", "expected a number, got"), ("train -l nan", "finite"), ("train --study ../x", "letters, digits"),
    ("train --model_args {depth:1}", "such as {\"name\": 1}, got '{depth:1}'"),
    ("train --model_args [1]", "expected a mapping"),
    ("train --dataset synthetic --executed_dir file", "file/single/planned: Not a directory; it can't be written"),
    *((f"train --dataset synthetic --executed_dir taken{end}", "can't be written") for end in ("", " --dry-run")),
    ("", "required: COMMAND"), ("nothing", "invalid choice: 'nothing'"), ("grid", "required: file"),
    ("grid none.yaml", "none.yaml can't be read"), ("status s --lr", "--lr; see"), ("status", "no studies in executed"),
    *((f"{name} none", "no runs in executed/none; train one there first") for name in ("status", "runs", "results")),
    ("results", "expected a study's name or the file of a table"), ("results none.csv", "none.csv: no table of runs"),
    ("results --runs none.csv", "none.csv: no table of runs"),
    ("grid g.yaml --jobs many", "expected a whole number from 0, got 'many'"),
    ("grid g.yaml --write-sets file/sets", "file/sets: Not a directory"),
    *((f"{command}{end} --dataset auto --data_dir nowhere", "data_dir: no CIFAR-10 in nowhere")
      for command in ("train", "grid g.yaml") for end in ("", " --dry-run")),
    *((f"grid g.yaml --device mps{end}", "device: mps is not there") for end in ("", " --dry-run")),
    *((f"{command} -d damaged", "data_batch_1 in damaged is damaged (its MD5 is not") for command in (
        "train --dataset cifar10", "grid g.yaml --dataset cifar10", "grid g.yaml --dataset auto")),
])
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "execute_run", lambda *arguments: pytest.fail("a run was started"))
    Path("file").write_text("in a folder's place")
    taken = Path("taken", "single", Config(dataset="synthetic").run_name)
    for folder in (Path("damaged"), taken.parent):
        folder.mkdir(parents=True)
    taken.touch()  # as a run folder that may only be read, which root may write
    (Path("damaged") / next(iter(CIFAR10.md5))).write_text("no batch")
    Path("g.yaml").write_text("product: {model: [cnn, resnet]}\n")
    assert run(*arguments.split()) == 2 and not Path("executed").exists()
    output = capsys.readouterr()
    assert output.err.startswith("cifarlib: ") and message in output.err and output.err.count("\n") == 1
    assert output.out == ""


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
    left = {path: path.read_bytes() for path in folder.glob("*.*") if not path.name.startswith("claim")}
    again = train(tmp_path, "--study", "one", "-m", "resnet", "-s", "step")
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == str(folder)
    assert (folder / "record.json").stat().st_mtime_ns == before, "a finished run is not trained again"

    anew = train(tmp_path, "--study", "one", "-m", "resnet", "-s", "step", "--no-resume", "--device", "mps")
    assert anew.returncode == 2 and "mps" in anew.stderr
    assert [path.name for path, content in left.items() if not path.read_bytes().startswith(content)] == []
    assert [path.name for path, content in left.items() if path.read_bytes() != content] == ["run.log"]


def test_what_only_the_kernel_can_tell_is_one_line_and_exit_code_2_too(tmp_path):
    """test_notebooks.py has other cases without a kernel."""
    ended = train(tmp_path, "--limit_train", "10")
    assert ended.returncode == 2 and "batch_size: 32 images a batch" in ended.stderr, ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.fixture
def data(tmp_path, monkeypatch):
    """What runs would be started in the working directory, which has a grid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    Path("g.yaml").write_text("fixed: {dataset: auto, scheduler: step}\nrows: [{gamma: [0.9, 0.8]}]\n")
    started = []
    monkeypatch.setattr(runner, "execute_run", lambda run, *_, **__: started.append(run.config) or 0)
    return started


def test_auto_is_decided_aloud_before_any_run_and_genuine_data_are_trained_anew(data, tmp_path, monkeypatch, capsys):
    def no_network(archive):
        raise InputError("no network")

    for command in (["train", "--dataset", "auto"], ["grid", "g.yaml", "--jobs", "1"]):
        monkeypatch.setattr(Archive, "download", no_network)
        run(*command)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "SYNTHETIC" in line]
        assert line == "cifarlib: SYNTHETIC DATA, NOT CIFAR-10, is taken: no network"
        before, _ = data[:], data.clear()
        monkeypatch.setattr(Archive, "download", lambda archive: tmp_path)
        monkeypatch.setattr(Archive, "arrays", lambda archive, folder: ())
        run(*command)
        assert {config.dataset for config in before} == {"synthetic"}
        assert [config.dataset for config in data] == ["cifar10"] * len(before)
        assert not {config.run_name for config in data} & {config.run_name for config in before}
        data.clear()


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
    plan.write_text(json.dumps({**config.identity(), "precision": "fp32"}))
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
        assert shown[4:] == ["best so far: cnn_gamma_0.9, validation accuracy 0.5000",
                             f"no estimate: no run of My_Net of this size is recorded in {tmp_path} yet"]
    shutil.rmtree(study / "planned")
    assert status()[1].split() == ["cnn", *"100000"] and status()[-1] == "nothing is left to do"


def test_status_tells_of_runs_in_progress_and_of_failed_ones(tmp_path, capsys):
    configs = [Config(model="cnn", scheduler="step", gamma=gamma, epochs=40) for gamma in (0.9, 0.8, 0.7)]
    study = tmp_path / "s"
    begun, first, failed = (study / config.run_name for config in configs)
    note_planned(study, configs)
    claims = [claim.Claim.take(folder) for folder in (begun, first)]
    row = {"train_loss": 1.0, "train_accuracy": 0.5, "seconds": 60.0}
    History([{**row, "epoch": epoch, "val_accuracy": epoch / 8} for epoch in (1, 2)]).write(begun / "history.csv")
    failed.mkdir()
    write_failure(failed, configs[2], "a page of output\nRuntimeError: out of luck\n")

    def shown(*arguments):
        assert cli.main([*arguments, "--executed_dir", str(tmp_path)]) == 0
        return capsys.readouterr().out.splitlines()

    told = ["failed: cnn_gamma_0.7: RuntimeError: out of luck", f"    see {failed / 'run.log'}",
            "`grid` leaves what failed alone, unless it is given --retry-failed"]
    assert shown("status", "s")[3:-1] == [
        "running: cnn_gamma_0.8, in epoch 1 of 40",
        "running: cnn_gamma_0.9, epoch 2 of 40, validation accuracy 0.2500, about 38 min left", *told]
    assert shown("status") == ["s: 0 done, 0 diverged, 1 failed, 2 running, 0 preempted, 0 pending"]
    for each in claims:
        each.release()
    shutil.rmtree(study / "planned")
    alone = [told[0].replace("cnn_gamma_0.7", "cnn"), *told[1:]]  # the one run that is left shares all with itself
    assert shown("status", "s")[3:] == alone, "it is not true that nothing is left to do"
    (tmp_path / "s.yaml").write_text("rows: [{model: cnn, scheduler: step, epochs: 40, gamma: [0.9, 0.8, 0.7]}]")
    assert shown("grid", str(tmp_path / "s.yaml"), "--dry-run") == [
        "cnn_gamma_0.9", "cnn_gamma_0.8",
        "3 cells, 3 distinct runs: 0 done, 0 diverged, 1 failed, 0 running, 0 preempted, 2 pending",
        *told, f"no estimate: no run of cnn of this size is recorded in {tmp_path} yet"]


@pytest.mark.parametrize("content", ["", "{}", claim._machine(), f"another machine\n{claim.LOCKED}"])
def test_whatever_a_claim_file_holds_it_counts_until_it_is_silent_for_long(content, tmp_path):
    (tmp_path / "claim.1").write_text(content)
    assert status_of(tmp_path) == "running"
    os.utime(tmp_path / "claim.1", (1, time.time() - 2 * claim.STALE))
    assert status_of(tmp_path) == "pending"


@pytest.mark.parametrize("command", ["status", "runs", "results"])
def test_a_study_that_is_not_there_is_told_with_those_that_are(command, tmp_path, capsys):
    for name in ("demo", "published"):
        note_planned(tmp_path / name, [Config()])
    assert run(command, "dmeo", "--executed_dir", str(tmp_path)) == 2
    assert capsys.readouterr().err == (f"cifarlib: no runs in {tmp_path / 'dmeo'}; did you mean demo? "
                                       "the studies there are demo, published\n")
    shutil.rmtree(tmp_path / "published")
    assert run("runs", "demo", "--executed_dir", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"cifarlib: no runs in {tmp_path / 'demo'}; train one there first\n"


@pytest.mark.parametrize("folder", [".", "notebooks", "parameters", "executed/s"])
def test_names_and_paths_are_understood_from_any_folder_of_the_project(folder, tmp_path, monkeypatch, capsys):
    """From its root, or as the shell completes them; and what one command prints another understands."""
    failed = Path("executed", "s", Config().run_name)
    for name in ("notebooks", "parameters", failed):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(Path(__file__).parent.parent / "notebooks" / "experiment.ipynb", tmp_path / "notebooks")
    (tmp_path / "parameters" / "s.yaml").write_text("rows: [{}]")
    write_failure(tmp_path / failed, Config(), "x")
    reported = []
    monkeypatch.setattr(report, "make_report", lambda parameters, folder: reported.append(parameters["runs"]))
    monkeypatch.chdir(tmp_path / folder)
    assert cli.main(["runs", "s"]) == 0
    table = capsys.readouterr().out.strip()
    assert Path(table).samefile(tmp_path / "executed" / "s" / "runs.csv")
    for path in {"parameters/s.yaml", os.path.relpath(tmp_path / "parameters" / "s.yaml")}:
        assert cli.main(["grid", path, "--dry-run"]) == 0 and " 1 failed," in capsys.readouterr().out
    for given in (["s"], [table], ["--runs", table], ["executed/s/runs.csv"]):
        assert cli.main(["results", *given]) == 0
        found = project_path(reported.pop())
        assert (found / "runs.csv" if found.is_dir() else found).samefile(table)
    assert cli.main(["status", "s"]) == 0


def test_no_locale_is_in_the_way_of_utf_8(tmp_path):
    (tmp_path / "g.yaml").write_text("# größer\nrows: [{model: nets.py:Näht}, {model: vit}]", encoding="utf-8")
    (tmp_path / "nets.py").touch()
    ascii = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-m", "cifarlib", "grid", "g.yaml", "--dry-run"], cwd=tmp_path, env=ascii,
                           capture_output=True, encoding="utf-8")
    assert ended.returncode == 0 and ended.stdout.startswith("Näht\nvit\n2 cells"), ended.stderr


def test_a_notebook_that_imports_another_clone_says_so(tmp_path):
    for name in ("notebooks/experiment.ipynb", "cifarlib/__init__.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    command, here = [sys.executable, "-c", "import cifarlib"], {**os.environ, "PYTHONPATH": os.getcwd()}
    for folder, lines in ((tmp_path / "notebooks", 1), (tmp_path.parent, 0), (os.getcwd(), 0)):
        said = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True).stderr
        assert said.count("\n") == lines and (not lines or f"pip install --editable {tmp_path}`" in said)


def test_the_commit_is_that_of_the_repository_that_keeps_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    monkeypatch.setattr(record, "PACKAGE", tmp_path / "unpacked" / "cifarlib")
    record.PACKAGE.mkdir(parents=True)
    (record.PACKAGE / "__init__.py").touch()
    commit = record.commit.__wrapped__
    git("init")
    author = ["-c", "user.name=x", "-c", "user.email=x"]
    git(*author, "commit", "--allow-empty", "-m", "of another project")
    assert commit() is None
    git("add", ".")
    assert commit().endswith("+")
    git(*author, "commit", "-m", "with the code")
    assert re.fullmatch("[0-9a-f]{7,}", commit())


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


def test_braces_in_a_path_and_a_long_temporary_folder(tmp_path):
    """papermill would fill in the braces; a socket's path has at most 107 characters."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    ended = train(tmp_path / "a {model} {b}", "-m", "resnet", TMPDIR=str(long))
    assert ended.returncode == 0 and (Path(ended.stdout.splitlines()[-1]) / "experiment.ipynb").exists(), ended.stderr


# what is imported by the command, by the run's process and by its kernel
@pytest.mark.parametrize("package, cause, code, message", [
    ("argparse", "raise KeyboardInterrupt", 130, "interrupted"),
    *((package, cause, 2, "a package is missing or broken (half installed")
      for package in ("pandas", "papermill", "torch")
      for cause in ("raise ImportError('half installed')", "import ctypes; ctypes.CDLL('half installed.so.12')")),
])
def test_ctrl_c_at_once_and_a_broken_environment_are_one_line(package, cause, code, message, tmp_path):
    (tmp_path / f"{package}.py").write_text(cause)
    ended = train(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}")
    assert ended.returncode == code and "Traceback" not in ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"cifarlib: {message}")
