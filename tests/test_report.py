"""The report without JupyterLab, and the committed one: charts and executed notebooks agree with the committed runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import results_tables as made

from cifarlib import cli
from cifarlib.batch import launch
from cifarlib.errors import InputError
from cifarlib.results import thesis
from cifarlib.results.figures.write import write_figures
from cifarlib.results.markdown import model_section, overall_section
from cifarlib.results.ranking import ranked
from cifarlib.results.sentences import range_sentence
from cifarlib.results.table import check_table, read_table

ROOT = Path(__file__).parent.parent
STUDIES = " ".join(re.findall(r"^(?:STUDIES|OTHERS) := (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)).split()
# what git keeps, whatever else was trained here
KEPT = re.findall(r"^!/executed/(\w+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
EXECUTED = [path for name in KEPT for pattern in ("*.ipynb", "*/experiment.ipynb")
            for path in sorted(ROOT.glob(f"executed/{name}/{pattern}"))]
PATHS = r"(?<![\w.:/])/(home|root|tmp|work|Users|usr|mnt|data)/"


def test_results_draws_the_charts_writes_html_and_the_readme_section(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CIFAR10_DIR", "gone")  # which only the chart with images needs
    study, readme = tmp_path / "executed" / "equal_compute", tmp_path / "README.md"
    figures, report = study / "figures", study / "beside_others"  # a study's own report stays
    table = made.table(models=("cnn", "resnet"), learning_rate=(0.001, 0.0001), weight_decay=(0.001,), gamma=(0.97,))
    made.write_study(study, table, images=200, runs=12)
    lower = table.assign(test_accuracy_best_val_acc=table["test_accuracy_best_val_acc"] - 0.01)
    other = made.write_study(tmp_path / "executed" / "other", lower, runs=0)
    readme.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    arguments = ["results", str(study / "runs.csv"), str(other), "--readme", str(readme)]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(report / "results.html")
    images = {path.name: path.read_bytes() for path in figures.iterdir()}
    assert {"cnn_top5.png", "cnn_top5.svg", "resnet_top5.png", "overall_top5.png", "comparison.png"} <= images.keys()
    assert "vit_top5.png" not in images
    page = (report / "results.html").read_text()
    assert "<img" in page and "<title>Results of equal_compute</title>" in page
    contents = re.findall(r'<a class="h\d" href="#([^"]+)">', page)
    assert {"The-best-runs", "Results-ResNet"} <= set(contents)
    assert all(f" id=\"{anchor}\"" in page for anchor in contents)
    executed = (report / "results.ipynb").read_bytes()
    assert b"From the first to the second the median difference is +1.00 points" in executed, "from the other to ours"
    assert b"Left out: cnn_wrong, resnet_wrong ($CIFAR10_DIR: no CIFAR-10 in gone;" in executed
    assert cli.main(["results", str(study / "runs.csv"), "typo.csv"]) == 2
    assert cli.main([*arguments, "--x", "epoch"]) == 2 and "did you mean epochs?" in capsys.readouterr().err
    assert (report / "results.ipynb").read_bytes() == executed
    first = readme.read_text()
    assert first.startswith("before\n") and first.endswith("after\n") and "old" not in first
    parts = ("### Results ResNet", "](executed/equal_compute/figures/cnn_top5.png)", "### Every run")
    assert all(part in first for part in parts)

    # A second time it changes nothing, also with the parameters as they stand in the notebook, and in its folder.
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    parameters = {"compare_with": ["executed/other/runs.csv"], "thesis": str(tmp_path / "thesis")}
    out = papermill.execute_notebook(ROOT / "notebooks" / "results.ipynb", None, parameters,
                                     cwd=tmp_path / "notebooks", progress_bar=False)
    outputs = [output for cell in out.cells if cell.cell_type == "code" for output in cell.outputs]
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    assert drawn == len(list(figures.glob("*.png"))) >= 11
    assert "### Results CNN" in json.dumps(outputs) and str(study) not in json.dumps(outputs)

    # For a thesis the same charts have their messages as captions.
    document, charts = tmp_path / "thesis" / "thesis.tex", list((tmp_path / "thesis" / "figures").glob("*.pdf"))
    assert {path.stem for path in charts} == {Path(name).stem for name in images}
    assert thesis.latex(range_sentence(read_table(study), "cnn")) in document.read_text()
    for chart in charts:
        assert b"/FontFile2" in chart.read_bytes() and b"/Type3" not in chart.read_bytes(), "embedded TrueType"
    said = compiled(document)
    assert not said or all(f"figures/{chart.name}" in said for chart in charts)
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == images


@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_charts_and_notebooks_show_what_the_committed_runs_give(study, tmp_path):
    table = read_table(ROOT / "executed" / study)
    known = ("Nothing validated", "under other conditions", "share another cell's run")
    assert not [note for note in table.notes if not any(text in note for text in known)], "every column is known"
    for chart in write_figures(table, tmp_path, "top5", "overall_top5", "all_runs"):
        svg = chart.with_suffix(".svg").name
        committed = (ROOT / "figures" / study / svg).read_bytes()
        assert (tmp_path / svg).read_bytes() == committed, "run `make report` and commit what it changes"
    cells = nbformat.read(ROOT / "executed" / study / "results.ipynb", 4).cells
    shown = [output.get("data", {}).get("text/markdown") for cell in cells for output in cell.get("outputs", [])]
    assert {*(model_section(table, model) for model in table.looks), overall_section(table)} <= set(shown)


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_executed_notebooks_have_outputs(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and any("image/png" in str(cell.outputs) for cell in code)
    assert path.stat().st_size < (500_000 if path.name == "experiment.ipynb" else 1_000_000)


@pytest.mark.parametrize("name", KEPT)
def test_records_tables_and_notebooks_name_no_path_of_a_machine(name):
    files = [path for kind in ("json", "csv", "ipynb") for path in ROOT.glob(f"executed/{name}/**/*.{kind}")]
    assert files and [path for path in files if re.search(PATHS, path.read_text())] == []


@pytest.mark.parametrize("code, message", [(1, "failed: broke off; see .*/.results.ipynb"), (2, "broke off")])
def test_a_notebook_that_breaks_off_leaves_the_complete_one(code, message, tmp_path, monkeypatch):
    def start(notebook, output, parameters, **streams):
        output.write_text("half of it")
        last = "cifarlib: broke off" if code == 2 else "broke off"
        return subprocess.Popen(["sh", "-c", f"echo '{last}' >&2; exit {code}"], text=True, **streams)

    monkeypatch.setattr(launch, "start_notebook", start)
    (tmp_path / "results.ipynb").write_text("all of it")
    with pytest.raises(InputError, match=message):
        launch.execute_notebook("results.ipynb", {"data_dir": ""}, tmp_path)
    assert (tmp_path / "results.ipynb").read_text() == "all of it"
    assert (tmp_path / ".results.ipynb").exists() == (code == 1)


def compiled(document: Path) -> str:
    """What LaTeX says of a document without errors; empty where there is no LaTeX."""
    if not shutil.which("pdflatex"):
        return ""
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name]
    done = subprocess.run(command, cwd=document.parent, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout.replace("\n", "")


def test_tables_for_a_thesis_are_escaped_and_fit_the_page(tmp_path, monkeypatch):
    frame = made.table(models=("cnn", "resnet"), learning_rate=(0.001, 0.0001), gamma=(0.97,))
    table = check_table(frame, name="50% of a_study & #1 {x} ~^\\")
    monkeypatch.setattr(thesis, "write_figures", lambda *_, **__: {})
    document = thesis.write_thesis(table, tmp_path, others=[check_table(frame, name="another")])
    best = pd.read_csv(tmp_path / "tables" / "cnn_top5.csv")
    assert best["Run"].tolist() == ranked(table, "cnn")["name"].head(5).tolist()
    assert "\\toprule" in (tmp_path / "tables" / "cnn_top5.tex").read_text()
    if not (said := compiled(document)):
        pytest.skip("no LaTeX")
    assert "Overfull" not in said and all(path.name in said for path in tmp_path.glob("tables/*.tex"))
