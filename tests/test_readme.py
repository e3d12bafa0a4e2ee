"""What the README pages promise: commands, links, scripts, the generated parts, the committed runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pandas
import pytest
import results_tables as made
import torch
import yaml
from conftest import tiny
from PIL import Image

from cifarlib import build_model, cli, fit, load_cifar10, load_model, predict
from cifarlib.batch.grid import distinct_runs, read_grid
from cifarlib.config import Config, Options
from cifarlib.results import report

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
STUDIES, OTHERS = (re.search(rf"^{name} := (.+)$", MAKEFILE, re.MULTILINE)[1].split() for name in ("STUDIES", "OTHERS"))
IGNORED = (ROOT / ".gitignore").read_text()
KEPT = [name for name in re.findall(r"^!/executed/(\w+)/$", IGNORED, re.MULTILINE) if name != "throughput"]
FOLDERS = [".", "parameters", "notebooks", "cifarlib", "cifarlib/slurm", "executed", "executed/throughput",
           *(f"executed/{name}" for name in [*STUDIES, *OTHERS])]
PAGES = {str(Path(folder, "README.md")): (ROOT / folder / "README.md").read_text() for folder in FOLDERS}
FIELDS = {*Config().to_dict(), *vars(Options())}


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands():
    """The words of every command line on a page, in code within its text, and in the Makefile."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    prose = "".join(map(without_code, PAGES.values()))
    lines += [" ".join(code.split()) for code in re.findall(r"`((?:python -m|make) [^`]+)`", prose)]
    lines += [line.replace("$$study", STUDIES[0]) for line in recipe("report")]
    words = (tuple(shlex.split(line.replace("&&", ";"), comments=True)) for line in lines)
    return [each for each in dict.fromkeys(words) if each]


def recipe(target):
    """The command lines of a target of the Makefile."""
    lines = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", MAKEFILE, re.MULTILINE)[1]
    lines = re.sub(r"\$\(if .*\)", "", lines.replace("$(BIN)/", "").replace("$(STUDIES)", " ".join(STUDIES)))
    return [line.strip().removesuffix("|| exit; \\") for line in lines.splitlines() if "python -m cifarlib" in line]


def study(words):
    parsed = cli.make_parser().parse_args(words[3:])
    return parsed.study or Path(parsed.file).stem


COMMANDS = commands()
TRAINED = [words for words in COMMANDS if words[:4] == ("python", "-m", "cifarlib", "grid") and study(words) in KEPT]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The working directory: copies of the pages, links to whatever lies beside them, and the front page's network."""
    for page, text in PAGES.items():
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text(text)
        for path in (ROOT / page).parent.iterdir():
            if not path.name.startswith(".") and not (tmp_path / page).with_name(path.name).exists():
                (tmp_path / page).with_name(path.name).symlink_to(path)
    own = next(block for block in blocks("README.md", "python") if "class SmallNet" in block)
    (tmp_path / "my_nets.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_can_be_given(words, project):
    match words:
        case ["python", "-m", "cifarlib", *arguments] if arguments and "STUDY" not in arguments:
            cli.make_parser().parse_args(arguments)
            if arguments[0] in ("train", "grid") and "--write-sets" not in arguments:
                assert cli.main([*arguments, "--dry-run"]) == 0
        case ["python", "-c", code]:
            exec(code.partition(";")[0])
        case ["papermill", notebook, _, "-f", values, *pairs]:
            assert Path(notebook).is_file()
            assert {*yaml.safe_load(Path(values).read_text()), *pairs[1::3]} <= FIELDS
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
        case ["bash" | "sbatch", *rest]:
            assert Path(next(word for word in rest if not word.startswith("-"))).is_file()
        case _:
            assert words[0] in ("python", "conda", "pip", "module", "export", "source", "squeue", "tail", "wandb")


def anchors(text):
    """The names that GitHub gives to a page's headings."""
    heads = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", without_code(PAGES[page])):
        place, _, anchor = link.partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        assert path.exists(), link
        assert not anchor or anchors(path.read_text()).count(anchor) == 1, link


def test_the_front_page_is_short_and_leads_to_every_other():
    assert len(PAGES["README.md"].splitlines()) <= 250
    links = re.findall(r"\]\(([^)#]+)", PAGES["README.md"])
    assert PAGES.keys() - {"README.md"} <= set(links)


def test_the_generated_parts_are_what_the_commands_give(project, monkeypatch):
    """Without the notebooks; and with the published table where it is at hand."""
    monkeypatch.setattr(report, "make_report", lambda *_: "results.html")
    subprocess.run(["make", "-f", ROOT / "Makefile", "unpack"], check=True, cwd=project)
    first, *others = recipe("report")
    lines = [*(first.replace("$$study", name) for name in [*STUDIES, *OTHERS]), *others]
    if published := os.environ.get("PUBLISHED_RUNS"):
        lines.append(f"{lines[-1]} --compare-with {published}")
    for line in lines:
        assert cli.main(shlex.split(line)[3:]) == 0
    changed = [page for page, text in PAGES.items() if (project / page).read_text() != text]
    assert changed == [], "run `make report` and commit what it changes"


def test_the_script_trains(capsys):
    """As it stands, but for the sizes of its model and data."""
    script, = blocks("notebooks/README.md", "python")
    assert script.count("config = Config(") == 1
    exec(script.replace("config = Config(", "config = tiny("), {"tiny": tiny})
    accuracies = [float(word) for word in capsys.readouterr().out.split()]
    assert len(accuracies) == 10 + 1 and all(0 <= accuracy <= 1 for accuracy in accuracies)


def test_the_weights_of_a_run_are_loaded(tmp_path):
    script, = blocks("executed/README.md", "python")
    assert script.count('"executed/STUDY/RUN"') == 1
    config, picture = tiny("resnet", epochs=1), tmp_path / "cat.jpg"
    Image.new("RGB", (50, 40), "orange").save(picture)
    fit(build_model(config), load_cifar10(config), config, tmp_path / "run")
    exec(script.replace("executed/STUDY/RUN", str(tmp_path / "run")).replace("cat.jpg", str(picture)), names := {})
    assert names["chances"].shape == (1, 10)


def test_the_weights_that_come_along_are_those_of_the_committed_run(cifar10):
    """In half precision they give nearly each test image the class that the run gave it."""
    run = ROOT / "executed/speed_94" / json.loads((ROOT / "cifarlib/weights/speednet.json").read_text())["name"]
    assert (run / "record.json").read_text() == (ROOT / "cifarlib/weights/speednet.json").read_text()
    predictions, trained = np.load(run / "predictions.npz"), load_model("speednet")
    test = load_cifar10(Config(data_dir=str(cifar10), limit_test=500)).test
    classes = predict(trained, test.images).argmax(dim=1)
    assert (classes == torch.from_numpy(predictions["terminal"][:500]).argmax(dim=1)).sum() >= 495
    assert (classes == test.labels).double().mean() > 0.91


def test_the_network_of_the_front_page_trains(project):
    config = tiny().replace(model="my_nets.py:SmallNet", model_args={"width": 4}, epochs=1)
    history = fit(model := build_model(config), load_cifar10(config), config)
    assert len(history.rows) == 1 and model.head.in_features == 8


def test_the_parameters_of_one_run_are_a_runs():
    values = yaml.safe_load((ROOT / "parameters" / "experiment.yaml").read_text())
    assert values.keys() <= FIELDS
    config, options = (cls(**cls.among(values)) for cls in (Config, Options))
    assert config.epochs == 80 and config.augmentation and options.study == "single"


def test_every_grid_has_the_runs_that_it_is_for():
    files = {path.stem: path for path in (ROOT / "parameters").glob("*.yaml") if path.stem != "experiment"}
    runs = {name: len(distinct_runs(read_grid(path))) for name, path in files.items()}
    assert runs["published"] == runs["published_small"] == 672
    demo = read_grid(files["demo"])
    assert {cell.dataset for cell in demo} == {"auto"}, "else it ends where there is no network"
    assert {cell.model for cell in demo} == {"cnn", "resnet", "vit"}
    assert {cell.seed for cell in read_grid(files["finalists"])} == {100, 101, 102, 103, 104}


@pytest.mark.parametrize("page", ["README.md", "parameters/README.md"])
def test_the_grid_file_on_the_page_is_one(page, tmp_path):
    (tmp_path / "grid.yaml").write_text(blocks(page, "yaml")[0])
    assert len(distinct_runs(read_grid(tmp_path / "grid.yaml"))) == 12


def test_each_kept_study_has_its_command():
    assert {study(words) for words in TRAINED} == set(KEPT)


@pytest.fixture
def committed(tmp_path):
    """A function that copies a study's committed records to a folder of studies, those of its archive too."""
    def copied(name):
        for record in ROOT.glob(f"executed/{name}/*/record.json"):
            (tmp_path / name / record.parent.name).mkdir(parents=True)
            shutil.copy(record, tmp_path / name / record.parent.name)
        if (archive := ROOT / "executed" / name / "finished.tar.xz").exists():
            with tarfile.open(archive) as runs:
                runs.extractall(tmp_path / name, filter="data")
        return str(tmp_path)
    return copied


@pytest.mark.parametrize("words", TRAINED, ids=" ".join)
def test_committed_runs_count_as_done(words, committed, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    folder = Path(committed(study(words)))
    command, done = [*words[3:], "--dry-run", "--executed_dir", str(folder)], len([*folder.glob("*/*/record.json")])
    assert cli.main(command) == 0
    assert f" {done} done," in (out := capsys.readouterr().out) and done
    unfinished = study(words) == "published_small"  # which goes on from what is committed
    assert unfinished != (out.splitlines()[-1] == "nothing is left to do")
    assert cli.main([*command, "--study", "never_trained"]) == 0
    assert " 0 done," in capsys.readouterr().out and not Path(command[-1], "never_trained").exists()


@pytest.mark.parametrize("name", KEPT)
def test_the_committed_table_is_what_the_committed_records_give(name, committed, tmp_path, capsys):
    committed(name)
    assert cli.main(["runs", name, "--executed_dir", str(tmp_path)]) == 0
    table = tmp_path / name / "runs.csv"
    assert capsys.readouterr().out.splitlines()[-1] == str(table)
    assert table.read_bytes() == (ROOT / "executed" / name / "runs.csv").read_bytes()
    found, wanted = pandas.read_csv(table), set(made.table(models=("cnn",)))
    if (found["split"] == "all").all():  # nothing validated, so there are only the last weights
        wanted = {column for column in wanted if not re.search("^val_|_best_val", column)}
    assert wanted <= set(found), "no run has these"
