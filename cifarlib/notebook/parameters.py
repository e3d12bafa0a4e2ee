"""The notebooks' parameters, checked."""

import ast
import dataclasses

from ..batch.grid import decided
from ..config import Config, Options, check_names, typed
from ..errors import InputError

INJECTED = "# Parameters\n"  # how the cell begins that papermill writes below the cell of parameters
KINDS = {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}


def read_parameters(namespace: dict) -> tuple[Config, Options]:
    """The experiment notebook's parameters, checked; what it lacks has its default. namespace: its globals().

    The dataset `auto` is decided, aloud, as for a grid: runs on the stand-in have folders of their own.
    """
    values = assigned(namespace, [spec.name for cls in (Config, Options) for spec in dataclasses.fields(cls)])
    (config,) = decided([Config(**Config.among(values))], download=True)
    return config, Options(**Options.among(values))


def check_parameters(namespace: dict, *names: str) -> None:
    """Raise InputError unless the notebook's parameters are those of the `names`; make them of the types its cell says.

    namespace: the notebook's globals().
    """
    values, kinds = assigned(namespace, names), declared(namespace["In"])
    for name in names:
        if name not in values:
            raise InputError(f"parameter {name!r} is missing: the cell of parameters has to give it a value")
        if name in kinds:
            namespace[name] = typed(name, values[name], kinds[name])


def assigned(namespace: dict, known) -> dict:
    """The values of the `known` names that the notebook assigns in its cell of parameters and in the cells below.

    What an earlier state of that cell has left in the kernel doesn't count. namespace: the notebook's globals(), in
    which `In` has the cells that were executed. Raises InputError for other names in the cell of parameters or in the
    one that papermill writes below it, and if papermill's comes first, for then it does nothing.
    """
    cells = namespace.get("In", [])
    injected = [number for number, cell in enumerate(cells) if cell.startswith(INJECTED)]
    own = _cells_of_parameters(cells, known)
    if own and injected and injected[0] < own[0]:
        raise InputError("the values given to papermill don't arrive: the cell of parameters has lost its tag; give it "
                         "the tag `parameters` again (in JupyterLab: the gears at the upper right, Cell Tags)")
    first = own[-1] if own else 0
    for number in [*own, *injected]:
        if number >= first:
            check_names(assigned_names(cells[number]), known)
    names = {name for cell in cells[first:] for name in assigned_names(cell)}
    return {name: namespace[name] for name in known if name in names and name in namespace}


def _cells_of_parameters(cells: list[str], known) -> list[int]:
    """The numbers of the executed cells that declare the parameters with their types, one for each time.

    A cell that gives a type to some other variable, or to a parameter or two, isn't one of them.
    """
    counts = [len(set(known) & declared([cell]).keys()) for cell in cells]
    return [number for number, count in enumerate(counts) if count and count >= max(counts) / 2]


def declared(cells: list[str]) -> dict[str, type]:
    """The names that cells assign with a type, such as `epochs: int = 3`.

    Read from the text: from Python 3.14 on the notebook's namespace lacks them (PEP 649).
    """
    found = {node.target.id: KINDS.get(getattr(node.annotation, "id", None)) for cell in cells for node in _nodes(cell)
             if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return {name: kind for name, kind in found.items() if kind}


def assigned_names(cell: str) -> list[str]:
    """The names that a cell assigns, in their order."""
    return [node.id for node in _nodes(cell) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _nodes(cell: str) -> list[ast.AST]:
    """The parts of a cell's code; none if somebody mistyped it."""
    try:
        return list(ast.walk(ast.parse(cell)))
    except SyntaxError:
        return []
