"""The commands: `python -m cifarlib train | grid | status | runs | results | predict | export | bench | pages`.

Bad input is one line on stderr and exit code 2.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from .batch.kernel import BAD_INPUT, BROKEN, OK, is_broken
from .config import VIEWS, Config, Options, checked, nearest
from .errors import InputError, Stated
from .files import RECORD, TABLE, project_path
from .parts import short_name

# The published flags; every option is also called by its Config name.
PUBLISHED_FLAGS = {
    "data_dir": ("-d", "--base_dataset_path"), "epochs": ("-e", "--num_epochs"), "batch_size": ("-b",),
    "model": ("-m", "--model_type"), "scheduler": ("-s",), "augmentation": ("-a", "--data_augmentation"),
    "learning_rate": ("-l",), "weight_decay": ("-w",), "gamma": ("-g",), "val_freq": ("-f",),
    "early_stopping_patience": ("-p",),
}


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, but for those that are no value."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse that shows defaults, has one line for an error, and takes no abbreviations.

    slurm/common.sh refuses --no-resume, which it knows by its full name.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=Help, **options)

    def parse_known_args(self, *arguments):
        """As argparse's, with an error for what is unknown that names a known option like it."""
        options, unknown = super().parse_known_args(*arguments)
        if unknown:
            known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
            near = unknown[0].startswith("-") and nearest(unknown[0].strip("-").partition("=")[0], known)
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f" (did you mean --{near}?)" if near else ""))
        return options, unknown

    def error(self, message: str):
        self.exit(BAD_INPUT, f"cifarlib: {message}; see `{self.prog} --help`\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        options = make_parser().parse_args(arguments)
        return options.command(options)
    except Stated as error:
        text = str(error)
    except (ImportError, OSError) as error:
        if is_broken(type(error).__name__, str(error)):
            text = BROKEN.format(error)
        else:
            text = (f"{error.filename or 'output'}: {error.strerror or error}; it can't be written or read: "
                    "is it yours, is there room?")
    print(f"cifarlib: {text}", file=sys.stderr)
    return BAD_INPUT


def make_parser() -> Parser:
    """The parser of all commands; each sets `command` to the function that runs it."""
    parser = Parser(prog="python -m cifarlib", description="CIFAR-10 research workbook: runs, grids, tables, charts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(run, **texts) -> Parser:
        command = commands.add_parser(run.__name__, **texts)
        command.set_defaults(command=run)
        return command

    command = add(train, help="train and test one run",
                  description="Execute the experiment notebook by papermill; the last line printed is the run folder.")
    add_fields(command, Config)
    add_fields(command, Options)
    command.add_argument("--dry-run", action="store_true", help="only check the values and print the run folder")

    command = add(grid, help="train the runs of a grid file",
                  description="Train every run of a grid; what is done is skipped, what was cut off goes on.")
    command.add_argument("file", help="a grid file such as parameters/demo.yaml")
    command.add_argument("--jobs", type=whole, default=0, help="runs at a time; 0: as many as there is room for")
    command.add_argument("--only", default="", metavar="NAME=VALUE,...", help="only the cells with these values")
    command.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    command.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    command.add_argument("--halving", type=lambda text: whole(text, 2), default=0, metavar="RATE",
                         help="at each rung only the best RATEth of each model's runs goes on; 0: all do")
    command.add_argument("--chunk", default="1/1", metavar="I/N", help="every Nth run from the Ith, for one of N tasks")
    command.add_argument("--no-wait", action="store_true", help="end without waiting for runs that other runners train")
    command.add_argument("--dry-run", action="store_true", help="only print what there is to do")
    command.add_argument("--write-sets", metavar="DIR", help="only write the cells as grid files of 50 each into DIR")
    add_fields(command, Options, skip=("study",), checkpoints="best")  # all of the published grid would be 300 GB
    command.add_argument("--study", help="the study's name; by default the file's")
    add_fields(command, Config, overrides=True)

    command = add(status, help="show how a study stands")
    command.add_argument("study", nargs="?", default="", help="the study's name; without one, a line for each study")
    command.add_argument("--watch", action="store_true", help="refresh every few seconds until Ctrl-C")

    command = add(runs, help="rebuild the table of runs from the run folders")
    command.add_argument("study", nargs="?", default=Options.study, help="the study's name")

    command = add(results, help="draw the charts of a table of runs",
                  description="Execute the results notebook for a table; the last line printed is the HTML report.")
    command.add_argument("tables", nargs="*", metavar="STUDY", help="a study's name, or the file of a table; "
                         "further ones are laid over the first")
    command.add_argument("--runs", metavar="FILE", help="runs.csv, or a table in the published format: the first one")
    command.add_argument("--figures", default="", metavar="DIR", help="folder for the charts; empty: beside the table")
    command.add_argument("--rank-by", default="auto", metavar="COLUMN", help="column that ranks; auto: by validation")
    command.add_argument("--study", default="", help="only the rows of this study")
    command.add_argument("--x", default="minutes", metavar="NAME", help="what accuracies stand against in a chart: "
                         "minutes, parameters, flop or a field of the runs")
    command.add_argument("--titles", action=argparse.BooleanOptionalAction, default=True,
                         help="have the charts' messages in the images")
    command.add_argument("--thesis", default="", metavar="DIR", help="write all charts as PDF and all tables as CSV "
                         "and LaTeX to this folder, too")
    command.add_argument("--report", default="", metavar="DIR", help="folder for notebook and HTML; empty: the table's")

    weights = {"metavar": "RUN", "help": "a run's folder, a study (its best run by validation), a file of weights, or "
                                         "speednet for those that come with the package"}
    command = add(predict, help="classify pictures by a trained model",
                  description="Print the three likeliest classes of each picture. Its shorter side is resized to 32 "
                              "pixels, and the middle is taken.")
    command.add_argument("run", **weights)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a PNG, JPEG or other file that Pillow reads")
    command.add_argument("--tta", default="none", choices=VIEWS, help="views of an image that are averaged")
    command.add_argument("--json", action="store_true", help="print all probabilities, as JSON")

    command = add(export, help="write a trained model for other programs",
                  description="Write a model that maps RGB images, uint8 (N, 3, 32, 32), to probabilities, or its "
                              "weights alone (safetensors). The last line printed is the file.")
    command.add_argument("run", **weights)
    command.add_argument("--format", required=True, choices=("onnx", "torchscript", "safetensors"))
    command.add_argument("--output", default="", metavar="FILE", help="file; empty: the model's name, here")

    command = add(bench, help="measure how fast this machine trains",
                  description="Execute the throughput notebook; the last line printed is the file of the measurements.")
    command.add_argument("--models", default="cnn,resnet,vit", metavar="NAME,...", help="models to measure")
    command.add_argument("--rounds", type=lambda text: whole(text, 1), default=5, help="times that each is measured")
    command.add_argument("--share", type=float, default=1.0, help="part of the usual number of images a round")
    command.add_argument("--dataset", default="cifar10", help="cifar10, synthetic or auto")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    command.add_argument("--folder", default="executed/bench", metavar="DIR", help="folder for the measurements")
    command.add_argument("--figures", default="", metavar="DIR", help="folder for the chart; empty: the measurements'")
    command.add_argument("--no-measure", action="store_true", help="take the measurements that are there already")

    command = add(pages, help="rewrite the tables of this project's pages from code and committed runs")
    command.add_argument("studies", nargs="+", metavar="STUDY", help="a folder in executed/, for the front page")
    command.add_argument("--compare-with", default="", metavar="FILE", help="a second table, for the studies' pages")

    for name in ("status", "runs", "results"):
        commands.choices[name].add_argument("--executed_dir", default=Options.executed_dir,
                                            help="folder of all studies")
    for name, section in (("results", "results"), ("bench", "throughput")):
        command = commands.choices[name]
        command.add_argument("-d", "--data_dir", default="", help="folder of CIFAR-10")
        command.add_argument("--readme", default="", metavar="FILE", help="rewrite a section of this file")
        command.add_argument("--section", default=section, metavar="NAME", help="section after <!-- NAME:begin -->")
    return parser


def add_fields(parser: Parser, cls: type, skip: tuple[str, ...] = (), overrides: bool = False, **defaults) -> None:
    """An option for every field of a dataclass; as `overrides` they replace what a grid file says, and have no default.

    defaults: those that differ from the dataclass's.
    """
    group = parser.add_argument_group("set for every run, over what the file says") if overrides else parser
    for spec in dataclasses.fields(cls):
        if spec.name in skip:
            continue
        help, default = spec.metadata["help"], {} if spec.type is dict else defaults.get(spec.name, spec.default)
        if overrides:
            default = argparse.SUPPRESS
        elif default is None:
            help, default = f"{help} (default: the protocol's)", argparse.SUPPRESS
        if spec.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        else:
            values = spec.metadata["choices"] or ["JSON" if spec.type is dict else spec.type.__name__.upper()]
            kind = {"type": partial(checked, spec=spec), "metavar": "|".join(values)}
        flags = *PUBLISHED_FLAGS.get(spec.name, ()), f"--{spec.name}"
        group.add_argument(*flags, dest=spec.name, default=default, help=help, **kind)
        if spec.name == "checkpoints":
            group.add_argument("--no-checkpoints", dest=spec.name, action="store_const", const="none",
                               default=argparse.SUPPRESS, help="the same as --checkpoints none")


def whole(text: str, minimum: int = 0) -> int:
    """A whole number, `minimum` or more."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"expected a whole number from {minimum}, got {text!r}")
    return int(text)


def train(arguments: argparse.Namespace) -> int:
    config, options = (cls(**cls.among(vars(arguments))) for cls in (Config, Options))
    from .batch.grid import decided, distinct_runs, fetch_data
    from .batch.resources import Slots
    from .batch.runner import Stopping, check_runs, run_all, wanted

    (config,) = decided([config], download=not arguments.dry_run)
    runs = distinct_runs([config])
    check_runs(runs, options)
    if not arguments.dry_run:
        fetch_data([run.config for run in runs if wanted(run, options, retry_failed=True)])
        with Stopping() as stopping:
            code = run_all(runs, options, Slots(1, 0, ()), stopping, retry_failed=True, echo=echo, warm=False)
        if code == BAD_INPUT:
            return code
    print(options.run_folder(config))
    return OK if arguments.dry_run else code


def echo(line: str) -> None:
    """Pass on a line that a run printed."""
    print(line, end="", flush=True, file=sys.stderr if line.startswith("cifarlib: ") else sys.stdout)


def grid(arguments: argparse.Namespace) -> int:
    from .batch.grid import chunk, decided, distinct_runs, fetch_data, read_grid, select, write_sets
    from .batch.halving import check_halving, halving_text, run_halving
    from .batch.resources import Slots
    from .batch.runner import ALIKE, Stopping, check_runs, run_all, wanted

    cells = select(read_grid(arguments.file, Config.among(vars(arguments))), arguments.only)
    if arguments.write_sets:
        print(*write_sets(cells, project_path(arguments.write_sets)), sep="\n")
        return 0
    options = Options(**{**Options.among(vars(arguments)), "study": arguments.study or Path(arguments.file).stem})
    runs = chunk(distinct_runs(decided(cells, download=not arguments.dry_run)), arguments.chunk)
    left = [run for run in runs if wanted(run, options, arguments.retry_failed)]
    slots = Slots.of_this_machine(arguments.jobs, [run.config for run in left] or [Config()])
    check_runs(runs, options)
    if arguments.halving:
        if arguments.chunk != "1/1":
            raise InputError("--halving compares all runs of a grid, of which --chunk has a part; let several runners "
                             "share the grid instead")
        check_halving(runs, options, arguments.halving)
    if arguments.dry_run:
        print(forecast(runs, left, options, slots.jobs))
        if arguments.halving:
            print(halving_text(runs, arguments.halving))
        return 0
    fetch_data([run.config for run in left])
    train_all = partial(run_halving, rate=arguments.halving) if arguments.halving else run_all
    with Stopping(1 if arguments.fail_fast else ALIKE) as stopping:
        code = train_all(runs, options, slots, stopping, retry_failed=arguments.retry_failed,
                         wait_for_others=not arguments.no_wait)
    if (table := project_path(options.executed_dir) / options.study / TABLE).exists():
        print(table)
    return code


def forecast(runs, left, options: Options, jobs: int) -> str:
    """What a grid amounts to: the names of the runs `left`, how all runs stand, and the time that those may take."""
    from .runs.study import rest, standing

    folders = {run.label: options.run_folder(run.config) for run in runs}
    alone = {label: folder for label, folder in folders.items() if label not in (run.label for run in left)}
    cells = sum(len(run.cells) for run in runs)
    counts = f"{cells} cell{'s' * (cells != 1)}, {len(runs)} distinct run{'s' * (len(runs) != 1)}"
    study = project_path(options.executed_dir) / options.study
    return "\n".join([*(run.label for run in left), f"{counts}: {standing(folders.values())}",
                      *rest(alone, [run.config for run in left], study, jobs, options.resume)])


def status(arguments: argparse.Namespace) -> int:
    from .runs.study import overview, summary

    folder = project_path(arguments.executed_dir)
    try:
        while True:
            try:
                text = summary(folder / arguments.study) if arguments.study else overview(folder)
            except InputError as error:
                if not arguments.watch:
                    raise
                text = str(error)  # perhaps the first run has not begun
            print("\033[H\033[J" + text if arguments.watch and sys.stdout.isatty() else text, flush=True)
            if not arguments.watch:
                return 0
            time.sleep(5)
    except KeyboardInterrupt:
        return 0


def runs(arguments: argparse.Namespace) -> int:
    from .runs.study import no_runs, write_table

    study = project_path(arguments.executed_dir) / arguments.study
    table = write_table(study)
    if not any(study.glob(f"*/{RECORD}")):
        raise no_runs(study)
    print(table)
    return 0


def results(arguments: argparse.Namespace) -> int:
    from .results.markdown import readme_section, rewrite_between_markers
    from .results.report import make_report
    from .results.table import read_table

    names = ("figures", "rank_by", "study", "x", "titles", "thesis", "data_dir")
    tables = [table_of(table, arguments.executed_dir) for table in arguments.tables]
    if arguments.runs:
        tables.insert(0, arguments.runs)
    if not tables:
        raise InputError("results: expected a study's name or the file of a table; see `python -m cifarlib status`")
    runs, *others = tables
    parameters = {"runs": runs, "compare_with": others, **{name: getattr(arguments, name) for name in names}}
    report = make_report(parameters, arguments.report)
    if arguments.readme:
        from .results.figures.write import further_charts

        table, page = read_table(runs, arguments.rank_by, arguments.study), project_path(arguments.readme)
        figures = project_path(arguments.figures) if arguments.figures else table.folder / "figures"
        link, runs_link = (os.path.relpath(folder, page.parent) for folder in (figures, table.folder))
        text = readme_section(table, link, runs_link)
        rewrite_between_markers(page, arguments.section, f"{text}\n\n{further_charts(text, figures, link)}")
    print(report)
    return 0


def table_of(given: str, executed_dir: str) -> str:
    """The table that somebody names: the folder of a study, or a file."""
    from .runs.study import no_runs

    study = Path(executed_dir) / given
    if project_path(study).is_dir():
        return str(study)
    if not project_path(given).exists() and not given.endswith(".csv"):
        raise no_runs(project_path(study))
    return given


def predict(arguments: argparse.Namespace) -> int:
    from . import trained

    model, pictures, code = trained.load_model(arguments.run), {}, OK
    for image in arguments.images:
        try:
            pictures[image] = trained.as_tensor(image)
        except InputError as error:  # the others are answered
            print(f"cifarlib: {error}", file=sys.stderr)
            code = BAD_INPUT
    rows = trained.predict(model, pictures.values(), arguments.tta).tolist() if pictures else []
    answers = {image: dict(zip(model.classes, row)) for image, row in zip(pictures, rows)}
    if arguments.json:
        print(json.dumps(answers, indent=1))
        return code
    for image, chances in answers.items():
        likeliest = sorted(chances, key=chances.get, reverse=True)[:3]
        print(f"{image:{max(map(len, answers))}}", *(f"{name} {chances[name]:.1%}" for name in likeliest), sep="  ")
    return code


def export(arguments: argparse.Namespace) -> int:
    from . import trained
    from .export import export

    model = trained.load_model(arguments.run)
    path = arguments.output or f"{short_name(model.config.model)}.{arguments.format}"
    print(export(model, arguments.format, path))
    return 0


def bench(arguments: argparse.Namespace) -> int:
    from .batch.launch import execute_notebook
    from .bench.report import readme_section
    from .results.markdown import rewrite_between_markers

    path = project_path(arguments.folder) / "throughput.json"
    if not arguments.no_measure:
        names = ("rounds", "share", "dataset", "data_dir", "device", "figures")
        parameters = {name: getattr(arguments, name) for name in names}
        parameters |= {"models": arguments.models.split(","), "output": str(path)}
        execute_notebook("throughput.ipynb", parameters, project_path(arguments.folder))
    try:
        section = readme_section(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: no measurements there; take them first, without --no-measure")
    if arguments.readme:
        rewrite_between_markers(project_path(arguments.readme), arguments.section, section)
    print(path)
    return 0


def pages(arguments: argparse.Namespace) -> int:
    from .results.pages import rewrite_pages

    rewrite_pages(arguments.studies, PUBLISHED_FLAGS, arguments.compare_with)
    return 0
