"""The notebooks: their form, their parameters, and that they run by papermill and from JupyterLab's folder."""

import ast
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill.cli
import pytest
from conftest import tiny
from IPython.core.formatters import DisplayFormatter
from jupyter_client.manager import start_new_kernel

from cifarlib import build_model, fit
from cifarlib.batch.launch import check_notebook, execute_notebook
from cifarlib.config import Config, Options
from cifarlib.data.cifar import Archive
from cifarlib.errors import InputError
from cifarlib.notebook import live
from cifarlib.notebook.parameters import assigned_names, check_parameters, declared, read_parameters
from cifarlib.results.figures.style import new_figure
from cifarlib.results.table import read_table

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = {"dataset": "synthetic", "limit_train": 64, "limit_val": 64, "limit_test": 64, "batch_size": 32, "epochs": 2,
        "device": "cpu", "model_args": {"widths": [8, 8, 8, 8]}, "wandb_mode": "disabled"}


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def refused(path, message):
    """A notebook's code in this process ends with one line."""
    namespace = {"In": [cell.source for cell in code_cells(path)]}
    with pytest.raises(InputError) as caught:
        for source in namespace["In"]:
            exec(source, namespace)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def run_papermill(output, *arguments, notebook="notebooks/experiment.ipynb"):
    command = [sys.executable, "-m", "papermill", notebook, str(output), "--no-progress-bar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def write_notebook(folder, cells):
    path = folder / "notebooks" / "x.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=nbformat.read(NOTEBOOKS[0], 4).metadata), path)
    return path


def parameters_file(folder, **values):
    path = folder / "parameters.yaml"
    path.write_text(json.dumps({**TINY, "executed_dir": str(folder / "executed"), **values}))
    return str(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_notebooks_are_thin_and_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    parameters = declared([cell.source for cell in code_cells(path)])
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert not cell.outputs and cell.execution_count is None
        assert not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE), "it belongs in cifarlib"
        if call := re.search(r"check_parameters\(globals\(\), (.*)\)", cell.source):
            assert ast.literal_eval(call[1]) == tuple(parameters)
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(lines) <= 14
            assert not {*assigned_names(cell.source)} & {*parameters}, "a cell run again would take it for a parameter"


def test_experiment_parameters_are_the_fields_with_their_defaults():
    found = papermill.inspect_notebook(str(ROOT / "notebooks" / "experiment.ipynb"))
    fields = [*dataclasses.fields(Config), *dataclasses.fields(Options)]
    assert list(found) == [spec.name for spec in fields]
    for spec in fields:
        default = {} if spec.type is dict else spec.default
        assert eval(found[spec.name]["default"]) == default, spec.name
        assert found[spec.name]["inferred_type_name"] == spec.type.__name__
        assert found[spec.name]["help"], spec.name


CELL = 'model: str = "cnn"\nepochs: int = 3\nseed: int = 5\n'
INJECTED = '# Parameters\nmodel = "vit"\n'


def parameters_of(*cells):
    """Those of model, epochs and seed that differ from their defaults, after one kernel has executed the cells."""
    namespace = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, namespace)
    config, options = read_parameters(namespace)
    assert options == Options()
    chosen = {"model": config.model, "epochs": config.epochs, "seed": config.seed}
    return {name: value for name, value in chosen.items() if value != getattr(Config(), name)}


@pytest.mark.parametrize("cells, read", [
    ([CELL], {"model": "cnn", "epochs": 3, "seed": 5}),
    ([CELL, INJECTED, "other = 1"], {"model": "vit", "epochs": 3, "seed": 5}),
    ([CELL, "seed = 6", "scratch: int = 1", "epochs: int = 4"], {"model": "cnn", "epochs": 4, "seed": 6}),
    (["epochs = 4", CELL.replace("seed", "# seed")], {"model": "cnn", "epochs": 3}),
    ([CELL, INJECTED, "seed = 6", CELL.replace("seed", "# seed")], {"model": "cnn", "epochs": 3}),
    (["epochs = 3", 'model = "cnn"'], {"model": "cnn", "epochs": 3}),
])
def test_parameters_are_those_of_the_last_cell_of_parameters_and_of_the_cells_below(cells, read):
    assert parameters_of(*cells) == read


@pytest.mark.parametrize("cells, message", [
    ([CELL.replace("epochs", "epohcs")], "unknown parameter 'epohcs'; did you mean epochs?"),
    ([CELL, CELL + "learing_rate = 0.01"], "unknown parameter 'learing_rate'; did you mean learning_rate?"),
    ([CELL, CELL.replace("model: str", "modle")], "unknown parameter 'modle'; did you mean model?"),
    ([CELL, INJECTED + "lr = 0.1"], "unknown parameter 'lr'; did you mean learning_rate?"),
    ([INJECTED, CELL], "the cell of parameters has lost its tag"),
])
def test_parameters_that_would_be_ignored_are_refused(cells, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parameters_of(*cells)


@pytest.mark.parametrize("cell, message", [
    ("runs: str = 'x'\nrank_bye: str = 'auto'", "unknown parameter 'rank_bye'; did you mean rank_by?"),
    ("runs: str = 'x'", "parameter 'rank_by' is missing"),
])
def test_a_parameter_that_another_notebook_lacks_is_not_taken_from_before(cell, message):
    namespace = {"In": ["runs: str = 'x'\nrank_by: str = 'auto'", cell], "runs": "x", "rank_by": "auto"}
    with pytest.raises(InputError, match=re.escape(message)):
        check_parameters(namespace, "runs", "rank_by")


def test_papermill_runs_the_experiment_and_publishes_no_path_of_the_machine(tmp_path):
    arguments = "-p model resnet -p scheduler step -p split published -p softmax_in_loss True -p schedule_steps 2"
    ended = run_papermill(tmp_path / "x.ipynb", "-f", parameters_file(tmp_path, model="cnn"), *arguments.split())
    assert ended.returncode == 0, ended.stderr
    (record,) = (tmp_path / "executed" / "single").glob("*/record.json")
    config = json.loads(record.read_text())["config"]
    wanted = {"model": "resnet", "split": "published", "softmax_in_loss": True, "schedule_steps": 2}
    assert {name: config[name] for name in wanted} == wanted
    cells = code_cells(tmp_path / "x.ipynb")
    outputs = json.dumps([cell.outputs for cell in cells])
    assert outputs.count("image/png") == 3, "learning curves, per-class accuracy, confusion"
    assert "epoch 2/2" in outputs and "Python 3" in outputs and "SYNTHETIC" in outputs
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr)/", outputs)


@pytest.mark.parametrize("arguments, message", [
    ("-p lr 0.1", "unknown parameter 'lr'; did you mean learning_rate?"), ("-p model ResNet", "did you mean resnet?"),
    ("-p softmax_in_loss yes", "true or false, got 'yes'"), ("-p model_args {depth:1}", "such as {\"name\": 1}, got"),
    ("-p model none.py:Net -p model_args None", "model_args: expected a mapping"),
    ("-p dataset cifar10 -p data_dir none", "no CIFAR-10 in none"), ("-p batch_size 65", "batch_size: 65"),
    ("-p device cuda:99", "device: cuda:99 is not there"), ("-p model vit", "vit has no 'widths'"),
])
def test_what_papermill_injects_is_checked_before_training(tmp_path, arguments, message):
    """Its command writes the cells, without a kernel."""
    prepare = ["notebooks/experiment.ipynb", str(tmp_path / "x.ipynb"), "--prepare-only"]
    papermill.cli.papermill([*prepare, "-f", parameters_file(tmp_path), *arguments.split()], standalone_mode=False)
    refused(tmp_path / "x.ipynb", message)
    assert not (tmp_path / "executed").exists()


def test_explore_runs(tmp_path):
    ended = run_papermill(tmp_path / "x.ipynb", "-p", "dataset", "synthetic", notebook="notebooks/explore.ipynb")
    assert ended.returncode == 0, ended.stderr
    outputs = json.dumps([cell.outputs for cell in code_cells(tmp_path / "x.ipynb")])
    assert outputs.count("image/png") == 2
    assert all(parameters in outputs for parameters in ("13,243,146", "92,502,122", "11,186,442"))


def test_predict_answers_by_the_weights_that_come_with_the_repository(tmp_path, cifar10):
    arguments = f"-p limit_test 20 -p limit_train 40 -p tta flip -p data_dir {cifar10}".split()
    ended = run_papermill(tmp_path / "x.ipynb", *arguments, notebook="notebooks/predict.ipynb")
    assert ended.returncode == 0, ended.stderr
    outputs = json.dumps([cell.outputs for cell in code_cells(tmp_path / "x.ipynb")])
    assert outputs.count("image/png") >= 3, "answers, neighbours, corruptions; perhaps no mistake"
    assert "speednet" in outputs and "rotation" in outputs and "20 test images" in outputs


def test_interrupting_the_kernel_ends_the_training_at_an_epoch_and_run_all_goes_on(tmp_path, monkeypatch):
    """What JupyterLab's stop button does, then Run All, then Run All on the finished run; in one kernel."""
    monkeypatch.chdir(ROOT)
    manager, client = start_new_kernel(startup_timeout=120)

    def run_all(interrupt_after=None):
        """The notebook's cells one after the other up to an error; what they printed, and the error."""
        printed = []

        def on_output(message):
            content = message["content"]
            printed.append(content.get("text", "") if message["msg_type"] == "stream" else content.get("evalue", ""))
            if interrupt_after and interrupt_after in printed[-1]:
                manager.interrupt_kernel()

        for cell in code_cells(ROOT / "notebooks" / "experiment.ipynb"):
            source = cell.source
            if "parameters" in cell.metadata.get("tags", []):
                values = {**TINY, "epochs": 10, "limit_train": 512, "executed_dir": str(tmp_path)}
                source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
            reply = client.execute_interactive(source, output_hook=on_output, timeout=120)
            if reply["content"]["status"] == "error":
                break
        return "".join(printed)

    try:
        stopped = run_all(interrupt_after="epoch  2/10")
        assert "of 10; the same command goes on from there" in stopped and "epoch 10/10" not in stopped
        (folder,) = (tmp_path / "single").iterdir()
        assert json.loads((folder / "record.json").read_text())["status"] == "preempted"
        resumed = run_all()
        assert "epoch  2/10" not in resumed and "epoch 10/10" in resumed and "done after 10 epochs" in resumed
        assert read_table(str(tmp_path / "single")).rows["epochs_run"].tolist() == [10], "results.ipynb can show it"
        shown = run_all()
        assert "epoch " not in shown and "nothing was trained" in shown and "done after 10 epochs" in shown
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("spoil, last, reached, style", [
    (lambda folder, last: last.update(val_loss=-last["epoch"]), 4, "Epoch 4 of 4: validation accuracy", "success"),
    (lambda folder, last: last.update(val_loss=last["epoch"]), 3,
     "Epoch 3 of 4, no lower validation loss in 2 validations: validation accuracy", "success"),
    (lambda folder, last: (folder / "stop").touch(), 1, "Epoch 1 of 4: validation accuracy", "danger"),
    (lambda folder, last: last.update(train_loss=math.nan), 1, "Epoch 1 of 4, diverged: validation", "danger"),
], ids=["complete", "out of patience", "stopped", "diverged"])
def test_the_bar_and_the_figure_show_the_last_epoch_of_all_whatever_ended_it(spoil, last, reached, style, load,
                                                                            tmp_path, monkeypatch, capsys):
    shown, config = [], tiny(epochs=4, early_stopping_patience=2)
    monkeypatch.setenv("JPY_SESSION_NAME", "experiment.ipynb")
    monkeypatch.setattr(live, "display", lambda figure, **_: shown.append(figure))

    def train():
        with live.Live(config) as watching:
            fit(build_model(config), load(config), config, tmp_path,
                on_epoch=[lambda history: spoil(tmp_path, history.last), watching])
        return watching.bar

    bar = train()
    assert shown[-1].axes[2].lines[0].get_xdata().tolist() == [*range(1, last + 1)]
    assert shown[-1].get_suptitle().startswith(reached)
    assert bar.n == last and bar.container.children[1].bar_style == style
    if style == "success":
        shown.clear()
        assert train().container.layout.display == "none" and not shown
        assert "nothing was trained; resume = False trains a finished run anew" in capsys.readouterr().out


def test_auto_is_decided_aloud_before_a_notebook_names_its_run(tmp_path, monkeypatch, capsys):
    def no_network(archive):
        raise InputError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    monkeypatch.setattr(Archive, "download", no_network)
    namespace = {"In": ["dataset: str = 'auto'\nseed: int = 5"], "dataset": "auto", "seed": 5}
    stand_in, _ = read_parameters(namespace)
    assert capsys.readouterr().err == "cifarlib: SYNTHETIC DATA, NOT CIFAR-10, is taken: no network\n"
    monkeypatch.setattr(Archive, "download", lambda archive: tmp_path)
    genuine, _ = read_parameters(namespace)
    assert (stand_in.dataset, genuine.dataset) == ("synthetic", "cifar10")
    assert stand_in.run_name != genuine.run_name == Config(seed=5).run_name


@pytest.mark.parametrize("name, given, message", [
    ("results", {"run": "x"}, "unknown parameter 'run'; did you mean runs?"),
    ("explore", {"sed": 5}, "unknown parameter 'sed'; did you mean seed?"),
    ("results", {"runs": True}, "runs: expected text"), ("throughput", {"share": True}, "share: expected a number"),
    ("throughput", {"models": "cnn"}, "models: expected a list"), ("monitor", {"shown": 1.5}, "shown: expected a w"),
    ("predict", {"run": "nothing"}, "nothing: no such run"), ("predict", {"tta": "flp"}, "did you mean flip?"),
    ("predict", {"limit_test": -1}, "limit_test: expected at least 0"),
])
def test_the_other_notebooks_check_what_they_are_given_too(name, given, message, tmp_path):
    notebook = papermill.iorw.load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
    nbformat.write(papermill.parameterize.parameterize_notebook(notebook, given), tmp_path / "x.ipynb")
    refused(tmp_path / "x.ipynb", message)


def test_a_bad_parameter_ends_the_notebook_with_one_line_before_training(tmp_path):
    ended = run_papermill(tmp_path / "x.ipynb", "-f", parameters_file(tmp_path), "-p", "modle", "cnn")
    assert ended.returncode == 1
    outputs = [output for cell in code_cells(tmp_path / "x.ipynb") for output in cell.outputs]
    (error,) = [output for output in outputs if output.output_type == "error"]
    assert error.ename == "InputError" and len(error.traceback) == 1
    assert "unknown parameter 'modle'; did you mean model?" in error.evalue
    assert not (tmp_path / "executed").exists()


def test_batch_kernels_take_nothing_from_the_users_account(tmp_path, monkeypatch):
    """Profile, start-up files, matplotlib's settings and a kernel of the same name; the chart is there."""
    for path, content in {
            "ipython/profile_default/startup/a.py": "import torch; torch.set_default_dtype(torch.float64)",
            "start.py": "raise SystemExit", "matplotlib/matplotlibrc": "lines.linewidth: 9",
            "jupyter/kernels/python3/kernel.json": json.dumps({"argv": ["false"], "display_name": "", "language": ""}),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    account = {"IPYTHONDIR": "ipython", "PYTHONSTARTUP": "start.py", "MPLCONFIGDIR": "matplotlib",
               "JUPYTER_DATA_DIR": "jupyter", "JUPYTER_PREFER_ENV_PATH": "0", "MPLBACKEND": "agg"}
    for name, value in account.items():
        monkeypatch.setenv(name, value if value in ("0", "agg") else str(tmp_path / value))
    code = ("import torch, matplotlib.pyplot as plt\n"
            "print(torch.get_default_dtype(), plt.rcParams['lines.linewidth']); plt.plot([1, 2]);")
    monkeypatch.chdir(write_notebook(tmp_path, [nbformat.v4.new_code_cell(code)]).parent.parent)
    printed, chart = code_cells(execute_notebook("x.ipynb", {}, tmp_path / "out"))[0].outputs
    assert printed.text == "torch.float32 1.5\n" and "image/png" in chart.data


def test_charts_are_shown_whatever_backend_is_set():
    assert "image/png" in DisplayFormatter().format(new_figure(1)[0])[0]


def test_a_notebook_that_takes_no_parameters_is_refused_before_a_kernel_starts(tmp_path):
    cells = nbformat.read(ROOT / "notebooks" / "experiment.ipynb", 4).cells
    own, others = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])], cells[2:]
    for tagged in (None, others[3]):
        own[0].metadata = {}
        if tagged:
            tagged.metadata = {"tags": ["parameters"]}
        with pytest.raises(InputError, match="the cell of parameters has lost its tag"):
            check_notebook(write_notebook(tmp_path, cells), {"epochs": 1, "model": "cnn"})
    (tmp_path / "notebooks" / "x.ipynb").write_text("{")
    with pytest.raises(InputError, match="x.ipynb is no notebook"):
        check_notebook(tmp_path / "notebooks" / "x.ipynb", {})


def test_code_that_is_not_the_committed_one_is_told(tmp_path, capsys):
    cells = nbformat.read(ROOT / "notebooks" / "experiment.ipynb", 4).cells
    path = write_notebook(tmp_path, cells)
    check_notebook(path, {})  # outside git
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    own = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    own.source += "\nepochs = 3"
    cells[4].update(execution_count=1, outputs=[nbformat.v4.new_output("stream", text="x")])
    check_notebook(write_notebook(tmp_path, cells), {"epochs": 1})
    assert capsys.readouterr().err == ""
    check_notebook(write_notebook(tmp_path, [*cells, nbformat.v4.new_code_cell("scratch = 1")]), {"epochs": 1})
    assert "x.ipynb is executed as it is now: its code isn't the committed one" in capsys.readouterr().err
