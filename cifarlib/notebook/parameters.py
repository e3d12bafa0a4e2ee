"""The notebooks' parameters, checked."""

import ast
import dataclasses
from contextlib import suppress

from ..config import Config, Options, check_names, typed


def read_parameters(namespace: dict) -> tuple[Config, Options]:
    """The experiment notebook's parameters, checked; what it lacks has its default. namespace: its globals().

    papermill writes what it was given into a cell of its own and only warns of unknown names: here they are errors.
    """
    known = [spec.name for cls in (Config, Options) for spec in dataclasses.fields(cls)]
    check_names(injected_names(namespace.get("In", [])), known)
    return Config(**Config.among(namespace)), Options(**Options.among(namespace))


def check_parameters(namespace: dict) -> None:
    """Raise InputError for a parameter that the notebook lacks, or of another type than the notebook's own cell says.

    namespace: the notebook's globals(), in which `In` has its cells.
    """
    cells = namespace["In"]
    known = annotated_names(cells)
    check_names(injected_names(cells), known)
    for name, kind in known.items():
        typed(name, namespace[name], kind)


def annotated_names(cells: list[str]) -> dict[str, type]:
    """The names that cells assign with a type, such as `epochs: int = 3`.

    Read from the text: from Python 3.14 on the notebook's namespace lacks them (PEP 649).
    """
    kinds, found = {kind.__name__: kind for kind in (str, int, float, bool, list)}, {}
    for cell in cells:
        with suppress(SyntaxError):  # a cell that somebody mistyped
            for node in ast.parse(cell).body:
                if isinstance(node, ast.AnnAssign) and getattr(node.annotation, "id", None) in kinds:
                    found[node.target.id] = kinds[node.annotation.id]
    return found


def injected_names(cells: list[str]) -> list[str]:
    """Names assigned in the cell that papermill injected last, known by its first line."""
    injected = [cell for cell in cells if cell.startswith("# Parameters\n")][-1:]
    assignments = [node for cell in injected for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return [target.id for node in assignments for target in node.targets]
