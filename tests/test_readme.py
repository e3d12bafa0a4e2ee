"""What README.md promises and other tests don't need: its commands, its flags, its links, its script, its committed runs."""

import dataclasses
import itertools
import os
import re
import shlex
import shutil
from pathlib import Path

import pandas
import pytest
import results_tables as made
import yaml
from conftest import tiny

from cifarlib import cli
from cifarlib.results import ranking, table as tables
from cifarlib.config import CHECKPOINTS, Config, Options, check_names
from cifarlib.batch.grid import distinct_runs, read_grid, select
from cifarlib.words import percent

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
KEPT = [name for name in re.findall(r"^!/executed/(\w+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE) if name != "throughput"]
GRIDS = {"demo": 6, "finalists": 15, "equal_compute": 6, "resnet_24_epochs": 13, "published_resnet": 5, "cnn_10_epochs": 3, "published": 672}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    """The words after `python -m cifarlib` of every command in README.md and in the Makefile."""
    lines = "".join(blocks("bash")).splitlines() + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
    lines += (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace("$$study", KEPT[0]).replace("|| exit; \\", "").splitlines()
    words = [tuple(shlex.split(line, comments=True)[3:]) for line in lines if re.match(r"\s*python -m cifarlib ", line)]
    return [each for each in dict.fromkeys(words) if "--help" not in each]


def study(words):
    parsed = cli.make_parser().parse_args(words)
    return parsed.study or Path(parsed.file).stem


COMMANDS = commands()
STUDIES = [words for words in COMMANDS if words[0] == "grid" and study(words) in KEPT]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_can_be_given(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = cli.make_parser().parse_args(words)
    if words[0] == "train":
        assert Config(**cli.fields_of(Config, parsed)) and Options(**cli.fields_of(Options, parsed))
    if words[0] == "grid":
        assert select(read_grid(parsed.file, cli.fields_of(Config, parsed)), parsed.only)


def test_the_flags_are_those_of_the_table():
    rows = re.findall(r"^\| `(-\w)` \| `(\w+)`(?: \(`(--\w+)`\))? \|", README, re.MULTILINE)
    assert {name: tuple(filter(None, (short, long))) for short, name, long in rows} == cli.PUBLISHED_FLAGS
    others = re.search(r"the commands take both\. `([^`]+)`", README.replace("\n", " "))[1].split()
    names = {spec.name for cls in (Config, Options) for spec in dataclasses.fields(cls)} - cli.PUBLISHED_FLAGS.keys()
    assert sorted(others) == sorted(f"--{name}" if name != "resume" else "--no-resume" for name in names)


def test_links_within_the_page_lead_somewhere():
    heads = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)]
    links = re.findall(r"\]\(#([^)]+)\)", PROSE)
    assert links and [link for link in links if heads.count(link) != 1] == []


def test_the_script_trains(capsys):
    """As it stands, but for the sizes of its model and data."""
    script, changed = re.subn(r"^config = Config\(", "config = tiny(", blocks("python")[0], flags=re.MULTILINE)
    assert changed == 1
    exec(script, {"tiny": tiny})
    accuracies = [float(word) for word in capsys.readouterr().out.split()]
    assert len(accuracies) == 10 + 1 and all(0 <= accuracy <= 1 for accuracy in accuracies)


def test_the_parameters_of_one_run_are_a_runs():
    values = yaml.safe_load((ROOT / "parameters" / "experiment.yaml").read_text())
    check_names(values, Config, Options)
    config, options = ({spec.name: values[spec.name] for spec in dataclasses.fields(cls) if spec.name in values} for cls in (Config, Options))
    assert Config(**config).epochs == 80 and Config(**config).augmentation and Options(**options)


def test_every_grid_has_the_runs_that_it_is_for():
    files = {path.stem: path for path in (ROOT / "parameters").glob("*.yaml") if path.stem != "experiment"}
    assert {name: len(distinct_runs(read_grid(path))) for name, path in files.items()} == GRIDS
    demo = read_grid(files["demo"])
    assert {cell.dataset for cell in demo} == {"auto"}, "else it ends where there is no network"
    assert {cell.model for cell in demo} == {"cnn", "resnet", "vit"}
    assert {cell.seed for cell in read_grid(files["finalists"])} == {100, 101, 102, 103, 104}


def test_each_kept_study_has_its_command():
    assert {study(words) for words in STUDIES} == set(KEPT)


@pytest.mark.parametrize("words", STUDIES, ids=" ".join)
def test_committed_runs_count_as_done(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is left to do"
    assert cli.main([*words, "--dry-run", "--study", "never_trained"]) == 0
    assert " 0 done," in capsys.readouterr().out


@pytest.mark.parametrize("name", KEPT)
def test_the_committed_table_is_what_the_committed_records_give(name, tmp_path, capsys):
    for record in ROOT.glob(f"executed/{name}/*/record.json"):
        (tmp_path / name / record.parent.name).mkdir(parents=True)
        shutil.copy(record, tmp_path / name / record.parent.name)
    assert cli.main(["runs", name, "--executed_dir", str(tmp_path)]) == 0
    table = tmp_path / name / "runs.csv"
    assert capsys.readouterr().out.splitlines()[-1] == str(table)
    assert table.read_bytes() == (ROOT / "executed" / name / "runs.csv").read_bytes()
    assert set(made.table(models=("cnn",))) <= set(pandas.read_csv(table)), "the made-up tables have columns that no run has"


def test_the_results_so_far_are_the_best_runs():
    """Of each study whose section a row leads to: the best run of each model, as the results notebook ranks them."""
    rows = re.findall(r"^\| \[[^|]+\]\(#([\w-]+)\)[^|]* \| (\w+) \| ([^|]+) \|", README, re.MULTILINE)
    shown = {}
    for anchor, protocol, accuracies in rows:
        section = next(part for part in README.split("\n## ")[1:] if part.splitlines()[0].lower().replace(" ", "-") == anchor)
        shown[re.search(r"^<!-- (\w+):begin -->", section, re.MULTILINE)[1]] = protocol, accuracies
    tables = {name: tables.read_table(ROOT / "executed" / name) for name in shown}
    assert shown.keys() == set(re.search(r"^STUDIES := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    assert shown == {name: (table.rows["protocol"].iloc[0], ", ".join(f"{tables.LABELS[row['model']]} {percent(row['test'])}" for _, row in
                                                                      ranking.overall(table).iterrows())) for name, table in tables.items()}


def test_the_parity_table_is_the_runs():
    """Ours from the committed table, beside the mean of what is shown as published; that is checked where the published table is at hand."""
    runs = pandas.read_csv(ROOT / "executed" / "published_resnet" / "runs.csv").set_index(["scheduler", "learning_rate"])
    section = README.partition("## Parity with")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+), (0\.\d+), [a-z ]+ \| ([\d.%, *]+) \| ([\d.]+)% \| ([\d.]+)% \| ([+-][\d.]+) \|$", section, re.MULTILINE)
    cells = list(dict.fromkeys((scheduler, float(rate)) for scheduler, rate, *_ in rows))
    assert set(cells) == set(runs.index) and len(rows) == len(cells) * len(CHECKPOINTS)
    published = os.environ.get("PUBLISHED_RUNS") and pandas.read_csv(os.environ["PUBLISHED_RUNS"]).query("Modelname == 'resnet' and augmentation")
    for (scheduler, rate, theirs, mean, ours, difference), (cell, name) in zip(rows, itertools.product(cells, CHECKPOINTS)):
        shown = [float(accuracy) for accuracy in re.findall(r"[\d.]+", theirs)]
        assert (scheduler, float(rate)) == cell and ours == f"{100 * runs.loc[cell, f'test_accuracy_{name}']:.2f}"
        assert float(mean) == pytest.approx(sum(shown) / len(shown), abs=0.011) and float(difference) == pytest.approx(float(ours) - float(mean), abs=0.011)
        if published is not None and len(published):
            same = published.query("scheduler == @scheduler and learning_rate == @cell[1]")
            same = same.query("weight_decay == 0.001") if scheduler == "cosine" else same.query("gamma == 0.97")
            assert shown == sorted((100 * same[f"test_accuracy_{name}"]).round(2))
            bold = re.findall(r"\*\*([\d.]+)%", theirs)
            assert bold == [f"{100 * value:.2f}" for value in same.query("weight_decay == 0.001")[f"test_accuracy_{name}"] if scheduler != "cosine"]


def test_the_tables_of_short_studies_are_the_runs():
    """Written by hand: accuracies by schedule and learning rate, means where there are several seeds."""
    def tested(name):
        return (100 * pandas.read_csv(ROOT / "executed" / name / "runs.csv").groupby(["scheduler", "learning_rate"])["test_accuracy_best_val_acc"]
                .mean()).round(2).to_dict()

    shown = re.findall(r"^\| (0\.\d+), (\w+) \| ([\d.]+)% \|", README.partition("## CNN at 10 epochs")[2], re.MULTILINE)
    assert {(scheduler, float(rate)): float(accuracy) for rate, scheduler, accuracy in shown} == tested("cnn_10_epochs")
    section = README.partition("## ResNet at 24 epochs")[2]
    rates = [float(rate) for rate in re.search(r"^\| test accuracy \| (.+) \|$", section, re.MULTILINE)[1].split(" | ")]
    rows = re.findall(r"^\| (cosine|exponential|step) \| (.+) \|$", section, re.MULTILINE)
    shown = {(scheduler, rate): float(cell.partition("%")[0]) for scheduler, cells in rows for rate, cell in zip(rates, cells.split(" | "))}
    assert shown == tested("resnet_24_epochs")
