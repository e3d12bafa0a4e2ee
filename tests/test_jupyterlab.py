"""The notebooks as a person sees them: in a real JupyterLab, run in a headless Chromium."""

import json
import os
import signal
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import yaml
from conftest import tiny
from lab_in_browser import LabInBrowser, errors, missing_programs
from PIL import Image
from services import wait_for
from test_notebooks import NOTEBOOKS, TINY, code_cells

from cifarlib import build_model, fit
from cifarlib.config import CHECKPOINTS, Config
from cifarlib.training.finish import finish_run

pytestmark = pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())} "
                                "(Debian: .ci/install_packages.sh; selenium: pip)")

EPOCHS = 4
PARAMETERS = {"experiment.ipynb": {**TINY, "epochs": EPOCHS}, "monitor.ipynb": {"seconds": 0.5},
              "predict.ipynb": {"run": "trained", "limit_test": 20, "limit_train": 40}}
CODE_CELLS = {path.name: len(code_cells(path)) for path in NOTEBOOKS}


@pytest.fixture(scope="module")
def project(tmp_path_factory, load):
    """A folder with copies of the notebooks, in whose parameters are values of the tests, a table of runs, a run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, 4)
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in PARAMETERS.get(path.name, {}).items())
        nbformat.write(notebook, folder / "notebooks" / path.name)
    config = tiny("cnn")
    splits, run = load(config), folder / "executed" / "trained" / config.run_name
    model = build_model(config)
    finish_run(model, splits, config, run, fit(model, splits, config, run))
    return folder


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    with LabInBrowser(project, tmp_path_factory.mktemp("lab")) as running:
        yield running


def test_run_all_trains_the_experiment_with_a_bar_and_a_figure_up_to_the_table(lab, project):
    lab.open("experiment.ipynb", CODE_CELLS["experiment.ipynb"])
    cells = lab.run_all()
    assert errors(cells) == []
    seen = lab.seen()
    (bar,) = lab.find(".jp-OutputArea-output .widget-hbox")
    assert bar.is_displayed()
    for epoch in range(EPOCHS + 1):
        assert any(f" {epoch}/{EPOCHS} " in text for text in seen["bars"]), f"epoch {epoch} in {seen['bars']}"
    assert len(seen["pictures"]) >= 2, "the figure of the first epoch is redrawn at the end at the latest"
    (training,) = [cell for cell in cells if any(output["kind"] == "widget" for output in cell["outputs"])]
    assert [output["kind"] for output in training["outputs"]] == ["widget", "image/png"], "one bar and one figure stay"
    assert len(lab.pictures()) == 4, "the live figure, learning curves, per-class accuracy, confusion"

    (table,) = lab.find(".jp-OutputArea-output table")
    lab.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", table)
    (record,) = (project / "executed" / "single").glob("*/record.json")
    metrics = json.loads(record.read_text())["metrics"]
    header, *rows = [[cell.text for cell in lab.find("th, td", row)] for row in lab.find("tr", table)]
    shown = {row[0]: float(row[header.index("test_accuracy")]) for row in rows}
    assert shown == {name: round(metrics[f"test_accuracy_{name}"], 4) for name in CHECKPOINTS}


def test_the_monitor_follows_a_grid_that_is_started_beside_it(lab, project):
    """Its study appears, is chosen by a click, an epoch advances while a person looks, and the stopped run is told."""
    lab.open("monitor.ipynb", CODE_CELLS["monitor.ipynb"])
    assert errors(lab.run_all()) == []
    cells_of_grid = {"fixed": Config.among({**TINY, "epochs": 500}), "rows": [{"seed": [1, 2]}]}
    (project / "watched.yaml").write_text(yaml.safe_dump(cells_of_grid))
    command = [sys.executable, "-m", "cifarlib", "grid", "watched.yaml", "--jobs", "1", "--wandb_mode", "disabled"]
    environment = {name: value for name, value in os.environ.items() if name != "CIFAR10_DIR"}
    log = project / "grid.log"
    with log.open("wb") as output:
        grid = subprocess.Popen(command, cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def option():
        return next((each for each in lab.find(".jp-OutputArea-output select option") if each.text == "watched"), None)

    def cells(state):
        """The columns of state and epoch of the runs in a state."""
        texts = lab.browser.execute_script("return Array.from(document.querySelectorAll('.monitor tr'), "
                                           "row => Array.from(row.cells, cell => cell.textContent))")
        return [row[2] for row in texts if row[1].endswith(state)]

    try:
        wait_for(option, 300, "the study in the list").click()
        (first,) = wait_for(lambda: cells("running"), 300, "a run that is being trained")
        assert first.endswith("of 500") and cells("pending") == ["0 of 500"]
        wait_for(lambda: (now := cells("running")) and now[0] != first, 300, "its next epoch")
        wait_for(lab.pictures, 120, "the curves")
    finally:
        grid.send_signal(signal.SIGINT)
        grid.wait(120)
    wait_for(lambda: cells("preempted"), 60, f"the stopped run; {log.read_text()}")
    assert errors(lab.cells()) == []


def test_predict_answers_about_a_picture_that_is_uploaded(lab, tmp_path):
    lab.open("predict.ipynb", CODE_CELLS["predict.ipynb"])
    assert errors(lab.run_all()) == []
    before = len(lab.pictures())
    assert before >= 3, "answers, neighbours, corruptions"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "mine.png")
    (tmp_path / "no.png").write_text("text")
    # The button's field is not in the page, and would open a dialog.
    lab.browser.execute_script("HTMLInputElement.prototype.click = function() { document.body.append(this); }")
    (button,) = lab.find(".jp-OutputArea-output button.jupyter-button")
    lab.browser.execute_script("arguments[0].click()", button)
    (field,) = lab.find("body > input[type=file]")
    field.send_keys(str(tmp_path / "mine.png"))
    wait_for(lambda: len(lab.pictures()) == before + 1, 120, "the answer below the button")
    field.send_keys(str(tmp_path / "no.png"))
    wait_for(lambda: any("not a picture that Pillow reads" in text for text in errors(lab.cells())), 120, "one line")
