"""Grids of runs as data: a YAML file with fixed values, a product of lists, or explicit rows.

    fixed:            # values that every run has
      epochs: 80
    product:          # every combination, the last list fastest
      model: [resnet, cnn, vit]
      gamma: [0.95, 0.97, 0.99]
    rows:             # or explicit runs; with a product, each row is combined with all of it
      - {model: cnn, learning_rate: 1.0e-4, seed: [100, 101, 102]}   # a list in a row is a small product of its own
"""

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..config import Config, Options, check_names, checked, names_apart, parted
from ..data.cifar import available
from ..errors import InputError
from ..files import project_path, replacing
from ..parts import DATASETS, load

SECTIONS = {"fixed": dict, "product": dict, "rows": list}


class _Loader(yaml.SafeLoader):
    """YAML that refuses what it would read as something else without a word: a name given twice, 010 for 8, 1:30."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]  # as written: values that `<<` brings in may be replaced
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        value = super().construct_yaml_int(node)
        if not re.fullmatch(r"[+-]?(0|[1-9][\d_]*)", node.value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} would be {value}; write that, or quotes",
                                                    node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


@dataclass(frozen=True)
class Run:
    """One training run and the grid cells that it stands for (cells whose difference does nothing share one).

    label: its name without what all runs of the grid share.
    """

    config: Config
    cells: tuple[Config, ...]
    label: str = ""

    @property
    def name(self) -> str:
        return self.config.run_name


def read_grid(path: str | Path, overrides: dict | None = None) -> list[Config]:
    """The cells of a grid file in order, each with the `overrides`.

    Raises InputError for a file that isn't one, or values that don't fit.
    """
    try:
        content = yaml.load(project_path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); expected a grid file such as parameters/demo.yaml")
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that isn't one
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())})")
    if not isinstance(content, dict) or not content or content.keys() - SECTIONS.keys():
        raise InputError(f"{path}: expected the sections {', '.join(SECTIONS)} and nothing else")
    fixed, product, rows = (content.get(name, kind()) for name, kind in SECTIONS.items())
    if not isinstance(rows, list):
        raise InputError(f"{path}: rows should be a list of mappings")
    for name, values in (("fixed", fixed), ("product", product), *(("each of the rows", row) for row in rows)):
        if not isinstance(values, dict):
            raise InputError(f"{path}: {name} should be a mapping of names to values")
    empty = [name for name, value in content.items() if not value]
    if empty := empty or [name for values in (product, *rows) for name, value in values.items() if value == []]:
        raise InputError(f"{path}: {empty[0]} is a list without values; give it one, or leave it out")
    cells = [{**fixed, **cell} for row in rows or [{}] for cell in _combinations({**product, **row})]
    if option := next((name for name in Options.among(cells[0])), None):
        raise InputError(f"{path}: {option} is an option for the whole grid; give it as --{option}")
    return [Config.from_dict({**cell, **(overrides or {})}) for cell in cells]


def _combinations(values: dict) -> list[dict]:
    """Every combination of the lists among `values`, the last fastest."""
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    return [dict(zip(values, combination)) for combination in itertools.product(*lists)]


def decided(cells: list[Config], download: bool) -> list[Config]:
    """The cells with what the dataset `auto` is here in its place: names of runs, and the runs, differ by their images.

    download: False takes it for granted that CIFAR-10 could be downloaded.
    """
    folders = {cell.data_dir for cell in cells if cell.dataset == "auto"}
    found = {folder: available(folder) if download else "cifar10" for folder in folders}
    return [cell.replace(dataset=found[cell.data_dir]) if cell.dataset == "auto" else cell for cell in cells]


def fetch_data(configs: list[Config]) -> None:
    """Have the files of the runs' datasets downloaded, in sight, and verified before any run starts.

    Raises InputError if they can't be had, or are damaged.
    """
    for dataset, data_dir in {(config.dataset, config.data_dir) for config in configs}:
        if DATASETS[dataset].locate:
            load(DATASETS[dataset].reader)(data_dir)


def distinct_runs(cells: list[Config]) -> list[Run]:
    """The runs that a grid needs: cells that are equal, or differ only in what does nothing, share one.

    Raises InputError for different runs of one name, which would share a folder.
    """
    groups: dict[str, list[Config]] = {}
    for cell in cells:
        groups.setdefault(cell.run_name, []).append(cell)
    for name, (first, *others) in groups.items():
        for one, two in ((first.identity(), other.identity()) for other in others):
            if field := next((field for field in one if one[field] != two.get(field)), None):
                raise InputError(f"two different runs would be called {name}: their {field} is {one[field]!r} and "
                                 f"{two.get(field)!r}; rename one, or make two studies of them")
    labels = names_apart([group[0] for group in groups.values()])
    return [Run(group[0], tuple(group), label) for group, label in zip(groups.values(), labels)]


def select(cells: list[Config], wanted: str) -> list[Config]:
    """The cells that match `wanted`, such as `model=cnn,scheduler=step`.

    Raises InputError for unknown names, values that no run can have, and values that none of the cells has.
    """
    conditions = [part.partition("=") for part in parted(wanted)]
    specs = {spec.name: spec for spec in dataclasses.fields(Config)}
    check_names([name for name, _, _ in conditions], specs)
    values = [(name, checked(text, specs[name])) for name, _, text in conditions]
    chosen = [cell for cell in cells if all(getattr(cell, name) == value for name, value in values)]
    if not chosen:
        there = {name: ", ".join(dict.fromkeys(str(getattr(cell, name)) for cell in cells)) for name, _ in values}
        raise InputError(f"--only {wanted}: no cell of the grid matches; there "
                         + "; ".join(f"{name} is {values}" for name, values in there.items()))
    return chosen


def chunk(runs: list[Run], fraction: str) -> list[Run]:
    """Every Nth run from the Ith for "I/N": the chunks of all I are disjoint, and each has its part of every model."""
    first, _, step = fraction.partition("/")
    if not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise InputError(f"--chunk: expected I/N with I from 1 to N, such as 2/20, got {fraction!r}")
    return runs[int(first) - 1::int(step)]


SET_SIZE = 50  # cells in a published set


def write_sets(cells: list[Config], folder: Path) -> list[Path]:
    """The cells in sets of 50, `set_01.yaml` onwards: grid files of rows; values that all cells share stand once."""
    folder.mkdir(parents=True, exist_ok=True)
    default, given = Config().given, [cell.given for cell in cells]
    varied = [name for name in default if any(values[name] != given[0][name] for values in given)]
    fixed = {name: value for name, value in given[0].items()
             if name not in varied and (value != default[name] or name in ("epochs", "batch_size"))}
    head = yaml.safe_dump({"fixed": fixed}, sort_keys=False)
    paths = []
    for first in range(0, len(cells), SET_SIZE):
        rows = [{name: values[name] for name in varied} for values in given[first:first + SET_SIZE]]
        lines = [yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=200).strip() for row in rows]
        paths.append(folder / f"set_{len(paths) + 1:02}.yaml")
        with replacing(paths[-1]) as part:
            part.write_text(f"# Cells {first + 1} to {first + len(rows)} of the grid; generated, see README.md.\n"
                            f"{head}rows:\n" + "".join(f"  - {line}\n" for line in lines))
    return paths
